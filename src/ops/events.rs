//! Operator events: `fed.ops.<area>.<what>.<protocol>.<peer>`, JSON, one a message.
//!
//! Every event has `at` (RFC 3339, UTC), `protocol` and `peer` (as text; the subject has them as
//! tokens). The rest by kind:
//!
//! | area | what | members |
//! | --- | --- | --- |
//! | `delivery` | `delivered` | sum |
//! | `delivery` | `retrying`, `held`, `dead` | `msg_id`, `out_seq`, `event_id`, `attempts`, `code`, `detail` |
//! | `ingest` | `accepted`, `held`, `duplicate` | sum |
//! | `ingest` | `rejected`, `conflict` | `event_id`, `code`, `detail`, `status` where one was answered |
//! | `peer` | `open`, `recovered`, `throttled` | the health facts |
//! | `peer` | `requested`, `asked`, `connected`, `error`, `rejected`, `removed` | peering: `id`, `name`, `url`, `was` (state before), `detail` |
//! | `peer` | `pending`, `trusted`, `rejected`, `removed` | Paracord's servers: `was`, `by` (whose word), `domain`, `endpoint`, `keys` |
//! | `peer` | `keys_changed` | a server shows other keys: `status`, `added`, `gone` |
//! | `peer` | `refused_secret` | a handshake under another secret than the known one: `id`, `status`, `detail` |
//! | `trust` | `added`, `removed` | `list`, `domain`, `reason` |
//! | `trust` | `quarantined` | by the bridge itself, for a run of bad events: `list`, `domain`, `reason`, `code`, `ends_ms` |
//! | `trust` | `released`, `dropped` | held events of a quarantined peer: `events` (how many) |
//! | `trust` | `held_full` | sum; `code`, `detail`: the peer is told to come again |
//! | `store` | `repaired` | the broker had lost events: `stream`, `republished`, `published`, `beyond_mending`, `detail` |
//! | `key` | `changed` | `key_id` |
//! | `key` | `rotated` | our own: `key_id`, `old_key_id`, `overlap_until_ms` |
//! | `key` | `unnoticed`, `noticed` | a peer refuses our new key, has taken it: `key_id` |
//! | `key` | `retired` | the overlap is over: `count` of old keys removed |
//! | `invite` | `shared`, `used`, `removed` | ours; `invite` whole, as operators see it; `made_room` where a dead one was dropped for a new one |
//! | `invite` | `server_put`, `server_removed` | a server is ours, or no more: `server` (`id`, `name`) |
//! | `invite` | `browsed` | a peer's list was read: `count`, `left_out` |
//! | `room` | `invited`, `joined`, `left` | `room_id`, `user_id`, `direction`: `in` (theirs, a room of ours) or `out` |
//! | `poll` | `failing`, `recovered` | a server cannot be polled, can be again: `code`, `detail`, `pause_s` |
//! | `poll` | `room_failing`, `room_recovered` | the same of one room: `room_id`, `detail`, `pause_s` |
//! | `config` | `reloaded` | `changed`, `restart`, `peers` (`added`, `changed`, `removed`), `trust_rules` |
//! | `config` | `rejected` | `code`, `detail` |
//!
//! `delivery` and `ingest` members have `trace_id` where the message came with a `traceparent`. What
//! is about no peer has the protocol `bridge` and the peer `self`.
//!
//! A *sum* is `count` (messages of this peer since the last one, about a second) and `events`, the
//! members of the first 32 of them (`msg_id`, `event_id`, … as in its failures). With `ops.single`
//! each message is its own event and the members stand beside `at`. Failures are always single.
//!
//! Sending never waits: events pass a bounded queue, and what finds it full, or a second with too
//! many peers, is dropped and counted (`drawbridge_ops_events_dropped_total`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::metrics;
use crate::bus::Bus;
use crate::bus::subject::token;
use crate::protocol::ProtocolId;

/// Events that may wait for the sender.
const QUEUE: usize = 8192;
/// Sums that may be open at one time.
const MAX_SUMS: usize = 16_384;
/// Messages of one peer that a sum names; the rest it only counts.
const NAMED: usize = 32;
/// Messages that all open sums together name, besides the first of each.
const MAX_NAMED: usize = 32_768;
/// How often sums are sent.
const SUM_PERIOD: Duration = Duration::from_secs(1);

/// Operator events on `fed.ops.<area>.<what>.<protocol>.<peer>`: queued without waiting, dropped
/// (and counted) when the bounded queue is full; delivered/accepted summed per peer and second.
/// Cloning shares it.
#[derive(Clone)]
pub struct Ops {
    live: Option<Live>,
}

#[derive(Clone)]
struct Live {
    queue: mpsc::Sender<Item>,
    sums: Arc<Mutex<Sums>>,
    single: bool,
}

enum Item {
    Event(Kind, String, Value),
    Flush(oneshot::Sender<()>),
}

