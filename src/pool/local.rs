//! Failures of this process or its host that say nothing about a peer: no descriptor, no port, no memory left.
//!
//! Asked by [`super::probe`], by [`super::resolve`] and by the proxy before a failed connection is held against a peer.

use std::{error::Error, io};

use nix::errno::Errno;

/// The cause within Pingora's error, if it is a local one.
pub fn local_cause(error: &pingora::Error) -> Option<&io::Error> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error.root_cause());
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error).filter(|error| is_local(error));
        }
        cause = error.source();
    }
    None
}

/// Whether the system refused something that is ours, not the peer's (errno(3)).
pub fn is_local(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::EADDRNOTAVAIL | Errno::ENOBUFS | Errno::ENOMEM))
}

#[cfg(test)]
mod tests {
    use pingora::{ErrorType, OrErr};

    use super::*;

    #[test]
    fn a_local_cause_is_found_under_pingoras_context() {
        let because = |code: Errno| {
            let inner: pingora::Result<()> =
                Err(io::Error::from_raw_os_error(code as i32)).or_err(ErrorType::SocketError, "socket");
            pingora::Error::because(ErrorType::InternalError, "connecting", inner.unwrap_err())
        };
        for code in [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL, Errno::ENOBUFS, Errno::ENOMEM] {
            assert!(local_cause(&because(code)).is_some(), "{code}");
        }
        for code in [Errno::ECONNREFUSED, Errno::ETIMEDOUT, Errno::EHOSTUNREACH, Errno::ECONNRESET] {
            assert!(local_cause(&because(code)).is_none(), "{code}");
        }
        assert!(local_cause(&pingora::Error::new(ErrorType::ConnectError)).is_none());
    }
}
