//! Reading a stream's state and single messages back, for the repair of `fed.in` (promise 2).

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::Info;
use bytes::Bytes;

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
    /// Messages older than this are removed; `None`: age removes nothing.
    pub max_age_ms: Option<UnixMs>,
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

impl Bus {
    /// The state of a stream, by its contract name (`FED_IN`); `None`: it does not exist.
    pub async fn stream_facts(&self, stream: &str) -> Result<Option<StreamFacts>, BusError> {
        let found = self.stream_info(&self.stream(stream)).await?;
        Ok(found.map(|info| StreamFacts {
            created_ns: info.created.unix_timestamp_nanos(),
            messages: info.state.messages,
            bytes: info.state.bytes,
            first_seq: info.state.first_sequence,
            last_seq: info.state.last_sequence,
            max_age_ms: i64::try_from(info.config.max_age.as_millis())
                .ok()
                .filter(|age| *age > 0),
        }))
    }

    /// All that the broker says of a stream, by its real name; `None`: it does not exist.
    pub(super) async fn stream_info(&self, name: &str) -> Result<Option<Info>, BusError> {
        match self.inner.js.get_stream(name).await {
            Ok(found) => Ok(Some(found.cached_info().clone())),
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
                    "stream {name} cannot be read: {e}; is JetStream switched on, and may we ask \
                     $JS.API.STREAM.INFO.{name}?"
                ))),
            },
        }
    }

    /// The broker's clock when it answered about a stream, by its contract name; `None`: it does not
    /// say (before 2.10), or there is no such stream.
    pub async fn broker_time_ms(&self, stream: &str) -> Result<Option<UnixMs>, BusError> {
        let subject = format!("STREAM.INFO.{}", self.stream(stream));
        let asked: Result<Response<serde_json::Value>, _> =
            self.inner.js.request(subject, &serde_json::json!({})).await;
        match asked {
            Ok(Response::Ok(said)) => Ok(said
                .get("ts")
                .and_then(serde_json::Value::as_str)
                .and_then(|text| text.parse::<jiff::Timestamp>().ok())
                .map(jiff::Timestamp::as_millisecond)),
            Ok(Response::Err { error }) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Ok(None)
            }
            Ok(Response::Err { error }) => Err(js_error(&error, "asking for the broker's time")),
            Err(e) => Err(BusError::unavailable(format!(
                "asking for the broker's time: {e}"
            ))),
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
}

pub(super) fn ms(nanos: i128) -> UnixMs {
    i64::try_from(nanos.div_euclid(1_000_000)).unwrap_or(0)
}

pub(super) fn pairs(headers: Option<&async_nats::HeaderMap>) -> Vec<(String, String)> {
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