/// Area, what, protocol: the part of a subject that has few values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    area: &'static str,
    what: &'static str,
    protocol: ProtocolId,
}

/// Counts of the running second, by kind and peer.
#[derive(Default)]
struct Sums {
    open: HashMap<Kind, HashMap<String, Sum>>,
    peers: usize,
    named: usize,
}

struct Sum {
    count: u64,
    events: Vec<Value>,
}

impl Sums {
    /// Counts one; false when there are too many peers this second.
    fn add(&mut self, kind: Kind, peer: &str, event: impl FnOnce() -> Value) -> bool {
        let of_kind = self.open.entry(kind).or_default();
        if let Some(sum) = of_kind.get_mut(peer) {
            sum.count += 1;
            if sum.events.len() < NAMED && self.named < MAX_NAMED {
                self.named += 1;
                sum.events.push(event());
            }
            return true;
        }
        if self.peers >= MAX_SUMS {
            return false;
        }
        self.peers += 1;
        let sum = Sum {
            count: 1,
            events: vec![event()],
        };
        of_kind.insert(peer.to_owned(), sum);
        true
    }

    /// Takes what was counted, leaving none.
    fn take(&mut self) -> Vec<(Kind, String, Value)> {
        (self.peers, self.named) = (0, 0);
        let open = std::mem::take(&mut self.open);
        let body = |sum: Sum| json!({"count": sum.count, "events": sum.events});
        open.into_iter()
            .flat_map(|(kind, peers)| {
                peers
                    .into_iter()
                    .map(move |(peer, sum)| (kind, peer, body(sum)))
            })
            .collect()
    }
}

impl Ops {
    /// Starts the sender task on the current runtime; it ends, after a last sum, when the last clone
    /// is dropped. `single`: no sums.
    pub fn start(bus: Bus, single: bool) -> Self {
        let prefix = bus.prefix().to_owned();
        Self::over(&prefix, single, move |subject, body| {
            bus.notify(subject, body);
        })
    }

    /// Starts the sender task over any way of sending.
    fn over(
        prefix: &str,
        single: bool,
        send: impl Fn(String, Bytes) + Send + Sync + 'static,
    ) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        let sums = Arc::new(Mutex::new(Sums::default()));
        let outlet = Outlet {
            prefix: format!("{prefix}.ops"),
            send: Box::new(send),
        };
        tokio::spawn(run(items, sums.clone(), outlet));
        Self {
            live: Some(Live {
                queue,
                sums,
                single,
            }),
        }
    }

    /// For tests and offline commands: events go nowhere.
    pub fn silent() -> Self {
        Self { live: None }
    }

    /// One event; `body` is the documented JSON of its kind. A time stamp `at` is added.
    pub fn event(
        &self,
        area: &'static str,
        what: &'static str,
        protocol: ProtocolId,
        peer: &str,
        body: Value,
    ) {
        let Some(live) = &self.live else { return };
        let kind = Kind {
            area,
            what,
            protocol,
        };
        let body = stamped(kind, peer, body);
        let item = Item::Event(kind, peer.to_owned(), body);
        if live.queue.try_send(item).is_err() {
            metrics::ops_dropped();
        }
    }

    /// Counts one for the per-peer sum of a second (`delivered`, `accepted`); `body` is asked for
    /// the first few of them only, unless each is sent.
    pub fn tally(
        &self,
        area: &'static str,
        what: &'static str,
        protocol: ProtocolId,
        peer: &str,
        body: impl FnOnce() -> Value,
    ) {
        let Some(live) = &self.live else { return };
        if live.single {
            self.event(area, what, protocol, peer, body());
            return;
        }
        let kind = Kind {
            area,
            what,
            protocol,
        };
        let mut sums = live.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if !sums.add(kind, peer, body) {
            metrics::ops_dropped();
        }
    }

    /// Waits until what was said so far, sums included, is handed to the bus. For shutdown.
    pub async fn flush(&self) {
        let Some(live) = &self.live else { return };
        let (done, waits) = oneshot::channel();
        if live.queue.send(Item::Flush(done)).await.is_ok() {
            // An error means that the runtime, and with it the sender, is gone already.
            let _ = waits.await;
        }
    }
}

struct Outlet {
    prefix: String,
    send: Box<dyn Fn(String, Bytes) + Send + Sync>,
}

impl Outlet {
    fn put(&self, kind: Kind, peer: &str, body: &Value) {
        let Kind {
            area,
            what,
            protocol,
        } = kind;
        let (protocol, peer) = (token(protocol), token(peer));
        let subject = format!("{}.{area}.{what}.{protocol}.{peer}", self.prefix);
        (self.send)(subject, Bytes::from(body.to_string()));
    }

    fn put_sums(&self, sums: &Mutex<Sums>) {
        // Taken first: the lock is not held while sending.
        let taken = sums.lock().unwrap_or_else(PoisonError::into_inner).take();
        for (kind, peer, body) in taken {
            self.put(kind, &peer, &stamped(kind, &peer, body));
        }
    }
}

