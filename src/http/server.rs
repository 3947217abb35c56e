//! Serves a router on one address: connection, header, body and time limits, TLS, SO_REUSEPORT, drain.
//!
//! | limit | setting | what happens beyond it |
//! | --- | --- | --- |
//! | connections | `max_connections` | further ones wait in the kernel's queue |
//! | TLS handshake, request head | `header_timeout` | closed |
//! | head size, 100 fields | `max_header_bytes` | 431 |
//! | body | `max_body_bytes` | 413; a route may set a lower one |
//! | whole request | `request_timeout` | 408 while it is arriving, 503 after |
//! | between requests | `idle_timeout` | closed |
//! | drain | `drain_timeout` | cut |

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{self, Shared};
use super::tls::Certificate;
use crate::config::ListenConfig;

/// Connections the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;
/// After a failed accept (out of file descriptors) the next try waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The peer's address as the connection (or a trusted proxy's header) gives it; in request extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub std::net::IpAddr);

/// A bound listener.
pub struct Server {
    listener: std::net::TcpListener,
    local: SocketAddr,
    config: ListenConfig,
    certificate: Option<Certificate>,
}

impl Server {
    /// Binds (SO_REUSEPORT when `reuse`), so that the port is known before serving, and reads the
    /// certificate. Errors are sentences that name the address or file.
    pub fn bind(config: &ListenConfig, reuse: bool) -> io::Result<Self> {
        let certificate =
            Certificate::load(config.tls_certificate.as_deref(), config.tls_key.as_deref())
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
        let listener = listen(config.address, reuse).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("cannot listen on {}: {e}", config.address),
            )
        })?;
        Ok(Self {
            local: listener.local_addr()?,
            listener,
            config: config.clone(),
            certificate,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The certificate in use, for reloading it while the server runs. `None`: no TLS.
    pub fn certificate(&self) -> Option<Certificate> {
        self.certificate.clone()
    }

    /// Serves until `stop` resolves, then answers what is in hand for at most `config.drain_timeout`.
    /// Runs on the current runtime. Dropping the future ends every connection.
    pub async fn serve(self, router: axum::Router, stop: CancellationToken) {
        let listener = match TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(address = %self.local, %error, "the listener cannot be used");
                return;
            }
        };
        let drain = stop.child_token();
        let kill = CancellationToken::new();
        let _kill_when_dropped = kill.clone().drop_guard();
        let slots = Arc::new(Semaphore::new(
            self.config.max_connections.clamp(1, Semaphore::MAX_PERMITS),
        ));
        let tasks = TaskTracker::new();
        let shared = Arc::new(Shared {
            builder: connection::builder(&self.config),
            // Ours is the cap; axum's own default of 2 MB would come before it.
            router: router.layer(DefaultBodyLimit::disable()),
            drain,
            kill,
            config: self.config,
        });
        while let Some((stream, peer, slot)) = next(&listener, &slots, &stop).await {
            let shared = Arc::clone(&shared);
            let acceptor = self.certificate.as_ref().map(Certificate::current);
            tasks.spawn(async move {
                accepted(stream, peer, acceptor, shared).await;
                drop(slot);
            });
        }
        drop(listener);
        tasks.close();
        if tokio::time::timeout(shared.config.drain_timeout, tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                address = %self.local,
                connections = tasks.len(),
                "connections were cut: they did not finish within drain_timeout"
            );
            shared.kill.cancel();
            tasks.wait().await;
        }
    }
}

/// The next connection and its place; `None`: stop.
async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let accept = async {
        let slot = Arc::clone(slots).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => return Some((stream, peer, slot)),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        accepted = accept => accepted,
    }
}

/// The caller went away before we came to it.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn accepted(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    shared: Arc<Shared>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(client = %peer, %error, "TCP_NODELAY not set");
    }
    let Some(tls) = tls else {
        return connection::serve(stream, peer.ip(), shared).await;
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let stream = tokio::select! {
        () = shared.drain.cancelled() => return,
        done = tokio::time::timeout(shared.config.header_timeout, handshake) => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(client = %peer, %error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                tracing::debug!(client = %peer, "TLS handshake not finished in time");
                return;
            }
        },
    };
    connection::serve(stream, peer.ip(), shared).await;
}

fn listen(address: SocketAddr, reuse: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for connections of the last run to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    if reuse {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
