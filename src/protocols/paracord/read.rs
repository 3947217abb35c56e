//! Rooms and events as other servers read them.
//!
//! A server reads a room in which it has a member, of which it was sent an event, that it hosts itself,
//! or that is public; and every event that it made. Anything else is not there for it. What is served
//! are the envelopes as they are kept.
//!
//! Who polls asks for what stands behind the last position it saw. So a page never ends between two
//! events of one position as long as it can end before them, and it ends early rather than grow large.

use ::http::StatusCode;
use ::http::request::Parts;
use axum::response::Response;

use super::answer::{Fail, json_bytes};
use super::request::{self, Reader};
use super::{BASE, ID, Paracord};
use crate::protocol::RoomEvent;
use crate::protocols::wire;
use crate::store::StoreError;

/// Events in a page when nothing is said.
const PAGE: i64 = 100;
/// Events in a page at most.
const MAX_EVENTS: i64 = 1_000;
/// Bytes of envelopes in a page at most, but for one that alone is larger.
pub const MAX_PAGE: usize = 4 * 1024 * 1024;
/// Events read from the store at one time.
const STEP: usize = 64;
/// Longest id of an event that is looked for, bytes.
const MAX_ID: usize = 512;

/// Answers `GET /event/{event_id}`.
pub async fn event(p: &Paracord, parts: &Parts) -> Result<Response, Fail> {
    let path = parts.uri.path();
    let id = path.strip_prefix(BASE);
    let id = id.and_then(|rest| rest.strip_prefix("/event/"));
    let Some(id) = id.and_then(wire::unescaped) else {
        return Err(unreadable("the event id in the path is no text"));
    };
    let reader = request::read(p, parts, path).await?;
    if id.len() > MAX_ID {
        return Err(Fail::not_found());
    }
    let kept = p.store.room_event(ID, &id).await;
    let kept = kept.map_err(|error| Fail::store(&error))?;
    let may_read = |event: &RoomEvent| match &reader {
        Reader::Token => true,
        Reader::Peer(peer) => {
            event.origin == peer.name.as_str() || p.rooms.may_read(&event.room, peer)
        }
    };
    let mut found = None;
    for event in kept {
        // An envelope that is no longer kept is empty. Of several servers' events ours is meant.
        if event.envelope.is_empty() || !may_read(&event) {
            continue;
        }
        if found.is_none() || event.origin == p.own.name.as_str() {
            found = Some(event);
        }
    }
    let found = found.ok_or_else(Fail::not_found)?;
    Ok(json_bytes(StatusCode::OK, found.envelope))
}

/// Answers `GET /events`.
pub async fn events(p: &Paracord, parts: &Parts) -> Result<Response, Fail> {
    let wanted = Wanted::read(parts.uri.query().unwrap_or_default())?;
    let path = parts.uri.path_and_query();
    let path = path.map_or_else(|| parts.uri.path(), |path| path.as_str());
    let reader = request::read(p, parts, path).await?;
    let room = p.rooms.key_of(&wanted.room_id);
    if let Reader::Peer(peer) = &reader {
        let may_read = |room: &String| p.rooms.may_read(room, peer);
        if !room.as_ref().is_some_and(may_read) {
            return Err(Fail::not_found());
        }
    }
    let page = match room {
        Some(room) => page(p, &room, wanted.since_depth, wanted.limit).await,
        None => Ok(Vec::new()),
    };
    let page = page.map_err(|error| Fail::store(&error))?;
    Ok(json_bytes(StatusCode::OK, written(&page).into()))
}

/// What a poll asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub room_id: String,
    since_depth: i64,
    limit: usize,
}

impl Wanted {
    /// Reads a query: each name once, numbers as numbers, unknown names passed over.
    pub fn read(query: &str) -> Result<Self, Fail> {
        let (mut room_id, mut since_depth, mut limit) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (form_text(name), form_text(value)) else {
                return Err(unreadable("the query is no text"));
            };
            let known = match name.as_str() {
                "room_id" => &mut room_id,
                "since_depth" => &mut since_depth,
                "limit" => &mut limit,
                _ => continue,
            };
            if known.replace(value).is_some() {
                return Err(unreadable("a name stands twice in the query"));
            }
        }
        let room_id = room_id.ok_or_else(|| unreadable("room_id is missing in the query"))?;
        let limit = number(limit)?.unwrap_or(PAGE).clamp(1, MAX_EVENTS);
        Ok(Self {
            room_id,
            since_depth: number(since_depth)?.unwrap_or(0).max(0),
            limit: usize::try_from(limit).unwrap_or(1),
        })
    }
}

fn number(text: Option<String>) -> Result<Option<i64>, Fail> {
    let number = text.map(|text| text.parse::<i64>()).transpose();
    number.map_err(|_| unreadable("since_depth and limit are 64-bit numbers"))
}

/// A name or value of a query.
fn form_text(part: &str) -> Option<String> {
    wire::unescaped(&part.replace('+', " "))
}

fn unreadable(why: &'static str) -> Fail {
    Fail::plain(StatusCode::BAD_REQUEST, why)
}

/// Events of a room behind a position, read in steps so that large ones do not pile up.
async fn page(
    p: &Paracord,
    room: &str,
    since: i64,
    limit: usize,
) -> Result<Vec<RoomEvent>, StoreError> {
    let mut page: Vec<RoomEvent> = Vec::new();
    let (mut after, mut left, mut step) = (since, MAX_PAGE, STEP);
    while page.len() < limit {
        let ask = step.min(limit - page.len());
        // One more tells whether the last position goes on.
        let mut rows = p.store.room_page(ID, room, after, ask + 1).await?;
        let more = rows.len() > ask;
        let fits = fits(&rows, ask, left, page.is_empty());
        if more && page.is_empty() && fits.one_position && !fits.full && ask < limit {
            // More events share one position than a step holds.
            step = limit;
            continue;
        }
        rows.truncate(fits.events);
        left = left.saturating_sub(rows.iter().map(|row| row.envelope.len()).sum());
        let Some(last) = rows.last() else {
            break;
        };
        after = last.position;
        page.append(&mut rows);
        if fits.full || !more {
            break;
        }
    }
    Ok(page)
}

