//! Validates relations between keys whose single values are valid. Called only by `parse`; pure.

use std::{
    borrow::Cow,
    collections::HashMap,
    net::SocketAddr,
    path::{Component, PathBuf},
};

use super::{
    Acme, Balance, Config, HealthCheck, Listener, Problem, Protocol, Service,
    reader::{Aside, nearest, shown},
    yaml::{Kind, Node},
};
use crate::route::normal_prefix;

/// Returns every problem between keys. `document` has their places; `aside` has the nodes that were left out because of a
/// problem.
pub(super) fn problems(config: &Config, document: &Node, aside: &Aside) -> Vec<Problem> {
    let root = Spot { at: String::new(), node: Some(document), aside };
    let mut problems = addresses(config, &root);
    problems.extend(challenges(config, &root));
    problems.extend(orders(config, &root));
    problems.extend(routes(config, &root));
    for (i, listener) in config.listeners.iter().enumerate() {
        let spot = root.key("listeners").item(i);
        problems.extend(tls(listener, &spot));
        problems.extend(certificates(listener, &spot.key("tls")));
    }
    for (name, service) in &config.services {
        let spot = root.key("services").key(name);
        problems.extend(active(service, &spot));
        problems.extend(peers(service, &spot.key("pools")));
        problems.extend(health_check(&service.health_check, &spot.key("health_check")));
        problems.extend(upstream(service, &spot.key("upstream")));
        problems.extend(hash(service, &spot));
    }
    problems
}

/// The path of a value, and its node if the file has it.
struct Spot<'a> {
    at: String,
    node: Option<&'a Node>,
    aside: &'a Aside,
}

impl Spot<'_> {
    fn key(&self, name: &str) -> Self {
        let dot = if self.at.is_empty() { "" } else { "." };
        Self { at: format!("{}{dot}{name}", self.at), node: self.node.and_then(|node| node.get(name)), aside: self.aside }
    }

    /// The item at this index of the deserialized list, which does not contain the nodes in `aside`.
    fn item(&self, index: usize) -> Self {
        let items = match self.node.map(|node| &node.kind) {
            Some(Kind::Sequence(items)) => items.as_slice(),
            _ => &[],
        };
        let read = items.iter().enumerate().filter(|(_, node)| !self.aside.contains(&std::ptr::from_ref(*node)));
        let (index, node) = read.map(|(i, node)| (i, Some(node))).nth(index).unwrap_or((index, None));
        Self { at: format!("{}[{index}]", self.at), node, aside: self.aside }
    }

    /// Whether it, or the value of one of its keys, could not be read. That is reported already.
    fn is_unread(&self) -> bool {
        let unread = |node: &Node| self.aside.contains(&std::ptr::from_ref(node));
        self.node.is_some_and(|node| match &node.kind {
            Kind::Mapping(entries) => unread(node) || entries.iter().any(|(_, value)| unread(value)),
            Kind::Scalar { .. } | Kind::Sequence(_) => unread(node),
        })
    }

    fn problem(&self, message: impl Into<String>) -> Problem {
        match self.node {
            Some(node) => Problem::at(&self.at, node.place, message),
            None => Problem::new(&self.at, message),
        }
    }
}

/// Two sockets cannot listen on the same address. 0.0.0.0 includes all IPv4 addresses, and [::] all addresses.
fn addresses(config: &Config, root: &Spot<'_>) -> Vec<Problem> {
    let mut taken: Vec<(String, SocketAddr)> = Vec::new();
    let mut problems = Vec::new();
    let listeners = config.listeners.iter().enumerate().map(|(i, listener)| (root.key("listeners").item(i), listener.address));
    for (spot, address) in listeners.chain([(root.key("admin"), config.admin.address)]) {
        let spot = spot.key("address");
        if let Some((other, known)) = taken.iter().find(|(_, known)| overlap(*known, address)) {
            let message = if *known == address {
                format!("{address} is taken by {other}")
            } else {
                format!("{address} is taken by {other}, {known}")
            };
            problems.push(spot.problem(format!("{message}; choose another port")));
        }
        taken.push((spot.at, address));
    }
    problems
}

