//! Host and path to a service; pure.
//!
//! The snapshot holds one table; every request asks it once. An exact host goes before a wildcard, a longer wildcard before a
//! shorter, a wildcard before a service for any host; among those of one host the longest path prefix wins. A host whose
//! prefixes do not match gives way to the next best.

use std::collections::HashMap;

/// Routes to values of `T`.
pub struct RouteTable<T> {
    exact: HashMap<String, Vec<Route<T>>>,
    /// By suffix with its dot (`.example.com`), the longest first.
    wildcard: Vec<(String, Vec<Route<T>>)>,
    any: Vec<Route<T>>,
}

struct Route<T> {
    prefix: String,
    target: T,
}

impl<T: Clone> RouteTable<T> {
    /// A table of `(hosts, path prefix, target)`; no hosts means any host. Hosts are lower case.
    pub fn new<'a>(routes: impl Iterator<Item = (&'a [String], &'a str, T)>) -> Self {
        let mut table = Self { exact: HashMap::new(), wildcard: Vec::new(), any: Vec::new() };
        for (hosts, prefix, target) in routes {
            let route = || Route { prefix: prefix.to_owned(), target: target.clone() };
            if hosts.is_empty() {
                table.any.push(route());
            }
            for host in hosts {
                match host.strip_prefix('*') {
                    None => table.exact.entry(host.clone()).or_default().push(route()),
                    Some(suffix) => match table.wildcard.iter_mut().find(|(known, _)| known == suffix) {
                        Some((_, routes)) => routes.push(route()),
                        None => table.wildcard.push((suffix.to_owned(), vec![route()])),
                    },
                }
            }
        }
        table.wildcard.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        let lists = table.exact.values_mut().chain(table.wildcard.iter_mut().map(|(_, routes)| routes)).chain([&mut table.any]);
        lists.for_each(|routes| routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len())));
        table
    }

    /// Who takes a request; `host` as the client sent it, with or without a port.
    pub fn find(&self, host: &str, path: &str) -> Option<&T> {
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return find(&self.any, path);
        }
        let mut host = without_port(host);
        let lower;
        if host.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            host = &lower;
        }
        let exact = self.exact.get(host).and_then(|routes| find(routes, path));
        let covering = self.wildcard.iter().filter(|(suffix, _)| host.len() > suffix.len() && host.ends_with(suffix.as_str()));
        exact.or_else(|| covering.into_iter().find_map(|(_, routes)| find(routes, path))).or_else(|| find(&self.any, path))
    }
}

fn find<'a, T>(routes: &'a [Route<T>], path: &str) -> Option<&'a T> {
    routes.iter().find(|route| covers(&route.prefix, path)).map(|route| &route.target)
}

/// A prefix covers whole segments: `/api` covers `/api` and `/api/x`, not `/apix`.
fn covers(prefix: &str, path: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'),
        None => false,
    }
}

/// `shop.example.com:8080` and `[::1]:8080` without the port, and without the dot that a full name may end with.
fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_particular_route_wins() {
        let hosts = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        let rules = [
            (hosts(&[]), "/", "anybody"),
            (hosts(&["shop.example.com"]), "/", "shop"),
            (hosts(&["shop.example.com", "[::1]"]), "/api", "api"),
            (hosts(&["*.example.com"]), "/", "wild"),
            (hosts(&["*.eu.example.com"]), "/", "wild-eu"),
            (hosts(&["only.example.org"]), "/app/", "app"),
        ];
        let table = RouteTable::new(rules.iter().map(|(hosts, prefix, name)| (hosts.as_slice(), *prefix, *name)));
        for (host, path, expected) in [
            ("shop.example.com", "/", "shop"),
            ("SHOP.example.com:8080", "/x", "shop"),
            ("shop.example.com.", "/api", "api"),
            ("shop.example.com", "/api/v1", "api"),
            ("shop.example.com", "/apix", "shop"),
            ("[::1]:8080", "/api/", "api"),
            ("[::1]", "/", "anybody"),
            ("a.example.com", "/", "wild"),
            ("a.eu.example.com", "/", "wild-eu"),
            ("example.com", "/", "anybody"),
            (".example.com", "/", "anybody"),
            ("only.example.org", "/app/x", "app"),
            ("only.example.org", "/app", "anybody"),
            ("", "/", "anybody"),
        ] {
            assert_eq!(table.find(host, path), Some(&expected), "{host} {path}");
        }
    }

    #[test]
    fn nobody_takes_what_no_route_covers() {
        let hosts = ["shop.example.com".to_owned()];
        let table = RouteTable::new([(hosts.as_slice(), "/api", ())].into_iter());
        assert_eq!(table.find("shop.example.com", "/"), None);
        assert_eq!(table.find("other.example.com", "/api"), None);
    }
}
