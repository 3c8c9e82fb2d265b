//! The formats of single values. Their errors suggest a correction. Pure.
//!
//! Each format is a type, so that a field declares it; `format` connects it to serde and to the JSON Schema.

use std::{marker::PhantomData, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::Deserializer;
use serde_json::{Value, json};

use super::{
    format::{Form, Format, List},
    host,
    promotion::Percentage,
    reader::shown,
    service::PeerAddress,
};

/// The longest duration of any key, in milliseconds.
pub(super) const DAY: u64 = 24 * HOUR;
pub(super) const HOUR: u64 = 60 * 60 * 1000;

/// A duration from `LEAST` to `MOST` milliseconds.
pub(super) struct Span<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> Format for Span<LEAST, MOST> {
    type Value = Duration;

    fn read(text: &str) -> Result<Duration, String> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("{} has no unit; write {text}s, or 500ms, 2m", shown(text)));
        }
        let duration =
            humantime::parse_duration(text).map_err(|_| format!("{} is not a duration; write 500ms, 10s, 2m", shown(text)))?;
        if duration < Duration::from_millis(LEAST) || duration > Duration::from_millis(MOST) {
            return Err(format!("{} is not allowed; use {}", shown(text), range::<LEAST, MOST>()));
        }
        Ok(duration)
    }

    fn write(value: &Duration) -> Value {
        humantime::format_duration(*value).to_string().into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        let unit = "(ns|nsec|us|usec|µs|ms|msec|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)";
        json_schema!({"type": "string", "pattern": format!("^([0-9]+ ?{unit} ?)+$"), "$comment": range::<LEAST, MOST>()})
    }
}

fn range<const LEAST: u64, const MOST: u64>() -> String {
    let [least, most] = [LEAST, MOST].map(|ms| humantime::format_duration(Duration::from_millis(ms)));
    format!("{least} to {most}")
}

/// An integer from `LEAST` to `MOST`.
pub(super) struct Number<T, const LEAST: u64, const MOST: u64>(PhantomData<T>);

impl<T, const LEAST: u64, const MOST: u64> Format for Number<T, LEAST, MOST>
where
    T: FromStr + Copy + TryInto<u64>,
{
    type Value = T;

    fn read(text: &str) -> Result<T, String> {
        let in_range = |number: &T| (*number).try_into().is_ok_and(|number| (LEAST..=MOST).contains(&number));
        text.parse().ok().filter(in_range).ok_or_else(|| {
            let text = if text.parse::<i64>().is_ok() { text.to_owned() } else { shown(text) };
            format!("{text} is not allowed; use {LEAST} to {MOST}")
        })
    }

    fn write(value: &T) -> Value {
        (*value).try_into().unwrap_or(u64::MAX).into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": LEAST, "maximum": MOST})
    }
}

/// A peer's share of the requests. It cannot be 0: a peer without requests has to be removed.
pub(super) struct Weight;

impl Format for Weight {
    type Value = u16;

    fn read(text: &str) -> Result<u16, String> {
        Number::<u16, 1, 1000>::read(text).map_err(|message| message + ", or remove the peer")
    }

    fn write(value: &u16) -> Value {
        Number::<u16, 1, 1000>::write(value)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        Number::<u16, 1, 1000>::schema(generator)
    }
}

/// A share in percent, with at most one decimal place.
pub(super) struct Percent;

impl Format for Percent {
    type Value = Percentage;

    fn read(text: &str) -> Result<Percentage, String> {
        percentage(text, Percentage { per_mille: 1 })
    }

    fn write(value: &Percentage) -> Value {
        value.to_string().into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9])?%$", "$comment": "0.1% to 100%"})
    }
}

/// A percentage that may be 0.
pub(super) struct Share;

impl Format for Share {
    type Value = Percentage;

    fn read(text: &str) -> Result<Percentage, String> {
        percentage(text, Percentage { per_mille: 0 })
    }

    fn write(value: &Percentage) -> Value {
        Percent::write(value)
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9])?%$", "$comment": "0% to 100%"})
    }
}

/// A percentage from `least` to 100%, with at most one decimal place.
fn percentage(text: &str, least: Percentage) -> Result<Percentage, String> {
    let Some(number) = text.strip_suffix('%') else {
        return Err(format!("{} is not a percentage; write 10% or 0.5%", shown(text)));
    };
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let per_mille = (digits(whole) && digits(tenths) && tenths.len() == 1).then(|| format!("{whole}{tenths}").parse());
    let per_mille = per_mille.and_then(Result::ok).filter(|per_mille| (least.per_mille..=1000).contains(per_mille));
    let per_mille = per_mille.ok_or_else(|| format!("{} is not allowed; use {least} to 100%", shown(text)))?;
    Ok(Percentage { per_mille })
}

