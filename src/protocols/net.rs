//! The network as protocols see it: one request, one answer.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::http::client::Client;
use crate::protocol::{Answer, PeerName, Request, TransportError};

/// Sends requests to other servers; usually the outgoing HTTP client.
pub trait Net: Send + Sync + 'static {
    /// One request and its answer, read up to `max_answer` bytes. Redirects are answers.
    fn send<'a>(
        &'a self,
        request: Request,
        timeout: Duration,
        max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>>;

    /// Whether this server may be spoken to without TLS.
    fn speaks_plain(&self, _host: &PeerName) -> bool {
        false
    }

    /// The client behind it, for a probe; a stub has none.
    fn client(&self) -> Option<&Client> {
        None
    }
}

impl Net for Client {
    fn send<'a>(
        &'a self,
        request: Request,
        timeout: Duration,
        max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>> {
        Box::pin(Client::send(self, request, timeout, max_answer))
    }

    fn speaks_plain(&self, host: &PeerName) -> bool {
        Client::speaks_plain(self, host)
    }

    fn client(&self) -> Option<&Client> {
        Some(self)
    }
}
