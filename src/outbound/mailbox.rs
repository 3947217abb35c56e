//! Rows that a peer fetches: handed out until it is as good as certain that they arrived.
//!
//! A fetch may have no acknowledgement of its own, and an answer can be lost on its way. So a row
//! leaves only when a second answer that holds it has left, some time after the first: one lost answer
//! loses nothing. Until then every fetch repeats it, in its place; whoever fetches tells copies by
//! their ids, and must remember more of them than stand between the two answers
//! ([`Rules::outstanding`]). What was handed out is in the ledger, so a restart changes nothing.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, UnixMs};
use crate::faults;
use crate::ops::{Ops, metrics, trace};
use crate::protocol::{MailboxBounds, PeerName, Protocol, ProtocolId, Via};
use crate::store::{Outcome, QueueRow, RowFilter, RowState, Settle, Store, StoreError, Waiting};

/// How often mailboxes are held against their bounds: four times in the shortest age, within these.
const SWEEP: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(10);
/// Rows given up at once.
const STEP: usize = 500;

/// How much is handed out, and how it is settled.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Rows of one answer that none held before.
    pub fresh: usize,
    /// Rows handed out once that wait for their second answer, at most.
    pub outstanding: usize,
    /// Bytes of bodies in one answer, about; one row goes in any case.
    pub bytes: u64,
    /// Between the two answers that settle a row, at least.
    pub gap: Duration,
}

/// What an answer does for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The first that holds it.
    First,
    /// Too soon after the first to count.
    Again,
    /// The one that settles it.
    Last,
}

/// Rows on their way out with one answer.
#[derive(Debug)]
pub struct Handout {
    protocol: ProtocolId,
    rows: Vec<(QueueRow, Turn)>,
}

