//! Making the streams hold what the ledger says they hold (promise 2).
//!
//! For each stream: is the newest message we know of still in its place? From the newest checkpoint
//! that stands, the ledger is walked in order; what the stream does not hold is published, under its
//! old `Nats-Msg-Id`. The same walk publishes what was never acknowledged, so a repair is also what
//! happens after any failed publish and at every start.
//!
//! The broker may lose events while it is mended too, also some that this walk has just put there: then
//! it hands out sequences that it gave away before, and the walk begins anew.
//!
//! What retention or a purge took away is not brought back: sequences that the stream gave away
//! above the checkpoint and holds no more are as many events as are passed over.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use serde_json::json;

use crate::bus::{BusError, BusErrorKind, ScanFrom, StreamFacts};
use crate::clock::UnixMs;
use crate::faults;
use crate::ops::metrics;
use crate::store::{Checkpoint, LedgerEntry, Tip, Way};

use super::message::{bus_message, message_id};
use super::outlet::Held;
use super::publisher::{Publisher, RepairError, hand_over, late};
use super::series::{Standing, created_ns, first_sequence, is_same, standing, vanished};
use super::together::Turn;

/// Ledger entries looked at together.
const LOOK: usize = 1_024;
/// Bodies read together, bytes and rows.
const READ_BYTES: u64 = 8 << 20;
const READ_ROWS: usize = 256;
/// How far the broker's clock may be from ours.
const CLOCK_MARGIN_MS: UnixMs = 300_000;

/// The stream is not any more what it was when the walk began.
fn changed(way: Way) -> BusError {
    BusError {
        kind: BusErrorKind::Unavailable,
        detail: format!("{} changed while it was mended", way.stream()),
    }
}

/// What was found and done about one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Report {
    /// The stream lost what it had acknowledged.
    lost: bool,
    /// Published for the first time (or not known to have been).
    published: usize,
    /// Published again.
    republished: usize,
    /// Lost, and the ledger has the body no more.
    beyond_mending: usize,
}

/// What the stream has, as far as the ledger is walked.
struct Ground {
    facts: StreamFacts,
    held: Held,
    /// Messages that left by retention or purge and not by a loss.
    removed: u64,
    report: Report,
    /// The newest message published by this repair.
    newest: Option<(u64, String)>,
}

impl Ground {
    /// The highest sequence it was found to have, or to have given away since.
    fn top(&self) -> u64 {
        let newest = self.newest.as_ref();
        newest.map_or(self.facts.last_seq, |(seq, _)| *seq)
    }
}

impl Publisher {
    /// Compares and mends both streams; answers how many events were published.
    pub async fn repair(&mut self) -> Result<usize, RepairError> {
        if !self.outlet.connected() {
            return Err(late().into());
        }
        self.losses = self.outlet.losses();
        if !self.store.shared() {
            return self.mend_all().await;
        }
        // Whoever mends for others does it alone.
        let (turn, series) = Turn::take(&self.store)
            .await?
            .ok_or(RepairError::NotOurTurn)?;
        self.turn = Some(turn);
        self.state.set_series(series);
        self.marks.begin_series(series);
        let done = self.mend_all().await;
        if let Some(turn) = self.turn.take() {
            turn.end().await;
        }
        done
    }

    async fn mend_all(&mut self) -> Result<usize, RepairError> {
        self.repaired.clear();
        let mut count = 0;
        for way in [Way::In, Way::Held] {
            let mut report = self.mend(way).await?;
            report.republished = self.given_again.remove(&way).unwrap_or(0);
            count += report.published + report.republished;
            self.tell(way, report);
        }
        self.marks.untrip();
        self.marks.hand_in().await;
        Ok(count)
    }

