//! Bridges on wires in memory: routes, discovery and keys are the real ones; other servers are scripted.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::super::record::Peer;
use super::super::*;
use crate::config::{Config, PeerPin};
use crate::http::server::ClientAddr;
use crate::http::unrouted;
use crate::identity::{SigningKey, hex};
use crate::inbound::memory::Memory;
use crate::protocol::TransportKind;

pub const NOW: i64 = 1_795_246_080_000;

/// The network: who answers at a host, and what was asked there.
#[derive(Default)]
pub struct Wires {
    servers: Mutex<HashMap<String, axum::Router>>,
    seen: Mutex<Vec<String>>,
    /// While this is true, requests for keys wait.
    pub held: watch::Sender<bool>,
}

impl Wires {
    /// Requests for this host and path.
    pub fn count(&self, host: &str, path: &str) -> usize {
        let wanted = format!("{host}{path}");
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|url| **url == wanted).count()
    }

    pub fn unplug(&self, host: &str) {
        self.servers.lock().unwrap().remove(host);
    }

    pub fn plug(&self, host: &str, router: axum::Router) {
        self.servers.lock().unwrap().insert(host.to_owned(), router);
    }

    /// A published server: its description and the keys it lists.
    pub fn server(&self, name: &str, page: Value, keys: Value) {
        let document = json!({"keys": keys, "server_name": name});
        let answer = |body: Value| axum::routing::get(move || std::future::ready(body.to_string()));
        let router = axum::Router::new()
            .route(WELL_KNOWN, answer(page))
            .route(&format!("{BASE}/keys"), answer(document));
        self.plug(name, router);
    }
}

/// A description as published servers write it.
pub fn page(name: &str, domain: &str) -> Value {
    json!({
        "domain": domain, "enabled": true, "federation_endpoint": BASE, "server_name": name,
        "version": "federation-v1",
    })
}

/// An entry of a document of keys.
pub fn entry(seed: u8, key_id: &str, server: &str, valid_until: i64) -> Value {
    let key = SigningKey::from_seed([seed; 32]).public();
    json!({
        "key_id": key_id, "public_key": hex(&key.to_bytes()), "server_name": server,
        "valid_until": valid_until,
    })
}

struct Wire(Arc<Wires>);

impl Net for Wire {
    fn send<'a>(
        &'a self,
        request: Request,
        _timeout: Duration,
        max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>> {
        Box::pin(async move {
            let uri: ::http::Uri = request.url.parse().unwrap();
            let host = uri.authority().unwrap().to_string();
            let path = uri.path_and_query().unwrap().to_string();
            let down = |kind, detail: &str| TransportError {
                kind,
                detail: detail.to_owned(),
            };
            self.0.seen.lock().unwrap().push(format!("{host}{path}"));
            if path.ends_with("/keys") {
                let mut held = self.0.held.subscribe();
                held.wait_for(|held| !held).await.unwrap();
            }
            let server = self.0.servers.lock().unwrap().get(&host).cloned();
            let Some(server) = server else {
                return Err(down(TransportKind::Connect, "nobody answers"));
            };
            let mut sent = ::http::Request::builder().method(request.method).uri(path);
            *sent.headers_mut().unwrap() = request.headers;
            let mut sent = sent.body(Body::from(request.body)).unwrap();
            sent.extensions_mut()
                .insert(ClientAddr(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77))));
            let (parts, body) = server.oneshot(sent).await.unwrap().into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            if body.len() > max_answer {
                return Err(down(TransportKind::TooLarge, "too large"));
            }
            Ok(Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body,
                elapsed: Duration::ZERO,
            })
        })
    }
}

/// One bridge, named by its host.
pub struct Side {
    pub p: Arc<Paracord>,
    pub name: PeerName,
    wires: Arc<Wires>,
    _dir: tempfile::TempDir,
}

pub async fn bridge(wires: &Arc<Wires>, host: &str) -> Side {
    bridge_with(wires, host, &[], |_| {}).await
}

pub async fn bridge_with(
    wires: &Arc<Wires>,
    host: &str,
    pins: &[Arc<PeerPin>],
    change: impl FnOnce(&mut ParacordConfig),
) -> Side {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ParacordConfig {
        server_name: Some(host.to_owned()),
        key_path: dir.path().join("paracord.key"),
        ..Config::from_text("").unwrap().paracord
    };
    change(&mut config);
    let clock = Clock::fixed(NOW);
    let store = Store::open(&dir.path().join("d.db"), clock.clone())
        .await
        .unwrap();
    let door = Door::over(
        store.clone(),
        Arc::new(Memory::default()),
        Ops::silent(),
        clock.clone(),
    );
    let parts = ParacordParts {
        config,
        peers: Peers::open(store.clone(), pins, clock.clone())
            .await
            .unwrap(),
        trust: Trust::open(store.clone(), clock.clone()).await.unwrap(),
        door: door.await.unwrap(),
        store,
        net: Arc::new(Wire(Arc::clone(wires))),
        bus: None,
        ops: Ops::silent(),
        clock,
    };
    let p = Paracord::new(parts).await.unwrap();
    wires.plug(host, unrouted::answered(routes::router(Arc::clone(&p))));
    Side {
        name: p.own.name.clone(),
        p,
        wires: Arc::clone(wires),
        _dir: dir,
    }
}

impl Side {
    pub async fn call(&self, method: &str, body: Value) -> Result<Value, Refusal> {
        calls::call(&self.p, method, Bytes::from(body.to_string())).await
    }

    /// Looks another up and trusts it.
    pub async fn trust(&self, name: &str) -> Value {
        self.call("peer.request", json!({"name": name}))
            .await
            .unwrap();
        let body = json!({"peer": name});
        self.call("peer.accept", body).await.unwrap()
    }

    pub fn peer(&self, name: &str) -> Arc<Peer> {
        self.p.book.by_text(name).unwrap()
    }

    pub fn later(&self, ms: i64) {
        self.p.clock.set(self.p.clock.now_ms() + ms);
    }

    /// Requests for the keys of a host so far.
    pub fn fetches(&self, host: &str) -> usize {
        self.wires.count(host, &format!("{BASE}/keys"))
    }
}
