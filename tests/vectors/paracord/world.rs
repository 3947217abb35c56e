//! A Paracord bridge for one case: its real routes, a database of its own, streams of its own on a
//! real NATS server, a clock that stands still, and no other server in reach.

use std::sync::Arc;
use std::time::Duration;

use drawbridge::bus::Bus;
use drawbridge::clock::Clock;
use drawbridge::config::{Config, ParacordConfig};
use drawbridge::http::server::ClientAddr;
use drawbridge::identity::{PublicKey, SigningKey};
use drawbridge::inbound::Door;
use drawbridge::ops::Ops;
use drawbridge::peers::Peers;
use drawbridge::protocol::{
    Answer as HttpAnswer, PeerName, Protocol, Request, TransportError, TransportKind,
};
use drawbridge::protocols::net::Net;
use drawbridge::protocols::paracord::book::{Book, Change};
use drawbridge::protocols::paracord::record::{Peer, PeerKey, Status};
use drawbridge::protocols::paracord::rooms::{Put, Rooms, user_key};
use drawbridge::protocols::paracord::{BASE, Own, Paracord, ParacordParts, hexes, ids};
use drawbridge::store::Store;
use drawbridge::trust::Trust;
use futures_util::future::BoxFuture;
use tower::ServiceExt;

use super::answer::Answer;
use super::case::{Given, GivenKey, GivenPeer};
use super::making::Ask;
use super::pure::signing_key;
use crate::support::nats::NatsServer;

/// How long the keys of peers count from the case's time on, ms: ten years.
const VALID: i64 = 10 * 365 * 86_400_000;

/// One bridge.
pub struct World {
    router: axum::Router,
    bus: Bus,
    door: Door,
    store: Store,
    _dir: tempfile::TempDir,
}

impl World {
    /// The bridge of a case. `n` is unlike any other of the same NATS server.
    pub async fn build(nats: &NatsServer, n: usize, given: &Given) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Clock::fixed(given.now_ms);
        let file = dir.path().join("bridge.db");
        std::fs::write(&file, empty_database().await).expect("a database");
        let store = Store::open(&file, clock.clone()).await.expect("opened");
        let bus = {
            let mut config = nats.config();
            config.prefix = format!("p{n}");
            let bus = Bus::connect(&config).await.expect("connected");
            bus.apply_streams().await.expect("streams");
            bus
        };
        let ops = Ops::silent();
        let door = Door::open(store.clone(), bus.clone(), ops.clone(), clock.clone())
            .await
            .expect("the door opens");
        let trust = Trust::open(store.clone(), clock.clone())
            .await
            .expect("trust");
        let peers = Peers::open(store.clone(), &[], clock.clone())
            .await
            .expect("peers");
        let mut config = Config::from_text("").expect("the defaults").paracord;
        config.enabled = given.enabled;
        config.server_name = Some(given.name("SERVER_NAME").to_owned());
        config.domain = Some(given.name("DOMAIN").to_owned());
        config.key_path = dir.path().join("paracord.key");
        keep(&store, &clock, &config, given).await;
        let paracord = Paracord::new(ParacordParts {
            config,
            store: store.clone(),
            peers,
            trust,
            door: door.clone(),
            net: Arc::new(Nobody),
            bus: Some(bus.clone()),
            ops,
            clock,
        })
        .await
        .expect("a server");
        Self {
            router: drawbridge::http::unrouted::answered(paracord.routes()),
            bus,
            door,
            store,
            _dir: dir,
        }
    }

    pub async fn ask(&self, ask: &Ask) -> Result<Answer, String> {
        let mut builder = axum::http::Request::builder()
            .method(ask.method.as_str())
            .uri(&ask.path)
            .extension(ClientAddr([192, 0, 2, 1].into()));
        for (name, value) in &ask.headers {
            builder = builder.header(name.as_str(), value.as_bytes());
        }
        let request = builder
            .body(axum::body::Body::from(ask.body.clone()))
            .map_err(|error| format!("no request: {error}"))?;
        let answer = self
            .router
            .clone()
            .oneshot(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let content_type = answer.headers().get("content-type");
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let body = axum::body::to_bytes(answer.into_body(), 16 << 20)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Answer {
            status,
            content_type,
            text: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    pub async fn end(self) {
        self.door.close().await;
        self.store.close().await;
        self.bus.close().await;
    }
}

/// The file of a database in which nothing is yet: making one anew takes longer than a case.
async fn empty_database() -> &'static [u8] {
    static FILE: tokio::sync::OnceCell<Vec<u8>> = tokio::sync::OnceCell::const_new();
    FILE.get_or_init(async || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("bridge.db");
        let store = Store::open(&path, Clock::system()).await.expect("made");
        store.close().await;
        std::fs::read(&path).expect("readable")
    })
    .await
}

