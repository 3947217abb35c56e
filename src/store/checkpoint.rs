//! What the broker was known to have, kept so that a loss on its side can be found and mended
//! (promise 2).
//!
//! A *tip* is the newest acknowledged message of a stream whose event is marked; it is written in the
//! transaction that marks, so at any moment every marked event is at or below the tip. A
//! *checkpoint* is a tip with the ledger number below which every event is marked, taken in that same
//! transaction: whoever finds the tip's message in its place knows that everything below is there.

use super::db::{Conn, Db};
use std::time::Duration;

use super::ops::{Answer as Told, Single, Work};
use super::types::{InboundRow, MendTurn, StoreError};
use super::{Commit, Store, read};
use crate::clock::UnixMs;

type Answer<T> = Result<T, sqlx::Error>;

/// Which of the door's two streams an event is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// `fed.in`.
    In,
    /// `fed.held`: the peer is quarantined.
    Held,
}

impl Way {
    /// The stream's contract name.
    pub fn stream(self) -> &'static str {
        match self {
            Self::In => "FED_IN",
            Self::Held => "FED_HELD",
        }
    }
}

/// A message of a stream, by its place. Sequence 0 stands for an empty stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tip {
    /// When the stream was made, nanoseconds since the epoch.
    pub created_ns: i64,
    pub seq: u64,
    /// The message's `Nats-Msg-Id`.
    pub msg_id: String,
}

/// A tip, and what is known to be at or below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub tip: Tip,
    /// Every event of the stream below this ledger number is at or below the tip.
    pub ledger: i64,
    /// Events numbered from here on did not exist yet: they are above the tip.
    pub top: i64,
    pub at_ms: UnixMs,
}

/// Events JetStream acknowledged, with the newest message of each stream among them.
#[derive(Clone, Debug, Default)]
pub struct Acked {
    pub ids: Vec<i64>,
    pub tips: Vec<(Way, Tip)>,
    /// Also write a checkpoint of each of these streams, at this time.
    pub checkpoint_ms: Option<UnixMs>,
    /// Several instances: the series in which the broker said so. Nothing of it is noted when that
    /// one is over; the events stay unacknowledged.
    pub series: Option<i64>,
}

/// An event of the ledger without its body.
#[derive(Clone, Debug)]
pub struct LedgerEntry {
    pub id: i64,
    pub protocol: String,
    pub dedupe_key: String,
    pub received_ms: UnixMs,
    /// Size of the body; `None`: it is not kept any more.
    pub bytes: Option<u64>,
    /// JetStream acknowledged it.
    pub acknowledged: bool,
}

/// How far back bodies are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyHorizon {
    /// When the oldest event with a body was received.
    pub oldest_ms: Option<UnixMs>,
    /// Some events have lost their body.
    pub pruned: bool,
}

/// The start of a new series: the stream was repaired, or is seen for the first time.
#[derive(Clone, Debug)]
pub(super) struct Rebase {
    way: Way,
    /// Several instances: the series that this one opens.
    series: Option<i64>,
    keep_seq: u64,
    tip: Tip,
    at_ms: UnixMs,
}

impl Store {
    /// Marks events as acknowledged and notes how far the streams are known to have come.
    pub async fn acknowledged(&self, acked: Acked) -> Result<Commit, StoreError> {
        self.put(Work::Published(acked)).await
    }

    /// The newest acknowledged message of a stream; `None`: nothing is known of it yet.
    pub async fn tip(&self, way: Way) -> Result<Option<Tip>, StoreError> {
        self.read_after(move |db| tip(db, way)).await
    }

    /// A stream's checkpoints, newest first.
    pub async fn checkpoints(&self, way: Way) -> Result<Vec<Checkpoint>, StoreError> {
        self.read_after(move |db| checkpoints(db, way)).await
    }

    /// Begins a new series with `tip`: checkpoints of other streams than the tip's, and those above
    /// `keep_seq`, are no longer true and go; one at the tip is written. False, and nothing is
    /// written: another instance has opened a later series than `series`.
    pub async fn rebase(
        &self,
        way: Way,
        series: Option<i64>,
        keep_seq: u64,
        tip: Tip,
        at_ms: UnixMs,
    ) -> Result<Commit<bool>, StoreError> {
        let rebase = Box::new(Rebase {
            way,
            series,
            keep_seq,
            tip,
            at_ms,
        });
        self.write(
            Work::Single(Single::Rebase(rebase)),
            |answer| matches!(answer, Told::Number(n) if n >= 0),
        )
        .await
    }

