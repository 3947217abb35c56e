//! NATS: connection, streams, pull, publish, ask; the managed local server.

use bytes::Bytes;

use crate::config::NatsConfig;
use crate::protocol::OutEvent;

pub mod subject;

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

/// A connection and its JetStream context; cloning shares it. Each shard may open its own.
#[derive(Clone)]
pub struct Bus {}

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
    /// How often JetStream delivered it (1: first time).
    pub delivered: u64,
    /// For the acknowledgement.
    pub ack: AckHandle,
}

/// Acknowledges one message. Dropping it without `ack` leaves the message to redelivery.
pub struct AckHandle {}

#[allow(unused_variables)]
impl AckHandle {
    /// Acknowledges (fire and forget; a lost one is redelivered and meets its row).
    pub async fn ack(self) -> Result<(), BusError> {
        todo!()
    }
}

/// A message for JetStream.
#[derive(Clone, Debug)]
pub struct BusMessage {
    pub subject: String,
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
    /// Sent as `Nats-Expected-Stream`.
    pub stream: &'static str,
}

/// The connected server, for checks and logs.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    pub version: String,
    pub max_payload: usize,
    pub name: String,
}

#[allow(unused_variables)]
impl Bus {
    /// Connects (retrying with `backoff` until `NatsConfig::connect_timeout`), checks the version.
    pub async fn connect(config: &NatsConfig) -> Result<Self, BusError> {
        todo!()
    }
    /// The server connected to.
    pub fn server(&self) -> ServerFacts {
        todo!()
    }
    /// Connected at this moment.
    pub fn connected(&self) -> bool {
        todo!()
    }
    /// Subject prefix (`fed`).
    pub fn prefix(&self) -> &str {
        todo!()
    }
    /// Applies `streams/*.json` by policy (`ensure | verify | off`); answers the differences as sentences.
    pub async fn apply_streams(&self) -> Result<Vec<String>, BusError> {
        todo!()
    }
    /// Publishes and awaits the PubAck; answers the stream sequence and whether it was a duplicate.
    pub async fn publish(&self, message: BusMessage) -> Result<(u64, bool), BusError> {
        todo!()
    }
    /// Publishes in order with a window in flight: resolves to one receiver per message, in order of PubAck.
    /// The outer future waits for room in the window, so the order of calls is the order in the stream.
    pub async fn publish_windowed(
        &self,
        message: BusMessage,
    ) -> Result<futures_util::future::BoxFuture<'static, Result<(u64, bool), BusError>>, BusError>
    {
        todo!()
    }
    /// Core publish without acknowledgement (ops events go through JetStream stream FED_OPS but are not awaited).
    pub fn notify(&self, subject: String, payload: Bytes) {
        todo!()
    }
    /// Opens the intake: deletes our earlier consumer on FED_OUT, makes `drawbridge-<epoch>` with
    /// metadata `store=<store_id>`; a consumer of another store is refused.
    /// `filter_protocols`: subjects of these protocols only (others stay in the stream); empty: nothing is pulled.
    pub async fn open_intake(
        &self,
        store_id: &str,
        epoch: i64,
        protocols: &[&str],
    ) -> Result<Intake, BusError> {
        todo!()
    }
    /// A request to a local backend, `fed.ask.<protocol>.<method>`.
    pub async fn ask(
        &self,
        protocol: &str,
        method: &str,
        body: Bytes,
        timeout: std::time::Duration,
    ) -> Result<Bytes, BusError> {
        todo!()
    }
    /// Serves `fed.do.<protocol>.<method>` as a NATS micro service until the bus is closed.
    pub async fn serve_calls(&self, handler: CallHandler) -> Result<(), BusError> {
        todo!()
    }
    /// Drains and closes.
    pub async fn close(&self) {
        todo!()
    }
}

/// Answers a `fed.do` request: (protocol, method, body) → JSON or a refusal.
pub type CallHandler = std::sync::Arc<
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

/// The one pull consumer of `FED_OUT`.
pub struct Intake {}

#[allow(unused_variables)]
impl Intake {
    /// The next batch: at least one message, at most `max`; waits while there is none.
    /// `Err(Unavailable | Stream)`: the consumer or stream is lost, open a new intake with a new epoch.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<OutMessage>, BusError> {
        todo!()
    }
}

/// A nats-server that we started.
pub struct ManagedServer {}

#[allow(unused_variables)]
impl ManagedServer {
    /// Finds or obtains the binary, starts it (loopback, free port unless configured), waits until it
    /// answers. It is supervised (started again when it dies) and never outlives this process.
    pub async fn start(config: &NatsConfig) -> Result<Self, BusError> {
        todo!()
    }
    /// `nats://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        todo!()
    }
    /// Process id of the server.
    pub fn pid(&self) -> Option<u32> {
        todo!()
    }
    /// Stops it, waits.
    pub async fn stop(self) {
        todo!()
    }
}