    async fn mend(&mut self, way: Way) -> Result<Report, RepairError> {
        let blind = faults::on("no_repair");
        let known_tip = match self.marks.known(way).best.clone() {
            _ if blind => None,
            // Others may know of more.
            Some(tip) if !self.marks.tripped() && !self.store.shared() => Some(tip),
            _ => self.store.tip(way).await?,
        };
        let mut series = self.store.checkpoints(way).await?;
        // After what is known of it, which others may add to.
        let Some(facts) = self.facts(way).await? else {
            return Ok(Report::default());
        };
        let lost = match &known_tip {
            Some(tip) => !self.stands(way, tip, &facts).await?,
            None => false,
        };
        if lost {
            self.state
                .shut("the broker lost events it had acknowledged; they are published again");
            tracing::error!(
                stream = way.stream(),
                last_sequence = facts.last_seq,
                known_sequence = known_tip.as_ref().map_or(0, |tip| tip.seq),
                "the broker lost events it had acknowledged; publishing again what it lacks"
            );
        }
        if blind {
            series.clear();
        }
        let mut standing = None;
        for (n, checkpoint) in series.iter().enumerate() {
            if self.stands(way, &checkpoint.tip, &facts).await? {
                standing = Some(n);
                break;
            }
        }
        let mut rebase = lost || known_tip.is_none() || standing != Some(0);
        let (base, below) = match standing {
            Some(n) => (series.get(n), series.get(n..).unwrap_or_default()),
            None => (None, &[] as &[Checkpoint]),
        };
        // Without any knowledge of the stream only what was never acknowledged is owed to it.
        let from = match base {
            Some(checkpoint) => checkpoint.ledger,
            None if known_tip.is_none() && series.is_empty() => i64::MAX,
            None => 0,
        };
        let above = base.map_or(0, |checkpoint| checkpoint.tip.seq);
        let mut ground = Ground {
            facts,
            held: Held::default(),
            removed: 0,
            report: Report {
                lost,
                ..Report::default()
            },
            newest: None,
        };
        if rebase {
            self.begin_series().await?;
        }
        // What others take in from here on they publish themselves.
        let top = match self.store.shared() {
            true => self.store.ledger_top().await?,
            false => i64::MAX,
        };
        self.marks.known_mut(way).created_ns = Some(created_ns(&ground.facts));
        let limit = u64::try_from(self.outlet.max_body()).unwrap_or(u64::MAX);
        let mut looked = false;
        let mut after = 0;
        loop {
            self.turn_away();
            let mut entries = if after < from.saturating_sub(1) {
                let owed = self.store.unacknowledged(way, after, from, LOOK).await?;
                if owed.is_empty() {
                    after = from.saturating_sub(1);
                    if from == i64::MAX {
                        break;
                    }
                    continue;
                }
                owed
            } else {
                self.store.ledger_after(way, after, LOOK).await?
            };
            let Some(last) = entries.last() else {
                break;
            };
            after = last.id;
            entries.retain(|entry| entry.id < top);
            if entries.is_empty() {
                break;
            }
            // Events that the broker cannot take need no look at what it has.
            let first = entries
                .iter()
                .find(|e| e.acknowledged || e.bytes.is_some_and(|bytes| bytes <= limit));
            if let Some(first) = first.filter(|_| !looked) {
                looked = true;
                let place = match first_sequence(below, first.id) {
                    Some(seq) => ScanFrom::Seq(seq),
                    None if from == 0 => ScanFrom::Seq(1),
                    None => ScanFrom::Time(first.received_ms.saturating_sub(CLOCK_MARGIN_MS)),
                };
                ground.held = self.outlet.holds(way, place).await?;
                if base.is_some() {
                    ground.removed = vanished(&ground.facts, above, ground.held.sequences());
                }
            }
            self.walk(way, entries, limit, &mut ground).await?;
        }
        let tip = self.verify(way, &ground).await?;
        if ground.report.republished > 0 && !rebase {
            rebase = true;
            self.begin_series().await?;
        }
        if rebase {
            let now = self.clock.now_ms();
            self.marks.give_way(way);
            self.marks.hand_in().await;
            let series = self.marks.series();
            let written = self
                .store
                .rebase(way, series, above, tip.clone(), now)
                .await?;
            if !written.await? {
                return Err(RepairError::NotOurTurn);
            }
            self.marks.settled_on(way, tip);
        } else if tip.seq > 0 {
            self.marks.advance(way, tip.seq, tip.msg_id);
        }
        Ok(ground.report)
    }

    /// Several instances: the streams have another history from here on, and whoever knew the old one
    /// looks again before it notes anything.
    async fn begin_series(&mut self) -> Result<(), RepairError> {
        let Some(turn) = &self.turn else {
            return Ok(());
        };
        let series = turn.new_series().await?.ok_or(RepairError::NotOurTurn)?;
        self.state.set_series(series);
        self.marks.go_on_in(series);
        Ok(())
    }

