//! The one pull consumer of the outbound stream.
//!
//! Promise: delivery is in stream order and resumes at the oldest unacknowledged message. Waiting
//! for redelivery would break that (newer messages come first), so the owner never waits: at
//! start, after a reconnect and on a gap it deletes its consumer and makes one named with its new
//! epoch; the work queue still holds what is unacknowledged. One long pull with heartbeats keeps
//! messages coming without a round trip each, and tells within seconds when the other side is
//! gone.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::{self, MessagesErrorKind};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::stream::{ConsumerErrorKind, Stream};
use async_nats::jetstream::{ErrorCode, Message};
use futures_util::{FutureExt, StreamExt};

use super::earlier::{LEASE_KEY, STORE_KEY, UNIT_KEY};
use super::parse::{Stored, parse};
use super::publish::js_error;
use super::{AckHandle, Bus, BusError, BusErrorKind, Line, OutMessage};
use crate::faults;
use crate::ops::health::Health;

/// Redelivery is only for an owner that hangs: the epoch change is what brings messages back.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// The broker speaks at least this often; twice as long a silence is a loss.
const HEARTBEAT: Duration = Duration::from_millis(2_000);

/// A pull lives this long and is then renewed.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// Messages asked for ahead at most.
const PULL_BATCH: usize = 1_024;

/// Bytes asked for ahead at least; twice the broker's largest message if that is more.
const PULL_BYTES: usize = 32 * 1024 * 1024;

const CONSUMER_PREFIX: &str = "drawbridge-";
const EPOCH_KEY: &str = "epoch";

/// Which of the stored messages an intake is for.
#[derive(Clone, Debug)]
pub enum Share<'a> {
    /// All of them, of the protocols that are on: see [`Bus::open_intake`].
    All {
        enabled: &'a [&'a str],
        held_back: &'a [&'a str],
    },
    /// A unit's, as the owner of that epoch; other units are others' to read.
    Unit {
        name: &'a str,
        lease: i64,
        subjects: Vec<String>,
    },
}

impl Share<'_> {
    fn consumer(&self, epoch: i64) -> String {
        match self {
            Self::All { .. } => format!("{CONSUMER_PREFIX}{epoch}"),
            Self::Unit { name, lease, .. } => format!("{}{lease}-{epoch}", unit_prefix(name)),
        }
    }

    /// Whether the name of a consumer leaves open that it is in this share's way.
    pub(super) fn may_be_in_the_way(&self, consumer: &str) -> bool {
        match self {
            Self::All { .. } => true,
            Self::Unit { name, .. } => consumer.starts_with(&unit_prefix(name)),
        }
    }
}

/// How the names of a unit's consumers begin.
fn unit_prefix(unit: &str) -> String {
    format!("{CONSUMER_PREFIX}{}-", unit.replace('/', "-"))
}

/// The one pull consumer of `FED_OUT`.
pub struct Intake {
    bus: Bus,
    stream: String,
    messages: pull::Stream,
    line: Line,
    /// Consumer sequence of the next message; anything else is a gap.
    expected: u64,
    broken: Option<String>,
    consumer: String,
    /// Looks in a row at which messages waited although none had come.
    vain: u32,
}

impl Bus {
    /// Opens the intake: deletes our earlier consumers on FED_OUT of the same share, makes
    /// `drawbridge-<epoch>` (`drawbridge-<unit>-<lease>-<epoch>`) with metadata `store=<store_id>`; a
    /// consumer of another store is refused (`Foreign`).
    ///
    /// `held_back` are the known protocols that are switched off: their messages stay in the
    /// stream. Without any, everything is pulled, also what names an unknown protocol or has an
    /// unreadable subject, so that it can be dead-lettered. NATS has no negative filter, so with
    /// some held back only the `enabled` protocols and unreadable subjects are pulled, and
    /// messages of unknown protocols stay in the stream too until nothing is held back.
    pub async fn open_intake(
        &self,
        store_id: &str,
        epoch: i64,
        enabled: &[&str],
        held_back: &[&str],
    ) -> Result<Intake, BusError> {
        let all = Share::All { enabled, held_back };
        self.open_share(store_id, epoch, &all).await
    }

    /// The same for any share of the messages: several instances of one store read one each.
    pub async fn open_share(
        &self,
        store_id: &str,
        epoch: i64,
        share: &Share<'_>,
    ) -> Result<Intake, BusError> {
        if !self.connected() {
            return Err(BusError::unavailable("not connected to the broker"));
        }
        let line = self.line();
        let name = self.stream("FED_OUT");
        let open = self.make_consumer(&name, store_id, epoch, share);
        // Several round trips, so more patience than for one.
        let messages = tokio::time::timeout(self.patience() * 3, open)
            .await
            .map_err(|_| BusError::unavailable("opening the intake: no answer in time"))??;
        let consumer = share.consumer(epoch);
        tracing::info!(consumer, "nats: intake of {name} opened");
        Ok(Intake {
            bus: self.clone(),
            stream: name,
            messages,
            line,
            expected: 1,
            broken: None,
            consumer,
            vain: 0,
        })
    }

