//! Validates relations between keys whose single values are valid. Called only by `parse`; pure.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    path::{Component, PathBuf},
};

use super::{
    Acme, Balance, Canary, Check, Config, HealthCheck, Listener, Problem, Protocol, Service,
    reader::{Aside, nearest, shown},
    schema,
    spot::{Spot, at},
    yaml::{Kind, Node},
};
use crate::path::normal_prefix;

/// Returns every problem between keys. `document` has their places; `aside` has the nodes that were left out because of a
/// problem.
pub(super) fn problems(config: &Config, document: &Node, aside: &Aside) -> Vec<Problem> {
    let root = Spot::root(config, document, aside);
    let mut problems = addresses(&root);
    problems.extend(challenges(&root));
    problems.extend(orders(&root));
    problems.extend(routes(&root));
    for listener in at!(root, listeners).items() {
        problems.extend(tls(&listener));
        problems.extend(certificates(&listener));
    }
    for (_, service) in at!(root, services).entries() {
        problems.extend(reference(&service, &at!(service, active)));
        problems.extend(at!(service, mirror).some().and_then(|mirror| reference(&service, &at!(mirror, pool))));
        problems.extend(at!(service, canary).some().and_then(|spot| canary(&service, &spot)));
        problems.extend(peers(&service));
        problems.extend(health_check(&at!(service, health_check)));
        problems.extend(upstream(&service));
        problems.extend(hash(&service));
        problems.extend(preview(&root, &service));
        problems.extend(at!(service, promotion.check).some().and_then(|spot| check(&spot)));
    }
    problems
}

/// Two sockets cannot listen on the same address. 0.0.0.0 includes all IPv4 addresses, and [::] all addresses.
fn addresses(root: &Spot<'_, Config>) -> Vec<Problem> {
    let mut taken: Vec<(String, SocketAddr)> = Vec::new();
    let mut problems = Vec::new();
    let listeners = at!(root, listeners).items().map(|listener| at!(listener, address));
    for spot in listeners.chain([at!(root, admin.address)]) {
        let address = *spot.value;
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

/// The ACME settings of all listeners.
fn acme<'a>(root: &Spot<'a, Config>) -> Vec<Spot<'a, Acme>> {
    let tls = at!(root, listeners).items().filter_map(|listener| at!(listener, tls).some());
    tls.filter_map(|tls| at!(tls, acme).some()).collect()
}

/// An ACME authority validates names over HTTP without TLS.
fn challenges(root: &Spot<'_, Config>) -> Vec<Problem> {
    if root.value.listeners.iter().any(|listener| listener.tls.is_none()) {
        return Vec::new();
    }
    let message = "needs a listener without tls, which the authority reaches as port 80; add: - address: 0.0.0.0:80";
    acme(root).iter().map(|acme| acme.problem(message)).collect()
}

fn tls(listener: &Spot<'_, Listener>) -> Vec<Problem> {
    let tls = at!(listener, tls);
    let Some(node) = tls.node else { return Vec::new() };
    let mut problems = Vec::new();
    let redirect = at!(listener, redirect_to_https);
    if *redirect.value {
        problems.push(redirect.problem("causes a redirect loop with tls; set it on a listener without tls"));
    }
    let certificates = tls.some().filter(|tls| at!(tls, acme).node.is_none()).map(|tls| at!(tls, certificates));
    if let Some(certificates) = certificates.filter(|certificates| certificates.node.is_none()) {
        let message = "is missing; write: certificates: [{certificate: tls/shop.crt, key: tls/shop.key}]";
        problems.push(Problem::at(&certificates.at, node.place, message));
    }
    problems
}

/// Checks a pool that another key names against the names of all pools in the file, valid or not.
fn reference(service: &Spot<'_, Service>, named: &Spot<'_, String>) -> Option<Problem> {
    let pools: Vec<&str> = match &at!(service, pools).node?.kind {
        Kind::Mapping(pools) => pools.iter().map(|(key, _)| key.name.as_str()).collect(),
        Kind::Scalar { .. } | Kind::Sequence(_) => return None,
    };
    let name = named.node.filter(|node| !node.is_null())?.as_text()?;
    if pools.is_empty() || named.value != name || pools.contains(&name) {
        return None;
    }
    let hint = nearest(name, pools.iter().copied());
    Some(named.problem(format!("no pool {}; pools are {}{hint}", shown(name), pools.join(", "))))
}

/// Checks the pool of a canary, and that something sends requests to it. An explicit share of 0% pauses a canary.
fn canary(service: &Spot<'_, Service>, canary: &Spot<'_, Canary>) -> Option<Problem> {
    let is_empty = [at!(canary, share).node, at!(canary, header).node, at!(canary, cookie).node].iter().all(Option::is_none);
    let none = || canary.problem("sends no request to its pool; write share: 5%, header: NAME or cookie: NAME");
    reference(service, &at!(canary, pool)).or_else(|| (is_empty && !canary.is_unread()).then(none))
}

fn health_check(check: &Spot<'_, HealthCheck>) -> Vec<Problem> {
    let written = schema::http_keys().map(|key| check.key(&(), key)).filter(|key| check.value.tcp && key.node.is_some());
    written.map(|key| key.problem("has no effect with tcp: true; remove one of the two")).collect()
}