async fn run(mut items: mpsc::Receiver<Item>, sums: Arc<Mutex<Sums>>, outlet: Outlet) {
    let mut tick = tokio::time::interval(SUM_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            item = items.recv() => match item {
                Some(Item::Event(kind, peer, body)) => outlet.put(kind, &peer, &body),
                Some(Item::Flush(done)) => {
                    outlet.put_sums(&sums);
                    let _ = done.send(());
                }
                None => break,
            },
            _ = tick.tick() => outlet.put_sums(&sums),
        }
    }
    outlet.put_sums(&sums);
}

/// The body with what every event has.
fn stamped(kind: Kind, peer: &str, body: Value) -> Value {
    let mut members = match body {
        Value::Object(members) => members,
        Value::Null => Map::new(),
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    let at = format!("{:.3}", jiff::Timestamp::now());
    members.insert("at".to_owned(), at.into());
    members.insert("protocol".to_owned(), kind.protocol.into());
    members.insert("peer".to_owned(), peer.into());
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sent = mpsc::Receiver<(String, Value)>;

    fn ops(single: bool) -> (Ops, Sent) {
        let (tx, rx) = mpsc::channel(2 * QUEUE);
        let ops = Ops::over("fed", single, move |subject, body| {
            tx.try_send((subject, serde_json::from_slice(&body).unwrap()))
                .unwrap();
        });
        (ops, rx)
    }

    #[tokio::test]
    async fn an_event_carries_its_time_and_its_peer_as_text() {
        let (ops, mut sent) = ops(false);
        let body = json!({"msg_id": "m1", "code": "expired"});
        ops.event("delivery", "dead", "uam", "beta.com:8443", body);
        ops.flush().await;
        let (subject, body) = sent.recv().await.unwrap();
        assert_eq!(subject, "fed.ops.delivery.dead.uam.beta_com:8443");
        assert_eq!(body["peer"], "beta.com:8443");
        assert_eq!(body["protocol"], "uam");
        assert_eq!(body["msg_id"], "m1");
        let at: jiff::Timestamp = body["at"].as_str().unwrap().parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(at).as_secs() < 60);
    }

    #[tokio::test]
    async fn tallies_of_one_peer_are_one_event_that_counts_all_and_names_the_first() {
        let (ops, mut sent) = ops(false);
        for n in 0..100 {
            ops.tally(
                "delivery",
                "delivered",
                "uam",
                "beta.com",
                || json!({"msg_id": format!("m{n}")}),
            );
        }
        ops.flush().await;
        drop(ops);
        let mut total = 0;
        while let Some((subject, body)) = sent.recv().await {
            assert_eq!(subject, "fed.ops.delivery.delivered.uam.beta_com");
            let named = body["events"].as_array().unwrap();
            assert!(named.len() <= NAMED && named[0]["msg_id"].is_string());
            total += body["count"].as_u64().unwrap();
        }
        assert_eq!(total, 100);
    }

    #[tokio::test]
    async fn on_request_each_tally_is_an_event_of_its_own() {
        let (ops, mut sent) = ops(true);
        for n in 0..3 {
            ops.tally("ingest", "accepted", "uam", "b.com", || json!({"n": n}));
        }
        ops.flush().await;
        for n in 0..3 {
            assert_eq!(sent.recv().await.unwrap().1["n"], n);
        }
    }

    #[tokio::test]
    async fn the_last_sum_is_sent_when_the_last_handle_goes() {
        let (ops, mut sent) = ops(false);
        ops.tally("ingest", "accepted", "uam", "b.com", || json!({}));
        drop(ops);
        assert_eq!(sent.recv().await.unwrap().1["count"], 1);
        assert!(sent.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_never_waits() {
        // The sender task gets no turn until this one awaits.
        let (ops, mut sent) = ops(false);
        let before = metrics::ops_dropped_count();
        for _ in 0..QUEUE + 10 {
            ops.event("delivery", "dead", "uam", "b.com", json!({}));
        }
        assert!(metrics::ops_dropped_count() - before >= 10);
        drop(ops);
        let mut got = 0;
        while sent.recv().await.is_some() {
            got += 1;
        }
        assert_eq!(got, QUEUE);
    }

    #[test]
    fn a_second_with_too_many_peers_costs_bounded_memory() {
        let kind = Kind {
            area: "ingest",
            what: "accepted",
            protocol: "uam",
        };
        let mut sums = Sums::default();
        for n in 0..MAX_SUMS {
            assert!(sums.add(kind, &format!("p{n}"), || Value::Null));
        }
        assert!(!sums.add(kind, "one-more", || Value::Null));
        assert!(
            sums.add(kind, "p0", || Value::Null),
            "known ones still count"
        );
        assert_eq!(sums.take().len(), MAX_SUMS);
        assert!(sums.add(kind, "one-more", || Value::Null));
    }
}
