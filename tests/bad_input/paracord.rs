//! What a hostile or broken Paracord server may send us: on every route, proven and unproven. Nothing of
//! it is a 5xx, nothing of it is published, and no secret of ours gets into a log line.

#[path = "../support/paracord_client.rs"]
mod client;

use std::sync::{Arc, Mutex};

use axum::body::Body;
use drawbridge::clock::Clock;
use drawbridge::config::Config;
use drawbridge::http::server::ClientAddr;
use drawbridge::identity::PublicKey;
use drawbridge::inbound::Door;
use drawbridge::ops::Ops;
use drawbridge::peers::Peers;
use drawbridge::protocol::{PeerName, Protocol};
use drawbridge::protocols::paracord::book::{Book, Change};
use drawbridge::protocols::paracord::record::{Peer, PeerKey, Status};
use drawbridge::protocols::paracord::{Own, Paracord, ParacordParts};
use drawbridge::store::Store;
use drawbridge::trust::Trust;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{Taken, loopback_client};
use client::{BASE, Identity, Request, change, hex, now_ms};

const READ_TOKEN: &str = "read-token-that-stays-ours";
/// A room of the sender.
const THEIRS: &str = "!7010:peer.test";
/// A room of ours, which is allowed.
const OURS: &str = "!7020:bridge.test";

/// `bridge.test`, which trusts `peer.test`, without a broker.
struct Bridge {
    router: axum::Router,
    taken: Arc<Taken>,
    secret: String,
    _dir: tempfile::TempDir,
}

impl Bridge {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let key = dir.path().join("paracord.key");
        let text = format!(
            "[paracord]\nserver_name = \"bridge.test\"\nkey_path = {key:?}\nread_token = {READ_TOKEN:?}\n\
             allowed_guild_ids = [\"7020\"]\nunproven_per_minute = 1000000\nquarantine_after = 0\n\
             max_events_per_peer_per_minute = 0\nbackend_timeout = \"10ms\"\n"
        );
        let config = Config::from_text(&text).unwrap();
        let store = Store::open(&dir.path().join("bridge.db"), clock.clone())
            .await
            .unwrap();
        let own = Own::of(&config.paracord).unwrap();
        let book = Book::open(store.clone(), Ops::silent(), own).await.unwrap();
        let peer = known(&Identity::new("peer.test"));
        let name = peer.name.clone();
        let kept = book.change(&name, |_| (Change::put(peer), ()));
        kept.await.unwrap();
        let taken = Arc::new(Taken::default());
        let parts = ParacordParts {
            config: config.paracord.clone(),
            peers: Peers::open(store.clone(), &[], clock.clone())
                .await
                .unwrap(),
            trust: Trust::open(store.clone(), clock.clone()).await.unwrap(),
            door: Door::over(store.clone(), taken.clone(), Ops::silent(), clock.clone())
                .await
                .unwrap(),
            net: Arc::new(loopback_client("")),
            bus: None,
            ops: Ops::silent(),
            clock,
            store,
        };
        let paracord = Paracord::new(parts).await.unwrap();
        Self {
            router: drawbridge::http::unrouted::answered(paracord.routes()),
            taken,
            secret: std::fs::read_to_string(&key).unwrap().trim().to_owned(),
            _dir: dir,
        }
    }

    /// Status and text of the answer.
    async fn ask(&self, request: &Request) -> (u16, String) {
        let headers: Vec<_> = request
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into_bytes()))
            .chain(
                request
                    .content_type
                    .iter()
                    .map(|kind| ("content-type".to_owned(), kind.clone().into_bytes())),
            )
            .collect();
        let body = request.body.clone().unwrap_or_default();
        self.ask_as(&request.method, &request.path, &headers, body)
            .await
    }

    async fn ask_as(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, Vec<u8>)],
        body: Vec<u8>,
    ) -> (u16, String) {
        let mut builder = axum::http::Request::builder()
            .method(method)
            .uri(path)
            .extension(ClientAddr([192, 0, 2, 1].into()));
        for (name, value) in headers {
            builder = builder.header(name.as_str(), value.as_slice());
        }
        let request = builder.body(Body::from(body)).expect("a request");
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 16 << 20).await;
        let text = String::from_utf8_lossy(&body.unwrap()).into_owned();
        (status, text)
    }

    fn published(&self) -> usize {
        self.taken.0.lock().unwrap().len()
    }

    /// After whatever came before, an honest event is still taken.
    async fn still_works(&self, peer: &Identity) {
        let before = self.published();
        let (status, said) = self.ask(&peer.push(&peer.event(THEIRS, json!({})))).await;
        assert_eq!(status, 202, "{said}");
        assert_eq!(self.published(), before + 1);
    }
}

