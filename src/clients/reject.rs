//! The reasons for which a connection or request is rejected before a service sees it.
//!
//! Used by everything in [`crate::clients`], and by the proxy for what it detects later. This is the only place that maps a
//! reason to its status, its `reason` label and its response.

use std::fmt;

use http::HeaderValue;

/// Why a connection or a request is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The request is ambiguous or not HTTP; the text says what is wrong with it.
    BadRequest(&'static str),
    /// The request line is longer than `request_line_bytes`.
    RequestLine,
    /// The header is longer than `header_bytes`.
    HeaderBytes,
    /// The header has more fields than `header_count`.
    HeaderCount,
    /// The header was not complete in time.
    HeaderTimeout,
    /// No byte of a request came in time.
    Idle,
    /// The body is longer than `body_bytes`.
    BodyBytes,
    /// The client sends the body more slowly than `min_rate`.
    SlowBody,
    /// The client reads the response more slowly than `min_rate`.
    SlowReader,
    /// The connection has its maximum of concurrent HTTP/2 streams.
    Streams,
    /// HTTP/2 frames that cost a server more than the client: streams that are opened and reset, headers without an end.
    Flood,
    /// CONNECT, which only forward proxies support.
    Method,
    /// `Expect` with another value than `100-continue`.
    Expectation,
    /// A preview by a client that is neither in `preview.from` nor has the token.
    Preview,
    /// A preview of a pool that the service does not have.
    PreviewPool,
    /// The listener has its maximum of connections.
    Connections,
    /// The client has its maximum of connections.
    ConnectionsPerClient,
    /// The listener has its maximum of responses that their clients do not read.
    UnreadResponses,
    /// The PROXY protocol header of a trusted proxy is missing or invalid.
    ProxyProtocol,
    /// The TLS handshake failed or timed out.
    Handshake,
}

impl Rejection {
    /// Every reason, to create all series with the value 0.
    pub(crate) const ALL: [Self; 20] = [
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
        Self::Preview,
        Self::PreviewPool,
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
            Self::Preview => "preview",
            Self::PreviewPool => "preview_pool",
            Self::Connections => "connections",
            Self::ConnectionsPerClient => "connections_per_client",
            Self::UnreadResponses => "unread_responses",
            Self::ProxyProtocol => "proxy_protocol",
            Self::Handshake => "tls_handshake",
        }
    }

    /// The status; 0 where no response is possible.
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::PreviewPool => 400,
            Self::Preview => 403,
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

    /// The body of the response; begins with the status.
    pub(crate) const fn body(self) -> &'static str {
        match self {
            Self::BadRequest(_) => "400 this request cannot be understood\n",
            Self::RequestLine => "414 the request line is too long\n",
            Self::HeaderBytes => "431 the header is too long\n",
            Self::HeaderCount => "431 the header has too many fields\n",
            Self::HeaderTimeout => "408 the header did not come in time\n",
            Self::SlowBody => "408 the rest of the request did not come\n",
            Self::BodyBytes => "413 the body is too long\n",
            Self::Method => "405 this method is not supported\n",
            Self::Expectation => "417 this expectation cannot be met\n",
            Self::Preview => "403 this client is not allowed to choose a pool\n",
            Self::PreviewPool => "400 the service has no pool with this name\n",
            Self::Connections => "503 too many connections, try again in a moment\n",
            Self::ConnectionsPerClient => "429 too many connections from one client\n",
            Self::UnreadResponses => "503 too many responses wait to be read, try again in a moment\n",
            Self::Idle | Self::SlowReader | Self::Streams | Self::Flood | Self::ProxyProtocol | Self::Handshake => "",
        }
    }

    /// The header fields of the response.
    pub(crate) fn fields(self) -> impl Iterator<Item = (&'static str, HeaderValue)> {
        error_fields(self.status(), "text/plain; charset=utf-8", self.body().len())
    }

    /// The whole response, after which the connection is closed; none for a reason without a status.
    pub(crate) fn answer(self) -> Option<String> {
        let (status, body) = (self.status(), self.body());
        let reason = http::StatusCode::from_u16(status).ok()?.canonical_reason().unwrap_or_default();
        let fields = self.fields().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
        Some(format!("HTTP/1.1 {status} {reason}\r\n{}Connection: close\r\n\r\n{body}", fields.collect::<String>()))
    }
}

/// The header fields of an error response of switchover itself, rejections included.
pub(crate) fn error_fields(
    status: u16,
    content_type: &'static str,
    length: usize,
) -> impl Iterator<Item = (&'static str, HeaderValue)> {
    let fields = [
        ("Content-Type", HeaderValue::from_static(content_type)),
        ("Content-Length", HeaderValue::from(length)),
        ("Cache-Control", HeaderValue::from_static("no-store")),
    ];
    // What is missing may be there again soon.
    let retry_after = (status == 503).then(|| ("Retry-After", HeaderValue::from_static("1")));
    fields.into_iter().chain(retry_after)
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRequest(why) => write!(f, "{} ({why})", self.reason()),
            _ => f.write_str(self.reason()),
        }
    }
}
