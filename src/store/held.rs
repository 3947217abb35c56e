//! Events of quarantined peers, held back from `fed.in`.
//!
//! The writer decides, event by event in the order of the ledger: an event is held when its peer is
//! quarantined, and also while earlier events of its peer are still held, so that what is released
//! stays in the order of arrival. Releasing gives an event a new ledger number and makes it
//! unpublished: from there on it is like any other, whatever dies when.

use std::collections::{BTreeSet, HashMap};

use super::apply::Marks;
use super::arrive::take_numbers;
use super::bulk::{Shape, Texts};
use super::db::{Conn, Db};
use super::ops::{Answer as Told, Arrival, Single, Work};
use super::types::StoreError;
use super::{Commit, Store, read};
use crate::clock::UnixMs;
use crate::protocol::ProtocolId;
use serde::Serialize;

type Answer<T> = Result<T, sqlx::Error>;

/// Events held of one peer at most; more are refused for the time being.
pub const MAX_PEER_EVENTS: i64 = 10_000;
/// Bytes held of one peer at most.
pub const MAX_PEER_BYTES: i64 = 256 << 20;
/// Events held in all at most.
pub const MAX_EVENTS: i64 = 200_000;

const PEERS: Shape = Shape {
    before: "WITH v (protocol, peer) AS (",
    columns: "tt",
    after: ") SELECT h.protocol, h.peer, COUNT(*), CAST(SUM(h.bytes) AS BIGINT) \
            FROM v CROSS JOIN federation_held h \
            WHERE h.protocol = v.protocol AND h.peer = v.peer GROUP BY h.protocol, h.peer",
};
const INSERT: Shape = Shape {
    before: "INSERT INTO federation_held (id, protocol, peer, bytes, received_ms) ",
    columns: "ittii",
    after: "",
};

/// What is held of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldCount {
    pub protocol: ProtocolId,
    pub peer: String,
    pub events: u64,
    pub bytes: u64,
    /// When the oldest of them was received.
    pub oldest_ms: UnixMs,
    /// Ledger number of the newest of them.
    #[serde(skip)]
    pub through: i64,
}

/// Which held events an operation is about: the oldest `limit` of this peer up to number `through`.
#[derive(Clone, Debug)]
pub struct HeldBatch {
    pub protocol: ProtocolId,
    pub peer: String,
    pub through: i64,
    pub limit: usize,
}

/// Released events: their new ledger numbers follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    pub first: i64,
    pub count: i64,
}

impl Store {
    /// What is held, by protocol and peer.
    pub async fn held(&self) -> Result<Vec<HeldCount>, StoreError> {
        self.read_after(counts).await
    }

    /// Ledger number of the newest held event of a peer that was received before a time; 0: none was.
    pub async fn held_through(
        &self,
        protocol: ProtocolId,
        peer: &str,
        before_ms: UnixMs,
    ) -> Result<i64, StoreError> {
        let peer = peer.to_owned();
        self.read_after(move |db| through(db, protocol, peer, before_ms))
            .await
    }

    /// Makes the oldest held events of a peer ordinary unpublished ones, in order, under new numbers.
    pub async fn release_held(&self, batch: HeldBatch) -> Result<Commit<Released>, StoreError> {
        self.write(
            Work::Single(Single::ReleaseHeld(batch)),
            |answer| match answer {
                Told::Released(released) => released,
                Told::Done | Told::Accepted(_) | Told::Number(_) => Released::default(),
            },
        )
        .await
    }

    /// Forgets the bodies of the oldest held events of a peer; their ids stay known. Answers how many.
    pub async fn drop_held(&self, batch: HeldBatch) -> Result<Commit<u64>, StoreError> {
        self.write(
            Work::Single(Single::DropHeld(batch)),
            |answer| match answer {
                Told::Number(n) => u64::try_from(n).unwrap_or(0),
                Told::Done | Told::Accepted(_) | Told::Released(_) => 0,
            },
        )
        .await
    }
}

/// What the writer decides of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Through,
    Held,
    Full,
}