    /// The stream's state; one that is missing is made, if policy says so. `None`: it is missing, and
    /// nothing is owed to it.
    async fn facts(&mut self, way: Way) -> Result<Option<StreamFacts>, RepairError> {
        if let Some(facts) = self.outlet.facts(way).await? {
            return Ok(Some(facts));
        }
        self.outlet.ensure().await?;
        if let Some(facts) = self.outlet.facts(way).await? {
            return Ok(Some(facts));
        }
        if way == Way::Held && self.store.ledger_after(way, 0, 1).await?.is_empty() {
            return Ok(None);
        }
        Err(BusError {
            kind: BusErrorKind::Stream,
            detail: format!(
                "stream {} does not exist and nats.streams does not let us make it; make it with \
                 `nats stream add --config streams/{}.json`",
                way.stream(),
                way.stream().to_ascii_lowercase()
            ),
        }
        .into())
    }

    async fn stands(
        &mut self,
        way: Way,
        tip: &Tip,
        facts: &StreamFacts,
    ) -> Result<bool, RepairError> {
        Ok(match standing(tip, facts) {
            Standing::Stands => true,
            Standing::Lost => false,
            Standing::Ask => is_same(tip, self.outlet.id_at(way, tip.seq).await?.as_deref()),
        })
    }

    /// Deals with some entries: what the stream lacks is published, in order.
    async fn walk(
        &mut self,
        way: Way,
        entries: Vec<LedgerEntry>,
        limit: u64,
        ground: &mut Ground,
    ) -> Result<(), RepairError> {
        let now = self.clock.now_ms();
        let mut wanted: VecDeque<(LedgerEntry, u64)> = VecDeque::new();
        let mut stuck = Vec::new();
        for entry in entries {
            let acknowledged = entry.acknowledged || self.marks.has(entry.id);
            let id = message_id(&entry.protocol, &entry.dedupe_key);
            if ground.held.has(&id) {
                if !acknowledged {
                    self.marks.add(entry.id);
                    self.repaired.insert(entry.id);
                }
                continue;
            }
            if acknowledged {
                if ground.removed > 0 {
                    ground.removed -= 1;
                    continue;
                }
                let age = now.saturating_sub(entry.received_ms);
                if ground.facts.max_age_ms.is_some_and(|most| age > most) {
                    continue;
                }
            }
            match entry.bytes {
                None => ground.report.beyond_mending += usize::from(acknowledged),
                Some(bytes) if bytes > limit => {
                    if self.too_large.insert(entry.id) {
                        tracing::error!(
                            ledger = entry.id,
                            bytes,
                            limit,
                            "an accepted event is larger than the broker's max_payload allows; \
                             raise it and restart, until then this event waits in the ledger"
                        );
                        stuck.push(entry.id);
                    }
                }
                Some(bytes) => wanted.push_back((
                    LedgerEntry {
                        acknowledged,
                        ..entry
                    },
                    bytes,
                )),
            }
        }
        if !stuck.is_empty() {
            self.store.stuck(stuck).await?.await?;
        }
        while !wanted.is_empty() {
            let (mut some, mut size) = (Vec::new(), 0);
            while let Some((entry, bytes)) = wanted.pop_front() {
                size += bytes;
                some.push(entry);
                if size >= READ_BYTES || some.len() >= READ_ROWS {
                    break;
                }
            }
            self.publish_all(way, some, ground).await?;
        }
        Ok(())
    }

