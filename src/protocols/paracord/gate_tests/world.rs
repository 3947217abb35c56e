//! A Paracord bridge in memory: the routes and checks are the real ones, the bus keeps what it is
//! given, and one server signs with a key of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::body::Body;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::super::book::Change;
use super::super::envelope::Envelope;
use super::super::record::{Peer, PeerKey, Status};
use super::super::rooms::Put;
use super::super::*;
use crate::bus::BusMessage;
use crate::clock::UnixMs;
use crate::config::Config;
use crate::http::server::ClientAddr;
use crate::http::unrouted;
use crate::identity::{SigningKey, hex};
use crate::inbound::Outlet;
use crate::inbound::memory::Memory;
use crate::protocol::TransportKind;

pub(super) const NOW: UnixMs = 1_795_000_000_000;
pub(super) const KEY_ID: &str = "ed25519:auto";
/// A server we trust; its domain is another name.
pub(super) const THEM: &str = "them.example";
pub(super) const THEIR_DOMAIN: &str = "Their.example";
/// A room of ours that is not public.
pub(super) const ROOM: &str = "!7:us.example";

/// What the bus was given, as tests look at it.
pub(super) trait Given {
    /// Subjects and bodies so far.
    fn all(&self) -> Vec<(String, Value)>;
    /// Bodies so far.
    fn bodies(&self) -> Vec<Bytes>;
}

impl Given for Memory {
    fn all(&self) -> Vec<(String, Value)> {
        let json = |m: &BusMessage| serde_json::from_slice(&m.payload).unwrap();
        let messages = self.messages();
        let all = messages.iter().map(|m| (m.subject.clone(), json(m)));
        all.collect()
    }

    fn bodies(&self) -> Vec<Bytes> {
        let messages = self.messages();
        messages.iter().map(|m| m.payload.clone()).collect()
    }
}

/// A network on which servers show the keys they are given here, and nothing else.
#[derive(Default)]
pub(super) struct Pages {
    pub(super) keys: Mutex<Option<Value>>,
    pub(super) asked: Mutex<usize>,
}

struct Wire(Arc<Pages>);

impl Net for Wire {
    fn send<'a>(
        &'a self,
        request: Request,
        _timeout: std::time::Duration,
        _max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>> {
        Box::pin(async move {
            *self.0.asked.lock().unwrap() += 1;
            let page = self.0.keys.lock().unwrap().clone();
            match page.filter(|_| request.url.ends_with("/keys")) {
                Some(page) => Ok(Answer {
                    status: 200,
                    headers: HeaderMap::new(),
                    body: page.to_string().into(),
                    elapsed: std::time::Duration::ZERO,
                }),
                None => Err(TransportError {
                    kind: TransportKind::Connect,
                    detail: "nobody answers".to_owned(),
                }),
            }
        })
    }
}

/// The bridge.
pub(super) struct World {
    pub(super) p: Arc<Paracord>,
    pub(super) bus: Arc<Memory>,
    pub(super) pages: Arc<Pages>,
    pub(super) clock: Clock,
    router: axum::Router,
    _dir: tempfile::TempDir,
}

/// The key of a server.
pub(super) fn key(server: &str) -> SigningKey {
    SigningKey::from_seed([u8::try_from(server.len()).unwrap(); 32])
}

pub(super) async fn world() -> World {
    world_with(|_| {}).await
}

pub(super) async fn world_with(change: impl FnOnce(&mut ParacordConfig)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ParacordConfig {
        server_name: Some("us.example".to_owned()),
        key_path: dir.path().join("paracord.key"),
        ..Config::from_text("").unwrap().paracord
    };
    config.enabled = true;
    change(&mut config);
    let clock = Clock::fixed(NOW);
    let store = Store::open(&dir.path().join("d.db"), clock.clone())
        .await
        .unwrap();
    let bus = Arc::new(Memory::default());
    let pages = Arc::new(Pages::default());
    let sink: Arc<dyn Outlet> = bus.clone();
    let door = Door::over(store.clone(), sink, Ops::silent(), clock.clone());
    let parts = ParacordParts {
        config,
        peers: Peers::open(store.clone(), &[], clock.clone())
            .await
            .unwrap(),
        trust: Trust::open(store.clone(), clock.clone()).await.unwrap(),
        door: door.await.unwrap(),
        store,
        net: Arc::new(Wire(Arc::clone(&pages))),
        bus: None,
        ops: Ops::silent(),
        clock: clock.clone(),
    };
    let p = Paracord::new(parts).await.unwrap();
    let world = World {
        router: unrouted::answered(Arc::clone(&p).routes()),
        p,
        bus,
        pages,
        clock,
        _dir: dir,
    };
    world.server(THEM, THEIR_DOMAIN, Status::Trusted).await;
    world.room(false).await;
    world
}