    async fn make_consumer(
        &self,
        name: &str,
        store_id: &str,
        epoch: i64,
        share: &Share<'_>,
    ) -> Result<pull::Stream, BusError> {
        let stream = self
            .inner
            .js
            .get_stream_no_info(name)
            .await
            .map_err(|e| BusError::unavailable(format!("stream {name}: {e}")))?;
        let told = self.clear_the_way(&stream, name, store_id, share).await?;
        let mut metadata = HashMap::from([
            (STORE_KEY.to_owned(), store_id.to_owned()),
            (EPOCH_KEY.to_owned(), epoch.to_string()),
        ]);
        let filter_subjects = match share {
            Share::All { enabled, held_back } => filters(self.prefix(), enabled, held_back),
            Share::Unit {
                name,
                lease,
                subjects,
            } => {
                metadata.insert(UNIT_KEY.to_owned(), (*name).to_owned());
                metadata.insert(LEASE_KEY.to_owned(), lease.to_string());
                subjects.clone()
            }
        };
        let config = pull::Config {
            durable_name: Some(share.consumer(epoch)),
            description: Some("Drawbridge: the intake of outbound messages".to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: i64::from(self.inner.config.max_ack_pending.max(1)),
            filter_subjects,
            metadata,
            ..pull::Config::default()
        };
        let consumer = match self.create_consumer(&stream, name, &config).await {
            Err(error)
                if error.kind == BusErrorKind::Foreign
                    && self.clear_silent(&stream, name, share, &told).await? =>
            {
                self.create_consumer(&stream, name, &config).await?
            }
            made => made?,
        };
        let batch = usize::try_from(self.inner.config.max_ack_pending)
            .unwrap_or(PULL_BATCH)
            .clamp(1, PULL_BATCH);
        let bytes = PULL_BYTES.max(self.server().max_payload.saturating_mul(2));
        consumer
            .stream()
            .max_messages_per_batch(batch)
            .max_bytes_per_batch(bytes)
            .heartbeat(HEARTBEAT)
            .expires(PULL_EXPIRES)
            .messages()
            .await
            .map_err(|e| BusError::unavailable(format!("messages of {name} cannot be pulled: {e}")))
    }

    /// Makes it; `Foreign`: another one has these messages.
    async fn create_consumer<I>(
        &self,
        stream: &Stream<I>,
        name: &str,
        config: &pull::Config,
    ) -> Result<Consumer<pull::Config>, BusError> {
        if let Some(consumer) = &config.durable_name {
            // Before it is there: an answer that does not come may be lost on its way back.
            self.inner.made.note(consumer.clone());
        }
        let what = format!("the consumer of {name} cannot be made");
        stream.create_consumer(config.clone()).await.map_err(|e| {
            let ConsumerErrorKind::JetStream(error) = e.kind() else {
                return BusError::unavailable(format!("{what}: {e}"));
            };
            let mut refused = js_error(&error, &what);
            let code = error.error_code();
            if code == ErrorCode::CONSUMER_WQ_MULTIPLE_UNFILTERED
                || code == ErrorCode::CONSUMER_WQ_CONSUMER_NOT_UNIQUE
            {
                refused.kind = BusErrorKind::Foreign;
            } else if refused.kind == BusErrorKind::Refused {
                refused.kind = BusErrorKind::Stream;
            }
            refused
        })
    }

    /// Whether a trouble with a stream's consumer is that the stream is gone (or no longer what it
    /// must be), or something that may heal.
    pub(super) async fn diagnose(&self, stream: &str, what: String) -> BusError {
        use async_nats::jetstream::context::GetStreamErrorKind as Kind;
        let asked = tokio::time::timeout(
            self.patience().min(Duration::from_secs(2)),
            self.inner.js.get_stream(stream),
        )
        .await;
        match asked {
            Ok(Err(e)) => match e.kind() {
                Kind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    BusError::new(
                        BusErrorKind::Stream,
                        format!("stream {stream} does not exist any more"),
                    )
                }
                _ => BusError::unavailable(what),
            },
            _ => BusError::unavailable(what),
        }
    }
}

