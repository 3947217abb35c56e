//! Bridges on wires in memory: the routes, handshakes and pings are the real ones.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use axum::body::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::super::record::{Peer, Status};
use super::super::*;
use crate::config::{Config, Operator, OperatorRole, Secret};
use crate::http::server::ClientAddr;
use crate::http::unrouted;
use crate::inbound::memory::Memory;
use crate::protocol::TransportKind;

const NOW: i64 = 1_700_000_000_000;
/// How long something that happens by itself may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The network: who answers at a host, who is down, and what is held on its way.
#[derive(Default)]
pub(super) struct Wires {
    pub(super) servers: Mutex<HashMap<String, axum::Router>>,
    down: Mutex<HashSet<String>>,
    /// Requests seen: host and path.
    seen: Mutex<Vec<(String, String)>>,
    /// While a path is named here, requests for it wait.
    pub(super) held: watch::Sender<Option<&'static str>>,
}

impl Wires {
    pub(super) fn down(&self, host: &str, down: bool) {
        let mut all = self.down.lock().unwrap();
        if down {
            all.insert(host.to_owned());
        } else {
            all.remove(host);
        }
    }

    pub(super) fn count(&self, host: &str, path: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter(|(h, p)| h == host && p.ends_with(path))
            .count()
    }
}

struct Wire(Arc<Wires>);

impl Net for Wire {
    fn send<'a>(
        &'a self,
        request: Request,
        _timeout: Duration,
        _max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>> {
        Box::pin(async move {
            let uri: ::http::Uri = request.url.parse().unwrap();
            let host = uri.authority().unwrap().to_string();
            let path = uri.path().to_owned();
            self.0
                .seen
                .lock()
                .unwrap()
                .push((host.clone(), path.clone()));
            let mut held = self.0.held.subscribe();
            held.wait_for(|held| held.is_none_or(|held| !path.ends_with(held)))
                .await
                .unwrap();
            let server = self.0.servers.lock().unwrap().get(&host).cloned();
            let down = self.0.down.lock().unwrap().contains(&host);
            let Some(server) = server.filter(|_| !down) else {
                return Err(TransportError {
                    kind: TransportKind::Connect,
                    detail: format!("{host} is down"),
                });
            };
            let mut sent = ::http::Request::builder().method(request.method).uri(path);
            *sent.headers_mut().unwrap() = request.headers;
            let mut sent = sent.body(Body::from(request.body)).unwrap();
            sent.extensions_mut()
                .insert(ClientAddr(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77))));
            let (parts, body) = server.oneshot(sent).await.unwrap().into_parts();
            Ok(Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: axum::body::to_bytes(body, usize::MAX).await.unwrap(),
                elapsed: Duration::ZERO,
            })
        })
    }
}

/// One bridge, named by its host.
pub(super) struct Side {
    pub(super) v: Arc<VoltChat>,
    pub(super) host: PeerName,
    router: axum::Router,
    dir: tempfile::TempDir,
}

fn config(host: &str, dir: &std::path::Path) -> VoltChatConfig {
    let operator = |name: &str, role| Operator {
        name: name.to_owned(),
        role,
        token: Secret(format!("{name}-token").into()),
    };
    VoltChatConfig {
        url: Some(format!("https://{host}")),
        name: format!("Bridge {host}"),
        operators: vec![
            operator("reader", OperatorRole::Reader),
            operator("moderator", OperatorRole::Moderator),
        ],
        key_path: dir.join("voltchat.key"),
        ..Config::from_text("").unwrap().voltchat
    }
}

pub(super) async fn bridge(wires: &Arc<Wires>, host: &str) -> Side {
    bridge_with(wires, host, |_| {}).await
}

pub(super) async fn bridge_with(
    wires: &Arc<Wires>,
    host: &str,
    change: impl FnOnce(&mut VoltChatConfig),
) -> Side {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(host, dir.path());
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
    let parts = VoltChatParts {
        config,
        peers: Peers::open(store.clone(), &[], clock.clone())
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
    let v = VoltChat::new(parts).await.unwrap();
    let router = unrouted::answered(routes::router(Arc::clone(&v)));
    wires
        .servers
        .lock()
        .unwrap()
        .insert(host.to_owned(), router.clone());
    Side {
        host: v.own.host.clone(),
        v,
        router,
        dir,
    }
}

impl Side {
    /// A request from an address, as curl sends it.
    pub(super) async fn from(
        &self,
        last: u8,
        method: &str,
        path: &str,
        bearer: Option<&str>,
        body: Option<Value>,
    ) -> (u16, Value) {
        let mut request = ::http::Request::builder()
            .method(method)
            .uri(format!("{BASE}{path}"));
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let mut request = request.body(body).unwrap();
        request
            .extensions_mut()
            .insert(ClientAddr(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))));
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX)
            .await
            .unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    pub(super) async fn operator(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        self.from(1, method, path, Some("moderator-token"), body)
            .await
    }

    /// Asks another for peering, by the documented line.
    pub(super) async fn ask(&self, host: &PeerName) -> Value {
        let body = json!({"name": "other", "url": format!("https://{host}")});
        let (status, peer) = self.operator("POST", "/peers", Some(body)).await;
        assert_eq!(status, 200, "{peer}");
        peer
    }

    pub(super) async fn call(
        &self,
        method: &str,
        body: Value,
    ) -> Result<Value, crate::protocol::Refusal> {
        calls::call(&self.v, method, Bytes::from(body.to_string())).await
    }

    pub(super) fn peer(&self, other: &Self) -> Arc<Peer> {
        self.v.book.get(&other.host).unwrap()
    }

    pub(super) fn status(&self, other: &Self) -> Status {
        self.peer(other).status
    }

    /// Another's handshake in whoever's name.
    pub(super) async fn handshake(
        &self,
        last: u8,
        host: &str,
        secret: &str,
        bridge: bool,
    ) -> (u16, Value) {
        let mut body = json!({
            "name": "Stranger", "host": host, "url": format!("https://{host}"),
            "sharedSecret": secret, "features": {},
        });
        if bridge {
            body["bridge"] = "drawbridge".into();
        }
        self.from(last, "POST", "/handshake", None, Some(body))
            .await
    }

    pub(super) async fn ping_as(
        &self,
        host: &str,
        secret: &SharedSecretText,
        nonce: &str,
    ) -> (u16, Value) {
        let from = token::Sender {
            peer_id: "peer_x",
            host,
            name: "X",
        };
        let token = token::make(&secret.0, &from, NOW, nonce);
        let body = json!({"host": host, "token": token});
        self.from(9, "POST", "/ping", None, Some(body)).await
    }

    pub(super) async fn stop(self) {
        self.v.store.close().await;
        drop(self.dir);
    }
}

pub(super) struct SharedSecretText(crate::identity::hmac::SharedSecret);

impl SharedSecretText {
    pub(super) fn new(text: &str) -> Self {
        Self(crate::identity::hmac::SharedSecret::new(text).unwrap())
    }
}

/// Waits for what happens by itself.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, wait).await;
    assert!(done.is_ok(), "{what}");
}