impl Handout {
    /// The bodies, in their order.
    pub fn bodies(&self) -> impl Iterator<Item = &Bytes> {
        self.rows.iter().map(|(row, _)| &row.body)
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// The mailboxes of all peers; cloning shares it.
#[derive(Clone)]
pub struct Mailbox {
    store: Store,
    ops: Ops,
    clock: Clock,
}

impl Mailbox {
    /// Over this store.
    pub fn new(store: Store, ops: Ops, clock: Clock) -> Self {
        Self { store, ops, clock }
    }

    /// What goes into an answer for this peer now.
    pub async fn hand_out(
        &self,
        protocol: ProtocolId,
        peer: &PeerName,
        rules: &Rules,
    ) -> Result<Handout, StoreError> {
        let most = rules.outstanding.saturating_add(rules.fresh);
        let waiting = self.store.waiting_for(protocol, peer, most).await?;
        let chosen = choose(&waiting, rules, self.clock.now_ms());
        let (Some((first, _)), Some((last, _))) = (chosen.first(), chosen.last()) else {
            let rows = Vec::new();
            return Ok(Handout { protocol, rows });
        };
        let (after, last) = (first - 1, *last);
        let rows = self
            .store
            .pending(protocol, peer, after, chosen.len())
            .await?;
        let turn = |id: i64| chosen.iter().find(|(of, _)| *of == id).map(|(_, t)| *t);
        let rows = rows.into_iter().filter(|row| row.id <= last);
        Ok(Handout {
            protocol,
            rows: rows
                .filter_map(|row| turn(row.id).map(|turn| (row, turn)))
                .collect(),
        })
    }

    /// The answer with these rows has left.
    pub async fn has_left(&self, handout: Handout) {
        faults::crash_point("mailbox_left");
        let now = self.clock.now_ms();
        let (protocol, mut first) = (handout.protocol, Vec::new());
        for (row, turn) in handout.rows {
            match turn {
                Turn::First => {
                    log(&row, "handed out");
                    first.push(row.id);
                }
                Turn::Again => {}
                Turn::Last => self.delivered(protocol, row, now).await,
            }
        }
        if first.is_empty() {
            return;
        }
        let noted = match self.store.handed_out(first, now).await {
            Ok(commit) => commit.await.map(drop),
            Err(error) => Err(error),
        };
        faults::crash_point("mailbox_noted");
        if let Err(error) = noted {
            tracing::warn!(%error, "what was fetched could not be noted, so it is handed out twice more");
        }
    }

    async fn delivered(&self, protocol: ProtocolId, row: QueueRow, now: UnixMs) {
        let settle = Settle {
            row: row.id,
            outcome: Outcome::Delivered { at_ms: now },
            attempts: row.attempts.saturating_add(1),
            attempt: None,
        };
        // What is not written now is handed out once more.
        if let Err(error) = self.store.settle(settle).await {
            tracing::warn!(%error, queue_id = row.id, "a fetched row could not be settled; it is handed out again");
            return;
        }
        log(&row, "delivered");
        metrics::attempt(protocol, "delivered", 0.0);
        self.ops
            .tally("delivery", "delivered", protocol, &row.peer, || {
                said(&row, row.attempts.saturating_add(1), "fetched", "")
            });
    }

    /// Gives up what waits beyond the bounds, for every peer that fetches, until `stop`.
    pub async fn keep_bounds(
        self,
        protocols: Vec<Arc<dyn Protocol>>,
        dead: Arc<Notify>,
        stop: CancellationToken,
    ) {
        let bounded: Vec<_> = protocols
            .into_iter()
            .filter_map(|p| p.mailbox().map(|bounds| (p, bounds)))
            .collect();
        let Some(shortest) = bounded.iter().map(|(_, bounds)| bounds.age).min() else {
            return;
        };
        let pause = (shortest / 4).clamp(SWEEP.start, SWEEP.end);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            for (protocol, bounds) in &bounded {
                match self.sweep(protocol, *bounds).await {
                    Ok(0) => {}
                    Ok(_) => dead.notify_one(),
                    Err(error) => {
                        tracing::warn!(%error, "mailboxes could not be held against their bounds");
                    }
                }
            }
        }
    }

    /// One look; answers how many rows were given up.
    pub async fn sweep(
        &self,
        protocol: &Arc<dyn Protocol>,
        bounds: MailboxBounds,
    ) -> Result<u64, StoreError> {
        let fetches = |peer: &PeerName| matches!(protocol.via(peer), Via::Held { .. });
        if !protocol.beating().iter().any(fetches) {
            return Ok(0); // the counts are a pass over all that waits
        }
        let mut gone = 0;
        for counts in self.store.peer_counts().await? {
            let Ok(peer) = PeerName::parse(&counts.peer) else {
                continue;
            };
            if counts.protocol != protocol.id() || counts.pending == 0 || !fetches(&peer) {
                continue;
            }
            if counts.pending > bounds.messages {
                let late = self
                    .store
                    .waiting_beyond(protocol.id(), &peer, bounds.messages, STEP)
                    .await?;
                let why = format!(
                    "{} messages wait already for the peer to fetch them, and no more may",
                    bounds.messages
                );
                gone += self
                    .give_up(protocol.id(), late, "mailbox_full", &why)
                    .await?;
            }
            if self.clock.steady() {
                let age = i64::try_from(bounds.age.as_millis()).unwrap_or(i64::MAX);
                let old = RowFilter {
                    protocol: Some(protocol.id().to_owned()),
                    peer: Some(peer.to_string()),
                    states: [RowState::Pending].into(),
                    created_to_ms: Some(self.clock.now_ms().saturating_sub(age)),
                    limit: STEP,
                    ..RowFilter::default()
                };
                let old = self.store.list_rows(&old).await?;
                let old = old.into_iter().map(|row| row.id).collect();
                let why = "the peer did not fetch it in the time that messages may wait";
                gone += self
                    .give_up(protocol.id(), old, "mailbox_expired", why)
                    .await?;
            }
        }
        Ok(gone)
    }

    /// Gives up everything that waits for a peer, pushed or fetched; answers the number of the first
    /// row that was, if any.
    pub async fn empty(
        &self,
        protocol: ProtocolId,
        peer: &PeerName,
        code: &'static str,
        why: &str,
    ) -> Result<Option<i64>, StoreError> {
        let mut first = None;
        loop {
            let rows = self.store.waiting_for(protocol, peer, STEP).await?;
            let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
            first = first.or(ids.first().copied());
            // None given up: what was found has come to another end meanwhile.
            if self.give_up(protocol, ids, code, why).await? == 0 {
                return Ok(first);
            }
        }
    }

    /// Dead for this reason, and said, one event a message.
    async fn give_up(
        &self,
        protocol: ProtocolId,
        ids: Vec<i64>,
        code: &'static str,
        why: &str,
    ) -> Result<u64, StoreError> {
        if ids.is_empty() {
            return Ok(0);
        }
        let gone = self.store.give_up(ids.clone(), code, why).await?.await?;
        let filter = RowFilter {
            states: [RowState::Failed].into(),
            reason_code: Some(code.to_owned()),
            limit: ids.len(),
            ids,
            ..RowFilter::default()
        };
        for row in self.store.list_rows(&filter).await? {
            metrics::dead(protocol, code);
            tracing::warn!(
                protocol,
                peer = row.peer,
                queue_id = row.id,
                msg_id = row.msg_id,
                code,
                "{why}"
            );
            let body = said(&row, row.attempts, code, why);
            self.ops
                .event("delivery", "dead", protocol, &row.peer, body);
        }
        Ok(gone)
    }
}

/// Which rows an answer holds: those handed out before, and fresh ones behind them as far as the
/// rules allow. Nothing is left out between two rows, so their order stands.
fn choose(waiting: &[Waiting], rules: &Rules, now: UnixMs) -> Vec<(i64, Turn)> {
    let gap = i64::try_from(rules.gap.as_millis()).unwrap_or(i64::MAX);
    let (mut fresh, mut outstanding, mut bytes) = (0, 0, 0u64);
    let mut chosen = Vec::new();
    for row in waiting {
        bytes = bytes.saturating_add(row.size);
        if bytes > rules.bytes && !chosen.is_empty() {
            break;
        }
        let turn = match row.handed_ms {
            None if faults::on("one_handout") => Turn::Last,
            None => Turn::First,
            // A clock that was set back must not keep it for ever.
            Some(at) if now.saturating_sub(at).saturating_abs() >= gap => Turn::Last,
            Some(_) => Turn::Again,
        };
        // What this answer settles makes room only for the next one.
        outstanding += 1;
        fresh += usize::from(turn == Turn::First);
        if fresh > rules.fresh || turn == Turn::First && outstanding > rules.outstanding {
            break;
        }
        chosen.push((row.id, turn));
    }
    chosen
}

fn said(row: &QueueRow, attempts: u32, code: &str, detail: &str) -> serde_json::Value {
    let body = json!({"msg_id": row.msg_id, "out_seq": row.out_seq, "event_id": row.event_id,
        "peer": row.peer, "attempts": attempts, "code": code, "detail": detail, "queue_id": row.id});
    trace::named(body, row.traceparent.as_deref())
}

fn log(row: &QueueRow, outcome: &str) {
    tracing::info!(
        protocol = row.protocol,
        peer = row.peer,
        queue_id = row.id,
        event_id = row.event_id,
        msg_id = row.msg_id,
        outcome,
        "federation fetch"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        fresh: 3,
        outstanding: 5,
        bytes: 1_000,
        gap: Duration::from_secs(10),
    };

    fn rows(handed: &[Option<UnixMs>]) -> Vec<Waiting> {
        (1..)
            .zip(handed)
            .map(|(id, handed_ms)| Waiting {
                id,
                size: 10,
                handed_ms: *handed_ms,
            })
            .collect()
    }

    fn turns(handed: &[Option<UnixMs>], now: UnixMs) -> Vec<Turn> {
        let chosen = choose(&rows(handed), &RULES, now);
        chosen.into_iter().map(|(_, turn)| turn).collect()
    }

    #[test]
    fn a_row_is_settled_by_a_second_answer_ten_seconds_after_the_first() {
        assert_eq!(turns(&[None], 0), [Turn::First]);
        assert_eq!(turns(&[Some(1_000)], 10_999), [Turn::Again]);
        assert_eq!(turns(&[Some(1_000)], 11_000), [Turn::Last]);
    }

    #[test]
    fn what_was_handed_out_comes_again_before_anything_fresh() {
        assert_eq!(
            turns(&[Some(0), Some(5_000), None, None], 10_000),
            [Turn::Last, Turn::Again, Turn::First, Turn::First]
        );
    }

    #[test]
    fn fresh_rows_and_rows_without_their_second_answer_are_bounded() {
        assert_eq!(turns(&[None; 9], 0).len(), 3);
        let once = [Some(0), Some(0), Some(0), Some(0), None, None, None];
        assert_eq!(turns(&once, 1).len(), 5);
        assert_eq!(turns(&[Some(0); 9], 1).len(), 9, "all of them are repeated");
    }

    #[test]
    fn an_answer_is_bounded_in_bytes_but_never_empty_while_something_waits() {
        let mut large = rows(&[None, None]);
        large[0].size = 5_000;
        assert_eq!(choose(&large, &RULES, 0), [(1, Turn::First)]);
    }
}
