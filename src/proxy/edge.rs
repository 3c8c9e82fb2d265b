//! From listening sockets to the requests on their connections.
//!
//! The composition root binds the sockets and hands them to [`serve`]. Pingora's server would bind late, try a busy port for
//! thirty seconds while the process looks alive, and sleep through every shutdown; so only its listening service is used, and
//! it gets its sockets the way it gets them from a predecessor in a graceful upgrade: bound.

use std::{
    net::TcpListener,
    os::fd::IntoRawFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::{
    apps::{HttpServerApp, ServerApp},
    protocols::Stream,
    proxy::HttpProxy,
    server::{Fds, ShutdownWatch, configuration::ServerConf},
    services::{Service as _, listening::Service},
};
use prometheus::IntGauge;
use tokio::sync::Notify;

use super::{Proxy, connection};

/// Unused connections to peers that are kept, over all peers.
const KEPT_CONNECTIONS: usize = 1024;
/// More tries than a request can use up: the bounds are `retries` and the rule for lost connections.
const TRIES: usize = 16;

/// Connections from clients, and the requests on them. Clones are the same edge.
#[derive(Clone)]
pub struct Edge {
    proxy: Arc<HttpProxy<Proxy>>,
    connections: Arc<Connections>,
}

struct Connections {
    open: AtomicUsize,
    gauge: IntGauge,
    all_closed: Notify,
}

/// One open connection.
struct Connection(Arc<Connections>);

impl Edge {
    /// `threads` is how many workers will drive it.
    pub fn new(proxy: Proxy, threads: usize, gauge: IntGauge) -> Self {
        let conf =
            ServerConf { threads, upstream_keepalive_pool_size: KEPT_CONNECTIONS, max_retries: TRIES, ..ServerConf::default() };
        let mut proxy = HttpProxy::new(proxy, Arc::new(conf));
        proxy.handle_init_modules();
        let connections = Connections { open: AtomicUsize::new(0), gauge, all_closed: Notify::new() };
        Self { proxy: Arc::new(proxy), connections: Arc::new(connections) }
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.connections.open.load(SeqCst)
    }

    /// Returns when no connection is open.
    pub async fn all_closed(&self) {
        loop {
            let closed = self.connections.all_closed.notified();
            if self.connections() == 0 {
                return;
            }
            closed.await;
        }
    }

    /// Closes connections that carry no request, now and as soon as they carry none.
    pub async fn close_idle(&self) {
        self.proxy.http_cleanup().await;
    }
}

/// Accepts connections until `stopping` says so; then the sockets are closed, and connections end by themselves.
pub async fn serve(listeners: Vec<TcpListener>, edge: Edge, stopping: ShutdownWatch) {
    let mut service = Service::new("listeners".to_owned(), edge);
    let mut sockets = Fds::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        // Pingora looks a bound socket up by its address; no more is done with this name.
        let name = format!("listener {index}");
        service.add_tcp(&name);
        sockets.add(name, listener.into_raw_fd());
    }
    service.start_service(Some(Arc::new(Mutex::new(sockets))), stopping, 1).await;
}

impl Connection {
    fn new(connections: &Arc<Connections>) -> Self {
        connections.open.fetch_add(1, SeqCst);
        connections.gauge.inc();
        Self(Arc::clone(connections))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.gauge.dec();
        if self.0.open.fetch_sub(1, SeqCst) == 1 {
            self.0.all_closed.notify_waiters();
        }
    }
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(self: &Arc<Self>, stream: Stream, stopping: &ShutdownWatch) -> Option<Stream> {
        let _open = Connection::new(&self.connections);
        connection::watched(self.proxy.process_new(stream, stopping)).await.flatten()
    }
}