impl Intake {
    /// The next batch: at least one message, at most `max`; waits while there is none. As soon as
    /// one is there it is answered, with those that arrived with it. Safe to drop while waiting.
    /// `Err(Unavailable | Stream)`: the consumer or stream is lost, open a new intake with a new
    /// epoch.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<OutMessage>, BusError> {
        let max = max.max(1);
        let mut batch = Vec::new();
        if self.broken.is_none() {
            let first = tokio::select! {
                biased;
                () = self.line.lost() => {
                    self.broken = Some("the connection was lost; messages may be missing".to_owned());
                    None
                }
                item = self.messages.next() => Some(item),
            };
            if let Some(item) = first {
                self.take(item, &mut batch);
            }
            while self.broken.is_none() && batch.len() < max {
                let Some(item) = self.messages.next().now_or_never() else {
                    break;
                };
                self.take(item, &mut batch);
            }
        }
        if !batch.is_empty() {
            return Ok(batch);
        }
        let what = self.broken.clone().unwrap_or_default();
        Err(self.bus.diagnose(&self.stream, what).await)
    }

    /// Looks whether messages wait although none came for a while, and says so to `health`. `Err`:
    /// the consumer delivers nothing of what waits for it, twice in a row; a new one may.
    pub async fn heed(&mut self, health: &Health) -> Result<(), BusError> {
        let name = format!("{} of {}", self.consumer, self.stream);
        let js = &self.bus.inner.js;
        let asked =
            js.get_consumer_from_stream::<pull::Config, _, _>(&*self.consumer, &*self.stream);
        let consumer = match tokio::time::timeout(self.bus.patience(), asked).await {
            Ok(Ok(consumer)) => consumer,
            // A lost consumer or connection is noticed by the pull itself.
            Ok(Err(_)) | Err(_) => return Ok(()),
        };
        let info = consumer.cached_info();
        let unacked = u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX);
        let room = u64::from(self.bus.inner.config.max_ack_pending.max(1));
        let waiting = info.num_pending;
        if waiting == 0 {
            self.vain = 0;
            health.moving();
            return Ok(());
        }
        self.vain += 1;
        if self.vain < 2 {
            return Ok(());
        }
        if unacked >= room {
            health.stalled(&format!(
                "{waiting} messages wait behind {unacked} that are not in the store yet"
            ));
            return Ok(());
        }
        let what = format!("{waiting} messages wait and consumer {name} delivers none");
        health.stalled(&what);
        Err(BusError::unavailable(what))
    }

    /// Puts one item into the batch or remembers what is broken.
    fn take(
        &mut self,
        item: Option<Result<Message, async_nats::jetstream::consumer::pull::MessagesError>>,
        batch: &mut Vec<OutMessage>,
    ) {
        let message = match item {
            Some(Ok(message)) => message,
            Some(Err(e)) => {
                self.broken = Some(match e.kind() {
                    MessagesErrorKind::MissingHeartbeat => {
                        "the broker sent nothing, not even a heartbeat".to_owned()
                    }
                    MessagesErrorKind::ConsumerDeleted => "the consumer was deleted".to_owned(),
                    _ => format!("the pull failed: {e}"),
                });
                return;
            }
            None => {
                self.broken = Some("the pull ended".to_owned());
                return;
            }
        };
        let (info, reply) = match (message.info(), message.reply.clone()) {
            (Ok(info), Some(reply)) => (info, reply),
            _ => {
                self.broken = Some("a message came without its JetStream facts".to_owned());
                return;
            }
        };
        if info.consumer_sequence != self.expected && !faults::on("stale_consumer") {
            self.broken = Some(format!(
                "delivery {} came where {} was due",
                info.consumer_sequence, self.expected
            ));
            return;
        }
        self.expected += 1;
        let parsed = parse(Stored {
            prefix: self.bus.prefix(),
            stream: info.stream,
            subject: message.subject.as_str(),
            headers: message.headers.as_ref(),
            payload: message.payload.clone(),
            sequence: info.stream_sequence,
            published_ns: info.published.unix_timestamp_nanos(),
        });
        batch.push(OutMessage {
            subject: parsed.subject,
            protocol: parsed.protocol,
            partition: parsed.partition,
            event: parsed.event,
            forwarded: parsed.forwarded,
            delivered: u64::try_from(info.delivered).unwrap_or(1),
            ack: AckHandle {
                client: self.bus.inner.client.clone(),
                reply,
            },
        });
    }
}

/// Subjects to pull; empty: all.
fn filters(prefix: &str, enabled: &[&str], held_back: &[&str]) -> Vec<String> {
    if held_back.is_empty() {
        return Vec::new();
    }
    let mut subjects: Vec<String> = enabled
        .iter()
        .filter(|id| !held_back.contains(id))
        .map(|id| format!("{prefix}.outp.*.{}.>", super::subject::token(id)))
        .collect();
    subjects.extend(super::subject::strays(prefix));
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_pulled_unless_a_known_protocol_is_held_back() {
        assert!(filters("fed", &["uam"], &[]).is_empty());
        assert_eq!(
            filters("fed", &["uam"], &["lama"]),
            ["fed.outp.*.uam.>", "fed.out.*", "fed.out.*.*"]
        );
        assert_eq!(filters("fed", &[], &["uam"]), ["fed.out.*", "fed.out.*.*"]);
    }
}
