//! What is refused before it is a request of some service, and what is said then.
//!
//! The one place with the status, the `reason` that is counted, and the words.

use std::fmt;

/// Why a connection or a request is refused at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// Two readers could take it for two things, or it is no HTTP at all.
    BadRequest(&'static str),
    /// The line with the method and the target.
    RequestLine,
    /// All of the header together.
    HeaderBytes,
    /// The number of header fields.
    HeaderCount,
    /// The header did not come in time.
    HeaderTimeout,
    /// Nothing at all came in time.
    Idle,
    /// The body is longer than `body_bytes`.
    BodyBytes,
    /// The body comes more slowly than `min_rate`.
    SlowBody,
    /// The answer is read more slowly than `min_rate`.
    SlowReader,
    /// All streams of HTTP/2 that a connection may have at once are there.
    Streams,
    /// HTTP/2 frames that cost a server more than the client: streams made and reset, headers without an end.
    Flood,
    /// CONNECT, which is for forward proxies.
    Method,
    /// `Expect` with something else than `100-continue`.
    Expectation,
    /// All connections that this listener may have are there.
    Connections,
    /// All connections that this client may have are there.
    ConnectionsPerClient,
    /// All responses that may wait for their clients at a time are there.
    UnreadResponses,
    /// The PROXY protocol header of a trusted proxy is missing or wrong.
    ProxyProtocol,
    /// The TLS handshake failed, or did not end in time.
    Handshake,
}

impl Rejection {
    /// Every one, for the series that are counted from 0 on.
    pub(crate) const ALL: [Self; 18] = [
        Self::BadRequest(""),
        Self::RequestLine,
        Self::HeaderBytes,
        Self::HeaderCount,
        Self::HeaderTimeout,
        Self::Idle,
        Self::BodyBytes,
        Self::SlowBody,
        Self::SlowReader,
        Self::Streams,
        Self::Flood,
        Self::Method,
        Self::Expectation,
        Self::Connections,
        Self::ConnectionsPerClient,
        Self::UnreadResponses,
        Self::ProxyProtocol,
        Self::Handshake,
    ];

    /// The `reason` of `rejected_requests_total`.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::RequestLine => "request_line_bytes",
            Self::HeaderBytes => "header_bytes",
            Self::HeaderCount => "header_count",
            Self::HeaderTimeout => "header_timeout",
            Self::Idle => "idle_timeout",
            Self::BodyBytes => "body_bytes",
            Self::SlowBody => "slow_body",
            Self::SlowReader => "slow_reader",
            Self::Streams => "streams_per_connection",
            Self::Flood => "h2_flood",
            Self::Method => "method",
            Self::Expectation => "expectation",
            Self::Connections => "connections",
            Self::ConnectionsPerClient => "connections_per_client",
            Self::UnreadResponses => "unread_responses",
            Self::ProxyProtocol => "proxy_protocol",
            Self::Handshake => "tls_handshake",
        }
    }

    /// The status; 0 where there is nobody who could read one.
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::RequestLine => 414,
            Self::HeaderBytes | Self::HeaderCount => 431,
            Self::HeaderTimeout | Self::SlowBody => 408,
            Self::BodyBytes => 413,
            Self::Method => 405,
            Self::Expectation => 417,
            Self::Connections | Self::UnreadResponses => 503,
            Self::ConnectionsPerClient => 429,
            Self::Idle | Self::SlowReader | Self::Streams | Self::Flood | Self::ProxyProtocol | Self::Handshake => 0,
        }
    }

    /// What the client is told, beginning with the status.
    pub(crate) const fn body(self) -> &'static str {
        match self {
            Self::BadRequest(_) => "400 this request cannot be understood\n",
            Self::RequestLine => "414 the request line is too long\n",
            Self::HeaderBytes => "431 the header is too long\n",
            Self::HeaderCount => "431 the header has too many fields\n",
            Self::HeaderTimeout => "408 the header did not come in time\n",
            Self::SlowBody => "408 the rest of the request did not come\n",
            Self::BodyBytes => "413 the body is too long\n",
            Self::Method => "405 this method is not for here\n",
            Self::Expectation => "417 this expectation cannot be met\n",
            Self::Connections => "503 too many connections, try again in a moment\n",
            Self::ConnectionsPerClient => "429 too many connections of one client\n",
            Self::UnreadResponses => "503 too many responses wait to be read, try again in a moment\n",
            Self::Idle | Self::SlowReader | Self::Streams | Self::Flood | Self::ProxyProtocol | Self::Handshake => "",
        }
    }

    /// A whole answer, after which the connection is closed; nothing for those that have no status.
    pub(crate) fn answer(self) -> Option<String> {
        let (status, body) = (self.status(), self.body());
        let reason = http::StatusCode::from_u16(status).ok()?.canonical_reason().unwrap_or_default();
        let length = body.len();
        let retry_after = if status == 503 { "Retry-After: 1\r\n" } else { "" };
        Some(format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\n{retry_after}Connection: close\r\n\r\n{body}"
        ))
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRequest(why) => write!(f, "{} ({why})", self.reason()),
            _ => f.write_str(self.reason()),
        }
    }
}