impl World {
    /// A server with one key is known.
    pub(super) async fn server(&self, name: &str, domain: &str, status: Status) {
        let name = PeerName::parse(name).unwrap();
        let endpoint = format!("https://{name}{BASE}");
        let mut peer = Peer::new(name.clone(), endpoint, NOW);
        peer.domain = domain.to_owned();
        peer.status = status;
        peer.keys = vec![PeerKey {
            key_id: KEY_ID.to_owned(),
            public: key(name.as_str()).public(),
            valid_until_ms: i64::MAX,
            first_seen_ms: NOW,
            listed_ms: NOW,
        }];
        let change = self.p.book.change(&name, |_| (Change::put(peer), ()));
        change.await.unwrap();
    }

    /// [`ROOM`] is ours.
    pub(super) async fn room(&self, public: bool) {
        let put = Put {
            public: Some(public),
            allowed: Some(true),
            ..Put::default()
        };
        self.p.rooms.put(ROOM, put).await.unwrap();
    }

    /// Sends it; status and body.
    pub(super) async fn send(&self, ask: &Ask) -> (u16, Value) {
        let (status, _, body) = self.send_whole(ask).await;
        (status, body)
    }

    /// The same with headers.
    pub(super) async fn send_whole(&self, ask: &Ask) -> (u16, HeaderMap, Value) {
        let request = ::http::Request::builder()
            .method(ask.method.clone())
            .uri(&ask.path);
        let mut request = request.body(Body::from(ask.body.clone())).unwrap();
        *request.headers_mut() = ask.headers.clone();
        request
            .extensions_mut()
            .insert(ClientAddr(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77))));
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        (parts.status.as_u16(), parts.headers, body)
    }

    /// Sends an event as its own server pushes it; status and body.
    pub(super) async fn push(&self, envelope: &Envelope) -> (u16, Value) {
        self.send(&pushed(envelope, &envelope.origin_server)).await
    }
}

/// A request that goes out.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Ask {
    /// Signed by a server over body and path as they are, at this time.
    pub(super) fn signed(method: Method, path: &str, body: Vec<u8>, by: &str, at: UnixMs) -> Self {
        let signer = key(by);
        let mut headers = transport::headers(by, KEY_ID, &signer, method.as_str(), path, at, &body);
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        Self {
            method,
            path: path.to_owned(),
            headers,
            body,
        }
    }

    /// A read of this path.
    pub(super) fn get(path: &str, by: &str) -> Self {
        Self::signed(Method::GET, &format!("{BASE}{path}"), Vec::new(), by, NOW)
    }

    /// With another value of a header; `None`: without it.
    pub(super) fn with(mut self, name: HeaderName, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.headers.insert(name, value.parse().unwrap()),
            None => self.headers.remove(name),
        };
        self
    }
}

/// An ordinary message of [`THEM`] in a room of theirs, signed.
pub(super) fn message(n: u32) -> Envelope {
    event(THEM, &format!("${n}:{THEIR_DOMAIN}"), |_| {})
}

/// An event of a server, signed after the change.
pub(super) fn event(by: &str, id: &str, change: impl FnOnce(&mut Envelope)) -> Envelope {
    let domain = match by {
        THEM => THEIR_DOMAIN,
        other => other,
    };
    let mut envelope = Envelope {
        event_id: id.to_owned(),
        room_id: format!("!5:{domain}"),
        event_type: "m.message".to_owned(),
        sender: format!("@alice:{domain}"),
        origin_server: by.to_owned(),
        origin_ts: NOW,
        content: json!({"body": "hi", "msgtype": "m.text", "guild_id": "5", "channel_id": "6"}),
        depth: NOW,
        state_key: None,
        signatures: json!({}),
    };
    change(&mut envelope);
    envelope.sign(&key(by), KEY_ID);
    envelope
}

/// The request by which a server brings an event.
pub(super) fn pushed(envelope: &Envelope, by: &str) -> Ask {
    pushed_at(envelope, by, NOW)
}

pub(super) fn pushed_at(envelope: &Envelope, by: &str, at: UnixMs) -> Ask {
    let path = format!("{BASE}/event");
    Ask::signed(Method::POST, &path, envelope.wire(), by, at)
}

/// The generic answers.
pub(super) fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["code"].as_str().unwrap_or(""))
}

/// The document by which a server shows a key.
pub(super) fn key_page(server: &str, key: &SigningKey) -> Value {
    json!({
        "server_name": server,
        "keys": [{
            "key_id": KEY_ID,
            "public_key": hex(&key.public().to_bytes()),
            "server_name": server,
            "valid_until": i64::MAX,
        }],
    })
}

pub(super) const UNAUTHORIZED: (u16, &str) = (401, "UNAUTHORIZED");
pub(super) const FORBIDDEN: (u16, &str) = (403, "FORBIDDEN");
pub(super) const CONFLICT: (u16, &str) = (409, "CONFLICT");
pub(super) const LIMITED: (u16, &str) = (429, "RATE_LIMITED");
pub(super) const BAD: (u16, &str) = (400, "BAD_REQUEST");
pub(super) const NOT_FOUND: (u16, &str) = (404, "NOT_FOUND");
pub(super) const TAKEN: u16 = StatusCode::ACCEPTED.as_u16();
