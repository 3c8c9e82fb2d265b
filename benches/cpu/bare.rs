//! A minimal Pingora proxy, which only selects its peer.

use async_trait::async_trait;
use pingora::{
    proxy::{ProxyHttp, Session, http_proxy_service},
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};

use super::Outcome;

struct Bare(HttpPeer);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(self.0.clone()))
    }
}

/// Serves until it is killed.
pub(super) fn run(listen: &str, origin: &str) -> Outcome<()> {
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 1024, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let origin: std::net::SocketAddr = origin.parse()?;
    let mut service = http_proxy_service(&server.configuration, Bare(HttpPeer::new(origin, false, String::new())));
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever()
}