/// A trusted server with its key.
fn known(identity: &Identity) -> Peer {
    let now = now_ms();
    let name = PeerName::parse(&identity.name).unwrap();
    let endpoint = format!("https://{}{BASE}", identity.name);
    Peer {
        domain: identity.domain.clone(),
        domain_fixed: true,
        status: Status::Trusted,
        keys: vec![PeerKey {
            key_id: identity.key_id.clone(),
            public: PublicKey::parse(identity.key.verifying_key().as_bytes()).unwrap(),
            valid_until_ms: now + 86_400_000,
            first_seen_ms: now,
            listed_ms: now,
        }],
        trusted_ms: Some(now),
        keys_fetched_ms: Some(now),
        ..Peer::new(name, endpoint, now)
    }
}

fn refused(status: u16) -> bool {
    (400..500).contains(&status)
}

/// Bodies that are no request of any route.
fn bad_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let deep = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n)).into_bytes();
    let many: String = (0..120_000).map(|n| format!("\"k{n}\":1,")).collect();
    vec![
        ("nothing", Vec::new()),
        ("an array", b"[]".to_vec()),
        ("ten nulls", format!("[{}]", ["null"; 10].join(",")).into()),
        ("null", b"null".to_vec()),
        ("a number", b"7".to_vec()),
        ("an empty object", b"{}".to_vec()),
        ("cut off", b"{\"origin_server\":\"peer.test\",".to_vec()),
        ("two values", b"{} {}".to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{}".to_vec()),
        ("no UTF-8", b"{\"origin_server\":\"\xff\xfe\"}".to_vec()),
        (
            "a lone surrogate",
            br#"{"origin_server":"\ud800"}"#.to_vec(),
        ),
        ("128 levels", deep(127)),
        ("far too deep", deep(200_000)),
        ("very many members", format!("{{{many}\"x\":1}}").into()),
        (
            "a huge integer",
            format!("{{\"depth\":{}}}", "9".repeat(4_301)).into(),
        ),
        ("1e400", b"{\"depth\":1e400}".to_vec()),
        ("zeros", vec![0; 4_096]),
        (
            "another's name",
            br#"{"origin_server":"other.test","room_id":"x"}"#.to_vec(),
        ),
        (
            "members of other types",
            br#"{"origin_server":{},"room_id":[],"sender":1,"user_id":true,"max_age_seconds":"x"}"#
                .to_vec(),
        ),
    ]
}

const POSTS: [&str; 4] = ["/event", "/invite", "/join", "/leave"];

#[tokio::test]
async fn a_bad_body_on_any_route_is_a_4xx_proven_or_not() {
    let bridge = Bridge::start().await;
    let peer = Identity::new("peer.test");
    for route in POSTS {
        for (name, body) in bad_bodies() {
            let proven = peer.post(route, body.clone());
            let (status, said) = bridge.ask(&proven).await;
            assert!(refused(status), "{route}, {name}: {status} {said}");
            let mut bare = peer.post(route, body);
            bare.headers.clear();
            let (status, said) = bridge.ask(&bare).await;
            assert!(
                refused(status),
                "{route}, {name}, unproven: {status} {said}"
            );
        }
        let big = peer.post(route, vec![b' '; 2 * 1024 * 1024 + 1]);
        assert_eq!(bridge.ask(&big).await.0, 413, "{route}");
        for kind in [
            None,
            Some("text/plain"),
            Some(""),
            Some("application/json;;=\u{e4}"),
        ] {
            let mut other = peer.post(route, "{}");
            other.content_type = kind.map(str::to_owned);
            let (status, said) = bridge.ask(&other).await;
            assert!(refused(status), "{route}, {kind:?}: {status} {said}");
        }
    }
    assert_eq!(bridge.published(), 0);
    bridge.still_works(&peer).await;
}