/// What is held of the peers of one batch of arrivals.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    peers: HashMap<(String, String), (i64, i64)>,
    all: i64,
}

impl Rooms {
    /// Looks it up; costs nothing while nothing is held and nothing is to be.
    pub async fn load(
        conn: &mut Conn,
        texts: &mut Texts,
        arrivals: &[&Arrival],
        marks: &Marks,
    ) -> Answer<Self> {
        let mut rooms = Self {
            peers: HashMap::new(),
            all: marks.held,
        };
        if marks.held == 0 {
            return Ok(rooms);
        }
        let peers: BTreeSet<(&str, &str)> = arrivals
            .iter()
            .map(|a| (a.event.protocol, a.event.peer.as_str()))
            .collect();
        let peers: Vec<_> = peers.into_iter().collect();
        for row in texts
            .fetch(conn, &PEERS, &peers, false, |b, (protocol, peer)| {
                b.text(protocol).text(peer);
            })
            .await?
        {
            rooms
                .peers
                .insert((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?));
        }
        Ok(rooms)
    }

    /// Decides, and counts what is held.
    pub fn admit(&mut self, arrival: &Arrival) -> Admission {
        let event = &arrival.event;
        let key = (event.protocol.to_owned(), event.peer.to_string());
        let held = self.peers.get(&key).copied();
        if !event.hold && held.is_none() {
            return Admission::Through;
        }
        let (events, bytes) = held.unwrap_or_default();
        let size = i64::try_from(event.payload.len()).unwrap_or(i64::MAX);
        if events >= MAX_PEER_EVENTS
            || bytes.saturating_add(size) > MAX_PEER_BYTES
            || self.all >= MAX_EVENTS
        {
            return Admission::Full;
        }
        self.all += 1;
        self.peers.insert(key, (events + 1, bytes + size));
        Admission::Held
    }
}

/// Writes down which of the new events are held.
pub(super) async fn insert(
    conn: &mut Conn,
    texts: &mut Texts,
    held: &[(i64, &Arrival)],
    marks: &mut Marks,
) -> Answer<()> {
    marks.held += i64::try_from(held.len()).unwrap_or(0);
    texts
        .execute(conn, &INSERT, held, |b, (id, a)| {
            b.int(*id)
                .text(a.event.protocol)
                .text(a.event.peer.as_str())
                .int(i64::try_from(a.event.payload.len()).unwrap_or(i64::MAX))
                .int(a.event.received_ms);
        })
        .await
        .map(drop)
}

/// Releases a batch.
pub(super) async fn release(
    conn: &mut Conn,
    batch: &HeldBatch,
    now_ms: UnixMs,
    marks: &mut Marks,
) -> Answer<Released> {
    let held = oldest(conn, batch).await?;
    let count = i64::try_from(held.len()).unwrap_or(0);
    let first = take_numbers(conn, marks, count).await?;
    for (next, (id, _)) in (first..).zip(held) {
        forget(conn, id, marks).await?;
        // The body is kept a day from now, as that of an event that just came.
        conn.query("UPDATE federation_events SET id = $1, received_ms = $2 WHERE id = $3")
            .bind(next)
            .bind(now_ms)
            .bind(id)
            .execute()
            .await?;
        conn.query("INSERT INTO federation_unpublished (id) VALUES ($1)")
            .bind(next)
            .execute()
            .await?;
    }
    Ok(Released { first, count })
}

/// Drops a batch.
pub(super) async fn discard(conn: &mut Conn, batch: &HeldBatch, marks: &mut Marks) -> Answer<i64> {
    let held = oldest(conn, batch).await?;
    let count = i64::try_from(held.len()).unwrap_or(0);
    for (id, bytes) in held {
        forget(conn, id, marks).await?;
        conn.query("UPDATE federation_events SET payload = NULL, headers = NULL WHERE id = $1")
            .bind(id)
            .execute()
            .await?;
        marks.inbound_bytes = (marks.inbound_bytes - bytes).max(0);
    }
    Ok(count)
}

