//! Reading which messages a stream holds, for the repair of what the door published (promise 2).
//!
//! Headers only: a body costs nothing here.

use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use futures_util::StreamExt;

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
            return Ok(());
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
                return Ok(());
            }
        }
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
