//! A VoltChat bridge for one case: its real routes, a database of its own, streams of its own on a
//! real NATS server, a clock that stands still, and a peer that answers what the case says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drawbridge::bus::Bus;
use drawbridge::clock::Clock;
use drawbridge::config::{Config, Operator, OperatorRole, Secret};
use drawbridge::http::server::ClientAddr;
use drawbridge::identity::hmac::SharedSecret;
use drawbridge::identity::vault::Vault;
use drawbridge::inbound::{Door, Entry};
use drawbridge::ops::Ops;
use drawbridge::peers::Peers;
use drawbridge::protocol::{
    Answer, PeerName, Protocol, Record, Request, TransportError, TransportKind, Verified,
    VerifiedParts,
};
use drawbridge::protocols::voltchat::invites::rules::{self, Invite};
use drawbridge::protocols::voltchat::record::Peer;
use drawbridge::protocols::voltchat::{ID, Net, VoltChat, VoltChatParts, book, host, ids, text};
use drawbridge::store::{NewRow, RowState, Store};
use drawbridge::trust::Trust;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::given::{Given, Remote};
use crate::support::nats::NatsServer;

/// Bearer of an operator of the test's own, to look at peers afterwards.
const ONLOOKER: &str = "whoever runs the vectors";

/// A request as it goes out.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// One bridge.
pub struct World {
    router: axum::Router,
    bus: Bus,
    door: Door,
    store: Store,
    _dir: tempfile::TempDir,
}

