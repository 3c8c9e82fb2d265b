//! What values have to do with each other, once each of them is fine by itself. Called by `parse` alone; pure.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Component, PathBuf},
};

use super::{Acme, Config, Problem, Service, yaml::Node};

/// Every problem between values; `document` says where they stand.
pub(super) fn problems(config: &Config, document: &Node) -> Vec<Problem> {
    let mut problems = addresses(config, document);
    problems.extend(proofs(config, document));
    problems.extend(certificates(config, document));
    problems.extend(orders(config, document));
    problems.extend(routes(config, document));
    for (name, service) in &config.services {
        problems.extend(shared_peers(name, service, document));
    }
    problems
}

/// Two sockets cannot listen in one place; 0.0.0.0 is everywhere, and so is [::], for IPv4 as well.
fn addresses(config: &Config, document: &Node) -> Vec<Problem> {
    let mut taken: Vec<(String, SocketAddr)> = Vec::new();
    let mut problems = Vec::new();
    let listeners =
        config.listeners.iter().enumerate().map(|(i, listener)| (format!("listeners[{i}].address"), listener.address));
    for (at, address) in listeners.chain([("admin.address".to_owned(), config.admin.address)]) {
        if let Some((other, known)) = taken.iter().find(|(_, known)| overlap(*known, address)) {
            let message = if *known == address {
                format!("{address} is taken by {other}")
            } else {
                format!("{address} is taken by {other}, {known}")
            };
            problems.push(located(document, &at, format!("{message}; choose another port")));
        }
        taken.push((at, address));
    }
    problems
}

/// An authority asks for its proof over plain HTTP.
fn proofs(config: &Config, document: &Node) -> Vec<Problem> {
    if config.listeners.iter().any(|listener| listener.tls.is_none()) {
        return Vec::new();
    }
    let asks = |(_, listener): &(usize, &super::Listener)| listener.tls.as_ref().is_some_and(|tls| tls.acme.is_some());
    let asking = config.listeners.iter().enumerate().filter(asks);
    let nowhere = |(i, _)| {
        let message = "needs a listener without tls, which the authority reaches as port 80; add: - address: 0.0.0.0:80";
        located(document, &format!("listeners[{i}].tls.acme"), message.to_owned())
    };
    asking.map(nowhere).collect()
}

/// A client gets one certificate for a name, so a second one for it would never be shown, or never be stored.
fn certificates(config: &Config, document: &Node) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (i, tls) in config.listeners.iter().enumerate().filter_map(|(i, listener)| Some((i, listener.tls.as_ref()?))) {
        for (j, pair) in tls.certificates.iter().enumerate() {
            let Some(first) = tls.certificates.iter().position(|known| known.certificate == pair.certificate).filter(|f| *f < j)
            else {
                continue;
            };
            let at = format!("listeners[{i}].tls.certificates[{j}].certificate");
            let message = format!("{} is there twice, first in certificates[{first}]; keep one", pair.certificate.display());
            problems.push(located(document, &at, message));
        }
        let names = tls.acme.iter().flat_map(|acme| &acme.names).enumerate().collect::<Vec<_>>();
        for (j, name) in &names {
            if names.iter().any(|(k, known)| known == name && k < j) {
                let at = format!("listeners[{i}].tls.acme.names[{j}]");
                problems.push(located(document, &at, format!("{name} is there twice; keep one")));
            }
        }
    }
    problems
}

/// Two listeners that order certificates for overlapping names into one store would take turns to replace each other's.
fn orders(config: &Config, document: &Node) -> Vec<Problem> {
    let acme = config.listeners.iter().enumerate().filter_map(|(i, listener)| Some((i, listener.tls.as_ref()?.acme.as_ref()?)));
    let acme: Vec<_> = acme.collect();
    let mut problems = Vec::new();
    for (position, (i, this)) in acme.iter().enumerate() {
        let at = format!("listeners[{i}].tls.acme");
        for (j, other) in acme.iter().take(position).filter(|(_, other)| shares_store(this, other)) {
            if (&this.directory, &this.contact, &this.ca) != (&other.directory, &other.contact, &other.ca) {
                let message = format!(
                    "shares its account with listeners[{j}].tls.acme; use the same directory, contact and ca, or another store"
                );
                problems.push(located(document, &at, message));
            }
            let common = this.names.iter().find(|name| other.names.contains(name)).filter(|_| this.names != other.names);
            if let Some(name) = common {
                let message = format!(
                    "{name} is in listeners[{j}].tls.acme.names as well, with other names; write the same list in both, or \
                     {name} in one of them"
                );
                problems.push(located(document, &format!("{at}.names"), message));
            }
        }
    }
    problems
}

/// In one store, certificates are apart by the host of their authority.
fn shares_store(a: &Acme, b: &Acme) -> bool {
    let parts = |acme: &Acme| {
        let store = acme.store.components().filter(|component| *component != Component::CurDir).collect::<PathBuf>();
        (store, acme.directory.split('/').nth(2).map(str::to_owned))
    };
    parts(a) == parts(b)
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || everywhere(a, b) || everywhere(b, a))
}

/// Two services cannot take the same requests.
fn routes(config: &Config, document: &Node) -> Vec<Problem> {
    let mut taken: HashMap<(&str, &str), &str> = HashMap::new();
    let mut problems = Vec::new();
    for (name, service) in &config.services {
        let hosts: Vec<&str> =
            if service.hosts.is_empty() { vec![""] } else { service.hosts.iter().map(String::as_str).collect() };
        for (i, host) in hosts.into_iter().enumerate() {
            let Some(other) = taken.insert((host, &service.path_prefix), name) else { continue };
            let (host, at) = match host {
                "" => ("any host".to_owned(), format!("services.{name}")),
                host => (host.to_owned(), format!("services.{name}.hosts[{i}]")),
            };
            let message = if other == name {
                format!("{host} is there twice; keep one")
            } else {
                format!(
                    "{host} with path_prefix {} is taken by services.{other}; give one of them other hosts or another path_prefix",
                    service.path_prefix
                )
            };
            problems.push(located(document, &at, message));
        }
    }
    problems
}

/// A peer in two pools would be stopped with either of them.
fn shared_peers(name: &str, service: &Service, document: &Node) -> Vec<Problem> {
    let mut taken = HashMap::new();
    let mut problems = Vec::new();
    for (pool_name, pool) in &service.pools {
        for (i, peer) in pool.peers.iter().enumerate() {
            if let Some(other) = taken.insert(&peer.address, pool_name).filter(|other| *other != pool_name) {
                let at = format!("services.{name}.pools.{pool_name}.peers[{i}]");
                let message = format!(
                    "{} is in pool {other} as well; a peer belongs to one pool, or stopping one would stop both",
                    peer.address
                );
                problems.push(located(document, &at, message));
            }
        }
    }
    problems
}

/// A problem at a path, with the place that the path leads to.
fn located(document: &Node, at: &str, message: String) -> Problem {
    match document.at(at) {
        Some(node) => Problem::at(at, node.place, message),
        None => Problem::new(at, message),
    }
}