/// An ACME authority validates names over HTTP without TLS.
fn challenges(config: &Config, root: &Spot<'_>) -> Vec<Problem> {
    if config.listeners.iter().any(|listener| listener.tls.is_none()) {
        return Vec::new();
    }
    let message = "needs a listener without tls, which the authority reaches as port 80; add: - address: 0.0.0.0:80";
    let has_acme = |(_, listener): &(usize, &Listener)| listener.tls.as_ref().is_some_and(|tls| tls.acme.is_some());
    let asking = config.listeners.iter().enumerate().filter(has_acme);
    asking.map(|(i, _)| root.key("listeners").item(i).key("tls").key("acme").problem(message)).collect()
}

fn tls(listener: &Listener, spot: &Spot<'_>) -> Vec<Problem> {
    let Some(tls) = spot.key("tls").node else { return Vec::new() };
    let mut problems = Vec::new();
    let redirect = spot.key("redirect_to_https");
    if listener.redirect_to_https {
        problems.push(redirect.problem("causes a redirect loop with tls; set it on a listener without tls"));
    }
    if tls.get("certificates").is_none() && tls.get("acme").is_none() && listener.tls.is_some() {
        let at = spot.key("tls").key("certificates").at;
        let message = "is missing; write: certificates: [{certificate: tls/shop.crt, key: tls/shop.key}]";
        problems.push(Problem::at(&at, tls.place, message));
    }
    problems
}

/// Checks `active` against the names of all pools in the file, valid or not.
fn active(service: &Service, spot: &Spot<'_>) -> Option<Problem> {
    let active = spot.key("active");
    let pools: Vec<&str> = match &spot.node?.get("pools")?.kind {
        Kind::Mapping(pools) => pools.iter().map(|(key, _)| key.name.as_str()).collect(),
        Kind::Scalar { .. } | Kind::Sequence(_) => return None,
    };
    let name = active.node.filter(|node| !node.is_null())?.as_text()?;
    if pools.is_empty() || service.active != name || pools.contains(&name) {
        return None;
    }
    let hint = nearest(name, pools.iter().copied());
    Some(active.problem(format!("no pool {}; pools are {}{hint}", shown(name), pools.join(", "))))
}

fn health_check(check: &HealthCheck, spot: &Spot<'_>) -> Vec<Problem> {
    let written = HealthCheck::HTTP_KEYS.iter().map(|key| spot.key(key)).filter(|spot| check.tcp && spot.node.is_some());
    written.map(|spot| spot.problem("has no effect with tcp: true; remove one of the two")).collect()
}

fn upstream(service: &Service, spot: &Spot<'_>) -> Option<Problem> {
    let protocol = spot.key("protocol");
    match (service.upstream.protocol, spot.key("tls").node) {
        (Protocol::H2, None) => Some(protocol.problem("h2 is over TLS; write tls: {} beside it, or h2c")),
        (Protocol::H2c, Some(_)) => Some(protocol.problem("h2c is without TLS; write h2, or leave out tls")),
        _ => None,
    }
}

fn hash(service: &Service, spot: &Spot<'_>) -> Option<Problem> {
    let (balance, hash) = (spot.key("balance"), spot.key("hash"));
    if balance.is_unread() || hash.is_unread() {
        return None;
    }
    match (service.balance, &service.hash) {
        (Balance::Hash, None) => {
            let message = "is missing; write: hash: {header: NAME}, {cookie: NAME} or {client_address: true}";
            Some(Problem::at(&hash.at, balance.node?.place, message))
        }
        (Balance::Hash, Some(by)) => {
            let given = [by.header.is_some(), by.cookie.is_some(), by.client_address].into_iter().filter(|given| *given).count();
            (given != 1).then(|| hash.problem("needs exactly one of header: NAME, cookie: NAME and client_address: true"))
        }
        (Balance::LeastRequests | Balance::RoundRobin | Balance::Random, Some(_)) => {
            Some(hash.problem("is only for balance: hash; write balance: hash, or remove hash"))
        }
        (Balance::LeastRequests | Balance::RoundRobin | Balance::Random, None) => None,
    }
}

