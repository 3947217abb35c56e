//! For tests: a bridge's Paracord side over a real store and a network that answers as told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::HeaderMap;
use axum::body::Body;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::envelope::Envelope;
use super::record::{Peer, PeerKey, Status};
use super::{BASE, MAX_BODY, Paracord, ParacordParts, book, calls, routes, transport};
use crate::bus::BusMessage;
use crate::clock::Clock;
use crate::config::{Config, ParacordConfig};
use crate::identity::SigningKey;
use crate::inbound::memory::Memory;
use crate::inbound::{Door, Outlet};
use crate::ops::Ops;
use crate::peers::Peers;
use crate::protocol::{Answer, PeerName, Refusal, Request, TransportError, TransportKind};
use crate::protocols::net::Net;
use crate::store::Store;
use crate::trust::Trust;

pub const NOW: i64 = 1_700_000_000_000;

type Answers = Box<dyn FnMut(&Request) -> Result<Answer, TransportError> + Send>;

/// The network: what it answers, and what was asked.
pub struct Wire {
    answers: Mutex<Answers>,
    pub asked: Mutex<Vec<Request>>,
}

impl Net for Wire {
    fn send<'a>(
        &'a self,
        request: Request,
        _timeout: Duration,
        max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>> {
        let answer = (self.answers.lock().unwrap())(&request);
        self.asked.lock().unwrap().push(request);
        let answer = answer.and_then(|answer| match answer.body.len() > max_answer {
            true => Err(TransportError {
                kind: TransportKind::TooLarge,
                detail: "too large".into(),
            }),
            false => Ok(answer),
        });
        Box::pin(std::future::ready(answer))
    }
}

