//! Pools of outgoing connections: resolved under the guard, TLS, HTTP/1.1 or HTTP/2 as the peer offers.
//!
//! hyper's own pooling client without the layers (redirects, cookies, retries by policy) of which a
//! delivery uses none. A connection that was found closed before the request went out is replaced
//! without a word, as by any client that keeps connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tower::{BoxError, Service};

use super::guard::Guard;
use super::resolver::{GuardedResolver, Names};

/// How long an idle connection is kept. Below what servers and balancers usually allow (60 s), so
/// that we close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// While requests are in hand on HTTP/2, and as long for the answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of answer headers in HTTP/2; HTTP/1 has hyper's own bound.
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// A pool of connections; cloning shares it.
pub(super) type Pool = Client<Within<HttpsConnector<HttpConnector<GuardedResolver>>>, Full<Bytes>>;

/// A pool whose names resolve under `guard`; `None`: anywhere. `connect_timeout` covers resolving,
/// connecting and the TLS handshake; `idle_per_host` connections to one host are kept when idle.
pub(super) fn pool(
    tls: &ClientConfig,
    names: &Arc<Names>,
    guard: Option<Arc<Guard>>,
    connect_timeout: Duration,
    idle_per_host: usize,
) -> Pool {
    let mut tcp = HttpConnector::new_with_resolver(GuardedResolver {
        names: Arc::clone(names),
        guard,
    });
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect_timeout));
    let mut tls = tls.clone();
    // The connector offers what it was told to speak.
    tls.alpn_protocols.clear();
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(idle_per_host)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_max_header_list_size(MAX_HEADER_LIST)
        // All requests to a peer share one HTTP/2 connection, and a request that times out
        // does not close it: a peer that vanished is found out by pings.
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_INTERVAL)
        .build(Within {
            inner: https,
            limit: connect_timeout,
        })
}

/// A connector with a limit on its whole work.
#[derive(Clone)]
pub(super) struct Within<C> {
    inner: C,
    limit: Duration,
}

impl<C> Service<Uri> for Within<C>
where
    C: Service<Uri>,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (connecting, limit) = (self.inner.call(to), self.limit);
        Box::pin(async move {
            match tokio::time::timeout(limit, connecting).await {
                Ok(done) => done.map_err(Into::into),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no connection within {} ms", limit.as_millis()),
                )
                .into()),
            }
        })
    }
}
