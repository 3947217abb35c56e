//! Paracord in the bench: servers that we trust by `[[peers]]`, and messages in 32 rooms a side. Every
//! event is signed, and every push of it. Rates are lifted on both sides.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use serde_json::{Value, json};

use super::{Draft, Post, Reply, Speech, Taken, between, filler, write_secret};
use crate::cli::bench::pipeline::Bridge;
use crate::cli::bench::rig::Broker;
use crate::cli::bench::world::{OWN, World};
use crate::clock::{Clock, UnixMs};
use crate::identity::{PublicKey, SigningKey, hex};
use crate::protocols::paracord::envelope::Envelope;
use crate::protocols::paracord::transport::{self, Claim};
use crate::protocols::paracord::{BASE, WELL_KNOWN};

const PUSH: &str = "/_paracord/federation/v1/event";
const KIND: &str = "m.message";
/// Under which every key is known.
const KEY_ID: &str = "ed25519:bench";
/// Rooms of each server; so many ordering keys.
const ROOMS: usize = 32;
/// Low bits of a message id that hold its index; the time stands above them.
const INDEX_BITS: u32 = 24;
/// A time that ids count from, so that they stay positive: late in 2023.
const EPOCH_MS: i64 = 1_700_000_000_000;
/// Every server's clock may be so far ahead of ours.
const AHEAD_MS: i64 = 45_000;

/// It, in one world.
pub struct Paracord {
    world: World,
    own: SigningKey,
    own_public: PublicKey,
    /// By number: name, key, its public half.
    peers: Vec<(String, SigningKey, PublicKey)>,
    filler: String,
}

impl Paracord {
    pub fn new(world: World) -> Result<Self, String> {
        let peers = (0..world.peers).map(|n| {
            let name = world.host(n);
            let key = world.key(&name);
            let public = key.public();
            (name, key, public)
        });
        let own = world.key(OWN);
        let mut speech = Self {
            peers: peers.collect(),
            own_public: own.public(),
            own,
            filler: String::new(),
            world,
        };
        let bare = speech.signed(OWN, &speech.own, 0, 0).wire().len();
        speech.filler = filler(speech.world.size.saturating_sub(bare));
        Ok(speech)
    }

    /// Which of a server's rooms message `index` is in.
    fn room(&self, index: usize) -> usize {
        self.world.turn_of(index) % ROOMS + 1
    }

    fn content(&self, index: usize, now_ms: UnixMs) -> Value {
        let room = self.room(index).to_string();
        json!({
            "body": self.filler,
            "msgtype": "m.text",
            "guild_id": room,
            "channel_id": room,
            "message_id": message_id(index, now_ms),
        })
    }

    /// Message `index` of a server.
    fn signed(&self, server: &str, key: &SigningKey, index: usize, now_ms: UnixMs) -> Envelope {
        let room = self.room(index);
        let mut event = Envelope {
            event_id: format!("${}:{server}", message_id(index, now_ms)),
            room_id: format!("!{room}:{server}"),
            event_type: KIND.to_owned(),
            sender: format!("@user{room}:{server}"),
            origin_server: server.to_owned(),
            origin_ts: now_ms,
            content: self.content(index, now_ms),
            depth: now_ms.max(1),
            state_key: None,
            signatures: Value::Null,
        };
        event.sign(key, KEY_ID);
        event
    }

    /// A server's number in a request's `Host`.
    fn server(&self, host: &str) -> Option<&(String, SigningKey, PublicKey)> {
        self.peers.get(self.world.number(host)?)
    }

    /// The event in a body, once request and event are proven under this key.
    fn proven(&self, headers: &HeaderMap, body: &Bytes, key: &PublicKey) -> Option<Taken> {
        let claim = Claim::read(headers).ok()?;
        claim.proves(key, "POST", PUSH, body, None)?;
        let event = Envelope::decode(body).ok()?;
        let offered = event.signature()?;
        let signature = offered.bytes?;
        let proven = event.check(key, &signature).ok()?;
        Some(Taken {
            text: event.normal(&offered.key_id, &signature, proven.attachments_covered),
            peer: claim.origin,
            kind: KIND,
            id: event.event_id,
        })
    }
}

