//! Polling other servers for events of the rooms we follow or they mirror (sheet, 7).
//!
//! Published servers never push, so whatever happens on them is fetched: from each server the rooms it
//! hosts that we follow, and each of our rooms that it was sent something of or has a member in. A beat
//! asks one server for up to 64 rooms, those next in turn. What comes is taken in like a pushed event;
//! what was dealt with lately costs no more than a look. Wherever store or bus cannot take an event,
//! the next beat brings it again.
//!
//! What a server can cost us in one beat is bounded: pages, bytes of a page, and time.

pub(super) mod page;
mod state;
mod walk;

#[cfg(test)]
mod tests;

use std::time::Duration;

use ::http::{Method, StatusCode};
use bytes::Bytes;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::Instant;

pub use state::Polls;

use self::page::{Page, Place};
use self::walk::{Next, Walk};
use super::envelope::Envelope;
use super::event;
use super::ids::Room;
use super::record::Peer;
use super::refused::Refused;
use super::rooms::Polled;
use super::{ID, Paracord, discover};
use crate::clock::UnixMs;
use crate::protocol::{Answer, PeerName, TransportError, TransportKind};
use crate::protocols::wire;
use crate::trust::Standing;

/// How long a server has for a page.
const PATIENCE: Duration = Duration::from_secs(15);
/// No page is asked for later than this after the beat began.
const BEAT: Duration = Duration::from_secs(30);
/// Largest page that is read, bytes. One event always fits.
const MAX_ANSWER: usize = 6 * 1024 * 1024;
/// Pages in one beat, beyond the first of each room.
const MORE_PAGES: usize = 64;
/// An event whose signature does not hold may be signed by a key we are about to hear of. So long its
/// server is asked for it again, milliseconds.
const YOUNG_MS: i64 = 120_000;

/// Whom to poll now: the trusted servers that there is something to ask for, and those whose keys are
/// to be fetched.
pub fn beating(p: &Paracord) -> Vec<PeerName> {
    let mut peers = discover::due_for_keys(p);
    let wanted = p.rooms.wanted();
    if !wanted.is_empty() {
        let now = Instant::now();
        let is_wanted = |name: &PeerName| {
            wanted.contains(name.as_str())
                || (p.book.get(name))
                    .is_some_and(|peer| wanted.contains(&peer.domain.to_ascii_lowercase()))
        };
        let trusted = p.book.trusted().into_iter();
        peers.extend(trusted.filter(|name| is_wanted(name) && may_ask(p, name, now)));
        peers.sort_unstable();
        peers.dedup();
    }
    peers
}

/// Whether nothing stands against asking a server: no rule, no operator, no patience it asked for.
fn may_ask(p: &Paracord, name: &PeerName, now: Instant) -> bool {
    !p.polls.is_quiet(name, now)
        && !p.peers.is_paused(ID, name)
        && p.trust.standing(ID, name.as_str()) != Standing::Blocked
}

/// One beat of one server.
pub async fn beat(p: &Paracord, name: &PeerName) {
    discover::refresh_if_due(p, name).await;
    let now = Instant::now();
    let peer = p.book.get(name).filter(|peer| peer.is_trusted());
    let Some(peer) = peer.filter(|_| may_ask(p, name, now)) else {
        return;
    };
    let rooms = p.rooms.asked_of(&peer);
    let mut beat = Beat {
        p,
        peer: &peer,
        until: now + BEAT,
        pages: MORE_PAGES,
    };
    for room in p.polls.begin(name, rooms, now) {
        if beat.read(&room).await.is_err() {
            break;
        }
    }
    p.polls.save().await;
}

/// The beat is over before its rooms are.
struct Over;

/// A beat of one server.
struct Beat<'a> {
    p: &'a Paracord,
    peer: &'a Peer,
    until: Instant,
    /// Further pages that may be asked for.
    pages: usize,
}

/// What came of asking for a page.
enum Got {
    Page(Bytes),
    TooLarge,
    /// The room is not for us, or not there.
    RoomRefused(u16),
}

/// What a page's event came to.
enum Dealt {
    /// For good.
    Done,
    /// It is to come again; others may follow.
    Again,
    /// Store or bus take nothing now.
    Away,
}

