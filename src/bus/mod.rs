//! NATS: connection, streams, pull, publish, ask; the managed local server.
//!
//! Promises, each kept by one file:
//!
//! * [`subject`]: one function makes subject tokens, and host names read back.
//! * `connect`, `login`: a connection that comes back for ever, with any of NATS' ways to log in;
//!   an old broker is refused by a sentence; no secret is logged.
//! * `streams`: what is missing is made, what differs is said, nothing is deleted or shrunk.
//! * `intake`: one consumer of the outbound stream, renewed by epoch, so that delivery resumes at
//!   the oldest message, in order; a lost consumer or stream is noticed within seconds.
//! * `publish`: a publish is done when JetStream acknowledged it; with a window in flight the
//!   order of calls is the order in the stream.
//! * [`durability`]: what an acknowledgement of this broker is worth.
//! * `calls`: questions to local backends and answers to theirs, bounded in time and number.
//! * `among`: words between the instances of one bridge.
//! * `read`, `scan`, `tail`: what the repair of `fed.in` and the command line read back, in order.
//! * `replay`: a place in a stream by its time, a consumer that begins there.
//! * [`managed`], [`guard`]: a local nats-server that is supervised and never outlives us.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::NatsConfig;
use crate::protocol::OutEvent;

mod among;
mod calls;
mod connect;
pub mod durability;
mod earlier;
pub mod find;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod guard;
mod intake;
pub mod launch;
mod login;
pub mod managed;
mod monitoring;
mod parse;
mod publish;
mod read;
mod replay;
mod scan;
mod server_config;
mod streams;
pub mod subject;
mod tail;

pub use among::Hearing;
pub use durability::{Durability, Verdict};
pub use intake::{Intake, Share};
pub use managed::ManagedServer;
pub use monitoring::Monitored;
pub use read::{StoredMessage, StreamFacts};
pub use replay::MadeConsumer;
pub use scan::ScanFrom;
pub use streams::{StreamReport, StreamState, stream_definition, stream_name};
pub use tail::{Tail, TailFrom};

/// An acknowledgement that cannot be handed to the connection for this long is given up.
const ACK_PATIENCE: Duration = Duration::from_secs(5);

/// What to match on when the bus fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusErrorKind {
    /// Not connected, or no answer in time: may heal.
    Unavailable,
    /// The server is older than 2.10.
    TooOld,
    /// A stream is missing or differs in a way that breaks a promise.
    Stream,
    /// The consumer belongs to another store.
    Foreign,
    /// JetStream refused the message (full, too large).
    Refused,
    /// No nats-server binary could be had.
    NoServer,
    /// A setting is wrong.
    Config,
}

/// A failed bus operation.
#[derive(Clone, Debug, thiserror::Error)]
#[error("nats: {detail}")]
pub struct BusError {
    pub kind: BusErrorKind,
    pub detail: String,
}

impl BusError {
    pub(crate) fn new(kind: BusErrorKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(BusErrorKind::Unavailable, detail)
    }
}

/// A connection and its JetStream context; cloning shares it. Each shard may open its own.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    client: async_nats::Client,
    js: jetstream::Context,
    config: NatsConfig,
    /// Publishes in flight at most.
    window: Arc<Semaphore>,
    link: watch::Receiver<Link>,
    connected: watch::Receiver<bool>,
    /// Why the last try to connect again failed.
    trouble: watch::Receiver<Option<String>>,
    notices: mpsc::Sender<(String, Bytes)>,
    notices_dropped: Arc<AtomicU64>,
    /// Consumers of the outbound stream that we made.
    made: earlier::Made,
    /// Ends what serves in the background.
    closed: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// What became of the connection so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Link {
    /// How often it was lost.
    losses: u64,
}

/// The connection as it was at one moment.
struct Line {
    link: watch::Receiver<Link>,
    losses: u64,
}

impl Line {
    /// Returns when the connection was lost since that moment, even if it is back.
    async fn lost(&mut self) {
        let losses = self.losses;
        if self.link.wait_for(|l| l.losses != losses).await.is_err() {
            // The bus is gone; what is being read ends and says so.
            std::future::pending::<()>().await;
        }
    }
}

