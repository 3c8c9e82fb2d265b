//! The reasons of failed requests, with their status, body, access log word and metric label.
//!
//! Used by the phases in [`super`]. This is the only place that maps errors to a status. A body never contains internal details.

use h2::Reason;
use pingora::{Error, ErrorSource, ErrorType};

use crate::{
    clients::reject::Rejection,
    metrics::{BrokenBy, ErrorKind},
    pool::local::local_cause,
    route::NoRoute,
};

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No service matches the host and path.
    NoRoute,
    /// No peer of the active pool is ready, or of the pool that the request chose.
    NoReadyPeer,
    /// The listener serves the standby pool, and the service does not have exactly one.
    NoStandbyPool,
    /// The peer failed.
    Peer(ErrorKind),
    /// The client sent something that cannot be forwarded.
    BadRequest,
    /// The client stopped sending in the middle.
    ClientTimeout,
    /// The client broke a limit after its header was accepted.
    Rejected(Rejection),
    /// The client closed the connection, so no response is possible.
    ClientGone,
    /// A fault of switchover.
    Internal,
}

impl Failure {
    /// Classifies an error of Pingora. `late`: the response timeout closed the connection.
    pub(super) fn of(error: &Error, late: bool) -> Self {
        match (error.esource(), error.etype()) {
            _ if late => Self::Peer(ErrorKind::ResponseTimeout),
            _ if local_cause(error).is_some() => Self::Peer(ErrorKind::Local),
            (ErrorSource::Upstream, ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout) => {
                Self::Peer(ErrorKind::ConnectTimeout)
            }
            (
                ErrorSource::Upstream,
                ErrorType::ConnectError
                | ErrorType::ConnectRefused
                | ErrorType::ConnectNoRoute
                | ErrorType::SocketError
                | ErrorType::BindError
                | ErrorType::ConnectProxyFailure,
            ) => Self::Peer(ErrorKind::Connect),
            // The peer did not read the request body.
            (ErrorSource::Upstream, ErrorType::WriteTimedout) => Self::Peer(ErrorKind::ResponseTimeout),
            (ErrorSource::Upstream, ErrorType::InvalidHTTPHeader) => Self::Peer(ErrorKind::Protocol),
            (ErrorSource::Upstream, _) => Self::Peer(ErrorKind::Closed),
            (ErrorSource::Downstream, ErrorType::ReadTimedout) => Self::ClientTimeout,
            (ErrorSource::Downstream, ErrorType::InvalidHTTPHeader | ErrorType::HTTPStatus(_)) => Self::BadRequest,
            (ErrorSource::Downstream, _) => Self::ClientGone,
            _ => Self::Internal,
        }
    }

    /// The status that is sent and counted. 499 is only counted: the client left before the response.
    pub(super) const fn status(self) -> u16 {
        match self {
            Self::NoRoute => 404,
            Self::NoReadyPeer | Self::NoStandbyPool | Self::Peer(ErrorKind::Local) => 503,
            Self::Peer(ErrorKind::ConnectTimeout | ErrorKind::ResponseTimeout) => 504,
            Self::Peer(_) => 502,
            Self::BadRequest => 400,
            Self::ClientTimeout => 408,
            Self::Rejected(rejection) => match rejection.status() {
                0 => 499,
                status => status,
            },
            Self::ClientGone => 499,
            Self::Internal => 500,
        }
    }

    /// The `by` of `broken_responses_total`, for a response that had begun.
    pub(super) const fn blame(self) -> BrokenBy {
        match self {
            Self::Peer(_) => BrokenBy::Peer,
            Self::BadRequest | Self::ClientTimeout | Self::Rejected(_) | Self::ClientGone => BrokenBy::Client,
            Self::NoRoute | Self::NoReadyPeer | Self::NoStandbyPool | Self::Internal => BrokenBy::Switchover,
        }
    }

    /// The `ended` word of the access log.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoReadyPeer => "no_ready_peer",
            Self::NoStandbyPool => "no_standby_pool",
            Self::Peer(kind) => kind.label(),
            Self::BadRequest => "bad_request",
            Self::ClientTimeout => "client_timeout",
            Self::Rejected(rejection) => rejection.reason(),
            Self::ClientGone => "client_gone",
            Self::Internal => "internal",
        }
    }

    /// The `grpc-status` (grpc.github.io, "HTTP to gRPC Status Code Mapping").
    pub(super) const fn grpc_status(self) -> &'static str {
        match self.status() {
            404 | 405 => "12", // UNIMPLEMENTED
            413 | 431 => "8",  // RESOURCE_EXHAUSTED
            502..=504 => "14", // UNAVAILABLE
            _ => "13",         // INTERNAL
        }
    }

    /// The body of the response, written for a person with a browser.
    pub(super) const fn body(self) -> &'static str {
        match self {
            Self::NoRoute => "404 no service here for this host and path\n",
            Self::NoStandbyPool => {
                "503 this listener serves the standby pool of services with two pools, and this service has another number\n"
            }
            Self::NoReadyPeer => "503 no application is ready, try again in a moment\n",
            Self::Peer(ErrorKind::ConnectTimeout | ErrorKind::ResponseTimeout) => "504 the application did not answer in time\n",
            Self::Peer(ErrorKind::Local) => "503 no connection can be made now, try again in a moment\n",
            Self::Peer(_) => "502 the application did not answer\n",
            Self::BadRequest => "400 this request cannot be understood\n",
            Self::ClientTimeout => "408 the rest of the request did not come\n",
            Self::Rejected(rejection) => rejection.body(),
            Self::ClientGone => "",
            Self::Internal => "500 something went wrong here\n",
        }
    }
}

impl From<NoRoute> for Failure {
    fn from(reason: NoRoute) -> Self {
        match reason {
            NoRoute::NotFound => Self::NoRoute,
            NoRoute::Ambiguous => Self::Rejected(Rejection::BadRequest("a path that two services could match")),
        }
    }
}

/// Whether an HTTP/2 peer reported that it has not processed the request (RFC 9113, section 8.7): it refused the stream, or is shutting
/// down and named a last stream before this one. h2 gives the error of a GOAWAY only to streams after the named one.
pub(super) fn is_unprocessed(error: &Error) -> bool {
    let Some(error) = error.root_cause().downcast_ref::<h2::Error>().filter(|error| error.is_remote()) else { return false };
    error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)
        || error.is_go_away() && error.reason() == Some(Reason::NO_ERROR)
}