/// Formats of texts: a parser, and a pattern for the schema, which may be less strict.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $value:ty = $read:path, $type:tt, $pattern:expr $(, $write:expr)?;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl Format for $name {
            type Value = $value;

            fn read(text: &str) -> Result<$value, String> {
                $read(text)
            }

            fn write(value: &$value) -> Value {
                let write: fn(&$value) -> Value = texts!(@write $($write)?);
                write(value)
            }

            fn schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": $type, "pattern": $pattern})
            }
        }
    )*};
    (@write) => { |value| value.to_string().into() };
    (@write $write:expr) => { $write };
}

texts! {
    /// A name that the user chooses; YAML may read it as a number.
    Name: String = name, ["string", "integer"], "^[A-Za-z0-9_-]{1,63}$";
    /// A reference to a name.
    Reference: String = reference, ["string", "integer"], "^[A-Za-z0-9_-]{1,63}$";
    /// One line of text; YAML may read it as a number.
    Label: String = label, ["string", "number"], r"^[^\x00-\x1f]{1,100}$";
    /// A program or one of its arguments; YAML may read it as a number.
    Argument: String = argument, ["string", "number"], r"^[^\x00]*$";
    File: PathBuf = file, "string", r"^[^\x00]+$", |path| path.to_string_lossy().into();
    ListenAddress: SocketAddr = host::listen_address, "string", r"^([0-9.]+|\[[0-9A-Fa-f:.]+(%[0-9]+)?\]):[0-9]{1,5}$";
    Network: IpNet = host::network, "string", "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$";
    Address: PeerAddress = host::peer_address, "string", r"^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$";
    HostPattern: String = host::host_pattern, "string", r"^((\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])$";
    ProbeHost: String = host::probe_host, "string", r"^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?$";
    ServerName: String = host::server_name, "string", "^[A-Za-z0-9_.:-]*[A-Za-z0-9_:-]$";
    DnsName: String = host::dns_name, "string", "^[A-Za-z0-9_.-]*[A-Za-z_-][A-Za-z0-9_.-]*$";
    HttpUrl: http::Uri = host::http_url, "string", "^https?://[^@#]+$";
    HttpsUrl: String = host::https_url, "string", "^https://";
    MailAddress: String = host::mail_address, "string", "^[!-~]+@[A-Za-z0-9_.-]+$";
    PathPrefix: String = path_prefix, "string", r#"^/[!-"$->@-~]*$"#;
    ProbePath: String = probe_path, "string", r#"^/[!-"$-~]*$"#;
    HeaderName: String = header_name, "string", "^(?![Hh][Oo][Ss][Tt]$)[!#$%&'*+.^_`|~0-9A-Za-z-]+$";
    HeaderField: http::HeaderName = header_field, "string", TOKEN;
    /// A header that is removed before a request is forwarded.
    PreviewHeader: http::HeaderName = preview_header, "string", "^[!#$%&'*+.^`|~0-9A-Za-z-]+$";
    CookieName: String = cookie_name, "string", TOKEN;
    ErrorStatus: u16 = error_status, "string", "^[45][0-9][0-9]$", |status| (*status).into();
    /// The value of a header, which is never written because it may be a secret.
    HeaderText: String = header_value, "string", r"^[^\x00-\x08\x0a-\x1f]*$", |_| "***".into();
}

/// RFC 9110, section 5.6.2.
const TOKEN: &str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";

/// The path of a file.
fn file(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        Err("is no path; write tls/shop.crt".to_owned())
    } else {
        Ok(PathBuf::from(text))
    }
}

/// A program or one of its arguments.
fn argument(text: &str) -> Result<String, String> {
    if text.contains('\0') { Err("an argument cannot have a NUL character".to_owned()) } else { Ok(text.to_owned()) }
}