    /// Publishes these rows in order and waits for their PubAcks.
    async fn publish_all(
        &mut self,
        way: Way,
        entries: Vec<LedgerEntry>,
        ground: &mut Ground,
    ) -> Result<(), RepairError> {
        let now = self.clock.now_ms();
        let again: HashSet<i64> = entries
            .iter()
            .filter(|entry| entry.acknowledged)
            .map(|entry| entry.id)
            .collect();
        let ids = entries.iter().map(|entry| entry.id).collect();
        let rows = self.store.inbound_rows(ids).await?;
        let prefix = self.outlet.prefix().to_owned();
        let mut acks = FuturesOrdered::new();
        let mut landed = Vec::new();
        let (mut failed, mut lost_turn) = (None, false);
        for row in rows {
            if self.turn.as_ref().is_some_and(|turn| !turn.is_sure()) {
                lost_turn = true;
                break;
            }
            let id = row.id;
            let republished = again.contains(&id).then_some(now);
            let message = bus_message(
                way,
                &prefix,
                row.subject,
                row.headers,
                row.payload,
                republished,
            );
            let msg_id = super::message::msg_id_of(&message.headers)
                .unwrap_or_default()
                .to_owned();
            let mut handing = hand_over(Arc::clone(&self.outlet), message);
            let handed = loop {
                tokio::select! {
                    handed = &mut handing => break handed,
                    Some(done) = acks.next(), if !acks.is_empty() => landed.push(done),
                }
            };
            match handed {
                Ok(ack) => acks.push_back(async move { (id, msg_id, ack.await) }),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        while let Some(done) = acks.next().await {
            landed.push(done);
        }
        for (id, msg_id, result) in landed {
            match result {
                Ok((seq, duplicate)) => {
                    if duplicate && let Err(error) = self.really_there(way, seq, &msg_id).await {
                        failed = failed.or(Some(error));
                        continue;
                    }
                    let report = &mut ground.report;
                    if duplicate && self.turn.is_some() && again.contains(&id) {
                        // Another instance published it since we looked: it was not lost.
                    } else if again.contains(&id) {
                        report.republished += 1;
                        *self.given_again.entry(way).or_default() += 1;
                    } else {
                        report.published += 1;
                        self.marks.add(id);
                        self.repaired.insert(id);
                    }
                    if !duplicate && seq <= ground.top() {
                        // What was published before it may be lost; this one is not.
                        failed = failed.or(Some(changed(way)));
                    } else if !duplicate {
                        ground.newest = Some((seq, msg_id.clone()));
                    }
                    // A repair that fails further on does not publish it once more.
                    ground.held.put(&msg_id);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None if lost_turn => Err(RepairError::NotOurTurn),
            None => Ok(()),
        }
    }

    /// The broker says it has seen this id, at that sequence, though the stream was found without it:
    /// it came a moment ago, or an operator deleted it since. Anything else is a broker that
    /// remembers more than it holds.
    async fn really_there(&mut self, way: Way, seq: u64, msg_id: &str) -> Result<(), BusError> {
        let stale = || BusError {
            kind: BusErrorKind::Unavailable,
            detail: format!(
                "{} takes an event for a duplicate that it does not hold (sequence {seq}); \
                 trying again until its deduplication window is over",
                way.stream()
            ),
        };
        match self.outlet.id_at(way, seq).await? {
            Some(id) if id == msg_id => Ok(()),
            Some(_) => Err(stale()),
            None => match self.outlet.facts(way).await? {
                Some(facts) if facts.last_seq >= seq => Ok(()),
                _ => Err(stale()),
            },
        }
    }

    /// Looks whether the stream is still the one that was mended and holds what it was given; answers
    /// its newest message.
    async fn verify(&mut self, way: Way, ground: &Ground) -> Result<Tip, RepairError> {
        let facts = self.outlet.facts(way).await?;
        let facts = facts.ok_or_else(|| changed(way))?;
        let created_ns = created_ns(&facts);
        if facts.created_ns != ground.facts.created_ns || facts.last_seq < ground.top() {
            return Err(changed(way).into());
        }
        if let Some((seq, msg_id)) = &ground.newest {
            let tip = Tip {
                created_ns,
                seq: *seq,
                msg_id: msg_id.clone(),
            };
            return if self.stands(way, &tip, &facts).await? {
                Ok(tip)
            } else {
                Err(changed(way).into())
            };
        }
        let seq = ground.facts.last_seq;
        let msg_id = match seq {
            0 => None,
            seq => self.outlet.id_at(way, seq).await?,
        };
        Ok(Tip {
            created_ns,
            seq,
            msg_id: msg_id.unwrap_or_default(),
        })
    }

    /// Says what was done, when there was something to do.
    fn tell(&self, way: Way, report: Report) {
        if !report.lost && report.republished == 0 && report.beyond_mending == 0 {
            return;
        }
        let stream = way.stream();
        metrics::repaired(report.republished, report.beyond_mending);
        let body = json!({
            "stream": stream,
            "republished": report.republished,
            "published": report.published,
            "beyond_mending": report.beyond_mending,
            "detail": format!(
                "the broker had lost events it acknowledged: {} were published again, {} cannot be \
                 mended because the ledger keeps their bodies no more",
                report.republished, report.beyond_mending
            ),
        });
        self.ops.event("store", "repaired", "bridge", "self", body);
        if report.beyond_mending > 0 {
            tracing::error!(
                stream,
                events = report.beyond_mending,
                "events that the broker lost cannot be mended: they are older than their bodies are kept"
            );
        }
        tracing::warn!(
            stream,
            republished = report.republished,
            beyond_mending = report.beyond_mending,
            "the broker's loss is mended as far as the ledger reaches"
        );
    }
}