/// The oldest held events of a peer: number and size.
async fn oldest(conn: &mut Conn, batch: &HeldBatch) -> Answer<Vec<(i64, i64)>> {
    let rows = conn
        .query(
            "SELECT id, bytes FROM federation_held \
         WHERE protocol = $1 AND peer = $2 AND id <= $3 ORDER BY id LIMIT $4",
        )
        .bind(batch.protocol)
        .bind(&batch.peer)
        .bind(batch.through)
        .bind(read::limit(batch.limit))
        .fetch_all()
        .await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// An event is held no more, and owed to `fed.held` no more.
async fn forget(conn: &mut Conn, id: i64, marks: &mut Marks) -> Answer<()> {
    for sql in [
        "DELETE FROM federation_held WHERE id = $1",
        "DELETE FROM federation_unpublished WHERE id = $1",
    ] {
        conn.query(sql).bind(id).execute().await?;
    }
    marks.held = (marks.held - 1).max(0);
    Ok(())
}

/// How many are held, for the marks.
pub(super) async fn count(conn: &mut Conn) -> Answer<i64> {
    conn.query("SELECT COUNT(*) FROM federation_held")
        .fetch_one()
        .await?
        .get(0)
}

async fn through(db: Db, protocol: ProtocolId, peer: String, before_ms: UnixMs) -> Answer<i64> {
    db.query(
        "SELECT COALESCE(MAX(id), 0) FROM federation_held \
         WHERE protocol = $1 AND peer = $2 AND received_ms < $3",
    )
    .bind(protocol)
    .bind(peer)
    .bind(before_ms)
    .fetch_one()
    .await?
    .get(0)
}

async fn counts(db: Db) -> Answer<Vec<HeldCount>> {
    let rows = db.query(
        "SELECT protocol, peer, COUNT(*), CAST(SUM(bytes) AS BIGINT), MIN(received_ms), MAX(id) \
         FROM federation_held GROUP BY protocol, peer ORDER BY protocol, peer",
    )
    .fetch_all()
    .await?;
    rows.iter()
        .map(|row| {
            let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
            let protocol: String = row.get(0)?;
            Ok(HeldCount {
                protocol: read::protocol_id(&protocol)?,
                peer: row.get(1)?,
                events: unsigned(row.get(2)?),
                bytes: unsigned(row.get(3)?),
                oldest_ms: row.get(4)?,
                through: row.get(5)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::protocol::PeerName;
    use crate::store::NewInbound;

    fn arrival(hold: bool, bytes: usize) -> Arrival {
        Arrival::new(Arc::new(NewInbound {
            protocol: "uam",
            peer: PeerName::parse("a.test").expect("a name"),
            dedupe_key: "k".into(),
            event_id: "k".into(),
            event_type: "message".into(),
            subject: String::new(),
            headers: Vec::new(),
            payload: Bytes::from(vec![0; bytes]),
            received_ms: 0,
            replay: Vec::new(),
            hold,
            room_event: None,
        }))
    }

    #[test]
    fn what_follows_a_held_event_of_its_peer_is_held_too() {
        let mut rooms = Rooms::default();
        assert_eq!(rooms.admit(&arrival(false, 1)), Admission::Through);
        assert_eq!(rooms.admit(&arrival(true, 1)), Admission::Held);
        assert_eq!(rooms.admit(&arrival(false, 1)), Admission::Held);
    }

    #[test]
    fn a_peer_has_so_many_events_and_bytes_held_and_no_more() {
        let mut rooms = Rooms::default();
        for _ in 0..MAX_PEER_EVENTS {
            assert_eq!(rooms.admit(&arrival(true, 1)), Admission::Held);
        }
        assert_eq!(rooms.admit(&arrival(true, 1)), Admission::Full);
        let mut rooms = Rooms::default();
        let mib = arrival(true, 1 << 20);
        for _ in 0..MAX_PEER_BYTES >> 20 {
            assert_eq!(rooms.admit(&mib), Admission::Held);
        }
        assert_eq!(rooms.admit(&mib), Admission::Full);
        rooms.all = MAX_EVENTS;
        rooms.peers.clear();
        assert_eq!(rooms.admit(&arrival(true, 1)), Admission::Full);
    }
}