#[tokio::test]
async fn headers_missing_doubled_unreadable_and_extreme_are_a_4xx_on_every_route() {
    let bridge = Bridge::start().await;
    let peer = Identity::new("peer.test");
    let long = "a".repeat(60_000);
    let values: [&[u8]; 14] = [
        b"",
        b" ",
        b"-",
        b"+",
        b"0",
        b"-9223372036854775808",
        b"9223372036854775807",
        b"9223372036854775808",
        b"1e3",
        b"\xff\xfe",
        "\u{e4}\u{1f375}".as_bytes(),
        b"../../etc/passwd",
        b"peer.test:",
        long.as_bytes(),
    ];
    let good = [
        peer.push(&peer.event(THEIRS, json!({}))),
        peer.post(
            "/invite",
            format!(r#"{{"origin_server":"peer.test","room_id":"{OURS}","sender":"@a:peer.test","max_age_seconds":null}}"#),
        ),
        peer.post(
            "/join",
            format!(r#"{{"origin_server":"peer.test","room_id":"{OURS}","user_id":"@a:peer.test"}}"#),
        ),
        peer.events(THEIRS, 0, 10),
        peer.get("/event/$1:peer.test"),
    ];
    let four = ["origin", "key-id", "timestamp", "signature"].map(|n| format!("x-paracord-{n}"));
    for request in &good {
        for spoilt in &four {
            let kept = |value: Option<&[u8]>| {
                let others = request.headers.iter().filter(|(name, _)| *name != spoilt);
                let mut headers: Vec<_> = others
                    .map(|(name, value)| (name.clone(), value.clone().into_bytes()))
                    .collect();
                headers.push(("content-type".to_owned(), b"application/json".to_vec()));
                headers.extend(value.map(|value| (spoilt.clone(), value.to_vec())));
                headers
            };
            let body = request.body.clone().unwrap_or_default();
            for value in std::iter::once(None).chain(values.iter().map(|v| Some(*v))) {
                let (status, said) = bridge
                    .ask_as(&request.method, &request.path, &kept(value), body.clone())
                    .await;
                let shown = value.map(String::from_utf8_lossy);
                let shown = shown.map(|v| v.chars().take(30).collect::<String>());
                assert!(
                    refused(status),
                    "{} {spoilt} = {shown:?}: {status} {said}",
                    request.path
                );
            }
        }
    }
    assert_eq!(bridge.published(), 0);
    bridge.still_works(&peer).await;
}

#[tokio::test]
async fn whatever_stands_in_a_proven_event_is_taken_or_a_4xx() {
    let bridge = Bridge::start().await;
    let peer = Identity::new("peer.test");
    let nested = |n: usize| (0..n).fold(json!(1), |inner, _| json!({ "a": inner }));
    let texts = [
        "",
        " ",
        "!",
        "@",
        ":",
        "!:",
        "@:",
        "!9223372036854775808:peer.test",
        "!-9223372036854775808:peer.test",
        "@a:",
        "@:peer.test",
        "@a:other.test",
        "a\u{0}b\nc",
        "\u{1f375}\u{202e}",
        "*.>",
    ];
    let long = "x".repeat(200_000);
    let mut spoilt: Vec<Value> = Vec::new();
    for member in [
        "event_id",
        "room_id",
        "event_type",
        "sender",
        "origin_server",
        "state_key",
    ] {
        spoilt.extend(texts.iter().map(|text| json!({ member: text })));
        spoilt.push(json!({ member: long }));
    }
    for member in ["origin_ts", "depth"] {
        for number in [i64::MIN, -1, 0, 1, i64::MAX] {
            spoilt.push(json!({ member: number }));
        }
    }
    for content in [
        json!(null),
        json!([]),
        json!("x"),
        json!({"a": vec![0; 10_001]}),
        json!({"a": vec![json!({}); 10_000]}),
        nested(31),
        nested(32),
        nested(33),
        nested(100),
    ] {
        // An object would be merged.
        spoilt.push(json!({"content": [content.clone()]}));
        spoilt.push(json!({"content": {"deep": content}}));
    }
    for changes in spoilt {
        let mut event = peer.draft(THEIRS);
        change(&mut event, &changes);
        peer.sign(&mut event);
        let (status, said) = bridge.ask(&peer.push(&event)).await;
        let shown: String = changes.to_string().chars().take(80).collect();
        assert!(status == 202 || refused(status), "{shown}: {status} {said}");
    }
    for signatures in [
        json!(null),
        json!([]),
        json!("x"),
        json!({}),
        json!({"peer.test": null}),
        json!({"peer.test": {}}),
        json!({"peer.test": {"ed25519:auto": 7}}),
        json!({"peer.test": {"ed25519:auto": "\u{e4}".repeat(64)}}),
        json!({"peer.test": {"ed25519:auto": "+1".repeat(64)}}),
        json!({"peer.test": {"ed25519:auto": "00".repeat(64)}}),
        json!({"peer.test": {"ed25519:auto": "ff".repeat(64)}}),
        json!({"peer.test": {"ed25519:auto": "00".repeat(63)}}),
    ] {
        let mut event = peer.draft(THEIRS);
        event["signatures"] = signatures.clone();
        let before = bridge.published();
        let (status, said) = bridge.ask(&peer.push(&event)).await;
        assert!(refused(status), "{signatures}: {status} {said}");
        assert_eq!(bridge.published(), before, "{signatures}");
    }
    bridge.still_works(&peer).await;
}

#[tokio::test]
async fn paths_and_queries_of_any_kind_are_answered_below_500() {
    let bridge = Bridge::start().await;
    let peer = Identity::new("peer.test");
    let long = "%41".repeat(10_000);
    for route in [
        "/events",
        "/events?",
        "/events?room_id",
        "/events?room_id=",
        "/events?room_id=%FF&since_depth=0",
        "/events?room_id=%",
        "/events?room_id=!1:peer.test&room_id=!2:peer.test",
        "/events?room_id=!1:peer.test&since_depth=-9223372036854775808",
        "/events?room_id=!1:peer.test&since_depth=9223372036854775808",
        "/events?room_id=!1:peer.test&since_depth=1e5&limit=1",
        "/events?room_id=!1:peer.test&limit=-1",
        "/events?room_id=!1:peer.test&limit=18446744073709551616",
        "/events?room_id=!1:peer.test&limit=9223372036854775807",
        "/event",
        "/event/",
        "/event/%",
        "/event/%FF",
        "/event/%00",
        "/event/a/b",
        "/event/..",
        &format!("/event/{long}"),
        "/keys/x",
        "/nothing",
        "/media/token",
        "/file/7",
    ] {
        for request in [peer.get(route), {
            let mut bare = peer.get(route);
            bare.headers.clear();
            bare.header("federation-token", "no-token-of-ours")
        }] {
            let (status, said) = bridge.ask(&request).await;
            let shown: String = route.chars().take(60).collect();
            assert!(status < 500, "{shown}: {status} {said}");
        }
    }
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW"] {
        for route in ["/event", "/events", "/keys", "/join"] {
            let (status, said) = bridge
                .ask_as(method, &format!("{BASE}{route}"), &[], Vec::new())
                .await;
            assert!(status < 500, "{method} {route}: {status} {said}");
        }
    }
    bridge.still_works(&peer).await;
}

/// Log lines of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_of_ours_is_in_a_log_line_whatever_is_refused() {
    let lines = Lines::default();
    let sink = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let bridge = Bridge::start().await;
    let peer = Identity::new("peer.test");
    let mut answers = String::new();
    // The right token on every route, also where it means nothing.
    for route in [
        "/events?room_id=!1:peer.test",
        "/event/$1:peer.test",
        "/keys",
    ] {
        let mut request = peer.get(route);
        request.headers.clear();
        let request = request.header("federation-token", READ_TOKEN);
        answers += &bridge.ask(&request).await.1;
    }
    for route in POSTS {
        let spoilt = peer
            .post(route, "{}")
            .header("federation-token", READ_TOKEN);
        answers += &bridge.ask(&spoilt).await.1;
        let forged = peer.push(&peer.event(THEIRS, json!({})));
        let forged = forged.header("signature", &"00".repeat(64));
        answers += &bridge.ask(&forged).await.1;
    }
    bridge.still_works(&peer).await;
    let log = String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned();
    assert!(
        !log.is_empty(),
        "nothing was logged, so nothing was looked at"
    );
    let seed = &bridge.secret;
    assert_eq!(seed.len(), 64, "the key file holds its seed in hex");
    for secret in [READ_TOKEN, seed.as_str(), &hex(READ_TOKEN.as_bytes())] {
        assert!(!log.contains(secret), "a secret is in the log");
        assert!(!answers.contains(secret), "a secret is in an answer");
    }
}
