//! Events of rooms, as other servers read them: ours, and what came into rooms we host.

use std::collections::HashSet;

use super::Store;
use super::bulk::{Shape, Texts};
use super::db::{Conn, Db};
use super::read;
use super::types::StoreError;
use crate::clock::UnixMs;
use crate::protocol::{ProtocolId, RoomEvent};

/// One id may come from several servers, and only one of them is right: so many are looked at.
const SAME_ID: i64 = 16;

const INSERT: Shape = Shape {
    before: "INSERT INTO federation_room_events (protocol, event_id, origin, room, position, \
             kept_ms, envelope) ",
    columns: "ttttiib",
    after: " ON CONFLICT DO NOTHING",
};
impl Store {
    /// Events of a room behind a position, in order (position, then id), at most `limit`; those whose
    /// envelope was pruned are passed over. Sees every event whose commit was answered.
    pub async fn room_page(
        &self,
        protocol: ProtocolId,
        room: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<RoomEvent>, StoreError> {
        let room = room.to_owned();
        self.read(move |db| page(db, protocol, room, after, limit))
            .await
    }

    /// Events of that id, one of each origin, at most 16; an empty envelope was pruned.
    pub async fn room_event(
        &self,
        protocol: ProtocolId,
        event_id: &str,
    ) -> Result<Vec<RoomEvent>, StoreError> {
        let event_id = event_id.to_owned();
        self.read(move |db| of_id(db, protocol, event_id)).await
    }

    /// Which of these events of one origin are kept; sees everything handed to the writer before.
    pub async fn known_room_events(
        &self,
        protocol: ProtocolId,
        origin: &str,
        event_ids: Vec<String>,
    ) -> Result<HashSet<String>, StoreError> {
        if event_ids.is_empty() {
            return Ok(HashSet::new());
        }
        let origin = origin.to_owned();
        self.read_after(move |db| known(db, protocol, origin, event_ids))
            .await
    }
}

async fn page(
    db: Db,
    protocol: ProtocolId,
    room: String,
    after: i64,
    limit: usize,
) -> Result<Vec<RoomEvent>, sqlx::Error> {
    let rows = db
        .query(
            "SELECT event_id, origin, room, position, envelope FROM federation_room_events \
             WHERE protocol = $1 AND room = $2 AND position > $3 AND envelope IS NOT NULL \
             ORDER BY position, event_id LIMIT $4",
        )
        .bind(protocol)
        .bind(room)
        .bind(after)
        .bind(read::limit(limit))
        .fetch_all()
        .await?;
    rows.iter().map(read_back).collect()
}

async fn of_id(
    db: Db,
    protocol: ProtocolId,
    event_id: String,
) -> Result<Vec<RoomEvent>, sqlx::Error> {
    let rows = db
        .query(
            "SELECT event_id, origin, room, position, envelope FROM federation_room_events \
             WHERE protocol = $1 AND event_id = $2 LIMIT $3",
        )
        .bind(protocol)
        .bind(event_id)
        .bind(SAME_ID)
        .fetch_all()
        .await?;
    rows.iter().map(read_back).collect()
}

fn read_back(row: &super::db::Row) -> Result<RoomEvent, sqlx::Error> {
    Ok(RoomEvent {
        event_id: row.get(0)?,
        origin: row.get(1)?,
        room: row.get(2)?,
        position: row.get(3)?,
        envelope: row.get::<Option<Vec<u8>>>(4)?.unwrap_or_default().into(),
    })
}

async fn known(
    db: Db,
    protocol: ProtocolId,
    origin: String,
    event_ids: Vec<String>,
) -> Result<HashSet<String>, sqlx::Error> {
    let mut known = HashSet::new();
    for id in event_ids {
        let found = db
            .query(
                "SELECT event_id FROM federation_room_events \
                 WHERE protocol = $1 AND event_id = $2 AND origin = $3",
            )
            .bind(protocol)
            .bind(id)
            .bind(origin.as_str())
            .fetch_optional()
            .await?;
        if let Some(row) = found {
            known.insert(row.get(0)?);
        }
    }
    Ok(known)
}

/// Keeps events; one that is kept already stays as it is.
pub(super) async fn insert(
    conn: &mut Conn,
    texts: &mut Texts,
    events: &[(ProtocolId, &RoomEvent)],
    now_ms: UnixMs,
) -> Result<(), sqlx::Error> {
    texts
        .execute(conn, &INSERT, events, |b, (protocol, e)| {
            b.text(protocol)
                .text(&e.event_id)
                .text(&e.origin)
                .text(&e.room)
                .int(e.position)
                .int(now_ms)
                .blob(&e.envelope);
        })
        .await
        .map(drop)
}

/// Drops envelopes kept since before `before`, at most `step` of them; answers how many.
pub(super) async fn drop_envelopes(
    conn: &mut Conn,
    protocol: ProtocolId,
    before: UnixMs,
    step: i64,
) -> Result<i64, sqlx::Error> {
    let dropped = conn
        .query(
            "UPDATE federation_room_events SET envelope = NULL WHERE (protocol, event_id, origin) IN \
             (SELECT protocol, event_id, origin FROM federation_room_events WHERE protocol = $1 \
             AND kept_ms < $2 AND envelope IS NOT NULL ORDER BY kept_ms LIMIT $3)",
        )
        .bind(protocol)
        .bind(before)
        .bind(step)
        .execute()
        .await?;
    Ok(i64::try_from(dropped).unwrap_or(i64::MAX))
}