/// How many of some events go on a page.
#[derive(Debug, PartialEq, Eq)]
struct Fits {
    events: usize,
    /// There is no room for the next one.
    full: bool,
    /// All of them stand at one position.
    one_position: bool,
}

/// As many events as `ask` and `bytes` let through, cut before the last position if that goes on
/// behind them. On an `empty` page at least one fits, and a position too long for it is cut in two.
fn fits(rows: &[RoomEvent], ask: usize, bytes: usize, empty: bool) -> Fits {
    let mut left = bytes;
    let mut events = 0;
    for row in rows.iter().take(ask) {
        let first = empty && events == 0;
        if row.envelope.len() > left && !first {
            break;
        }
        left = left.saturating_sub(row.envelope.len());
        events += 1;
    }
    let full = events < rows.len().min(ask);
    let at = |n: usize| rows.get(n).map(|row| row.position);
    let last = events.checked_sub(1).and_then(at);
    let one_position = at(0) == last;
    if last.is_some() && last == at(events) {
        let start = rows.iter().position(|row| Some(row.position) == last);
        events = match start {
            Some(0) | None if empty => events,
            Some(start) => start,
            None => 0,
        };
    }
    Fits {
        events,
        full,
        one_position,
    }
}

/// `{"events":[…]}` of envelopes that are JSON already.
fn written(page: &[RoomEvent]) -> Vec<u8> {
    let bytes: usize = page.iter().map(|event| event.envelope.len() + 1).sum();
    let mut out = Vec::with_capacity(bytes + 16);
    out.extend_from_slice(b"{\"events\":[");
    for (n, event) in page.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&event.envelope);
    }
    out.extend_from_slice(b"]}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> Option<(String, i64, usize)> {
        let wanted = Wanted::read(query);
        if let Err(fail) = &wanted {
            assert_eq!((fail.status.as_u16(), fail.code), (400, None), "{query}");
        }
        let wanted = wanted.ok()?;
        Some((wanted.room_id, wanted.since_depth, wanted.limit))
    }

    #[test]
    fn a_query_has_a_room_and_bounded_numbers() {
        let room = |since, limit| Some(("!7:x".to_owned(), since, limit));
        assert_eq!(wanted("room_id=!7:x"), room(0, 100));
        assert_eq!(
            wanted("room_id=%217%3Ax&since_depth=5&limit=128&x=%20"),
            room(5, 128)
        );
        assert_eq!(
            wanted("limit=0&room_id=!7:x&since_depth=-9223372036854775808"),
            room(0, 1)
        );
        assert_eq!(
            wanted("room_id=!7:x&limit=9223372036854775807&since_depth=9223372036854775807"),
            room(i64::MAX, 1000)
        );
        assert_eq!(wanted("room_id=a+b%2B").unwrap().0, "a b+");
    }

    #[test]
    fn a_query_that_is_none_is_refused() {
        for query in [
            "",
            "since_depth=1",
            "room_id=!7:x&limit=",
            "room_id=!7:x&limit=1.0",
            "room_id=!7:x&since_depth=9223372036854775808",
            "room_id=!7:x&room_id=!7:x",
            "room_id=%ff",
        ] {
            assert_eq!(wanted(query), None, "{query}");
        }
    }

    fn rows(of: &[(i64, usize)]) -> Vec<RoomEvent> {
        let rows = of.iter().enumerate();
        let row = |(n, (position, size)): (usize, &(i64, usize))| RoomEvent {
            room: "!7:x".to_owned(),
            event_id: format!("${n}"),
            origin: "x".to_owned(),
            position: *position,
            envelope: vec![b'0'; *size].into(),
        };
        rows.map(row).collect()
    }

    #[test]
    fn a_page_ends_between_two_positions() {
        let some = rows(&[(1, 1), (2, 1), (2, 1), (3, 1)]);
        let fit = |ask, empty| fits(&some, ask, 100, empty).events;
        assert_eq!(fit(4, true), 4);
        assert_eq!(fit(3, true), 3);
        assert_eq!(fit(2, true), 1, "2 goes on behind");
        assert_eq!(fit(1, true), 1);
        let run = rows(&[(2, 1), (2, 1), (2, 1)]);
        assert_eq!(fits(&run, 2, 100, true).events, 2, "it must move on");
        assert!(fits(&run, 2, 100, true).one_position);
        assert_eq!(fits(&run, 2, 100, false).events, 0, "the page ends before");
    }

    #[test]
    fn a_page_ends_before_it_grows_large_and_is_never_empty_for_that() {
        let some = rows(&[(1, 60), (2, 60), (3, 60)]);
        let fit = |bytes, empty| {
            let fits = fits(&some, 3, bytes, empty);
            (fits.events, fits.full)
        };
        assert_eq!(fit(200, true), (3, false));
        assert_eq!(fit(130, true), (2, true));
        assert_eq!(fit(10, true), (1, true));
        assert_eq!(fit(10, false), (0, true));
    }

    #[test]
    fn a_page_is_written_from_what_is_kept() {
        let mut some = rows(&[(1, 1), (2, 1)]);
        assert_eq!(written(&[]), b"{\"events\":[]}");
        some[1].envelope = "{}".into();
        assert_eq!(written(&some), b"{\"events\":[0,{}]}");
    }
}