    /// Several instances: takes (`lasts`), keeps or gives back the turn to mend the streams, with a
    /// new series or without. Answers the series in force; `None`: it is another instance's turn.
    pub async fn mend_turn(
        &self,
        lasts: Option<Duration>,
        new_series: bool,
    ) -> Result<Option<i64>, StoreError> {
        let wish = MendTurn {
            by: self.instance().to_owned(),
            lasts,
            new_series,
        };
        let turn = self
            .write(
                Work::Single(Single::Mend(Box::new(wish))),
                |answer| match answer {
                    Told::Number(series) if series > 0 => Some(series),
                    _ => None,
                },
            )
            .await?;
        turn.await
    }

    /// One past the highest ledger number in use.
    pub async fn ledger_top(&self) -> Result<i64, StoreError> {
        self.read_after(top).await
    }

    /// Which of these events JetStream has not acknowledged.
    pub async fn unacknowledged_of(&self, ids: Vec<i64>) -> Result<Vec<i64>, StoreError> {
        self.read(move |db| unacknowledged_of(db, ids)).await
    }

    /// Removes checkpoints that a thinner series does without.
    pub async fn forget_checkpoints(
        &self,
        way: Way,
        gone: Vec<Checkpoint>,
    ) -> Result<Commit, StoreError> {
        let gone = gone.into_iter().map(|c| c.tip).collect();
        self.put(Work::Single(Single::ForgetCheckpoints(way, gone)))
            .await
    }

    /// These events are larger than the broker takes: they hold no checkpoint back any more.
    pub async fn stuck(&self, ids: Vec<i64>) -> Result<Commit, StoreError> {
        self.put(Work::Single(Single::Stuck(ids))).await
    }

    /// Events of one stream in ledger order, `id > after`, without bodies.
    pub async fn ledger_after(
        &self,
        way: Way,
        after: i64,
        limit: usize,
    ) -> Result<Vec<LedgerEntry>, StoreError> {
        self.read_after(move |db| ledger(db, way, after, None, limit))
            .await
    }

    /// The same, only events JetStream has not acknowledged, numbered below `below`.
    pub async fn unacknowledged(
        &self,
        way: Way,
        after: i64,
        below: i64,
        limit: usize,
    ) -> Result<Vec<LedgerEntry>, StoreError> {
        self.read_after(move |db| ledger(db, way, after, Some(below), limit))
            .await
    }

    /// These events with their bodies, in this order; those whose body is gone are left out.
    pub async fn inbound_rows(&self, ids: Vec<i64>) -> Result<Vec<InboundRow>, StoreError> {
        self.read_after(move |db| rows(db, ids)).await
    }

    /// How far back bodies are kept.
    pub async fn body_horizon(&self) -> Result<BodyHorizon, StoreError> {
        self.read(horizon).await
    }
}

/// Notes tips and writes checkpoints; runs after the events themselves were marked.
pub(super) async fn note(conn: &mut Conn, all: &[&Acked]) -> Answer<()> {
    for (way, tip) in all.iter().flat_map(|acked| &acked.tips) {
        conn.query(
            "INSERT INTO federation_tips (stream, created_ns, seq, msg_id) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (stream) DO UPDATE SET created_ns = excluded.created_ns, \
             seq = excluded.seq, msg_id = excluded.msg_id \
             WHERE federation_tips.created_ns <> excluded.created_ns \
             OR federation_tips.seq < excluded.seq",
        )
        .bind(way.stream())
        .bind(tip.created_ns)
        .bind(number(tip.seq))
        .bind(&tip.msg_id)
        .execute()
        .await?;
    }
    for way in [Way::In, Way::Held] {
        let at = all
            .iter()
            .filter(|acked| acked.tips.iter().any(|(w, _)| *w == way))
            .filter_map(|acked| acked.checkpoint_ms)
            .max();
        if let Some(at_ms) = at {
            take(conn, way, at_ms).await?;
        }
    }
    Ok(())
}

