use ::http::Method;
use serde_json::json;

use super::super::record::{Peer, PeerKey, Status};
use super::super::transport;
use super::*;
use crate::identity::SigningKey;
use crate::protocol::PeerName;

const NOW: UnixMs = 1_795_246_080_000;
const KEY_ID: &str = "ed25519:auto";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn known() -> Known {
    let name = PeerName::parse("them.example").unwrap();
    let mut peer = Peer::new(name, format!("https://them.example{BASE}"), NOW);
    peer.status = Status::Trusted;
    for (seed, key_id) in [(1, KEY_ID), (2, "ed25519:old")] {
        peer.keys.push(PeerKey {
            key_id: key_id.to_owned(),
            public: key(seed).public(),
            valid_until_ms: i64::MAX,
            first_seen_ms: NOW,
            listed_ms: NOW,
        });
    }
    Known {
        peer,
        standing: Standing::Ordinary,
    }
}

fn context() -> Context {
    Context {
        now_ms: Some(NOW),
        own: Some(Own {
            name: PeerName::parse("us.example").unwrap(),
            domain: "us.example".to_owned(),
            url: "https://us.example".to_owned(),
        }),
        enabled: true,
        servers: Some(vec![known()]),
        key: None,
        event_key: None,
    }
}

fn envelope() -> Envelope {
    let mut envelope = Envelope {
        event_id: "$1:them.example".to_owned(),
        room_id: "!5:them.example".to_owned(),
        event_type: "m.message".to_owned(),
        sender: "@alice:them.example".to_owned(),
        origin_server: "them.example".to_owned(),
        origin_ts: NOW,
        content: json!({"body": "hi"}),
        depth: NOW,
        state_key: None,
        signatures: json!({}),
    };
    envelope.sign(&key(1), KEY_ID);
    envelope
}

/// A saved request: what is signed may be other than what stands there.
struct Saved {
    method: &'static str,
    target: String,
    body: Vec<u8>,
    signed_path: String,
    signed_body: Vec<u8>,
    by: SigningKey,
    at: UnixMs,
    kind: &'static str,
}

fn post(route: &str, body: Vec<u8>) -> Saved {
    Saved {
        method: "POST",
        target: format!("{BASE}{route}"),
        signed_path: format!("{BASE}{route}"),
        signed_body: body.clone(),
        body,
        by: key(1),
        at: NOW,
        kind: "application/json",
    }
}

fn get(target: &str) -> Saved {
    Saved {
        method: "GET",
        ..post(target, Vec::new())
    }
}

