//! Reading which messages a stream holds, for the repair of what the door published (promise 2).
//!
//! Headers only: a body costs nothing here.
//!
//! In a cluster any server that keeps the stream may be the one that reads it out, also one that was
//! away and has not caught up: its end comes early. So the end is compared with the leader's; what
//! is not all of it is an error, never less to read.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::message::StreamMessage;
use futures_util::StreamExt;

use super::read::ms;
use super::{Bus, BusError};
use crate::clock::UnixMs;

/// Where a scan begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanFrom {
    /// This sequence, or the next one held.
    Seq(u64),
    /// The first message stored at this time or later, by the broker's clock.
    Time(UnixMs),
}

impl Bus {
    /// Shows `visit` sequence and `Nats-Msg-Id` (empty: it has none) of every message that the
    /// stream, by its contract name, holds from a place on, in order, up to the newest one of this
    /// moment.
    pub async fn scan(
        &self,
        stream: &str,
        from: ScanFrom,
        visit: &mut (dyn FnMut(u64, &str) + Send),
    ) -> Result<(), BusError> {
        let name = self.stream(stream);
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("{name} cannot be read: {e}"))
        };
        let known = self.stream_info(&name).await?.map_or(0, |info| {
            // A stream on one server has nobody who could lag.
            match info.config.num_replicas {
                0 | 1 => 0,
                _ => info.state.last_sequence,
            }
        });
        let open = async {
            self.inner
                .js
                .get_stream_no_info(&name)
                .await
                .map_err(|e| failed(&e))?
                .create_consumer(OrderedConfig {
                    headers_only: true,
                    deliver_policy: policy(from).map_err(|e| failed(&e))?,
                    replay_policy: ReplayPolicy::Instant,
                    ..OrderedConfig::default()
                })
                .await
                .map_err(|e| failed(&e))
        };
        let consumer = tokio::time::timeout(self.patience(), open)
            .await
            .map_err(|_| failed(&"no answer in time"))??;
        if consumer.cached_info().num_pending == 0 {
            let begin = match from {
                ScanFrom::Seq(seq) => seq.max(1),
                // Where a time would have begun is not known: only an empty stream is sure.
                ScanFrom::Time(_) => known,
            };
            return self.all_seen(&name, begin, known, from).await;
        }
        let mut messages = consumer.messages().await.map_err(|e| failed(&e))?;
        let mut line = self.line();
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(self.patience(), messages.next()) => next,
                // What would be read from here on may be another stream.
                () = line.lost() => return Err(failed(&"the connection was lost")),
            };
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(e))) => return Err(failed(&e)),
                Ok(None) => return Err(failed(&"the reading ended")),
                Err(_) => return Err(failed(&"no answer in time")),
            };
            let info = message.info().map_err(|e| failed(&e))?;
            let id = message
                .headers
                .as_ref()
                .and_then(|h| h.get(async_nats::header::NATS_MESSAGE_ID))
                .map_or("", |id| id.as_str());
            visit(info.stream_sequence, id);
            if info.pending == 0 {
                let next = info.stream_sequence.saturating_add(1);
                return self.all_seen(&name, next, known, from).await;
            }
        }
    }

    /// Whether the stream's leader holds nothing from `next` to `known`, the last sequence when the
    /// reading began. `Err`: it does, so the server that was read lags behind.
    async fn all_seen(
        &self,
        name: &str,
        next: u64,
        known: u64,
        from: ScanFrom,
    ) -> Result<(), BusError> {
        use async_nats::jetstream::stream::RawMessageErrorKind as Kind;
        if next > known {
            return Ok(());
        }
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("the end of {name} cannot be looked at: {e}"))
        };
        let stream = self.inner.js.get_stream_no_info(name).await;
        let stream = stream.map_err(|e| failed(&e))?;
        match stream.get_first_raw_message_by_subject(">", next).await {
            // Messages that came meanwhile, or are older than what was asked for, were not due.
            Ok(message) if message.sequence > known || is_older(from, &message) => Ok(()),
            Ok(message) => Err(failed(&format!(
                "the server that reads it out has not yet caught up with message {}",
                message.sequence
            ))),
            Err(e) => match e.kind() {
                Kind::NoMessageFound => Ok(()),
                Kind::JetStream(error) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                    Ok(())
                }
                _ => Err(failed(&e)),
            },
        }
    }
}

/// Whether a message was stored before the time that a reading begins at.
fn is_older(from: ScanFrom, message: &StreamMessage) -> bool {
    match from {
        ScanFrom::Seq(_) => false,
        ScanFrom::Time(at) => ms(message.time.unix_timestamp_nanos()) < at,
    }
}

/// A place as the consumer's setting.
fn policy(from: ScanFrom) -> Result<DeliverPolicy, serde_json::Error> {
    match from {
        ScanFrom::Seq(seq) => Ok(DeliverPolicy::ByStartSequence {
            start_sequence: seq.max(1),
        }),
        ScanFrom::Time(ms) => {
            let at = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            serde_json::from_value(serde_json::json!({
                "deliver_policy": "by_start_time",
                "opt_start_time": format!("{at:.3}"),
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_becomes_the_consumers_setting() {
        let made = policy(ScanFrom::Time(1_777_636_800_250)).expect("a policy");
        let DeliverPolicy::ByStartTime { start_time } = made else {
            panic!("not by time");
        };
        assert_eq!(start_time.unix_timestamp_nanos(), 1_777_636_800_250_000_000);
    }
}