/// A client gets one certificate for a name, so a duplicate would never be used, or never be stored.
fn certificates(listener: &Listener, spot: &Spot<'_>) -> Vec<Problem> {
    let Some(tls) = &listener.tls else { return Vec::new() };
    let mut problems = Vec::new();
    for (i, pair) in tls.certificates.iter().enumerate() {
        let first = tls.certificates.iter().position(|known| known.certificate == pair.certificate);
        if let Some(first) = first.filter(|first| *first < i) {
            let message = format!("{} is a duplicate of certificates[{first}]; keep one", pair.certificate.display());
            problems.push(spot.key("certificates").item(i).key("certificate").problem(message));
        }
    }
    let names = tls.acme.as_ref().map(|acme| acme.names.as_slice()).unwrap_or_default();
    for (i, name) in names.iter().enumerate() {
        if names.iter().take(i).any(|known| known == name) {
            problems.push(spot.key("acme").key("names").item(i).problem(format!("{name} is a duplicate; keep one")));
        }
    }
    problems
}

/// Two listeners with overlapping names and one store would replace each other's certificates.
fn orders(config: &Config, root: &Spot<'_>) -> Vec<Problem> {
    let acme = config.listeners.iter().enumerate().filter_map(|(i, listener)| Some((i, listener.tls.as_ref()?.acme.as_ref()?)));
    let acme: Vec<_> = acme.map(|(i, acme)| (root.key("listeners").item(i).key("tls").key("acme"), acme)).collect();
    let mut problems = Vec::new();
    for (position, (spot, this)) in acme.iter().enumerate() {
        for (Spot { at, .. }, other) in acme.iter().take(position).filter(|(_, other)| shares_store(this, other)) {
            if (&this.directory, &this.contact, &this.ca) != (&other.directory, &other.contact, &other.ca) {
                let message = format!("shares its account with {at}; use the same directory, contact and ca, or another store");
                problems.push(spot.problem(message));
            }
            let common = this.names.iter().find(|name| other.names.contains(name)).filter(|_| this.names != other.names);
            if let Some(name) = common {
                let message = format!(
                    "{name} is in {at}.names as well, with other names; write the same list in both, or {name} in one of them"
                );
                problems.push(spot.key("names").problem(message));
            }
        }
    }
    problems
}

/// A store has one folder for each authority, by the host of its directory.
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

/// Two services cannot match the same requests, however their prefixes are written.
fn routes(config: &Config, root: &Spot<'_>) -> Vec<Problem> {
    let mut taken: HashMap<(&str, Cow<'_, [u8]>), &str> = HashMap::new();
    let mut problems = Vec::new();
    for (name, service) in &config.services {
        let hosts: Vec<&str> =
            if service.hosts.is_empty() { vec![""] } else { service.hosts.iter().map(String::as_str).collect() };
        for (i, host) in hosts.into_iter().enumerate() {
            let Some(other) = taken.insert((host, normal_prefix(&service.path_prefix)), name) else { continue };
            let spot = root.key("services").key(name);
            let (host, spot) = match host {
                "" => ("any host", spot),
                host => (host, spot.key("hosts").item(i)),
            };
            let message = if other == name {
                format!("{host} is a duplicate; keep one")
            } else {
                format!(
                    "{host} with path_prefix {} is taken by services.{other}; give one of them other hosts or another path_prefix",
                    service.path_prefix
                )
            };
            problems.push(spot.problem(message));
        }
    }
    problems
}

/// A peer in two pools would stop serving both when one of them is stopped.
fn peers(service: &Service, pools: &Spot<'_>) -> Vec<Problem> {
    let mut taken = HashMap::new();
    let mut problems = Vec::new();
    for (name, pool) in &service.pools {
        for (i, peer) in pool.peers.iter().enumerate() {
            let Some(other) = taken.insert(&peer.address, name) else { continue };
            let message = if other == name {
                format!("{} is a duplicate in this pool; keep one, and give it a weight", peer.address)
            } else {
                format!(
                    "{} is in pool {other} as well; a peer belongs to one pool, or stopping one would stop both",
                    peer.address
                )
            };
            problems.push(pools.key(name).key("peers").item(i).problem(message));
        }
    }
    problems
}