/// Time above, index below.
fn message_id(index: usize, now_ms: UnixMs) -> String {
    let time = now_ms.saturating_sub(EPOCH_MS).rem_euclid(1 << 38);
    let index = i64::try_from(index).unwrap_or(0) & ((1 << INDEX_BITS) - 1);
    ((time << INDEX_BITS) | index).to_string()
}

fn post(server: &str, key: &SigningKey, event: &Envelope, now_ms: UnixMs) -> Post {
    let body = event.wire();
    let headers = transport::headers(server, KEY_ID, key, "POST", PUSH, now_ms, &body);
    Post {
        headers,
        body: body.into(),
    }
}

fn reply(status: StatusCode, body: &Value) -> Reply {
    (status, body.to_string().into())
}

impl Speech for Paracord {
    fn path(&self) -> &'static str {
        PUSH
    }

    fn peer(&self, n: usize) -> String {
        self.world.host(n)
    }

    fn draft(&self, index: usize, now_ms: UnixMs) -> Result<Draft, String> {
        let room = self.room(index);
        let body = json!({
            "room_id": format!("!{room}:{OWN}"),
            "sender": format!("@user{room}:{OWN}"),
            "content": self.content(index, now_ms),
        });
        Ok(Draft {
            index,
            peer: self.world.peer_of(index),
            kind: KIND,
            id: message_id(index, now_ms),
            payload: body.to_string().into(),
        })
    }

    /// A request holds for a minute before and after its time, and all are signed before the first is
    /// sent: so they are signed ahead of time.
    fn post(&self, index: usize, now_ms: UnixMs) -> Result<Post, String> {
        let peer = self.peers.get(self.world.peer_of(index));
        let (name, key, _) = peer.ok_or("the bench has no peers")?;
        let event = self.signed(name, key, index, now_ms);
        Ok(post(name, key, &event, now_ms.saturating_add(AHEAD_MS)))
    }

    fn again(&self, post: &Post, now_ms: UnixMs) -> Result<Post, String> {
        let name = post.headers.get(transport::ORIGIN);
        let name = name.and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (_, key, _) = self.server(name).ok_or("a push of nobody")?;
        Ok(Post {
            headers: transport::headers(name, KEY_ID, key, "POST", PUSH, now_ms, &post.body),
            body: post.body.clone(),
        })
    }

    fn took(&self, status: u16, body: &[u8]) -> Option<bool> {
        let new = b"\"inserted\":true";
        (status == 202).then(|| body.windows(new.len()).any(|w| w == new))
    }

    fn keys_of_a_peer(&self) -> usize {
        ROOMS
    }

    fn proof(&self) -> HeaderName {
        transport::SIGNATURE
    }

    fn index(&self, body: &[u8]) -> Result<usize, Reply> {
        let id = between(body, b"\"event_id\":\"$", b':').and_then(|id| id.parse::<usize>().ok());
        id.map(|id| id & ((1 << INDEX_BITS) - 1)).ok_or_else(|| {
            let said = json!({"code": "BAD_REQUEST", "message": "bad request: unknown event"});
            reply(StatusCode::BAD_REQUEST, &said)
        })
    }

    fn proves(&self, headers: &HeaderMap, body: &Bytes) -> bool {
        self.proven(headers, body, &self.own_public).is_some()
    }

    fn taken(&self, body: &[u8]) -> Reply {
        let id = between(body, b"\"event_id\":\"", b'"').unwrap_or_default();
        let said = json!({"event_id": id, "inserted": true});
        reply(StatusCode::ACCEPTED, &said)
    }

    fn page(&self, method: &Method, path: &str, host: &str) -> Option<Reply> {
        let (name, _, public) = self.server(host).filter(|_| method == Method::GET)?;
        let said = match path.strip_prefix(BASE) {
            Some("/keys") => json!({
                "server_name": name,
                "keys": [{
                    "key_id": KEY_ID,
                    "public_key": hex(&public.to_bytes()),
                    "server_name": name,
                    "valid_until": Clock::system().now_ms().saturating_add(86_400_000),
                }],
            }),
            None if path == WELL_KNOWN => json!({
                "domain": name,
                "enabled": true,
                "federation_endpoint": BASE,
                "server_name": name,
                "version": "federation-v1",
            }),
            _ => return None,
        };
        Some(reply(StatusCode::OK, &said))
    }

    fn settings(
        &self,
        dir: &Path,
        public: SocketAddr,
        far: Option<SocketAddr>,
    ) -> Result<String, String> {
        let key = dir.join("paracord.key");
        write_secret(&key, &hex(&self.world.secret(OWN)))?;
        let mut text = format!(
            "[paracord]\nserver_name = \"{OWN}\"\nurl = \"http://{public}\"\nkey_path = {key}\n\
             key_id = \"{KEY_ID}\"\nmax_events_per_peer_per_minute = 0\npush_per_minute = 0\n",
            key = json!(key),
        );
        let Some(far) = far else { return Ok(text) };
        for (name, _, public) in &self.peers {
            let _ = write!(
                text,
                "[[peers]]\nprotocol = \"paracord\"\nname = \"{name}\"\nendpoint = \"http://{name}:{}\"\npublic_key = \"{}\"\n",
                far.port(),
                hex(&public.to_bytes())
            );
        }
        Ok(text)
    }

    /// They are known by their blocks.
    fn introduce<'a>(&'a self, _: &'a Bridge, _: &'a Broker) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn bare_out(&self, _: &str, _: &str, payload: &[u8]) -> Result<Post, String> {
        let mut said: Value = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        let (room_id, sender) = (text("room_id"), text("sender"));
        let content = said["content"].take();
        let id = content["message_id"].as_str().unwrap_or_default();
        let now = Clock::system().now_ms();
        let mut event = Envelope {
            event_id: format!("${id}:{OWN}"),
            room_id,
            event_type: KIND.to_owned(),
            sender,
            origin_server: OWN.to_owned(),
            origin_ts: now,
            content,
            depth: now,
            state_key: None,
            signatures: Value::Null,
        };
        event.sign(&self.own, KEY_ID);
        Ok(post(OWN, &self.own, &event, now))
    }

    fn bare_in(&self, headers: &HeaderMap, body: &Bytes) -> Option<Taken> {
        let origin = headers.get(transport::ORIGIN)?.to_str().ok()?;
        let (_, _, public) = self.server(origin)?;
        self.proven(headers, body, public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_has_the_size_asked_for_shows_its_index_and_is_proven_both_ways() {
        let speech = Paracord::new(World::new(7, 3, 1024, 4000)).unwrap();
        let now = Clock::system().now_ms();
        let push = speech.post(70_001, now).unwrap();
        assert!(
            (1000..=1100).contains(&push.body.len()),
            "{}",
            push.body.len()
        );
        assert_eq!(speech.index(&push.body), Ok(70_001));
        let taken = speech.bare_in(&push.headers, &push.body).unwrap();
        assert_eq!(taken.peer, speech.peer(70_001 % 3));
        assert!(
            !speech.proves(&push.headers, &push.body),
            "that is not ours"
        );
        let draft = speech.draft(70_001, now).unwrap();
        let out = speech
            .bare_out(&speech.peer(draft.peer), &draft.id, &draft.payload)
            .unwrap();
        assert_eq!(speech.index(&out.body), Ok(70_001));
        assert!(speech.proves(&out.headers, &out.body));
    }
}