fn upstream(service: &Spot<'_, Service>) -> Option<Problem> {
    let protocol = at!(service, upstream.protocol);
    match (protocol.value, at!(service, upstream.tls).node) {
        (Protocol::H2, None) => Some(protocol.problem("h2 is over TLS; write tls: {} beside it, or h2c")),
        (Protocol::H2c, Some(_)) => Some(protocol.problem("h2c is without TLS; write h2, or leave out tls")),
        _ => None,
    }
}

fn hash(service: &Spot<'_, Service>) -> Option<Problem> {
    let (balance, hash) = (at!(service, balance), at!(service, hash));
    if balance.is_unread() || hash.is_unread() {
        return None;
    }
    match (*balance.value, hash.value) {
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

/// Without networks and without a token, every preview would be rejected.
fn preview(root: &Spot<'_, Config>, service: &Spot<'_, Service>) -> Option<Problem> {
    let preview = at!(service, preview).some()?;
    let from = at!(preview, from).node.is_some_and(|from| !matches!(&from.kind, Kind::Sequence(items) if items.is_empty()));
    let token = at!(root, admin.token_file).node.is_some();
    (!from && !token).then(|| preview.problem("allows no client; write from: [10.0.0.0/8], or set admin.token_file"))
}

fn check(check: &Spot<'_, Check>) -> Option<Problem> {
    let Check { url, command, .. } = check.value;
    // An empty command is reported already.
    if check.is_unread() || (command.is_empty() && at!(check, command).node.is_some()) {
        return None;
    }
    if url.is_some() != command.is_empty() {
        return Some(check.problem("needs exactly one of url: URL and command: [PROGRAM, ARGUMENT]"));
    }
    let program = at!(check, command).items().next()?;
    program.value.is_empty().then(|| program.problem("is empty; write the path of a program"))
}

/// A client gets one certificate for a name, so a duplicate would never be used, or never be stored.
fn certificates(listener: &Spot<'_, Listener>) -> Vec<Problem> {
    let Some(tls) = at!(listener, tls).some() else { return Vec::new() };
    let mut problems = Vec::new();
    let mut first = HashMap::new();
    for (i, pair) in at!(tls, certificates).items().enumerate() {
        let spot = at!(pair, certificate);
        let first = *first.entry(spot.value).or_insert(i);
        if first < i {
            let message = format!("{} is a duplicate of certificates[{first}]; keep one", spot.value.display());
            problems.push(spot.problem(message));
        }
    }
    let mut seen = HashSet::new();
    for name in at!(tls, acme).some().iter().flat_map(|acme| at!(acme, names).items()) {
        if !seen.insert(name.value) {
            problems.push(name.problem(format!("{} is a duplicate; keep one", name.value)));
        }
    }
    problems
}

/// Two listeners with overlapping names and one store would replace each other's certificates.
fn orders(root: &Spot<'_, Config>) -> Vec<Problem> {
    let acme = acme(root);
    let mut problems = Vec::new();
    for (position, spot) in acme.iter().enumerate() {
        let this = spot.value;
        for Spot { at, value: other, .. } in acme.iter().take(position).filter(|other| shares_store(this, other.value)) {
            if (&this.directory, &this.contact, &this.ca) != (&other.directory, &other.contact, &other.ca) {
                let message = format!("shares its account with {at}; use the same directory, contact and ca, or another store");
                problems.push(spot.problem(message));
            }
            let common = this.names.iter().find(|name| other.names.contains(name)).filter(|_| this.names != other.names);
            if let Some(name) = common {
                let message = format!(
                    "{name} is in {at}.names as well, with other names; write the same list in both, or {name} in one of them"
                );
                problems.push(at!(spot, names).problem(message));
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

/// An IPv4-mapped address is an IPv4 address to the kernel.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = |a: IpAddr, b: IpAddr| a.is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    let (ip, other) = (a.ip().to_canonical(), b.ip().to_canonical());
    a.port() != 0 && a.port() == b.port() && (ip == other || everywhere(ip, other) || everywhere(other, ip))
}

/// Two services cannot match the same requests, however their prefixes are written.
fn routes(root: &Spot<'_, Config>) -> Vec<Problem> {
    let mut taken: HashMap<(&str, Cow<'_, [u8]>), &str> = HashMap::new();
    let mut problems = Vec::new();
    for (name, service) in at!(root, services).entries() {
        let prefix = &service.value.path_prefix;
        let mut hosts: Vec<_> = at!(service, hosts).items().map(|host| host.with(host.value.as_str())).collect();
        if hosts.is_empty() {
            hosts.push(service.with("any host"));
        }
        for spot in hosts {
            let host = spot.value;
            let Some(other) = taken.insert((host, normal_prefix(prefix)), name) else { continue };
            let message = if other == name {
                format!("{host} is a duplicate; keep one")
            } else {
                format!(
                    "{host} with path_prefix {prefix} is taken by services.{other}; give one of them other hosts or another path_prefix"
                )
            };
            problems.push(spot.problem(message));
        }
    }
    problems
}

/// A peer in two pools would stop serving both when one of them is stopped.
fn peers(service: &Spot<'_, Service>) -> Vec<Problem> {
    let mut taken = HashMap::new();
    let mut problems = Vec::new();
    for (name, pool) in at!(service, pools).entries() {
        for peer in at!(pool, peers).items() {
            let address = &peer.value.address;
            let Some(other) = taken.insert(address, name) else { continue };
            let message = if other == name {
                format!("{address} is a duplicate in this pool; keep one, and give it a weight")
            } else {
                format!("{address} is in pool {other} as well; a peer belongs to one pool, or stopping one would stop both")
            };
            problems.push(peer.problem(message));
        }
    }
    problems
}
