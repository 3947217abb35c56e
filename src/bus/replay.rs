//! What `drawbridge replay` needs: where a time stands in a stream, a durable consumer that begins
//! there, and plain publishing with headers.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{ConsumerErrorKind, LastRawMessageErrorKind};
use bytes::Bytes;

use super::publish::js_error;
use super::{Bus, BusError, BusErrorKind};
use crate::clock::UnixMs;

/// A helper of one moment is gone by itself after this.
const HELPER_LASTS: Duration = Duration::from_secs(10);

/// A durable consumer as it stands on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeConsumer {
    pub stream: String,
    pub name: String,
    /// Messages that wait for it.
    pub pending: u64,
}

impl Bus {
    /// The sequence of the first message stored at or after a time; one past the last message when
    /// there is none. `stream` is the contract name (`FED_IN`).
    pub async fn sequence_at(&self, stream: &str, time_ms: UnixMs) -> Result<u64, BusError> {
        let name = self.stream(stream);
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("a time cannot be looked up in {name}: {e}"))
        };
        let look = async {
            let js = &self.inner.js;
            let stream = js.get_stream(&name).await.map_err(|e| failed(&e))?;
            let nanos = i128::from(time_ms.max(0)) * 1_000_000;
            let start_time = async_nats::datetime::from_nanos(nanos).map_err(|e| failed(&e))?;
            let consumer = stream
                .create_consumer(pull::Config {
                    deliver_policy: DeliverPolicy::ByStartTime { start_time },
                    ack_policy: AckPolicy::None,
                    headers_only: true,
                    memory_storage: true,
                    num_replicas: 1,
                    inactive_threshold: HELPER_LASTS,
                    ..pull::Config::default()
                })
                .await
                .map_err(|e| failed(&e))?;
            let info = consumer.cached_info();
            let seq = info.delivered.stream_sequence + 1;
            // It would be gone soon by itself.
            let _ = stream.delete_consumer(&info.name).await;
            Ok(seq)
        };
        tokio::time::timeout(self.patience(), look)
            .await
            .map_err(|_| failed(&"no answer in time"))?
    }

    /// The sequence of the last message under a subject filter; `None`: there is none.
    pub async fn last_of(&self, stream: &str, filter: &str) -> Result<Option<u64>, BusError> {
        let name = self.stream(stream);
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("the end of {filter} in {name} cannot be read: {e}"))
        };
        let look = async {
            let js = &self.inner.js;
            let stream = js.get_stream_no_info(&name).await.map_err(|e| failed(&e))?;
            match stream.get_last_raw_message_by_subject(filter).await {
                Ok(message) => Ok(Some(message.sequence)),
                Err(e) => match e.kind() {
                    LastRawMessageErrorKind::NoMessageFound => Ok(None),
                    LastRawMessageErrorKind::JetStream(error)
                        if error.error_code() == ErrorCode::NO_MESSAGE_FOUND =>
                    {
                        Ok(None)
                    }
                    _ => Err(failed(&e)),
                },
            }
        };
        tokio::time::timeout(self.patience(), look)
            .await
            .map_err(|_| failed(&"no answer in time"))?
    }

    /// Makes a durable pull consumer that begins at a sequence. One of that name is refused
    /// (`Foreign`), or deleted before when `replace` is set.
    pub async fn durable_from(
        &self,
        stream: &str,
        name: &str,
        filter: &str,
        from_seq: u64,
        replace: bool,
    ) -> Result<MadeConsumer, BusError> {
        let stream_name = self.stream(stream);
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("consumer {name} on {stream_name}: {e}"))
        };
        let make = async {
            let js = &self.inner.js;
            let stream = js.get_stream(&stream_name).await.map_err(|e| failed(&e))?;
            match stream.consumer_info(name).await {
                Ok(_) if replace => {
                    stream.delete_consumer(name).await.map_err(|e| failed(&e))?;
                }
                Ok(info) => {
                    return Err(BusError::new(
                        BusErrorKind::Foreign,
                        format!(
                            "there is a consumer {name} on {stream_name} already, with {} messages \
                             waiting and {} unacknowledged; --force deletes it and makes it anew",
                            info.num_pending, info.num_ack_pending
                        ),
                    ));
                }
                Err(e) if e.kind() == ConsumerInfoErrorKind::NotFound => {}
                Err(e) if e.kind() == ConsumerInfoErrorKind::InvalidName => {
                    return Err(BusError::new(
                        BusErrorKind::Config,
                        format!("{name:?} is no name for a consumer: letters, digits, - and _"),
                    ));
                }
                Err(e) => return Err(failed(&e)),
            }
            let consumer = stream
                .create_consumer(pull::Config {
                    durable_name: Some(name.to_owned()),
                    description: Some("made by drawbridge replay".to_owned()),
                    deliver_policy: DeliverPolicy::ByStartSequence {
                        start_sequence: from_seq.max(1),
                    },
                    ack_policy: AckPolicy::Explicit,
                    replay_policy: ReplayPolicy::Instant,
                    filter_subject: filter.to_owned(),
                    ..pull::Config::default()
                })
                .await
                .map_err(|e| match e.kind() {
                    ConsumerErrorKind::JetStream(error) => {
                        js_error(&error, &format!("consumer {name}"))
                    }
                    _ => failed(&e),
                })?;
            Ok(MadeConsumer {
                stream: stream_name.clone(),
                name: name.to_owned(),
                pending: consumer.cached_info().num_pending,
            })
        };
        tokio::time::timeout(self.patience(), make)
            .await
            .map_err(|_| failed(&"no answer in time"))?
    }

    /// Publishes to a plain subject, without an acknowledgement; waits only for the connection.
    pub async fn publish_plain(
        &self,
        subject: &str,
        headers: &[(String, String)],
        payload: Bytes,
    ) -> Result<(), BusError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.as_str(), value.as_str());
        }
        self.inner
            .client
            .publish_with_headers(subject.to_owned(), map, payload)
            .await
            .map_err(|e| BusError::unavailable(format!("{subject}: {e}")))
    }

    /// Waits until everything published so far has reached the broker.
    pub async fn flush(&self) -> Result<(), BusError> {
        let flush = self.inner.client.flush();
        tokio::time::timeout(self.patience(), flush)
            .await
            .map_err(|_| BusError::unavailable("the broker did not take everything in time"))?
            .map_err(|e| BusError::unavailable(e.to_string()))
    }
}
