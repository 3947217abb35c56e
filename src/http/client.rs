//! The one outgoing HTTP client: guarded resolver, no redirects, bounded answers.

use std::time::Duration;

use crate::config::HttpConfig;
use crate::protocol::{Answer, Request, TransportError};

/// An outgoing client with its own connection pool; one a shard. Cloning shares the pool.
#[derive(Clone)]
pub struct Client {}

/// One SRV target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvTarget {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    pub target: String,
}

#[allow(unused_variables)]
impl Client {
    /// A client by these settings (roots, exceptions, DNS servers, timeouts).
    pub fn new(config: &HttpConfig) -> Result<Self, String> {
        todo!()
    }
    /// Sends one request; the answer's body is read up to `max_body` bytes (more: `TooLarge`).
    /// Plain http only to hosts that the configuration names.
    pub async fn send(
        &self,
        request: Request,
        timeout: Duration,
        max_body: usize,
    ) -> Result<Answer, TransportError> {
        todo!()
    }
    /// SRV lookup through the configured DNS servers, 2 s a query; best first (priority, then weight).
    /// `Ok(vec![])`: no such record. `Err`: no answer (SERVFAIL, timeout), so a fallback may be tried.
    pub async fn srv(&self, name: &str) -> Result<Vec<SrvTarget>, TransportError> {
        todo!()
    }
}
