//! Serves a router on one address: connection, header, body and time limits, TLS, SO_REUSEPORT, drain.

use std::net::SocketAddr;

use crate::config::ListenConfig;

/// The peer's address as the connection (or a trusted proxy's header) gives it; in request extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub std::net::IpAddr);

/// A bound listener.
pub struct Server {}

#[allow(unused_variables)]
impl Server {
    /// Binds (SO_REUSEPORT when `reuse`), so that the port is known before serving.
    pub fn bind(config: &ListenConfig, reuse: bool) -> std::io::Result<Self> {
        todo!()
    }
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        todo!()
    }
    /// Serves until `stop` resolves, then answers what is in hand for at most `config.drain_timeout`.
    pub async fn serve(self, router: axum::Router, stop: tokio_util::sync::CancellationToken) {
        todo!()
    }
}