/// A bridge named `node-a.example` with the domain `chat.example`.
pub struct World {
    pub p: Arc<Paracord>,
    pub wire: Arc<Wire>,
    pub sink: Arc<Memory>,
    pub clock: Clock,
    dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ParacordConfig)) -> Self {
        Self::at(tempfile::tempdir().unwrap(), Arc::default(), change).await
    }

    async fn at(
        dir: tempfile::TempDir,
        sink: Arc<Memory>,
        change: impl FnOnce(&mut ParacordConfig),
    ) -> Self {
        let mut config = Config::from_text("").unwrap().paracord;
        config.server_name = Some("node-a.example".into());
        config.domain = Some("chat.example".into());
        config.key_path = dir.path().join("paracord.key");
        change(&mut config);
        let clock = Clock::fixed(NOW);
        let file = dir.path().join("d.db");
        let store = Store::open(&file, clock.clone()).await.unwrap();
        let outlet: Arc<dyn Outlet> = Arc::clone(&sink) as Arc<dyn Outlet>;
        let door = Door::over(store.clone(), outlet, Ops::silent(), clock.clone());
        let wire = Arc::new(Wire {
            answers: Mutex::new(Box::new(|_| Ok(answer(404, "")))),
            asked: Mutex::default(),
        });
        let parts = ParacordParts {
            config,
            peers: Peers::open(store.clone(), &[], clock.clone())
                .await
                .unwrap(),
            trust: Trust::open(store.clone(), clock.clone()).await.unwrap(),
            door: door.await.unwrap(),
            store,
            net: Arc::clone(&wire) as Arc<dyn Net>,
            bus: None,
            ops: Ops::silent(),
            clock: clock.clone(),
        };
        let p = Paracord::new(parts).await.unwrap();
        Self {
            p,
            wire,
            sink,
            clock,
            dir,
        }
    }

    /// From now on the network answers so.
    pub fn answers(
        &self,
        answers: impl FnMut(&Request) -> Result<Answer, TransportError> + Send + 'static,
    ) {
        *self.wire.answers.lock().unwrap() = Box::new(answers);
    }

    /// URLs asked for since the last look.
    pub fn asked(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.wire.asked.lock().unwrap());
        asked.into_iter().map(|request| request.url).collect()
    }

    /// Bodies of the messages backends got, in order.
    pub fn bodies(&self) -> Vec<String> {
        let taken = self.sink.messages();
        let text = |message: &BusMessage| {
            let event: Value = serde_json::from_slice(&message.payload).unwrap();
            event["content"]["body"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        taken.iter().map(text).collect()
    }

    /// A trusted server with this domain.
    pub async fn trust(&self, server: &Server) {
        let endpoint = format!("https://{}{BASE}", server.name);
        let mut peer = Peer::new(server.name.clone(), endpoint, NOW);
        peer.domain = server.domain.into();
        peer.status = Status::Trusted;
        peer.domain_fixed = true;
        peer.keys_fetched_ms = Some(NOW);
        peer.keys = vec![PeerKey {
            key_id: "ed25519:auto".into(),
            public: server.key.public(),
            valid_until_ms: i64::MAX,
            first_seen_ms: NOW,
            listed_ms: NOW,
        }];
        let put = self
            .p
            .book
            .change(&server.name, move |_| (book::Change::put(peer), ()));
        put.await.unwrap();
    }

    /// Stops it, and starts it again on what it kept.
    pub async fn again(self) -> Self {
        self.p.door.close().await;
        self.p.store.close().await;
        let Self { dir, sink, p, .. } = self;
        drop(p);
        Self::at(dir, sink, |_| {}).await
    }

    pub async fn stop(self) {
        self.p.door.close().await;
        self.p.store.close().await;
    }
}

impl World {
    /// A signed POST of a server; status and JSON (or text).
    pub async fn post(&self, from: &Server, route: &str, body: &Value) -> (u16, Value) {
        let at = self.clock.now_ms() + 1;
        self.clock.set(at);
        // The shared JSON type sorts members; the bytes sent are what is signed.
        let body = Bytes::from(body.to_string());
        let path = format!("{BASE}{route}");
        let name = from.name.as_str();
        let headers = transport::headers(name, "ed25519:auto", &from.key, "POST", &path, at, &body);
        let mut request = ::http::Request::builder()
            .method("POST")
            .uri(path)
            .header("content-type", "application/json");
        request.headers_mut().unwrap().extend(headers);
        let request = request.body(Body::from(body)).unwrap();
        let router = routes::router(Arc::clone(&self.p));
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = axum::body::to_bytes(answer.into_body(), MAX_BODY)
            .await
            .unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// What a backend calls.
    pub async fn call(&self, method: &str, body: Value) -> Result<Value, Refusal> {
        calls::call(&self.p, method, Bytes::from(body.to_string())).await
    }
}

/// Another server.
pub struct Server {
    pub name: PeerName,
    pub domain: &'static str,
    pub key: SigningKey,
}

impl Server {
    pub fn new(name: &str, domain: &'static str) -> Self {
        let mut seed = [7; 32];
        for (at, byte) in name.bytes().take(32).enumerate() {
            seed[at] = byte;
        }
        Self {
            name: PeerName::parse(name).unwrap(),
            domain,
            key: SigningKey::from_seed(seed),
        }
    }

    /// A message of its user in a room, signed.
    pub fn message(&self, room_id: &str, number: i64, depth: i64) -> Envelope {
        self.event("m.message", room_id, number, depth, |_| {})
    }

    pub fn event(
        &self,
        kind: &str,
        room_id: &str,
        number: i64,
        depth: i64,
        change: impl FnOnce(&mut Envelope),
    ) -> Envelope {
        let mut envelope = Envelope {
            event_id: format!("${number}:{}", self.domain),
            room_id: room_id.into(),
            event_type: kind.into(),
            sender: format!("@eve:{}", self.domain),
            origin_server: self.name.to_string(),
            origin_ts: depth,
            content: json!({"body": format!("n{number}"), "message_id": number.to_string()}),
            depth,
            state_key: None,
            signatures: json!({}),
        };
        change(&mut envelope);
        envelope.sign(&self.key, "ed25519:auto");
        envelope
    }
}

/// A page of these events.
pub fn page(events: &[Envelope]) -> String {
    let events: Vec<String> = events
        .iter()
        .map(|event| String::from_utf8(event.wire()).unwrap())
        .collect();
    format!("{{\"events\":[{}]}}", events.join(","))
}

/// What a server that has these events, in order, answers to a poll.
pub fn served(events: &[Envelope], request: &Request) -> Answer {
    // Its keys, after a signature that does not hold: it shows none.
    let Some((_, query)) = request.url.split_once('?') else {
        return answer(404, "");
    };
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(n, _)| *n == name).unwrap().1.to_owned()
    };
    let (room, since) = (value("room_id"), value("since_depth"));
    let (since, limit): (i64, usize) = (since.parse().unwrap(), value("limit").parse().unwrap());
    let some = events
        .iter()
        .filter(|e| e.room_id == room && e.depth > since);
    let some: Vec<_> = some.take(limit).cloned().collect();
    answer(200, &page(&some))
}

pub fn answer(status: u16, body: &str) -> Answer {
    Answer {
        status,
        headers: HeaderMap::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        elapsed: Duration::ZERO,
    }
}
