//! Why a request failed, and what the client, the metrics and the retry rule make of it.
//!
//! The one place where an error becomes a status. A body says no more than a stranger may know.

use pingora::{Error, ErrorSource, ErrorType};

use crate::{
    clients::reject::Rejection,
    metrics::{BrokenBy, ErrorKind},
    pool::local::local_cause,
};

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No service takes this host and path.
    NoRoute,
    /// No peer of the active pool is ready.
    NobodyReady,
    /// The peer failed.
    Peer(ErrorKind),
    /// The client sent something that cannot be forwarded.
    BadRequest,
    /// The client stopped sending in the middle.
    ClientTimeout,
    /// The client broke a rule after its header had passed.
    Refused(Rejection),
    /// The client has gone; there is nobody to answer.
    ClientGone,
    /// Ours.
    Internal,
}

impl Failure {
    /// Reads Pingora's error; `late` says that the response timeout cut the connection.
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
            // It did not take the request's body.
            (ErrorSource::Upstream, ErrorType::WriteTimedout) => Self::Peer(ErrorKind::ResponseTimeout),
            (ErrorSource::Upstream, ErrorType::InvalidHTTPHeader) => Self::Peer(ErrorKind::Protocol),
            (ErrorSource::Upstream, _) => Self::Peer(ErrorKind::Closed),
            (ErrorSource::Downstream, ErrorType::ReadTimedout) => Self::ClientTimeout,
            (ErrorSource::Downstream, ErrorType::InvalidHTTPHeader | ErrorType::HTTPStatus(_)) => Self::BadRequest,
            (ErrorSource::Downstream, _) => Self::ClientGone,
            _ => Self::Internal,
        }
    }

    /// The status, and the code that is counted. 499 is never sent: it stands for a client that did not wait.
    pub(super) const fn status(self) -> u16 {
        match self {
            Self::NoRoute => 404,
            Self::NobodyReady | Self::Peer(ErrorKind::Local) => 503,
            Self::Peer(ErrorKind::ConnectTimeout | ErrorKind::ResponseTimeout) => 504,
            Self::Peer(_) => 502,
            Self::BadRequest => 400,
            Self::ClientTimeout => 408,
            Self::Refused(rejection) => match rejection.status() {
                0 => 499,
                status => status,
            },
            Self::ClientGone => 499,
            Self::Internal => 500,
        }
    }

    /// Who ended an answer that had begun.
    pub(super) const fn blame(self) -> BrokenBy {
        match self {
            Self::Peer(_) => BrokenBy::Peer,
            Self::BadRequest | Self::ClientTimeout | Self::Refused(_) | Self::ClientGone => BrokenBy::Client,
            Self::NoRoute | Self::NobodyReady | Self::Internal => BrokenBy::Switchover,
        }
    }

    /// In one word, for the access log.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NobodyReady => "no_ready_peer",
            Self::Peer(kind) => kind.label(),
            Self::BadRequest => "bad_request",
            Self::ClientTimeout => "client_timeout",
            Self::Refused(rejection) => rejection.reason(),
            Self::ClientGone => "client_gone",
            Self::Internal => "internal",
        }
    }

    /// What a gRPC client is told (grpc.github.io, "HTTP to gRPC Status Code Mapping").
    pub(super) const fn grpc_status(self) -> &'static str {
        match self.status() {
            404 | 405 => "12", // UNIMPLEMENTED
            413 | 431 => "8",  // RESOURCE_EXHAUSTED
            502..=504 => "14", // UNAVAILABLE
            _ => "13",         // INTERNAL
        }
    }

    /// The body, for a person in front of a browser.
    pub(super) const fn body(self) -> &'static str {
        match self {
            Self::NoRoute => "404 no service here for this host and path\n",
            Self::NobodyReady => "503 no application is ready, try again in a moment\n",
            Self::Peer(ErrorKind::ConnectTimeout | ErrorKind::ResponseTimeout) => "504 the application did not answer in time\n",
            Self::Peer(ErrorKind::Local) => "503 no connection can be made now, try again in a moment\n",
            Self::Peer(_) => "502 the application did not answer\n",
            Self::BadRequest => "400 this request cannot be understood\n",
            Self::ClientTimeout => "408 the rest of the request did not come\n",
            Self::Refused(rejection) => rejection.body(),
            Self::ClientGone => "",
            Self::Internal => "500 something went wrong here\n",
        }
    }
}