impl World {
    /// The bridge of a case; `servers`: ids of servers that are ours. `n` is unlike any other of the
    /// same NATS server.
    pub async fn build(nats: &NatsServer, n: usize, given: &Given, servers: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Clock::fixed(given.now_ms);
        let file = dir.path().join("bridge.db");
        std::fs::write(&file, empty_database().await).expect("a database");
        let store = Store::open(&file, clock.clone()).await.expect("opened");
        let bus = {
            let mut config = nats.config();
            config.prefix = format!("v{n}");
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
        let mut config = Config::from_text("").expect("the defaults").voltchat;
        config.enabled = given.enabled;
        config.url = Some(given.own.url.clone());
        config.name = given.own.name.clone();
        config.allowed_servers = given.allowed_servers.clone();
        config.key_path = dir.path().join("voltchat.key");
        config.operators = operators(given);
        let vault = Vault::open_file(&config.key_path).expect("a vault");
        keep(&store, given, &vault).await;
        remember(&door, given).await;
        wait(&store, given).await;
        let volt = VoltChat::new(VoltChatParts {
            config,
            store: store.clone(),
            peers,
            trust,
            door: door.clone(),
            net: Arc::new(Scripted(given.remote.clone())),
            bus: Some(bus.clone()),
            ops,
            clock,
        })
        .await
        .expect("a server");
        for id in servers {
            let body = json!({"id": id}).to_string();
            volt.call("server.put", body.into()).await.expect("ours");
        }
        Self {
            router: drawbridge::http::unrouted::answered(volt.routes()),
            bus,
            door,
            store,
            _dir: dir,
        }
    }

    /// Sends a request; status and JSON of the answer.
    pub async fn ask(&self, ask: &Ask) -> Result<(u16, Option<Value>), String> {
        let mut builder = axum::http::Request::builder()
            .method(ask.method.as_str())
            .uri(&ask.path)
            .extension(ClientAddr([192, 0, 2, 1].into()));
        for (name, value) in &ask.headers {
            builder = builder.header(name, value);
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
        let body = axum::body::to_bytes(answer.into_body(), 16 << 20)
            .await
            .map_err(|error| error.to_string())?;
        Ok((status, serde_json::from_slice(&body).ok()))
    }

    /// All peers, as an operator sees them at `GET /peers`.
    pub async fn peers(&self) -> Result<Vec<Value>, String> {
        let ask = Ask {
            method: "GET".into(),
            path: "/api/federation/peers".into(),
            headers: vec![(
                "authorization".into(),
                format!("Bearer {}", bearer(ONLOOKER)),
            )],
            body: String::new(),
        };
        match self.ask(&ask).await? {
            (200, Some(Value::Array(peers))) => Ok(peers),
            other => Err(format!("GET /peers answers {other:?}")),
        }
    }

    /// One peer at `GET /peers/:id`.
    pub async fn peer(&self, id: &str) -> Result<Option<Value>, String> {
        let ask = Ask {
            method: "GET".into(),
            path: format!("/api/federation/peers/{id}"),
            headers: vec![(
                "authorization".into(),
                format!("Bearer {}", bearer(ONLOOKER)),
            )],
            body: String::new(),
        };
        match self.ask(&ask).await? {
            (200, peer) => Ok(peer),
            (404, _) => Ok(None),
            other => Err(format!("GET /peers/{id} answers {other:?}")),
        }
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

fn bearer(name: &str) -> String {
    name.replace(' ', "-")
}

fn operators(given: &Given) -> Vec<Operator> {
    let role = |name: &str| match name {
        "reader" => OperatorRole::Reader,
        "moderator" => OperatorRole::Moderator,
        "admin" => OperatorRole::Admin,
        other => panic!("not understood: role {other:?}"),
    };
    let operator = |name: &str, token: String, role| Operator {
        name: name.to_owned(),
        role,
        token: Secret(token.into()),
    };
    let mut all = vec![operator(ONLOOKER, bearer(ONLOOKER), OperatorRole::Admin)];
    for (word, token) in given.bearers() {
        all.push(operator(&word, token, role(&given.operators[&word])));
    }
    all
}

/// Peers and invites, as an earlier run of the bridge left them.
async fn keep(store: &Store, given: &Given, vault: &Vault) {
    let earlier = given.now_ms - 60_000;
    let time = |text: &Option<String>| {
        let text = text.as_ref()?;
        Some(text::parse_time(text).unwrap_or_else(|| panic!("not understood: {text}")))
    };
    let mut records = Vec::new();
    for (n, peer) in given.peers.iter().enumerate() {
        let kept = Peer {
            id: peer.id.clone(),
            name: peer.name.clone(),
            host: PeerName::parse(&peer.host).expect("a host"),
            url: peer.url.clone(),
            secret: SharedSecret::stored(&peer.secret),
            status: peer.status,
            direction: peer.direction,
            features: peer.features.clone(),
            last_seen_ms: time(&peer.last_seen),
            last_synced_ms: None,
            last_error: None,
            remote_peer_id: peer.remote_peer_id.clone(),
            created_ms: earlier + i64::try_from(n).expect("few peers"),
            updated_ms: earlier + i64::try_from(n).expect("few peers"),
            candidates: Vec::new(),
            resend: false,
            refused_secret_ms: None,
        };
        records.push(Record {
            kind: book::KIND,
            key: peer.host.clone(),
            value: Some(kept.to_kept(vault).expect("sealed")),
        });
    }
    for (invite, place) in given.invites.iter().zip(0..) {
        let kept = Invite {
            id: invite.id.clone(),
            code: invite.code.clone(),
            server_id: invite.server_id.clone(),
            server_name: invite.server_name.clone(),
            target: invite.target_peer_id.clone(),
            max_uses: invite.max_uses,
            uses: invite.uses,
            expires_ms: time(&invite.expires_at),
            created_ms: earlier,
            place,
        };
        records.push(Record {
            kind: rules::INVITE,
            key: invite.id.clone(),
            value: Some(serde_json::to_string(&kept).expect("JSON")),
        });
    }
    if !records.is_empty() {
        let written = store.put_records(ID, records).await.expect("room");
        written.await.expect("written");
    }
}

/// Sends the messages seen before through the door, as if they had come then.
async fn remember(door: &Door, given: &Given) {
    for seen in &given.seen_relay_ids {
        let secret = SharedSecret::stored("whatever it was then");
        let proof = secret.verify(b"", &secret.mac(b"")).expect("a proof");
        let event = Verified::new(
            proof,
            VerifiedParts {
                protocol: ID,
                peer: PeerName::parse(&seen.host).expect("a host"),
                dedupe_key: format!("{}/{}", seen.host, seen.id),
                event_id: seen.id.clone(),
                event_type: "earlier".into(),
                payload: Bytes::from_static(b"{}"),
                origin: seen.host.clone(),
                key_id: "earlier".into(),
                hops: 1,
                received_at_ms: given.now_ms,
                traceparent: None,
                replay: Vec::new(),
                room_event: None,
            },
        );
        assert_eq!(door.enter(event).await, Entry::New);
    }
}

/// Puts messages into the first peer's mailbox, as the intake does. What a message does not say is
/// as in any other.
async fn wait(store: &Store, given: &Given) {
    let Some(peer) = given.peers.first() else {
        return;
    };
    let reserved = store.reserve_rows(given.queue.len());
    let rows: Vec<NewRow> = reserved
        .zip(given.queue.iter().zip(1..))
        .map(|(id, (message, out_seq))| {
            let mut whole = json!({
                "id": ids::fresh("relay", given.now_ms),
                "schemaVersion": 1,
                "fromHost": host::normal(&given.own.url),
                "fromMainline": given.own.name,
                "type": "announcement",
                "payload": null,
                "timestamp": text::iso(given.now_ms),
            });
            let said = message.as_object().expect("a message is an object").clone();
            whole.as_object_mut().expect("an object").extend(said);
            let message = whole;
            let text = |key: &str| message[key].as_str().unwrap_or(key).to_owned();
            NewRow {
                id,
                protocol: ID,
                peer: peer.host.clone(),
                msg_id: format!("m{out_seq}"),
                out_seq,
                event_id: text("id"),
                event_type: text("type"),
                order_key: String::new(),
                body: Bytes::from(message.to_string()),
                created_ms: given.now_ms,
                expires_ms: None,
                traceparent: None,
                state: RowState::Pending,
                reason: None,
                records: Vec::new(),
                room_event: None,
            }
        })
        .collect();
    if !rows.is_empty() {
        let written = store.enqueue(rows).await.expect("room");
        written.await.expect("written");
    }
}

/// The peer, as far as the case says what it answers; else nobody is there.
struct Scripted(BTreeMap<String, Remote>);

impl Net for Scripted {
    fn send<'a>(
        &'a self,
        request: Request,
        _timeout: Duration,
        _max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>> {
        let last = request.url.rsplit('/').next().unwrap_or_default();
        let answer = match self.0.get(last) {
            Some(remote) => Ok(Answer {
                status: remote.status,
                headers: axum::http::HeaderMap::new(),
                body: remote
                    .body
                    .as_ref()
                    .map_or_else(Bytes::new, |body| Bytes::from(body.to_string())),
                elapsed: Duration::ZERO,
            }),
            None => Err(TransportError {
                kind: TransportKind::Connect,
                detail: "nobody is there".into(),
            }),
        };
        Box::pin(std::future::ready(answer))
    }
}
