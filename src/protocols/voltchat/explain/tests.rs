use serde_json::json;

use super::super::token::{Sender, fresh_nonce, make};
use super::*;

const NOW: UnixMs = 1_795_246_080_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn context() -> Context {
    Context {
        now_ms: Some(NOW),
        host: None,
        secret: SharedSecret::new(SECRET),
        accepted: Some(true),
        allow: AllowList::new(&[]),
        plain_hosts: Vec::new(),
        enabled: true,
    }
}

fn token(at: UnixMs) -> String {
    let sender = Sender {
        peer_id: "peer_1_0a1b2c3d",
        host: "chat.example.org",
        name: "Chat",
    };
    let secret = SharedSecret::new(SECRET).unwrap();
    make(&secret, &sender, at, &fresh_nonce().unwrap())
}

fn push(token: &str, host: &str) -> Vec<u8> {
    format!(
        "POST /api/federation/relay/push HTTP/1.1\r\nHost: bridge\r\nContent-Type: application/json\r\n\
         X-Federation-Token: {token}\r\nX-Federation-Host: {host}\r\n\r\n{{\"id\":\"relay_1\"}}"
    )
    .into_bytes()
}

/// The verdict, and the first failed step with its text.
fn told(input: &[u8], context: &Context) -> (String, String) {
    let steps = explain(input, context);
    let shown = format!("{steps:?}");
    assert!(!shown.contains(SECRET), "a secret is shown: {shown}");
    let failed = steps
        .iter()
        .find(|s| s.ok == Some(false) && s.name != "verdict");
    let failed = failed.map_or(String::new(), |s| format!("{}: {}", s.name, s.detail));
    (steps.last().unwrap().detail.clone(), failed)
}

#[test]
fn a_good_request_holds_wherever_its_credentials_stand() {
    let fresh = token(NOW);
    let body = json!({"host": "https://Chat.example.org/", "token": fresh}).to_string();
    for input in [
        push(&fresh, "chat.example.org"),
        body.into_bytes(),
        format!("{fresh}\n").into_bytes(),
    ] {
        let (verdict, failed) = told(&input, &context());
        assert!(failed.is_empty(), "{failed}");
        assert!(verdict.starts_with("everything"), "{verdict}");
        assert_eq!(claimed_host(&input).as_deref(), Some("chat.example.org"));
    }
}

#[test]
fn each_fault_of_a_token_has_its_step() {
    let refused = "the bridge answers 401 \"Missing or invalid federation credentials\"";
    let other = Context {
        secret: SharedSecret::new("another secret, long enough"),
        ..context()
    };
    let strangers = Context {
        allow: AllowList::new(&["*.example.net".to_owned()]),
        ..context()
    };
    let pending = Context {
        accepted: Some(false),
        ..context()
    };
    let good = push(&token(NOW), "chat.example.org");
    for (input, context, part) in [
        (
            good.clone(),
            other,
            "signature: the signature does not match",
        ),
        (good.clone(), strangers, "allowed_servers: no entry admits"),
        (good.clone(), pending, "peering: it is not accepted"),
        (
            push(&token(NOW), "evil.example.org"),
            context(),
            "host in the token: the token was made by chat.example.org",
        ),
        (
            push(&token(NOW - 300_001), "chat.example.org"),
            context(),
            "older than 5 minutes",
        ),
        (
            push(&token(NOW + 60_001), "chat.example.org"),
            context(),
            "over a minute ahead",
        ),
        (
            push("", "chat.example.org"),
            context(),
            "token: there is none",
        ),
        (
            push("a+b/", "chat.example.org"),
            context(),
            "signature: the token is not base64url",
        ),
    ] {
        let (verdict, failed) = told(&input, &context);
        assert_eq!(verdict, refused, "{part}");
        assert!(failed.contains(part), "{failed}, not {part}");
    }
}

#[test]
fn what_is_not_known_is_said_and_not_guessed() {
    let unknown = Context {
        secret: None,
        accepted: None,
        now_ms: None,
        ..context()
    };
    let (verdict, failed) = told(&push(&token(0), "chat.example.org"), &unknown);
    assert!(failed.is_empty(), "{failed}");
    assert_eq!(
        verdict,
        "nothing is wrong so far; not checked: the signature, the peering"
    );
    let off = Context {
        enabled: false,
        ..context()
    };
    let (verdict, _) = told(&push(&token(NOW), "chat.example.org"), &off);
    assert!(verdict.contains("Federation is not enabled"), "{verdict}");
}

#[test]
fn a_handshake_is_judged_without_showing_its_secret() {
    let ask = |change: Value| {
        let mut body = json!({"name": "Chat", "host": "chat.example.org",
            "url": "https://chat.example.org", "sharedSecret": SECRET});
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        body.to_string().into_bytes()
    };
    let (verdict, failed) = told(&ask(json!({})), &context());
    assert!(
        failed.is_empty() && verdict.starts_with("everything"),
        "{failed}"
    );
    for (change, answer) in [
        (json!({"name": " "}), "400 \"Missing required fields\""),
        (
            json!({"sharedSecret": "short"}),
            "400 \"Invalid sharedSecret\"",
        ),
        (json!({"host": "a b"}), "400 \"Invalid host\""),
        (
            json!({"host": "10.0.0.1", "url": "https://10.0.0.1"}),
            "403 \"Peer host is not allowed by federation policy\"",
        ),
        (
            json!({"url": "http://chat.example.org"}),
            "400 \"Invalid URL (HTTPS required)\"",
        ),
        (
            json!({"sharedSecret": "another secret, long enough"}),
            "401 \"Handshake credentials rejected\"",
        ),
    ] {
        let (verdict, _) = told(&ask(change), &context());
        assert!(verdict.ends_with(answer), "{verdict}, not {answer}");
    }
}

#[test]
fn a_file_that_is_no_request_is_said_to_be_none() {
    let (verdict, failed) = told(b" ", &context());
    assert!(failed.contains("empty") && verdict.contains("cannot be read"));
    let (_, failed) = told(
        b"POST /api/federation/ping HTTP/1.1\r\nHost: x\r\n",
        &context(),
    );
    assert!(failed.contains("no empty line"), "{failed}");
    let (_, failed) = told(
        b"POST /federation/ping HTTP/1.1\r\nContent-Type: application/json\r\n\r\n{}",
        &context(),
    );
    assert!(failed.contains("did a proxy rewrite it?"), "{failed}");
}
