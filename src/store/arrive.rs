//! Inbound events taken in: known or new, decided for a whole batch at once.

use std::collections::{HashMap, HashSet};

use super::apply::Marks;
use super::bulk::Texts;
use super::db::Conn;
use super::held::{self, Admission};
use super::ops::{Answer, Arrival};
use super::shapes::*;
use super::single;
use super::types::Accepted;
use crate::clock::UnixMs;
use crate::protocol::{ProtocolId, RoomEvent};

/// Takes events in: what is known is looked up for all of them at once, decided in order in memory,
/// and the new ones inserted together.
/// Room events of the new ones are added to `kept`.
pub(super) async fn arrive<'a>(
    conn: &mut Conn,
    texts: &mut Texts,
    arrivals: &[&'a Arrival],
    now_ms: UnixMs,
    marks: &mut Marks,
    kept: &mut Vec<(ProtocolId, &'a RoomEvent)>,
) -> Result<Vec<Answer>, sqlx::Error> {
    let mut known: HashMap<(String, String), (i64, Vec<u8>, bool)> = HashMap::new();
    for row in texts
        .fetch(conn, &KNOWN_EVENTS, arrivals, true, |b, a| {
            b.text(a.event.protocol).text(&a.event.dedupe_key);
        })
        .await?
    {
        known.insert(
            (row.get(0)?, row.get(1)?),
            (row.get(2)?, row.get(3)?, row.get(4)?),
        );
    }
    let ids: Vec<_> = arrivals
        .iter()
        .flat_map(|a| a.event.replay.iter().map(|id| (a.event.protocol, id)))
        .collect();
    let mut replayed: HashSet<(String, String, Vec<u8>)> = HashSet::new();
    for row in texts
        .fetch(conn, &KNOWN_REPLAYS, &ids, true, |b, (protocol, id)| {
            b.text(protocol).text(&id.scope).blob(&id.id);
        })
        .await?
    {
        if row.get::<i64>(3)? > now_ms {
            replayed.insert((row.get(0)?, row.get(1)?, row.get(2)?));
        }
    }

    let mut rooms = held::Rooms::load(conn, texts, arrivals, marks).await?;
    let mut kept_back: Vec<(i64, &Arrival)> = Vec::new();
    let mut answers = Vec::with_capacity(arrivals.len());
    let mut new: Vec<(i64, &Arrival, String)> = Vec::new();
    let mut new_ids = Vec::new();
    for arrival in arrivals {
        let event = &arrival.event;
        let key = (event.protocol.to_owned(), event.dedupe_key.clone());
        if let Some((id, hash, published)) = known.get(&key) {
            answers.push(Answer::Accepted(Accepted::Duplicate {
                id: *id,
                published: *published,
                same: hash[..] == arrival.hash,
            }));
            continue;
        }
        let id_key = |id: &crate::protocol::ReplayId| {
            (event.protocol.to_owned(), id.scope.clone(), id.id.clone())
        };
        if event.replay.iter().any(|id| replayed.contains(&id_key(id))) {
            answers.push(Answer::Accepted(Accepted::Replayed));
            continue;
        }
        if marks.shut {
            answers.push(Answer::Accepted(Accepted::Shut));
            continue;
        }
        let admission = rooms.admit(arrival);
        if admission == Admission::Full {
            answers.push(Answer::Accepted(Accepted::HeldFull));
            continue;
        }
        let id = marks.next_event;
        marks.next_event = id.saturating_add(1);
        answers.push(Answer::Accepted(match admission {
            Admission::Held => {
                kept_back.push((id, *arrival));
                Accepted::Held(id)
            }
            _ => Accepted::New(id),
        }));
        known.insert(key, (id, arrival.hash.to_vec(), false));
        for replay in &event.replay {
            // An id named twice by one event is one id.
            if replayed.insert(id_key(replay)) {
                new_ids.push((event.protocol, replay));
            }
        }
        marks.inbound_bytes += i64::try_from(event.payload.len()).unwrap_or(i64::MAX);
        let headers =
            serde_json::to_string(&event.headers).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
        kept.extend(event.room_event.as_ref().map(|room| (event.protocol, room)));
        new.push((id, arrival, headers));
    }
    reserve_numbers(conn, marks).await?;
    texts
        .execute(conn, &INSERT_EVENTS, &new, |b, (id, a, headers)| {
            b.int(*id)
                .text(a.event.protocol)
                .text(a.event.peer.as_str())
                .text(&a.event.dedupe_key)
                .text(&a.event.event_id)
                .text(&a.event.event_type)
                .text(&a.event.subject)
                .int(a.event.received_ms)
                .blob(&a.hash)
                .text(headers)
                .blob(&a.event.payload);
        })
        .await?;
    texts
        .execute(conn, &INSERT_UNPUBLISHED, &new, |b, (id, _, _)| {
            b.int(*id);
        })
        .await?;
    if !kept_back.is_empty() {
        held::insert(conn, texts, &kept_back, marks).await?;
    }
    texts
        .execute(conn, &INSERT_REPLAYS, &new_ids, |b, (protocol, id)| {
            b.text(protocol)
                .text(&id.scope)
                .blob(&id.id)
                .int(id.expires_ms);
        })
        .await?;
    Ok(answers)
}

/// Takes the next inbound ledger numbers; answers the first.
pub(super) async fn take_numbers(
    conn: &mut Conn,
    marks: &mut Marks,
    count: i64,
) -> Result<i64, sqlx::Error> {
    let first = marks.next_event;
    marks.next_event = first.saturating_add(count);
    reserve_numbers(conn, marks).await?;
    Ok(first)
}

/// Keeps the reservation in the database ahead of the numbers taken.
async fn reserve_numbers(conn: &mut Conn, marks: &mut Marks) -> Result<(), sqlx::Error> {
    if marks.next_event > marks.events {
        marks.events = marks.next_event.saturating_add(marks.ahead);
        single::put_mark(conn, "events", marks.events).await?;
    }
    Ok(())
}
