//! A UAM bridge for one delivery: its real routes, a database of its own, streams of its own on a
//! real NATS server, a clock that stands still, and relays around it that a stub on loopback plays.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use drawbridge::bus::Bus;
use drawbridge::clock::Clock;
use drawbridge::config::{Config, WireForms};
use drawbridge::http::client::{Client, SrvTarget};
use drawbridge::http::server::ClientAddr;
use drawbridge::identity::{PublicKey, SigningKey, b64};
use drawbridge::inbound::{Door, Entry};
use drawbridge::ops::Ops;
use drawbridge::peers::Peers;
use drawbridge::protocol::{
    Answer, PeerName, PeerRecord, Protocol, ReplayId, TransportError, Verified, VerifiedParts,
};
use drawbridge::protocols::uam::deliver::dedupe_key;
use drawbridge::protocols::uam::discover::{DELIVER_PATH, Net};
use drawbridge::protocols::uam::envelope::Envelope;
use drawbridge::protocols::uam::relay_request::Form;
use drawbridge::protocols::uam::{ID, Uam, UamParts, time};
use drawbridge::store::Store;
use drawbridge::trust::{Rule, Trust};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::nats::NatsServer;

const HOUR_MS: i64 = 3_600_000;

/// What the world is like before the request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub relay_domain: String,
    pub now: String,
    #[serde(default)]
    pub known_relays: BTreeMap<String, String>,
    #[serde(default)]
    pub known_relays_stale: Vec<String>,
    #[serde(default)]
    pub well_known: BTreeMap<String, String>,
    /// The backend's own.
    #[serde(default)]
    pub agents: BTreeMap<String, String>,
    #[serde(default)]
    pub remote_agents: BTreeMap<String, String>,
    #[serde(default)]
    pub blocked: Vec<String>,
    #[serde(default)]
    pub allowed: Vec<String>,
    #[serde(default)]
    pub relay_scores: BTreeMap<String, i64>,
    #[serde(default)]
    pub recent_requests: BTreeMap<String, u32>,
    /// Message id → sender.
    #[serde(default)]
    pub seen_message_ids: BTreeMap<String, String>,
    /// Relay, nonce.
    #[serde(default)]
    pub seen_nonces: Vec<(String, String)>,
    pub federation_enabled: Option<bool>,
    pub max_hops: Option<i64>,
    pub max_age: Option<u64>,
    pub base_rate_limit: Option<u32>,
}

/// The request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// What it led to.
#[derive(Debug)]
pub struct Outcome {
    pub status: u16,
    pub json: Option<Value>,
    /// Score of the relay that the request names.
    pub score_after: Option<i64>,
    /// Recipient and message id of each event published.
    pub published: Vec<(String, String)>,
}

/// Runs one request against a fresh bridge. `n` is unlike any other of the same server.
pub async fn deliver_case(
    nats: &NatsServer,
    n: usize,
    form: Form,
    state: State,
    request: Request,
) -> Outcome {
    let relay = source_relay(&request);
    let world = World::build(nats, n, form, state).await;
    let before = world.last_seq().await;
    let (status, json) = world.ask(request).await;
    let outcome = Outcome {
        status,
        json,
        score_after: relay.map(|relay| world.trust.score(ID, &relay)),
        published: world.published_after(before).await,
    };
    world.end().await;
    outcome
}

/// The body's `from_relay`, or the header's where the body cannot be read or names none.
fn source_relay(request: &Request) -> Option<String> {
    let body = serde_json::from_str::<Value>(&request.body).ok();
    let named = body.and_then(|body| body.get("from_relay")?.as_str().map(str::to_owned));
    named.or_else(|| {
        let mut headers = request.headers.iter();
        let header = headers.find(|(name, _)| name.eq_ignore_ascii_case("x-uam-relay-domain"));
        header.map(|(_, value)| value.clone())
    })
}

