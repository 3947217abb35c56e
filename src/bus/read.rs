//! Reading streams back: for the repair of `fed.in` (promise 2) and for `drawbridge tail`.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull::{OrderedConfig, OrderedErrorKind};
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use bytes::Bytes;
use futures_util::StreamExt;

use super::publish::js_error;
use super::{Bus, BusError, BusErrorKind};
use crate::clock::UnixMs;

/// State of a stream at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFacts {
    /// When the stream was made, nanoseconds since the epoch: another value is another stream.
    pub created_ns: i128,
    pub messages: u64,
    pub bytes: u64,
    /// Sequence of the oldest message held.
    pub first_seq: u64,
    /// Sequence of the newest message ever stored.
    pub last_seq: u64,
}

/// One message of a stream.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    pub subject: String,
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
    pub seq: u64,
    /// When the broker stored it.
    pub time_ms: UnixMs,
}

impl StoredMessage {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// A message of a tail.
pub type TailMessage = StoredMessage;

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

/// Messages of one stream, in order; reconnects and missed messages are mended inside.
pub struct Tail {
    messages: pull::Ordered,
}

impl Bus {
    /// The state of a stream, by its contract name (`FED_IN`); `None`: it does not exist.
    pub async fn stream_facts(&self, stream: &str) -> Result<Option<StreamFacts>, BusError> {
        let name = self.stream(stream);
        match self.inner.js.get_stream(&name).await {
            Ok(found) => {
                let info = found.cached_info();
                Ok(Some(StreamFacts {
                    created_ns: info.created.unix_timestamp_nanos(),
                    messages: info.state.messages,
                    bytes: info.state.bytes,
                    first_seq: info.state.first_sequence,
                    last_seq: info.state.last_sequence,
                }))
            }
            Err(e) => match e.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                GetStreamErrorKind::JetStream(error) => {
                    Err(js_error(&error, &format!("stream {name} cannot be read")))
                }
                _ => Err(BusError::unavailable(format!(
                    "stream {name} cannot be read: {e}"
                ))),
            },
        }
    }

    /// The message at a sequence of a stream, by its contract name; `None`: none is held there.
    pub async fn read_message(
        &self,
        stream: &str,
        seq: u64,
    ) -> Result<Option<StoredMessage>, BusError> {
        use async_nats::jetstream::stream::RawMessageErrorKind as Kind;
        let name = self.stream(stream);
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("message {seq} of {name} cannot be read: {e}"))
        };
        let handle = self
            .inner
            .js
            .get_stream_no_info(&name)
            .await
            .map_err(|e| failed(&e))?;
        match handle.get_raw_message(seq).await {
            Ok(found) => Ok(Some(StoredMessage {
                subject: found.subject.to_string(),
                headers: pairs(Some(&found.headers)),
                payload: found.payload,
                seq: found.sequence,
                time_ms: ms(found.time.unix_timestamp_nanos()),
            })),
            Err(e) => match e.kind() {
                Kind::NoMessageFound => Ok(None),
                Kind::JetStream(error) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                    Ok(None)
                }
                Kind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Err(BusError::new(
                        BusErrorKind::Stream,
                        format!("stream {name} does not exist"),
                    ))
                }
                _ => Err(failed(&e)),
            },
        }
    }

    /// Follows the messages of a subject filter such as `fed.in.uam.>`; the stream is found by
    /// the filter's second part (`in`, `held`, `dead`, `ops`).
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
        let name = self.stream(logical);
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("{name} cannot be followed: {e}"))
        };
        let open = async {
            let stream = self
                .inner
                .js
                .get_stream_no_info(&name)
                .await
                .map_err(|e| failed(&e))?;
            let consumer = stream
                .create_consumer(OrderedConfig {
                    filter_subject: filter.to_owned(),
                    deliver_policy: match from {
                        TailFrom::New => DeliverPolicy::New,
                        TailFrom::All => DeliverPolicy::All,
                        TailFrom::Seq(start_sequence) => DeliverPolicy::ByStartSequence {
                            start_sequence: start_sequence.max(1),
                        },
                    },
                    ..OrderedConfig::default()
                })
                .await
                .map_err(|e| {
                    use async_nats::jetstream::stream::ConsumerErrorKind as Kind;
                    match e.kind() {
                        Kind::JetStream(error) => js_error(&error, &format!("following {filter}")),
                        _ => failed(&e),
                    }
                })?;
            consumer.messages().await.map_err(|e| failed(&e))
        };
        let messages = tokio::time::timeout(self.patience(), open)
            .await
            .map_err(|_| failed(&"no answer in time"))??;
        Ok(Tail { messages })
    }
}

impl Tail {
    /// The next message; waits while there is none. `Err`: the stream is gone, or the broker has
    /// been away for too long.
    pub async fn next(&mut self) -> Result<StoredMessage, BusError> {
        loop {
            let message = match self.messages.next().await {
                Some(Ok(message)) => message,
                Some(Err(e)) => match e.kind() {
                    // The ordered consumer makes itself anew at the next poll.
                    OrderedErrorKind::MissingHeartbeat | OrderedErrorKind::ConsumerDeleted => {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                    _ => return Err(BusError::unavailable(format!("following failed: {e}"))),
                },
                None => return Err(BusError::unavailable("the connection is closed")),
            };
            let (seq, time_ms) = match message.info() {
                Ok(info) => (
                    info.stream_sequence,
                    ms(info.published.unix_timestamp_nanos()),
                ),
                Err(e) => {
                    return Err(BusError::unavailable(format!(
                        "a message came without its JetStream facts: {e}"
                    )));
                }
            };
            return Ok(StoredMessage {
                subject: message.subject.to_string(),
                headers: pairs(message.headers.as_ref()),
                payload: message.payload.clone(),
                seq,
                time_ms,
            });
        }
    }
}

fn ms(nanos: i128) -> UnixMs {
    i64::try_from(nanos.div_euclid(1_000_000)).unwrap_or(0)
}

fn pairs(headers: Option<&async_nats::HeaderMap>) -> Vec<(String, String)> {
    headers
        .into_iter()
        .flat_map(async_nats::HeaderMap::iter)
        .flat_map(|(name, values)| {
            values
                .iter()
                .map(move |value| (name.to_string(), value.as_str().to_owned()))
        })
        .collect()
}
