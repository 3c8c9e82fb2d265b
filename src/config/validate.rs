//! What values have to do with each other, once each of them is fine by itself. Called by `parse` alone; pure.

use std::{collections::HashMap, net::SocketAddr};

use super::{
    Config, Problem, Service,
    yaml::{self, Kind, Node},
};

/// Every problem between values; `document` says where they stand.
pub(super) fn problems(config: &Config, document: &Node) -> Vec<Problem> {
    let mut problems = addresses(config, document);
    problems.extend(proofs(config, document));
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
            problems.push(at_path(document, &at, format!("{message}; choose another port")));
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
        at_path(document, &format!("listeners[{i}].tls.acme"), message.to_owned())
    };
    asking.map(nowhere).collect()
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
            problems.push(at_path(document, &at, message));
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
                problems.push(at_path(document, &at, message));
            }
        }
    }
    problems
}

/// A problem at a path of a valid text, with its line and column. For the controller, which finds problems that no text shows.
pub(crate) fn located(text: &str, at: &str, message: String) -> Problem {
    let nowhere = Problem { at: at.to_owned(), line: None, column: None, message: message.clone() };
    yaml::parse(text).ok().flatten().map_or(nowhere, |document| at_path(&document, at, message))
}

/// A problem at a path, with the place that the path leads to.
fn at_path(document: &Node, at: &str, message: String) -> Problem {
    let mut node = Some(document);
    for step in at.split('.') {
        let (key, index) = match step.split_once('[') {
            Some((key, index)) => (key, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (step, None),
        };
        let next = node.and_then(|node| node.get(key));
        node = match (next, index) {
            (Some(Node { kind: Kind::Sequence(items), .. }), Some(index)) => items.get(index),
            (next, _) => next,
        };
    }
    match node {
        Some(node) => Problem::at(at, node.place, message),
        None => Problem { at: at.to_owned(), line: None, column: None, message },
    }
}