/// Writes a checkpoint at a stream's tip.
async fn take(conn: &mut Conn, way: Way, at_ms: UnixMs) -> Answer<()> {
    let top: i64 = conn
        .query("SELECT COALESCE(MAX(id), 0) + 1 FROM federation_events")
        .fetch_one()
        .await?
        .get(0)?;
    let owed = conn
        .query(match way {
            Way::In => {
                "SELECT u.id FROM federation_unpublished u WHERE u.stuck = 0 AND NOT EXISTS \
             (SELECT 1 FROM federation_held h WHERE h.id = u.id) ORDER BY u.id LIMIT 1"
            }
            Way::Held => {
                "SELECT h.id FROM federation_held h JOIN federation_unpublished u ON u.id = h.id \
             WHERE u.stuck = 0 ORDER BY h.id LIMIT 1"
            }
        })
        .fetch_optional()
        .await?;
    let ledger = match owed {
        Some(row) => row.get(0)?,
        None => top,
    };
    conn.query(
        "INSERT INTO federation_checkpoints (stream, created_ns, seq, msg_id, ledger, top, at_ms) \
         SELECT t.stream, t.created_ns, t.seq, t.msg_id, $1, $2, $3 FROM federation_tips t \
         WHERE t.stream = $4 ON CONFLICT (stream, created_ns, seq) DO UPDATE SET \
         msg_id = excluded.msg_id, ledger = excluded.ledger, top = excluded.top, \
         at_ms = excluded.at_ms",
    )
    .bind(ledger)
    .bind(top)
    .bind(at_ms)
    .bind(way.stream())
    .execute()
    .await
    .map(drop)
}

/// Begins a new series.
pub(super) async fn rebase(conn: &mut Conn, to: &Rebase, series: i64) -> Answer<i64> {
    if to.series.is_some_and(|of| of != series) {
        return Ok(-1);
    }
    let stream = to.way.stream();
    let gone = conn.query(
        "DELETE FROM federation_checkpoints WHERE stream = $1 AND (created_ns <> $2 OR seq > $3)",
    )
    .bind(stream)
    .bind(to.tip.created_ns)
    .bind(number(to.keep_seq))
    .execute()
    .await?;
    conn.query(
        "INSERT INTO federation_tips (stream, created_ns, seq, msg_id) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (stream) DO UPDATE SET created_ns = excluded.created_ns, \
         seq = excluded.seq, msg_id = excluded.msg_id",
    )
    .bind(stream)
    .bind(to.tip.created_ns)
    .bind(number(to.tip.seq))
    .bind(&to.tip.msg_id)
    .execute()
    .await?;
    take(conn, to.way, to.at_ms).await?;
    Ok(i64::try_from(gone).unwrap_or(i64::MAX))
}

/// Removes checkpoints.
pub(super) async fn forget(conn: &mut Conn, way: Way, gone: &[Tip]) -> Answer<i64> {
    for tip in gone {
        conn.query(
            "DELETE FROM federation_checkpoints \
             WHERE stream = $1 AND created_ns = $2 AND seq = $3",
        )
        .bind(way.stream())
        .bind(tip.created_ns)
        .bind(number(tip.seq))
        .execute()
        .await?;
    }
    Ok(i64::try_from(gone.len()).unwrap_or(i64::MAX))
}

/// Marks events that the broker cannot take.
pub(super) async fn stick(conn: &mut Conn, ids: &[i64]) -> Answer<i64> {
    for id in ids {
        conn.query("UPDATE federation_unpublished SET stuck = 1 WHERE id = $1")
            .bind(id)
            .execute()
            .await?;
    }
    Ok(i64::try_from(ids.len()).unwrap_or(i64::MAX))
}

async fn top(db: Db) -> Answer<i64> {
    db.query("SELECT COALESCE(MAX(id), 0) + 1 FROM federation_events")
        .fetch_one()
        .await?
        .get(0)
}

async fn unacknowledged_of(db: Db, ids: Vec<i64>) -> Answer<Vec<i64>> {
    let mut found = Vec::new();
    for id in ids {
        let row = db
            .query("SELECT id FROM federation_unpublished WHERE id = $1")
            .bind(id)
            .fetch_optional()
            .await?;
        found.extend(row.map(|row| row.get::<i64>(0)).transpose()?);
    }
    Ok(found)
}

async fn tip(db: Db, way: Way) -> Answer<Option<Tip>> {
    let row = db
        .query("SELECT created_ns, seq, msg_id FROM federation_tips WHERE stream = $1")
        .bind(way.stream())
        .fetch_optional()
        .await?;
    row.map(|row| {
        Ok(Tip {
            created_ns: row.get(0)?,
            seq: sequence(row.get(1)?),
            msg_id: row.get(2)?,
        })
    })
    .transpose()
}

