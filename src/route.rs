//! Finds the service of a host and path. Pure.
//!
//! The snapshot holds one table; the proxy looks up each request once. An exact host takes precedence over a wildcard, a longer
//! wildcard over a shorter one, and any wildcard over a service without hosts. For one host the longest path prefix wins. If no
//! prefix of the best host matches, the next best host is tried.
//!
//! A path is normalized before it is matched, see [`crate::path`]. Applications differ on an encoded slash and on a backslash, so
//! both readings have to lead to the same service. The peer gets the path as the client sent it.

use std::{borrow::Cow, collections::HashMap};

use crate::path::{Slashes, has_hidden_slash, normal, normal_prefix};

/// Routes from hosts and path prefixes to values of `T`.
pub struct RouteTable<T> {
    exact: HashMap<String, Vec<Route<T>>>,
    /// By suffix with its dot (`.example.com`), the longest first.
    wildcard: Vec<(String, Vec<Route<T>>)>,
    any: Vec<Route<T>>,
}

#[derive(Clone)]
struct Route<T> {
    /// Normalized by [`normal_prefix`].
    prefix: Vec<u8>,
    target: T,
    /// Index of the rule; a rule with several hosts has one route for each.
    rule: usize,
}

/// Why no service was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No route matches the host and the path.
    NotFound,
    /// The path has an encoded slash or a backslash, and its two readings lead to different services.
    Ambiguous,
}

impl<T: Clone> RouteTable<T> {
    /// Builds a table of `(hosts, path prefix, target)`. Hosts are lower case; an empty list matches any host.
    pub fn new<'a>(routes: impl Iterator<Item = (&'a [String], &'a str, T)>) -> Self {
        let mut table = Self { exact: HashMap::new(), wildcard: Vec::new(), any: Vec::new() };
        for (rule, (hosts, prefix, target)) in routes.enumerate() {
            let route = Route { prefix: normal_prefix(prefix).into_owned(), target, rule };
            if hosts.is_empty() {
                table.any.push(route.clone());
            }
            for host in hosts {
                match host.strip_prefix('*') {
                    None => table.exact.entry(host.clone()).or_default().push(route.clone()),
                    Some(suffix) => match table.wildcard.iter_mut().find(|(known, _)| known == suffix) {
                        Some((_, routes)) => routes.push(route.clone()),
                        None => table.wildcard.push((suffix.to_owned(), vec![route.clone()])),
                    },
                }
            }
        }
        table.wildcard.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        let lists = table.exact.values_mut().chain(table.wildcard.iter_mut().map(|(_, routes)| routes)).chain([&mut table.any]);
        lists.for_each(|routes| routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len())));
        table
    }

    /// Finds the service of a request. `host` is as the client sent it, with or without a port; `path` has no query.
    ///
    /// # Errors
    /// When no route matches, or the path is ambiguous.
    pub fn find(&self, host: &str, path: &str) -> Result<&T, NoRoute> {
        let path = path.as_bytes();
        let read = normal(path, Slashes::Plain);
        let route = self.route(host, &read);
        if matches!(read, Cow::Owned(_))
            && has_hidden_slash(path)
            && self.route(host, &normal(path, Slashes::Hidden)).map(|route| route.rule) != route.map(|route| route.rule)
        {
            return Err(NoRoute::Ambiguous);
        }
        route.map(|route| &route.target).ok_or(NoRoute::NotFound)
    }

    fn route(&self, host: &str, path: &[u8]) -> Option<&Route<T>> {
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

fn find<'a, T>(routes: &'a [Route<T>], path: &[u8]) -> Option<&'a Route<T>> {
    routes.iter().find(|route| covers(&route.prefix, path))
}

/// A prefix covers whole segments: `/api` covers `/api` and `/api/x`, not `/apix`.
fn covers(prefix: &[u8], path: &[u8]) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || prefix.ends_with(b"/") || rest.starts_with(b"/"),
        None => false,
    }
}

/// Removes the port of `shop.example.com:8080` and `[::1]:8080`, and the final dot of a fully qualified name.
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
    fn the_most_specific_route_wins() {
        let hosts = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        let rules = [
            (hosts(&[]), "/", "any"),
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
            ("[::1]", "/", "any"),
            ("a.example.com", "/", "wild"),
            ("a.eu.example.com", "/", "wild-eu"),
            ("example.com", "/", "any"),
            (".example.com", "/", "any"),
            ("only.example.org", "/app/x", "app"),
            ("only.example.org", "/app", "any"),
            ("", "/", "any"),
        ] {
            assert_eq!(table.find(host, path), Ok(&expected), "{host} {path}");
        }
    }

    #[test]
    fn an_uncovered_path_or_host_is_not_found() {
        let hosts = ["shop.example.com".to_owned()];
        let table = RouteTable::new([(hosts.as_slice(), "/api", ())].into_iter());
        assert_eq!(table.find("shop.example.com", "/"), Err(NoRoute::NotFound));
        assert_eq!(table.find("other.example.com", "/api"), Err(NoRoute::NotFound));
    }

    #[test]
    fn a_path_is_matched_as_an_application_reads_it() {
        let rules = ["/", "/admin", "/caf%C3%A9"];
        let table = RouteTable::new(rules.iter().map(|prefix| (&[][..], *prefix, *prefix)));
        for (path, expected) in [
            ("/admin", Ok("/admin")),
            ("//admin", Ok("/admin")),
            ("/%61dmin", Ok("/admin")),
            ("/./admin/", Ok("/admin")),
            ("/x/../admin", Ok("/admin")),
            ("/x/%2e%2E/admin", Ok("/admin")),
            ("/../admin", Ok("/admin")),
            ("/..;/admin", Ok("/admin")),
            ("/x;a=b/..;c/admin;d?", Ok("/admin")),
            ("/admin;jsessionid=1", Ok("/admin")),
            ("/admin/..", Ok("/")),
            ("/admin/../x", Ok("/")),
            ("/adminx", Ok("/")),
            ("/%2561dmin", Ok("/")),
            ("/admin%3B", Ok("/")),
            ("/%", Ok("/")),
            ("/%6", Ok("/")),
            ("/%zzadmin", Ok("/")),
            ("/.well-known/x", Ok("/")),
            ("/caf%c3%a9/x", Ok("/caf%C3%A9")),
            ("/caf%C3%A9", Ok("/caf%C3%A9")),
            // Read as slashes by some applications, and as ordinary characters by others.
            ("/a%2Fb", Ok("/")),
            ("/admin/a%2fb", Ok("/admin")),
            ("/admin%2F", Err(NoRoute::Ambiguous)),
            ("/x%2f..%2fadmin", Err(NoRoute::Ambiguous)),
            ("/x\\..\\admin", Err(NoRoute::Ambiguous)),
            ("/admin/..%5Cx", Err(NoRoute::Ambiguous)),
        ] {
            assert_eq!(table.find("any.test", path), expected.as_ref().map_err(|e| *e), "{path}");
        }
    }
}