impl Saved {
    fn bytes(&self) -> Vec<u8> {
        let method = Method::from_bytes(self.method.as_bytes()).unwrap();
        let signed = transport::headers(
            "them.example",
            KEY_ID,
            &self.by,
            method.as_str(),
            &self.signed_path,
            self.at,
            &self.signed_body,
        );
        let mut text = format!(
            "{} {} HTTP/1.1\r\nHost: us.example\r\nContent-Type: {}\r\n",
            self.method, self.target, self.kind
        );
        for (name, value) in &signed {
            text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        text.push_str("\r\n");
        [text.into_bytes(), self.body.clone()].concat()
    }
}

/// The verdict, the failed steps before it, and all steps.
fn told(input: &[u8], context: &Context) -> (Option<bool>, String, Vec<String>, String) {
    let mut steps = explain(input, context);
    let shown = format!("{steps:#?}");
    let verdict = steps.pop().unwrap();
    let failed = steps.into_iter().filter(|step| step.ok == Some(false));
    let failed = failed.map(|step| step.name).collect();
    (verdict.ok, verdict.detail, failed, shown)
}

#[test]
fn a_good_event_holds() {
    let saved = post("/event", envelope().wire()).bytes();
    let (ok, detail, failed, shown) = told(&saved, &context());
    assert_eq!((ok, failed.len()), (Some(true), 0), "{shown}");
    assert_eq!(detail, HELD);
}

#[test]
fn the_first_fault_is_the_answer_and_the_rest_is_looked_at_too() {
    let mut bad = envelope();
    bad.sender = "@alice:elsewhere.example".to_owned();
    let mut saved = post("/event", bad.wire());
    saved.at = NOW - 60_001;
    let (ok, detail, failed, shown) = told(&saved.bytes(), &context());
    assert_eq!(ok, Some(false));
    assert!(detail.contains("401 UNAUTHORIZED"), "{detail}");
    assert_eq!(failed, ["time", "event signature", "sender"], "{shown}");
}

#[test]
fn an_old_file_is_not_refused_for_its_age_alone() {
    let saved = post("/event", envelope().wire()).bytes();
    let mut context = context();
    context.now_ms = None;
    assert_eq!(told(&saved, &context).0, Some(true));
    context.now_ms = Some(NOW + 3_600_000);
    assert_eq!(told(&saved, &context).2, ["time"]);
}

#[test]
fn usual_mistakes_with_a_requests_signature_are_named() {
    let wire = envelope().wire();
    let sorted = serde_json::to_value(envelope()).unwrap().to_string();
    let event = || post("/event", wire.clone());
    for (saved, wanted) in [
        (
            Saved {
                by: key(2),
                ..event()
            },
            "another key of the same server",
        ),
        (
            Saved {
                signed_path: format!("{BASE}/event?x=1"),
                target: format!("{BASE}/event?x=1"),
                ..event()
            },
            "with its query",
        ),
        (
            Saved {
                signed_path: format!("{BASE}/events"),
                ..get("/events?room_id=!5:us.example")
            },
            "without its query",
        ),
        (
            Saved {
                signed_path: "/event".to_owned(),
                ..event()
            },
            "behind the protocol's base alone",
        ),
        (
            Saved {
                signed_body: sorted.into_bytes(),
                ..event()
            },
            "members sorted",
        ),
        (
            Saved {
                body: [wire.clone(), b"\n".to_vec()].concat(),
                signed_path: format!("{BASE}/event "),
                ..event()
            },
            "none of the usual mistakes",
        ),
    ] {
        let (ok, detail, failed, shown) = told(&saved.bytes(), &context());
        assert_eq!(ok, Some(false), "{shown}");
        assert!(detail.contains("403 FORBIDDEN"), "{detail}");
        assert_eq!(failed, ["signature"], "{shown}");
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
}

#[test]
fn usual_mistakes_with_an_events_signature_are_named() {
    let resigned = |text: Vec<u8>, by: u8| {
        let mut envelope = envelope();
        let signature = hex(&key(by).sign(&text));
        envelope.signatures = json!({"them.example": {KEY_ID: signature}});
        envelope
    };
    let plain = envelope();
    let canonical = String::from_utf8(plain.canonical()).unwrap();
    let stateless = canonical.replace(",\"state_key\":null", "");
    let wire = String::from_utf8(plain.wire()).unwrap();
    let cut = wire.rfind(",\"signatures\":").unwrap();
    let in_wire_order = format!("{}}}", &wire[..cut]);
    for (envelope, wanted) in [
        (resigned(stateless.into_bytes(), 1), "without state_key"),
        (resigned(in_wire_order.into_bytes(), 1), "in wire order"),
        (
            resigned(canonical.into_bytes(), 2),
            "another key of the same server",
        ),
    ] {
        let saved = post("/event", envelope.wire()).bytes();
        let (_, _, failed, shown) = told(&saved, &context());
        assert_eq!(failed, ["event signature"], "{shown}");
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
}

#[test]
fn an_envelope_alone_is_checked_by_itself() {
    let (ok, _, failed, shown) = told(&envelope().wire(), &context());
    assert_eq!((ok, failed.len()), (Some(true), 0), "{shown}");
    let mut context = context();
    context.servers = None;
    context.event_key = Some(key(1).public());
    let (ok, detail, _, shown) = told(&envelope().wire(), &context);
    assert_eq!(ok, None, "{shown}");
    assert!(detail.contains("whether the server is trusted"), "{detail}");
    assert!(shown.contains("holds under the key"), "{shown}");
}

#[test]
fn who_may_not_is_told_why() {
    let saved = post("/event", envelope().wire()).bytes();
    let mut context = context();
    let servers = context.servers.as_mut().unwrap();
    servers[0].standing = Standing::Blocked;
    let (_, _, failed, shown) = told(&saved, &context);
    assert_eq!(failed, ["server", "event origin"]);
    assert!(shown.contains("blocked by a rule"), "{shown}");
    context.servers = Some(Vec::new());
    let (_, detail, failed, _) = told(&saved, &context);
    assert_eq!(failed, ["server", "event origin"]);
    assert!(detail.contains("403 FORBIDDEN"), "{detail}");
}

#[test]
fn bodies_are_read_as_the_routes_read_them() {
    let answer = |saved: &Saved| told(&saved.bytes(), &context()).1;
    let mut text = post("/event", envelope().wire());
    text.kind = "text/plain";
    assert!(answer(&text).contains("415"));
    assert!(answer(&post("/event", b"{".to_vec())).contains("400"));
    assert!(answer(&post("/event", b"{}".to_vec())).contains("422"));
}

#[test]
fn joins_and_invites_are_looked_at_too() {
    let join = |user: &str, room: &str, origin: &str| {
        let body = json!({"origin_server": origin, "room_id": room, "user_id": user});
        told(
            &post("/join", body.to_string().into_bytes()).bytes(),
            &context(),
        )
        .2
    };
    let us = "!7:us.example";
    assert!(join("@a:them.example", us, "them.example").is_empty());
    assert_eq!(join("@a:x.example", us, "them.example"), ["user_id"]);
    assert_eq!(join("a", us, "them.example"), ["user_id"]);
    assert_eq!(
        join("@a:them.example", "!7:x.example", "them.example"),
        ["room"]
    );
    assert_eq!(join("@a:them.example", us, "x.example"), ["origin_server"]);
    let invite = json!({"origin_server": "them.example", "room_id": us, "sender": "junk"});
    let saved = post("/invite", invite.to_string().into_bytes()).bytes();
    assert_eq!(told(&saved, &context()).2, ["sender"]);
}

#[test]
fn what_is_no_request_is_said() {
    for (input, wanted) in [
        (&b""[..], "empty"),
        (b"POST /x HTTP/1.1\r\nA: b\r\n", "no empty line"),
        (b"POST /event HTTP/1.1\r\nA: b\r\n\r\n{}", "not below"),
        (
            b"POST /x/_paracord/federation/v1/event HTTP/1.1\r\nA: b\r\n\r\n{}",
            "in front of",
        ),
    ] {
        let (ok, _, _, shown) = told(input, &context());
        assert_eq!(ok, Some(false));
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
}
