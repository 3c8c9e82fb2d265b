//! Client connections, from the listening socket to one judged request at a time.
//!
//! The composition root binds the sockets and calls [`Edge::serve`]; each request goes to the application that the edge was made
//! for, any [`pingora::apps::HttpServerApp`]. Nothing here imports the proxy. Of the snapshot only
//! `trusted_proxies` is read, and of a peer only the socket is known that a late response closes. The state of a connection is a
//! `connection::Connection`, which the proxy reads as well.
//!
//! A file uses only files below it:
//!
//! ```text
//! edge                                  accepts connections
//! http2                                 the requests of an HTTP/2 connection
//! client_stream  shared                 the bytes of a connection; what all connections share
//! listener                              limits
//! backpressure  paced  linger           what a request and its end do for both protocols
//! connection                            the state of a connection
//! response_wait  pace  rejections  head  frame_watcher  proxy_protocol  socket  tls  closing
//! cells  body_limit  reject
//! ```

mod backpressure;
mod body_limit;
mod cells;
mod client_stream;
mod closing;
pub(crate) mod connection;
mod edge;
mod frame_watcher;
mod head;
mod http2;
mod linger;
mod listener;
#[cfg(test)]
#[path = "../../fuzz/mutated.rs"]
mod mutated;
mod pace;
mod paced;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/properties.rs"]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "they are tests")]
pub mod properties;
mod proxy_protocol;
pub(crate) mod reject;
mod rejections;
mod response_wait;
mod shared;
mod socket;
pub mod tls;

pub use self::{edge::Edge, listener::ListenerState};