struct World {
    router: axum::Router,
    bus: Bus,
    trust: Trust,
    door: Door,
    store: Store,
    relays: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn build(nats: &NatsServer, n: usize, form: Form, state: State) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let now = time::parse_ms(&state.now).expect("state.now");
        let clock = Clock::fixed(now);
        let store = Store::open(&dir.path().join("bridge.db"), clock.clone())
            .await
            .expect("a database");
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
        let (port, relays) = play_relays(form, &state).await;
        let mut config = Config::from_text("").expect("the defaults").uam;
        config.domain = Some(state.relay_domain.clone());
        config.http_url = Some(format!("https://{}", state.relay_domain));
        config.key_path = dir.path().join("relay_key.pem");
        config.enabled = state.federation_enabled.unwrap_or(true);
        config.wire_forms = match form {
            Form::Legacy => WireForms::Legacy,
            Form::Nonce => WireForms::Nonce,
        };
        if let Some(hops) = state.max_hops {
            config.max_hops = hops;
        }
        if let Some(seconds) = state.max_age {
            config.timestamp_max_age = Duration::from_secs(seconds);
        }
        if let Some(limit) = state.base_rate_limit {
            config.relay_rate_limit = limit;
        }
        let uam = Uam::new(UamParts {
            config,
            store: store.clone(),
            peers: peers.clone(),
            trust: trust.clone(),
            door: door.clone(),
            net: Arc::new(Loopback { port }),
            ops,
            clock,
        })
        .await
        .expect("a relay");
        know_relays(&peers, &state, now);
        set_trust(&trust, &state).await;
        for (address, public_key) in &state.agents {
            let body = json!({"address": address, "public_key": public_key}).to_string();
            uam.call("agent.put", body.into()).await.expect("an agent");
        }
        remember(&door, &state, now).await;
        Self {
            router: drawbridge::http::unrouted::answered(uam.routes()),
            bus,
            trust,
            door,
            store,
            relays,
            _dir: dir,
        }
    }

    async fn ask(&self, request: Request) -> (u16, Option<Value>) {
        let mut builder = axum::http::Request::builder()
            .method(request.method.as_str())
            .uri(&request.path)
            .extension(ClientAddr([192, 0, 2, 1].into()));
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        let request = builder
            .body(axum::body::Body::from(request.body))
            .expect("a request");
        let answer = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("infallible");
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20)
            .await
            .expect("a body");
        (status, serde_json::from_slice(&body).ok())
    }

    async fn last_seq(&self) -> u64 {
        let facts = self.bus.stream_facts("FED_IN").await.expect("facts");
        facts.expect("the stream").last_seq
    }

    async fn published_after(&self, before: u64) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for seq in before + 1..=self.last_seq().await {
            let message = self
                .bus
                .read_message("FED_IN", seq)
                .await
                .expect("readable")
                .expect("there");
            let envelope = Envelope::parse(message.payload).expect("an envelope");
            found.push((
                envelope.to().expect("to").to_owned(),
                envelope.message_id().expect("message_id").to_owned(),
            ));
        }
        found
    }

    async fn end(self) {
        self.relays.abort();
        self.door.close().await;
        self.store.close().await;
        self.bus.close().await;
    }
}

fn know_relays(peers: &Peers, state: &State, now: i64) {
    for (domain, key) in &state.known_relays {
        let stale = state.known_relays_stale.contains(domain);
        let public_key = PublicKey::from_base64(key).expect("a key").to_bytes();
        peers.put(PeerRecord {
            protocol: ID,
            name: PeerName::parse(domain).expect("a name"),
            endpoint: format!("https://{domain}{DELIVER_PATH}"),
            alternatives: Vec::new(),
            public_key: Some(public_key),
            discovered_via: "well-known".into(),
            last_verified_ms: if stale { now - 2 * HOUR_MS } else { now },
            ttl_ms: Some(HOUR_MS),
            facts: serde_json::Map::new(),
        });
    }
}

async fn set_trust(trust: &Trust, state: &State) {
    for (rule, names) in [(Rule::Block, &state.blocked), (Rule::Allow, &state.allowed)] {
        for name in names {
            trust.add(ID, rule, name, None).await.expect("a rule");
        }
    }
    for (relay, score) in &state.relay_scores {
        trust.set_score(ID, relay, *score);
    }
    for (relay, count) in &state.recent_requests {
        trust.preset_admit(&Uam::rate_key(relay), *count);
    }
}