/// Accepts any name; `validate` checks that it exists.
fn reference(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// A name that the user chooses.
fn name(text: &str) -> Result<String, String> {
    let fine = (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fine {
        Ok(text.to_owned())
    } else {
        Err(format!("the name {} is not allowed; use letters, digits, - and _, at most 63", shown(text)))
    }
}

/// A label: any text of one line.
pub(super) fn label(text: &str) -> Result<String, String> {
    let fine = (1..=100).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fine {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is not allowed; use one line of at most 100 characters", shown(text)))
    }
}

/// The prefix of a path.
fn path_prefix(text: &str) -> Result<String, String> {
    let prefix = path(text, false)?;
    let never = |why: &str| Err(format!("{} never matches: {why}", shown(text)));
    // Requests are routed by their normalized path (RFC 3986, section 6.2.2), so only a normalized prefix can match.
    if prefix.split('/').any(|segment| segment == "." || segment == "..") {
        return never("the . and .. of a path are resolved before matching; write the resolved path");
    }
    if prefix.contains("//") {
        return never("double slashes are merged before matching; write one slash");
    }
    if encoded(&prefix).any(|byte| byte.is_none_or(|byte| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte))) {
        return never(
            "percent-encoded letters, digits, - . _ ~ and / are decoded before matching, and % needs two hexadecimal digits; write the decoded path",
        );
    }
    Ok(prefix)
}

/// The percent-encoded bytes of a path; none for an invalid encoding.
fn encoded(path: &str) -> impl Iterator<Item = Option<u8>> {
    let digits = |rest: &str| u8::from_str_radix(rest.get(..2).filter(|digits| !digits.starts_with('+'))?, 16).ok();
    path.split('%').skip(1).map(digits)
}

/// The path of a probe.
fn probe_path(text: &str) -> Result<String, String> {
    path(text, true)
}

fn path(text: &str, query: bool) -> Result<String, String> {
    let fine = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && (query || b != b'?'));
    if fine {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is not a path; it begins with / and has no spaces{}", shown(text), if query { "" } else { ", ? or #" }))
    }
}

/// Statuses of a successful probe: `200`, `200-299`, `200, 204-206`, or a list of these.
pub(super) struct Statuses;

impl Format for Statuses {
    type Value = Vec<RangeInclusive<u16>>;
    const FORMS: &'static str = "statuses";

    fn read(text: &str) -> Result<Self::Value, String> {
        let status = |text: &str| text.trim().parse::<u16>().ok().filter(|status| (100..=599).contains(status));
        let range = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = status(from).zip(status(to)).filter(|(from, to)| from <= to)?;
            Some(from..=to)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.ok_or_else(|| format!("{} is not a status from 100 to 599; write 200, 200-299 or [200, 204-206]", shown(text)))
    }

    fn write(ranges: &Self::Value) -> Value {
        let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
            (from, to) if from == to => from.to_string(),
            (from, to) => format!("{from}-{to}"),
        };
        ranges.iter().map(range).collect::<Vec<_>>().join(", ").into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        let one = json!({"type": ["string", "integer"], "pattern": "^[1-5][0-9]{2}([, -]+[1-5][0-9]{2})*$"});
        json_schema!({"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]})
    }

    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(Form::<Self>(PhantomData))
    }

    fn from_list<'de, D: Deserializer<'de>>(list: D) -> Result<Self::Value, D::Error> {
        Ok(List::<Self>::deserialize(list)?.concat())
    }
}

/// The value of a probe's header.
fn header_value(text: &str) -> Result<String, String> {
    http::HeaderValue::from_str(text).map(|_| text.to_owned()).map_err(|_| format!("{} cannot be sent in a header", shown(text)))
}

/// The name of a header of a probe, except Host, which has its own key.
fn header_name(text: &str) -> Result<String, String> {
    if text.eq_ignore_ascii_case("host") {
        return Err("is set with health_check.host".to_owned());
    }
    header_field(text).map(|_| text.to_owned())
}

/// The name of a header.
fn header_field(text: &str) -> Result<http::HeaderName, String> {
    http::HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{} is not a header's name", shown(text)))
}

/// A header for which no application and no part of HTTP has a use.
fn preview_header(text: &str) -> Result<http::HeaderName, String> {
    use http::header;
    const NEEDED: [http::HeaderName; 7] = [
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::AUTHORIZATION,
        header::COOKIE,
    ];
    let name = header_field(text)?;
    let example = "use a header of its own, such as X-Switchover-Pool";
    if NEEDED.contains(&name) {
        return Err(format!("{} is needed by the application, and this header is not forwarded; {example}", shown(text)));
    }
    if name.as_str().contains('_') {
        return Err(format!("{} never matches, because listeners drop headers with _; {example}", shown(text)));
    }
    Ok(name)
}

/// The name of a cookie: a token, like the name of a header (RFC 6265, section 4.1.1).
fn cookie_name(text: &str) -> Result<String, String> {
    header_field(text).map(|_| text.to_owned()).map_err(|_| format!("{} is not a cookie's name", shown(text)))
}

/// The status of an error page.
fn error_status(text: &str) -> Result<u16, String> {
    let status = text.parse().ok().filter(|status| (400..=599).contains(status));
    status.ok_or_else(|| format!("{} is not the status of an error; use 400 to 599", shown(text)))
}