async fn checkpoints(db: Db, way: Way) -> Answer<Vec<Checkpoint>> {
    let rows = db
        .query(
            "SELECT created_ns, seq, msg_id, ledger, top, at_ms FROM federation_checkpoints \
         WHERE stream = $1 ORDER BY top DESC, seq DESC",
        )
        .bind(way.stream())
        .fetch_all()
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Checkpoint {
                tip: Tip {
                    created_ns: row.get(0)?,
                    seq: sequence(row.get(1)?),
                    msg_id: row.get(2)?,
                },
                ledger: row.get(3)?,
                top: row.get(4)?,
                at_ms: row.get(5)?,
            })
        })
        .collect()
}

async fn ledger(
    db: Db,
    way: Way,
    after: i64,
    unacknowledged_below: Option<i64>,
    limit: usize,
) -> Answer<Vec<LedgerEntry>> {
    let sql = match (way, unacknowledged_below.is_some()) {
        (Way::In, false) => {
            "SELECT e.id, e.protocol, e.dedupe_key, e.received_ms, LENGTH(e.payload), \
             EXISTS (SELECT 1 FROM federation_unpublished u WHERE u.id = e.id) \
             FROM federation_events e WHERE e.id > $1 AND e.id < $2 \
             AND NOT EXISTS (SELECT 1 FROM federation_held h WHERE h.id = e.id) \
             ORDER BY e.id LIMIT $3"
        }
        (Way::Held, false) => {
            "SELECT e.id, e.protocol, e.dedupe_key, e.received_ms, LENGTH(e.payload), \
             EXISTS (SELECT 1 FROM federation_unpublished u WHERE u.id = e.id) \
             FROM federation_held h JOIN federation_events e ON e.id = h.id \
             WHERE h.id > $1 AND h.id < $2 ORDER BY h.id LIMIT $3"
        }
        (Way::In, true) => {
            "SELECT e.id, e.protocol, e.dedupe_key, e.received_ms, LENGTH(e.payload), 1 = 1 \
             FROM federation_unpublished u JOIN federation_events e ON e.id = u.id \
             WHERE u.id > $1 AND u.id < $2 \
             AND NOT EXISTS (SELECT 1 FROM federation_held h WHERE h.id = u.id) \
             ORDER BY u.id LIMIT $3"
        }
        (Way::Held, true) => {
            "SELECT e.id, e.protocol, e.dedupe_key, e.received_ms, LENGTH(e.payload), 1 = 1 \
             FROM federation_held h JOIN federation_unpublished u ON u.id = h.id \
             JOIN federation_events e ON e.id = h.id \
             WHERE h.id > $1 AND h.id < $2 ORDER BY h.id LIMIT $3"
        }
    };
    let rows = db
        .query(sql)
        .bind(after)
        .bind(unacknowledged_below.unwrap_or(i64::MAX))
        .bind(read::limit(limit))
        .fetch_all()
        .await?;
    rows.iter()
        .map(|row| {
            Ok(LedgerEntry {
                id: row.get(0)?,
                protocol: row.get(1)?,
                dedupe_key: row.get(2)?,
                received_ms: row.get(3)?,
                bytes: row
                    .get::<Option<i64>>(4)?
                    .map(|bytes| u64::try_from(bytes).unwrap_or(0)),
                acknowledged: !row.get::<bool>(5)?,
            })
        })
        .collect()
}

async fn rows(db: Db, ids: Vec<i64>) -> Answer<Vec<InboundRow>> {
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        let row = db
            .query(
                "SELECT id, protocol, peer, event_id, subject, headers, payload \
             FROM federation_events WHERE id = $1 AND payload IS NOT NULL",
            )
            .bind(id)
            .fetch_optional()
            .await?;
        if let Some(row) = row {
            found.push(read::inbound_row(&row)?);
        }
    }
    Ok(found)
}

async fn horizon(db: Db) -> Answer<BodyHorizon> {
    let oldest = db
        .query(
            "SELECT received_ms FROM federation_events WHERE payload IS NOT NULL \
         ORDER BY received_ms LIMIT 1",
        )
        .fetch_optional()
        .await?;
    let pruned = db
        .query(
            "SELECT received_ms FROM federation_events WHERE payload IS NULL \
         ORDER BY received_ms LIMIT 1",
        )
        .fetch_optional()
        .await?;
    Ok(BodyHorizon {
        oldest_ms: oldest.map(|row| row.get(0)).transpose()?,
        pruned: pruned.is_some(),
    })
}

fn number(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn sequence(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