/// Sends what was seen before through the door, as if it had come then.
async fn remember(door: &Door, state: &State, now: i64) {
    let ids = state
        .seen_message_ids
        .iter()
        .map(|(id, from)| (dedupe_key(from, id), None));
    let nonces = state.seen_nonces.iter().map(|(relay, nonce)| {
        let replay = ReplayId {
            scope: relay.clone(),
            id: b64::decode(nonce).unwrap_or_else(|_| nonce.as_bytes().to_vec()),
            expires_ms: now + HOUR_MS,
        };
        (format!("earlier {relay} {nonce}"), Some(replay))
    });
    for (dedupe_key, replay) in ids.chain(nonces) {
        let key = SigningKey::from_seed([1; 32]);
        let proof = key.public().verify(b"", &key.sign(b"")).expect("a proof");
        let event = Verified::new(
            proof,
            VerifiedParts {
                protocol: ID,
                peer: PeerName::parse("earlier.test").expect("a name"),
                dedupe_key,
                event_id: "earlier".into(),
                event_type: "message".into(),
                payload: Bytes::from_static(b"{}"),
                origin: "earlier::earlier.test".into(),
                key_id: "earlier".into(),
                hops: 1,
                received_at_ms: now,
                traceparent: None,
                replay: replay.into_iter().collect(),
                room_event: None,
            },
        );
        assert_eq!(door.enter(event).await, Entry::New);
    }
}

// ------------------------------------------------------------------------------- other relays

/// What the other relays answer; the relay of DOMAIN is below `/DOMAIN/`.
struct Relays {
    form: Form,
    well_known: BTreeMap<String, String>,
    agents: BTreeMap<String, String>,
}

async fn play_relays(form: Form, state: &State) -> (u16, tokio::task::JoinHandle<()>) {
    let relays = Arc::new(Relays {
        form,
        well_known: state.well_known.clone(),
        agents: state.remote_agents.clone(),
    });
    let router = axum::Router::new()
        .route(
            "/{domain}/.well-known/uam-relay.json",
            axum::routing::get(well_known),
        )
        .route("/{domain}/api/v1/versions", axum::routing::get(versions))
        .route(
            "/{domain}/api/v1/agents/{address}/public-key",
            axum::routing::get(agent_key),
        )
        .with_state(relays);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, router).await;
    });
    (port, task)
}

fn answer(body: Option<Value>) -> Response {
    match body {
        Some(body) => body.to_string().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn well_known(Shared(relays): Shared<Arc<Relays>>, Path(domain): Path<String>) -> Response {
    answer(relays.well_known.get(&domain).map(|key| {
        json!({
            "relay_domain": domain,
            "federation_endpoint": format!("https://{domain}{DELIVER_PATH}"),
            "public_key": key,
            "version": "0.1",
        })
    }))
}

async fn versions(Shared(relays): Shared<Arc<Relays>>) -> Response {
    let body = json!({"uam_version": "0.1", "supported_major_versions": ["0"]});
    answer((relays.form == Form::Nonce).then_some(body))
}

async fn agent_key(
    Shared(relays): Shared<Arc<Relays>>,
    Path((domain, address)): Path<(String, String)>,
) -> Response {
    let at_home = address.ends_with(&format!("::{domain}"));
    answer(relays.agents.get(&address).filter(|_| at_home).map(
        |key| json!({"address": address, "public_key": key, "tier": 1, "verified_domain": null}),
    ))
}

/// The bridge's own client, led to the stub: `https://DOMAIN/PATH` is `http://127.0.0.1:PORT/DOMAIN/PATH`.
struct Loopback {
    port: u16,
}

impl Net for Loopback {
    fn get<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Answer, TransportError>> {
        let path = url.strip_prefix("https://").expect("https only");
        let url = format!("http://127.0.0.1:{}/{path}", self.port);
        Box::pin(async move { Net::get(client(), &url).await })
    }

    fn srv<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Vec<SrvTarget>, TransportError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let mut config = Config::from_text("").expect("the defaults").http;
        config.allow_hosts = vec!["127.0.0.1".into()];
        config.plain_hosts = vec!["127.0.0.1".into()];
        Client::new(&config).expect("a client")
    })
}
