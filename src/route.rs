//! Host and path to a service; pure.
//!
//! The snapshot holds one table; every request asks it once. An exact host goes before a wildcard, a longer wildcard before a
//! shorter, a wildcard before a service for any host; among those of one host the longest path prefix wins. A host whose
//! prefixes do not match gives way to the next best.
//!
//! A path is matched as an application reads it, not as it was written: percent-encodings decoded, `;parameters` taken out, dot
//! segments resolved and doubled slashes merged, as Tomcat does. Otherwise `/x/../admin` would go to the service of `/`, whose
//! application then serves `/admin`. Where applications differ, on an encoded slash and on a backslash, both readings have to lead
//! to one service. The peer gets the path as it was sent.

use std::{borrow::Cow, collections::HashMap};

/// Routes to values of `T`.
pub struct RouteTable<T> {
    exact: HashMap<String, Vec<Route<T>>>,
    /// By suffix with its dot (`.example.com`), the longest first.
    wildcard: Vec<(String, Vec<Route<T>>)>,
    any: Vec<Route<T>>,
}

#[derive(Clone)]
struct Route<T> {
    /// As [`normal`] makes it.
    prefix: Vec<u8>,
    target: T,
    /// Which rule it came from; a rule with several hosts has a route for each.
    rule: usize,
}

/// Why no service takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// None matches the host and the path.
    NotFound,
    /// The path has an encoded slash or a backslash, and it depends on how that is read which service it is for.
    Ambiguous,
}

impl<T: Clone> RouteTable<T> {
    /// A table of `(hosts, path prefix, target)`; no hosts means any host. Hosts are lower case.
    pub fn new<'a>(routes: impl Iterator<Item = (&'a [String], &'a str, T)>) -> Self {
        let mut table = Self { exact: HashMap::new(), wildcard: Vec::new(), any: Vec::new() };
        for (rule, (hosts, prefix, target)) in routes.enumerate() {
            let route = Route { prefix: normal(prefix.as_bytes(), Slashes::Plain).into_owned(), target, rule };
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

    /// Finds the service of a request; `host` as the client sent it, with or without a port, and `path` without a query.
    ///
    /// # Errors
    /// When there is none, or no one of several.
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

/// What separates the segments of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slashes {
    /// A slash that is written as one.
    Plain,
    /// `%2F`, `\` and `%5C` as well.
    Hidden,
}

/// Whether a path has what some applications take for a slash, and some do not.
fn has_hidden_slash(path: &[u8]) -> bool {
    memchr::memchr2_iter(b'%', b'\\', path).any(|at| match path.get(at..).unwrap_or_default() {
        [b'\\', ..] => true,
        [b'%', high, low, ..] => matches!(hex(*high, *low), Some(b'/' | b'\\')),
        _ => false,
    })
}

/// A path as an application reads it; borrowed, and found out in one pass, if it is written like that, as almost all are.
fn normal(path: &[u8], slashes: Slashes) -> Cow<'_, [u8]> {
    let is_plain =
        memchr::memchr3(b'%', b';', b'\\', path).is_none() && !path.windows(2).any(|pair| matches!(pair, [b'/', b'/' | b'.']));
    if is_plain { Cow::Borrowed(path) } else { Cow::Owned(without_dots(&decoded(path, slashes))) }
}

/// A path without parameters and encodings. In this order: `%3B` is no parameter, and `%252e` no dot.
fn decoded(path: &[u8], slashes: Slashes) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    loop {
        rest = match rest {
            [b';', after @ ..] => after.get(memchr::memchr(b'/', after).unwrap_or(after.len())..).unwrap_or_default(),
            [b'\\', after @ ..] if slashes == Slashes::Hidden => {
                decoded.push(b'/');
                after
            }
            [b'%', high, low, after @ ..] if let Some(byte) = hex(*high, *low) => {
                match (byte, slashes) {
                    (b'/' | b'\\', Slashes::Plain) => decoded.extend([b'%', *high, *low]),
                    (b'\\', Slashes::Hidden) => decoded.push(b'/'),
                    (byte, _) => decoded.push(byte),
                }
                after
            }
            [byte, after @ ..] => {
                decoded.push(*byte);
                after
            }
            [] => return decoded,
        };
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// A path without dot segments (RFC 3986, section 5.2.4) and without empty ones, but for a slash at its end.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut segments = Vec::new();
    let mut ends_in_slash = false;
    for segment in path.split(|byte| *byte == b'/') {
        ends_in_slash = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let mut normal = Vec::with_capacity(path.len());
    for segment in segments {
        normal.push(b'/');
        normal.extend_from_slice(segment);
    }
    if ends_in_slash || normal.is_empty() {
        normal.push(b'/');
    }
    normal
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
            assert_eq!(table.find(host, path), Ok(&expected), "{host} {path}");
        }
    }

    #[test]
    fn nobody_takes_what_no_route_covers() {
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
            // Slashes to some, and letters to others.
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