/// A message of `FED_OUT` with its parsed form, to be acknowledged when its row is durable.
pub struct OutMessage {
    /// Subject as the backend published it (partition token removed).
    pub subject: String,
    /// Protocol token of the subject, as text (may be unknown).
    pub protocol: String,
    /// Partition it is stored under.
    pub partition: u8,
    /// Parsed; `Err`: a reason to dead-letter it with, and what could be read.
    pub event: Result<OutEvent, (crate::protocol::Refusal, OutEvent)>,
    /// Sent on by the reader of another unit: its own id and peer stand in headers of ours.
    pub forwarded: bool,
    /// How often JetStream delivered it (1: first time).
    pub delivered: u64,
    /// For the acknowledgement.
    pub ack: AckHandle,
}

/// Acknowledges one message. Dropping it without `ack` leaves the message to redelivery.
pub struct AckHandle {
    client: async_nats::Client,
    reply: async_nats::Subject,
}

impl AckHandle {
    /// Acknowledges (fire and forget; a lost one is redelivered and meets its row). Does not wait
    /// for a connection that is away: what it would acknowledge is delivered again anyway.
    pub async fn ack(self) -> Result<(), BusError> {
        if self.client.connection_state() != async_nats::connection::State::Connected {
            return Err(BusError::unavailable(
                "an acknowledgement was not sent: not connected",
            ));
        }
        let sent = self.client.publish(self.reply, Bytes::from_static(b"+ACK"));
        tokio::time::timeout(ACK_PATIENCE, sent)
            .await
            .map_err(|_| BusError::unavailable("an acknowledgement was not sent in time"))?
            .map_err(|e| BusError::unavailable(format!("an acknowledgement was not sent: {e}")))
    }
}

/// A message for JetStream.
#[derive(Clone, Debug)]
pub struct BusMessage {
    pub subject: String,
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
    /// Sent as `Nats-Expected-Stream`: `FED_IN`, `FED_DEAD`, … (the name under another prefix is
    /// derived by [`stream_name`]).
    pub stream: &'static str,
}

/// The connected server, for checks and logs.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    pub version: String,
    pub max_payload: usize,
    pub name: String,
}

/// Answers a `fed.do` request: (protocol, method, body) → JSON or a refusal.
pub type CallHandler = Arc<
    dyn Fn(
            String,
            String,
            Bytes,
        ) -> futures_util::future::BoxFuture<
            'static,
            Result<serde_json::Value, crate::protocol::Refusal>,
        > + Send
        + Sync,
>;

impl Bus {
    /// The server connected to.
    pub fn server(&self) -> ServerFacts {
        let info = self.inner.client.server_info();
        ServerFacts {
            version: info.version,
            max_payload: info.max_payload,
            name: info.server_name,
        }
    }

    /// Connected at this moment.
    pub fn connected(&self) -> bool {
        self.inner.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Changes of the connection, for readiness and for the check of `fed.in` after a reconnect.
    pub fn connected_changes(&self) -> watch::Receiver<bool> {
        self.inner.connected.clone()
    }

    /// Why the connection is not there, as far as the last try told; `None`: it is, or nothing is
    /// known yet.
    pub fn trouble(&self) -> Option<String> {
        self.inner.trouble.borrow().clone()
    }

    /// How often the connection was lost so far: a number that changed means that it was away, even
    /// if it is back.
    pub fn losses(&self) -> u64 {
        self.inner.link.borrow().losses
    }

    /// Subject prefix (`fed`).
    pub fn prefix(&self) -> &str {
        &self.inner.config.prefix
    }

    /// Notices that [`Bus::notify`] had to drop since the start.
    pub fn notices_dropped(&self) -> u64 {
        self.inner.notices_dropped.load(Ordering::Relaxed)
    }

    /// Drains and closes: stops serving calls, sends what is buffered, at most for the request
    /// timeout. Other clones are closed with it.
    pub async fn close(&self) {
        let inner = &self.inner;
        inner.closed.cancel();
        let end = async {
            // A flush that fails means the connection is gone already.
            let _ = inner.client.flush().await;
            let _ = inner.client.drain().await;
        };
        if tokio::time::timeout(self.patience(), end).await.is_err() {
            tracing::warn!("nats: closing took too long; what was buffered may be lost");
        }
    }

    fn patience(&self) -> Duration {
        self.inner.config.request_timeout
    }

    fn line(&self) -> Line {
        let link = self.inner.link.clone();
        let losses = link.borrow().losses;
        Line { link, losses }
    }

    /// A stream's name under the configured prefix.
    fn stream(&self, logical: &str) -> String {
        stream_name(self.prefix(), logical)
    }
}