/// Peers, rooms and members, as an earlier run of the bridge left them.
async fn keep(store: &Store, clock: &Clock, config: &ParacordConfig, given: &Given) {
    let own = Own::of(config).expect("names");
    let ops = Ops::silent();
    let book = Book::open(store.clone(), ops.clone(), own.clone());
    let book = book.await.expect("a book");
    for peer in &given.peers {
        let known = known(peer, given.now_ms);
        let name = known.name.clone();
        let kept = book.change(&name, |_| (Change::put(known), ()));
        kept.await.expect("kept");
    }
    let rooms = Rooms::open(store.clone(), clock.clone(), own, ops, config);
    let rooms = rooms.await.expect("rooms");
    for room in &given.rooms {
        let id = ids::Room::parse(&room.room_id);
        let id = id.unwrap_or_else(|| panic!("not understood: room {:?}", room.room_id));
        let (key, ours) = (rooms.key(&id), rooms.is_ours(&id));
        if ours {
            let put = Put {
                public: Some(room.public),
                allowed: Some(room.allowed),
                ..Put::default()
            };
            rooms.put(&key, put).await.expect("put");
        }
        for member in &room.members {
            let user = user_key(member);
            let user = user.unwrap_or_else(|| panic!("not understood: member {member:?}"));
            if ours {
                rooms.join(&key, &user, None).await.expect("joined");
            } else {
                rooms.joined_there(&key, &user, None).await.expect("joined");
            }
        }
    }
}

fn known(peer: &GivenPeer, now: i64) -> Peer {
    let name = PeerName::parse(&peer.server_name);
    let name = name.unwrap_or_else(|_| panic!("not understood: peer {:?}", peer.server_name));
    let key = |key: &GivenKey| {
        Some(PeerKey {
            key_id: key.key_id.clone(),
            public: public(key)?,
            valid_until_ms: now + VALID,
            first_seen_ms: now,
            listed_ms: now,
        })
    };
    let status = match peer.trusted {
        true => Status::Trusted,
        false => Status::Pending,
    };
    Peer {
        domain: peer.domain.clone(),
        domain_fixed: peer.trusted,
        status,
        keys: peer.keys.iter().filter_map(key).collect(),
        trusted_ms: peer.trusted.then_some(now),
        keys_fetched_ms: Some(now),
        ..Peer::new(name, format!("https://{}{BASE}", peer.server_name), now)
    }
}

/// `None`: it is of small order or no key at all, so a bridge never has it.
fn public(key: &GivenKey) -> Option<PublicKey> {
    match (&key.public_key_hex, &key.seed_hex) {
        (Some(hex), _) => PublicKey::parse(&hexes::decode(hex)?).ok(),
        (None, Some(seed)) => signing_key(seed).ok().as_ref().map(SigningKey::public),
        (None, None) => None,
    }
}

/// Nobody is there.
struct Nobody;

impl Net for Nobody {
    fn send<'a>(
        &'a self,
        _request: Request,
        _timeout: Duration,
        _max_answer: usize,
    ) -> BoxFuture<'a, Result<HttpAnswer, TransportError>> {
        let error = TransportError {
            kind: TransportKind::Connect,
            detail: "nobody is there".into(),
        };
        Box::pin(std::future::ready(Err(error)))
    }
}