impl Beat<'_> {
    /// Reads a room as far as it goes.
    async fn read(&mut self, room: &Polled) -> Result<(), Over> {
        let (p, name) = (self.p, &self.peer.name);
        let (reached, limit) = p.polls.room(name, &room.key);
        let mut walk = Walk::new(reached, limit.unwrap_or(p.config.poll_page));
        let mut smaller = limit;
        let ended = self.pages_of(room, &mut walk, &mut smaller).await;
        match ended {
            Ok(true) => {
                // Pages may grow again.
                let grown = smaller.map(|limit| limit.saturating_mul(2));
                let limit = grown.filter(|limit| *limit < p.config.poll_page);
                p.polls.read_up_to(name, &room.key, walk.reached(), limit);
                if p.polls.readable(name, &room.key) {
                    self.tell("room_recovered", json!({"room_id": room.key}));
                }
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(over) => {
                p.polls.read_up_to(name, &room.key, walk.reached(), smaller);
                Err(over)
            }
        }
    }

    /// Page by page. False: the room cannot be read.
    async fn pages_of(
        &mut self,
        room: &Polled,
        walk: &mut Walk,
        smaller: &mut Option<usize>,
    ) -> Result<bool, Over> {
        loop {
            if Instant::now() >= self.until {
                return Err(Over);
            }
            let body = match self.ask(room, walk).await? {
                Got::Page(body) => body,
                Got::TooLarge if walk.shrink() => {
                    *smaller = Some(walk.limit);
                    self.one_more_page()?;
                    continue;
                }
                Got::TooLarge => {
                    self.refuse_room(room, "one event alone is larger than a page may be");
                    return Ok(false);
                }
                Got::RoomRefused(status) => {
                    self.refuse_room(room, &format!("the room is answered with {status}"));
                    return Ok(false);
                }
            };
            let Some(page) = Page::read(&body) else {
                return Err(self.failed("garbage", "the answer is no page of events", None));
            };
            if self.p.polls.answered(&self.peer.name) {
                self.tell("recovered", json!({}));
            }
            let count = page.events.len().min(walk.limit);
            for event in page.events.into_iter().take(count) {
                self.look_at(room, walk, event).await?;
            }
            match walk.next(count, body.len()) {
                Next::Done => return Ok(true),
                Next::Stuck => {
                    tracing::debug!(peer = %self.peer.name, room = room.key, "a full page does not go on from where it was asked for");
                    return Ok(true);
                }
                Next::Crowded => {
                    tracing::warn!(peer = %self.peer.name, room = room.key, depth = walk.since, "more events than a page holds have this one depth; some may be missed");
                }
                Next::More => {}
            }
            // What is left comes with the next beat.
            if self.one_more_page().is_err() {
                return Ok(true);
            }
        }
    }

    fn one_more_page(&mut self) -> Result<(), Over> {
        self.pages = self.pages.checked_sub(1).ok_or(Over)?;
        Ok(())
    }

    /// Asks for a page.
    async fn ask(&self, room: &Polled, walk: &Walk) -> Result<Got, Over> {
        let url = page::url(&self.peer.endpoint, &room.room_id, walk.since, walk.limit);
        let request = self.p.signed(Method::GET, &url, Bytes::new());
        let answer = self.p.net.send(request, PATIENCE, MAX_ANSWER).await;
        match answer {
            Ok(answer) => self.answered(answer),
            Err(error) if error.kind == TransportKind::TooLarge => Ok(Got::TooLarge),
            Err(TransportError { kind, detail }) => Err(self.failed(kind.code(), &detail, None)),
        }
    }

    fn answered(&self, answer: Answer) -> Result<Got, Over> {
        let p = self.p;
        let now = p.clock.now_ms();
        match answer.status {
            200 => {
                p.book.seen(&self.peer.name, now);
                p.peers.heard_from(ID, &self.peer.name);
                Ok(Got::Page(answer.body))
            }
            status @ (401 | 403) => {
                let why = format!(
                    "the server refuses our polls ({status}): it does not trust us, does not know \
                     our key, or our clocks are more than a minute apart"
                );
                Err(self.failed("refused", &why, None))
            }
            status @ (408 | 429 | 500..=599) => {
                let after = wire::retry_after(&answer.headers, now);
                let why = format!("the server answers polls with {status}");
                let code = if status == 429 {
                    "rate_limited"
                } else {
                    "status"
                };
                Err(self.failed(code, &why, after))
            }
            status @ 400..=499 => Ok(Got::RoomRefused(status)),
            status => {
                let why = format!("the server answers polls with {status}");
                Err(self.failed("status", &why, None))
            }
        }
    }

    /// Deals with an event and notes how far that leads.
    async fn look_at(&self, room: &Polled, walk: &mut Walk, event: &RawValue) -> Result<(), Over> {
        let p = self.p;
        let mark = p.polls.mark(&self.peer.name, &room.key, event.get());
        let place = Place::of(event);
        let dealt = match p.polls.has_seen(mark) {
            true => Dealt::Done,
            false => self.take(room, event, place).await,
        };
        match (dealt, place) {
            (Dealt::Done, place) => {
                p.polls.saw(mark);
                if let Some(at) = place {
                    walk.passed(at.depth, at.origin_ts, p.clock.now_ms());
                }
            }
            (Dealt::Again, Some(at)) => walk.hold(at.depth),
            (Dealt::Away, Some(at)) => {
                walk.hold(at.depth);
                return Err(Over);
            }
            // What does not say where it stands is dealt with for good.
            (Dealt::Again | Dealt::Away, None) => p.polls.saw(mark),
        }
        Ok(())
    }

    async fn take(&self, room: &Polled, event: &RawValue, place: Option<Place>) -> Dealt {
        let p = self.p;
        let bad = |why: String| {
            let refused = Refused::forbidden("bad_event", why);
            refused.tell(p, Some(self.peer.name.as_str()), None);
            Dealt::Done
        };
        let envelope = match Envelope::decode(event.get().as_bytes()) {
            Ok(envelope) => envelope,
            Err(why) => return bad(format!("a polled event cannot be read: {why}")),
        };
        if p.own.is(&envelope.origin_server) {
            return Dealt::Done;
        }
        if !self.is_of(room, &envelope.room_id) {
            let (asked, came) = (&room.room_id, &envelope.room_id);
            return bad(format!("asked for {asked:?}, an event of {came:?} came"));
        }
        let id = envelope.event_id.clone();
        match event::take(p, envelope, self.peer, Vec::new(), None).await {
            Ok(_) => Dealt::Done,
            Err(refused) if refused.fail.status == StatusCode::SERVICE_UNAVAILABLE => {
                tracing::warn!(peer = %self.peer.name, event = id, why = refused.detail, "a polled event cannot be taken now; it is asked for again");
                Dealt::Away
            }
            Err(refused) if is_of_a_key(&refused) && is_young(place, p.clock.now_ms()) => {
                tracing::debug!(peer = %self.peer.name, event = id, why = refused.detail, "a polled event is asked for again");
                Dealt::Again
            }
            Err(refused) => {
                refused.tell(p, Some(self.peer.name.as_str()), Some(&id));
                Dealt::Done
            }
        }
    }

    /// Whether an event's room is the one that was asked for, in any of its spellings.
    fn is_of(&self, polled: &Polled, room_id: &str) -> bool {
        let Some(room) = Room::parse(room_id) else {
            return false;
        };
        let key = self.p.rooms.at(self.peer, &room).0;
        key == polled.key || self.p.rooms.key_of(&polled.room_id) == Some(key)
    }

    /// The server does not answer as it should: it is left alone for some time.
    fn failed(&self, code: &str, detail: &str, after: Option<Duration>) -> Over {
        let now = Instant::now();
        let (pause, news) = self.p.polls.failed(&self.peer.name, after, now);
        let (peer, pause_s) = (&self.peer.name, pause.as_secs());
        if news {
            tracing::warn!(%peer, code, detail, pause_s, "polling failed");
            let body = json!({"code": code, "detail": detail, "pause_s": pause_s});
            self.tell("failing", body);
        } else {
            tracing::debug!(%peer, code, detail, pause_s, "polling failed again");
        }
        Over
    }

    /// The same of one room.
    fn refuse_room(&self, room: &Polled, why: &str) {
        let now = Instant::now();
        let (pause, news) = self.p.polls.refused(&self.peer.name, &room.key, now);
        if news {
            let (peer, pause_s) = (&self.peer.name, pause.as_secs());
            tracing::warn!(%peer, room = room.key, why, pause_s, "a room cannot be polled");
            let body = json!({"room_id": room.key, "detail": why, "pause_s": pause_s});
            self.tell("room_failing", body);
        }
    }

    fn tell(&self, what: &'static str, body: serde_json::Value) {
        let peer = self.peer.name.as_str();
        self.p.ops.event("poll", what, ID, peer, body);
    }
}

/// Whether another key may make the difference.
fn is_of_a_key(refused: &Refused) -> bool {
    matches!(refused.code, "unknown_event_key" | "bad_event_signature")
}

fn is_young(place: Option<Place>, now: UnixMs) -> bool {
    place.is_some_and(|at| {
        let age = now.saturating_sub(at.depth);
        (-YOUNG_MS..=YOUNG_MS).contains(&age)
    })
}
