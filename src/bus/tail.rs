//! Following a stream, for `drawbridge tail`, `send --wait` and the repair of `fed.in`.
//!
//! Promise: every message that matches, once, in stream order, over reconnects and restarts of the
//! broker. The place is our own (the sequence after the last message handed out), so following
//! anew neither skips nor repeats.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::{self, OrderedConfig};
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use futures_util::StreamExt;

use super::publish::js_error;
use super::read::{StoredMessage, ms, pairs};
use super::{Bus, BusError, BusErrorKind, Line};

/// Wait between attempts to follow anew.
const AGAIN: Duration = Duration::from_millis(250);

/// After this long without a message the stream itself is looked at.
const IDLE: Duration = Duration::from_secs(3);

/// Where a tail begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailFrom {
    /// What is published from now on.
    New,
    /// The oldest message held.
    All,
    /// This stream sequence, or the next one held.
    Seq(u64),
}

/// Messages of one stream, in order.
pub struct Tail {
    bus: Bus,
    /// Contract name of the stream.
    logical: &'static str,
    filter: String,
    /// When the stream was made.
    created_ns: i128,
    /// Sequence to go on from.
    next_seq: u64,
    messages: Option<pull::Ordered>,
    /// The connection that `messages` come by.
    line: Line,
}

impl Bus {
    /// Follows the messages of a subject filter such as `fed.in.uam.>`; the stream is found by
    /// the filter's second part (`in`, `held`, `dead`, `ops`). `Err(Stream)`: it does not exist.
    pub async fn tail(&self, filter: &str, from: TailFrom) -> Result<Tail, BusError> {
        let area = filter
            .strip_prefix(self.prefix())
            .and_then(|rest| rest.strip_prefix('.'))
            .map(|rest| rest.split('.').next().unwrap_or_default());
        let logical = match area {
            Some("in") => "FED_IN",
            Some("held") => "FED_HELD",
            Some("dead") => "FED_DEAD",
            Some("ops") => "FED_OPS",
            _ => {
                let p = self.prefix();
                return Err(BusError::new(
                    BusErrorKind::Config,
                    format!(
                        "{filter:?} cannot be followed; a filter begins with {p}.in, {p}.held, \
                         {p}.dead or {p}.ops"
                    ),
                ));
            }
        };
        let facts = self.stream_facts(logical).await?.ok_or_else(|| {
            BusError::new(
                BusErrorKind::Stream,
                format!("stream {} does not exist", self.stream(logical)),
            )
        })?;
        let mut tail = Tail {
            bus: self.clone(),
            logical,
            filter: filter.to_owned(),
            created_ns: facts.created_ns,
            next_seq: match from {
                TailFrom::New => facts.last_seq + 1,
                TailFrom::All => 1,
                TailFrom::Seq(seq) => seq.max(1),
            },
            messages: None,
            line: self.line(),
        };
        tail.messages = Some(tail.open().await?);
        Ok(tail)
    }
}

impl Tail {
    /// The next message; waits while there is none and while the broker is away. Safe to drop
    /// while waiting. `Err`: the stream was deleted or made again, or may not be read.
    pub async fn next(&mut self) -> Result<StoredMessage, BusError> {
        loop {
            let Some(messages) = &mut self.messages else {
                tokio::time::sleep(AGAIN).await;
                let line = self.bus.line();
                match self.resume().await {
                    Ok(messages) => {
                        self.messages = Some(messages);
                        self.line = line;
                    }
                    Err(e) if e.kind == BusErrorKind::Unavailable => {
                        tracing::debug!("{e}; trying again");
                    }
                    Err(e) => return Err(e),
                }
                continue;
            };
            let item = tokio::select! {
                item = tokio::time::timeout(IDLE, messages.next()) => item,
                () = self.line.lost() => {
                    // Sooner than the consumer below would notice by itself.
                    self.messages = None;
                    continue;
                }
            };
            let item = match item {
                Ok(item) => item,
                Err(_) => {
                    // The consumer below tries for ever; whether there is still something to
                    // follow is ours to ask.
                    self.check().await?;
                    continue;
                }
            };
            let message = match item {
                Some(Ok(message)) => message,
                Some(Err(e)) => {
                    tracing::debug!("nats: following {} broke: {e}", self.filter);
                    self.messages = None;
                    continue;
                }
                None => {
                    self.messages = None;
                    continue;
                }
            };
            let Ok(info) = message.info() else {
                continue;
            };
            // Seen already, before following anew.
            if info.stream_sequence < self.next_seq {
                continue;
            }
            self.next_seq = info.stream_sequence + 1;
            return Ok(StoredMessage {
                subject: message.subject.to_string(),
                seq: info.stream_sequence,
                time_ms: ms(info.published.unix_timestamp_nanos()),
                headers: pairs(message.headers.as_ref()),
                payload: message.payload.clone(),
            });
        }
    }

    /// Follows anew, if it is still the same stream.
    async fn resume(&self) -> Result<pull::Ordered, BusError> {
        self.check().await?;
        self.open().await
    }

    /// Whether it is still the same stream. A broker that is away is no answer, and no error.
    async fn check(&self) -> Result<(), BusError> {
        match self.bus.stream_facts(self.logical).await {
            Ok(Some(facts)) if facts.created_ns == self.created_ns => Ok(()),
            Err(e) if e.kind == BusErrorKind::Unavailable => Ok(()),
            Err(e) => Err(e),
            Ok(_) => Err(BusError::new(
                BusErrorKind::Stream,
                format!(
                    "stream {} was deleted or made again",
                    self.bus.stream(self.logical)
                ),
            )),
        }
    }

    async fn open(&self) -> Result<pull::Ordered, BusError> {
        let name = self.bus.stream(self.logical);
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("{name} cannot be followed: {e}"))
        };
        let open = async {
            let stream = self
                .bus
                .inner
                .js
                .get_stream_no_info(&name)
                .await
                .map_err(|e| failed(&e))?;
            let consumer = stream
                .create_consumer(OrderedConfig {
                    filter_subject: self.filter.clone(),
                    deliver_policy: DeliverPolicy::ByStartSequence {
                        start_sequence: self.next_seq,
                    },
                    replay_policy: ReplayPolicy::Instant,
                    ..OrderedConfig::default()
                })
                .await
                .map_err(|e| {
                    use async_nats::jetstream::stream::ConsumerErrorKind as Kind;
                    match e.kind() {
                        Kind::JetStream(error) => {
                            js_error(&error, &format!("following {}", self.filter))
                        }
                        _ => failed(&e),
                    }
                })?;
            consumer.messages().await.map_err(|e| failed(&e))
        };
        tokio::time::timeout(self.bus.patience(), open)
            .await
            .map_err(|_| failed(&"no answer in time"))?
    }
}
