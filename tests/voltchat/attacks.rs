//! What somebody tries who may see a token, guess a secret or send what he likes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::bridge::free_address;
use crate::support::mainline::{Mainline, Options, Peer};
use crate::support::volt_client::{Answered, Parts, get, now_ms, post, quoted, random_hex, token};
use crate::support::volt_world::{BASE, Setup, Volt};

const SOON: Duration = Duration::from_secs(10);
const REFUSED: &str = "Missing or invalid federation credentials";

/// A bridge, two mainlines that it has accepted, and what the first knows of the bridge.
struct World {
    a: Volt,
    mainline: Mainline,
    other: Mainline,
    peer: Peer,
}

async fn world(change: impl FnOnce(Setup) -> Setup) -> World {
    let at = |_| {
        let mut options = Options::at(free_address());
        options.every = None;
        options
    };
    let (one, two) = (at(1), at(2));
    let setup = Setup::new("Volt A")
        .allow(one.address.to_string())
        .allow(two.address.to_string());
    let mainline = Mainline::start(one).await;
    let other = Mainline::start(two).await;
    let a = Volt::start(&change(setup)).await;
    for m in [&mainline, &other] {
        m.request(&a.url()).await.unwrap();
        a.accept(&m.host()).await;
        a.until_status(&m.host(), "connected").await;
    }
    let peer = mainline.peer(&a.host).unwrap();
    World {
        a,
        mainline,
        other,
        peer,
    }
}

impl World {
    fn to(&self) -> SocketAddr {
        self.a.bridge.public
    }

    fn parts(&self) -> Parts {
        Parts::fresh(&self.peer.id, &self.mainline.host(), "\"Volt M\"")
    }

    /// A push of a message under a token, claimed by a host.
    async fn push(&self, token: &str, host: &str, id: &str) -> Answered {
        let headers = [("x-federation-token", token), ("x-federation-host", host)];
        let body = message(id, host);
        let path = format!("{BASE}/relay/push");
        post(self.to(), &path, &headers, &body).await.unwrap()
    }

    async fn ping(&self, token: &str, host: &str) -> Answered {
        let body = json!({"token": token, "host": host}).to_string();
        let path = format!("{BASE}/ping");
        post(self.to(), &path, &[], &body).await.unwrap()
    }

    /// Asserts that a token, claimed by the first mainline, is refused everywhere.
    async fn refused(&self, what: &str, token: &str) {
        let host = self.mainline.host();
        let push = self.push(token, &host, "relay_refused").await;
        let ping = self.ping(token, &host).await;
        for answer in [push, ping] {
            assert_eq!(
                (answer.status, &answer.json()["error"]),
                (401, &json!(REFUSED)),
                "{what}"
            );
        }
    }
}

fn message(id: &str, from: &str) -> String {
    json!({"id": id, "schemaVersion": 1, "type": "announcement", "payload": {"n": 1},
           "timestamp": "2026-11-21T02:02:27.484Z", "fromHost": from, "fromMainline": "Volt M"})
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_good_for_one_request_even_after_a_crash() {
    let mut w = world(|s| s).await;
    let host = w.mainline.host();
    let used = w.parts().sign(&w.peer.secret);
    assert_eq!(w.push(&used, &host, "relay_1").await.status, 200);
    // The same again, another body under it, another route.
    w.refused("used in a push", &used).await;
    assert_eq!(w.push(&used, &host, "relay_1").await.status, 401);
    let pinged = w.parts().sign(&w.peer.secret);
    assert_eq!(w.ping(&pinged, &host).await.status, 200);
    w.refused("used in a ping", &pinged).await;
    // A push that repeats a message, or is not well formed, uses its token up too.
    let repeat = w.parts().sign(&w.peer.secret);
    assert_eq!(w.push(&repeat, &host, "relay_1").await.status, 200);
    w.refused("used for a repeat", &repeat).await;
    let malformed = w.parts().sign(&w.peer.secret);
    assert_eq!(w.push(&malformed, &host, "no id!").await.status, 400);
    w.refused("used for a malformed push", &malformed).await;
    w.a.bridge.kill9();
    w.a.bridge.start().await;
    for (what, token) in [("push", &used), ("ping", &pinged), ("repeat", &repeat)] {
        w.refused(&format!("{what} before the crash"), token).await;
    }
    // The same nonce under another stamp is the same nonce.
    let parts = w.parts();
    let later = parts.clone().with("timestamp", &(now_ms() + 5).to_string());
    assert_eq!(w.ping(&parts.sign(&w.peer.secret), &host).await.status, 200);
    w.refused("a used nonce", &later.sign(&w.peer.secret)).await;
    // Two at once: one of them.
    let twice = w.parts().sign(&w.peer.secret);
    let (x, y) = tokio::join!(w.ping(&twice, &host), w.ping(&twice, &host));
    assert_eq!(
        BTreeSet::from([x.status, y.status]),
        BTreeSet::from([200, 401])
    );
    let (x, y) = {
        let twice = w.parts().sign(&w.peer.secret);
        let (x, y) = tokio::join!(
            w.push(&twice, &host, "relay_x"),
            w.push(&twice, &host, "relay_y")
        );
        (x.status, y.status)
    };
    assert_eq!(BTreeSet::from([x, y]), BTreeSet::from([200, 401]));
    let events = w.a.until_events(2, SOON).await;
    assert_eq!(events.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_proves_one_host_at_one_time() {
    let w = world(|s| s).await;
    let secret = w.peer.secret.clone();
    let sign = |parts: Parts| parts.sign(&secret);
    let other = w.other.host();
    w.refused(
        "for another host",
        &sign(w.parts().with("host", &quoted(&other))),
    )
    .await;
    w.refused("without a host", &sign(w.parts().without("host")))
        .await;
    w.refused("without a nonce", &sign(w.parts().without("nonce")))
        .await;
    w.refused("nonce a number", &sign(w.parts().with("nonce", "7")))
        .await;
    w.refused("empty nonce", &sign(w.parts().with("nonce", "\"\"")))
        .await;
    let now = now_ms();
    for (what, stamp) in [
        ("a minute and more ahead", (now + 62_000).to_string()),
        ("years ahead", (now + 100_000_000_000).to_string()),
        ("five minutes old", (now - 301_000).to_string()),
        ("a text", quoted(&now.to_string())),
        ("a text that is no number", "\"soon\"".into()),
        ("null", "null".into()),
        ("a list", format!("[{now}]")),
        ("true", "true".into()),
        ("beyond all numbers", "1e999".into()),
        ("negative", "-1".into()),
    ] {
        w.refused(what, &sign(w.parts().with("timestamp", &stamp)))
            .await;
    }
    w.refused("without a time", &sign(w.parts().without("timestamp")))
        .await;
    w.refused("another secret", &w.parts().sign(&random_hex(32)))
        .await;
    let good = sign(w.parts());
    for (what, bad) in [
        ("cut", good[..good.len() - 4].to_owned()),
        ("grown", format!("{good}AAAA")),
        (
            "with white space",
            format!("{} {}", &good[..20], &good[20..]),
        ),
        ("too long", format!("{good}{}", "A".repeat(8200))),
        ("not base64", "%%%%".into()),
        ("a dot", good.replace('e', ".")),
    ] {
        w.refused(what, &bad).await;
    }
    // The other mainline's own token, claimed by the first and by itself.
    let foreign = w.other.token(&w.a.host);
    w.refused("of another peer", &foreign).await;
    assert_eq!(w.ping(&foreign, &other).await.status, 200);
    // A little ahead and nearly five minutes old are fine.
    let host = w.mainline.host();
    for stamp in [now_ms() + 50_000, now_ms() - 290_000] {
        let token = sign(w.parts().with("timestamp", &stamp.to_string()));
        assert_eq!(w.ping(&token, &host).await.status, 200, "{stamp}");
    }
    assert_eq!(w.a.events().len(), 0);
}

/// The token says nothing of the body, so the body may say nothing of the sender.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_does_not_change_who_sent_it() {
    let w = world(|s| s).await;
    let (host, other) = (w.mainline.host(), w.other.host());
    let good = w.parts().sign(&w.peer.secret);
    let headers = [
        ("x-federation-token", good.as_str()),
        ("x-federation-host", host.as_str()),
    ];
    let mut body: Value = serde_json::from_str(&message("relay_1", &other)).unwrap();
    body["host"] = json!(other);
    body["token"] = json!(w.other.token(&w.a.host));
    let path = format!("{BASE}/relay/push");
    let answer = post(w.to(), &path, &headers, &body.to_string())
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    let events = w.a.until_events(1, SOON).await;
    assert_eq!(events[0].payload["fromHost"], host.as_str());
    assert_eq!(events[0].header("Fed-Peer"), host);
    assert!(
        events[0].payload.get("token").is_none(),
        "a token on fed.in"
    );
    // The same id from the other peer is another message.
    let token = w.other.token(&w.a.host);
    assert_eq!(w.push(&token, &other, "relay_1").await.status, 200);
    let events = w.a.until_events(2, SOON).await;
    assert_eq!(events[1].header("Fed-Peer"), other);
    // Names of members that would reach into an object elsewhere.
    for key in ["__proto__", "constructor", "prototype"] {
        let token = w.mainline.token(&w.a.host);
        let headers = [
            ("x-federation-token", token.as_str()),
            ("x-federation-host", host.as_str()),
        ];
        let body = format!(
            "{{\"id\":\"relay_p\",\"type\":\"announcement\",\"payload\":{{\"{key}\":{{\"a\":1}}}}}}"
        );
        let answer = post(w.to(), &path, &headers, &body).await.unwrap();
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &json!("Invalid payload keys")),
            "{key}"
        );
    }
}

/// Nobody learns from an answer whether a host is a peer here, waits, was rejected or is unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_bounded_and_answers_do_not_tell_who_is_known() {
    let w = world(|s| {
        s.allow("*")
            .line("unproven_per_minute", "40")
            .line("handshakes_per_minute", "1000")
    })
    .await;
    for (host, path) in [
        ("waits.example", None),
        ("rejected.example", Some("reject")),
    ] {
        assert_eq!(handshake(w.to(), host, &random_hex(32)).await.status, 200);
        if let Some(path) = path {
            let id = w.a.id_of(host).await;
            w.a.moderate("POST", &format!("/peers/{id}/{path}"), None)
                .await;
        }
    }
    let known = w.mainline.host();
    let mut answers = BTreeSet::new();
    for host in [
        known.as_str(),
        "waits.example",
        "rejected.example",
        "unknown.example",
    ] {
        let bad = token(&random_hex(32), "peer_1", host, "\"X\"");
        let ping = w.ping(&bad, host).await;
        let push = w.push(&bad, host, "relay_1").await;
        let headers = [
            ("x-federation-token", bad.as_str()),
            ("x-federation-host", host),
        ];
        let servers = get(w.to(), &format!("{BASE}/servers"), &headers)
            .await
            .unwrap();
        for answer in [ping, push, servers] {
            let head: Vec<_> = answer
                .head
                .lines()
                .filter(|l| !l.to_lowercase().starts_with("date"))
                .collect();
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            answers.insert((head.join("\n"), body));
        }
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    let mut statuses = Vec::new();
    for _ in 0..80 {
        let bad = token(&random_hex(32), "peer_1", &known, "\"X\"");
        statuses.push(w.ping(&bad, &known).await.status);
    }
    assert!(
        statuses.iter().all(|s| [401, 429].contains(s)),
        "{statuses:?}"
    );
    let guesses = statuses.iter().filter(|s| **s == 401).count();
    assert!(guesses <= 40, "{guesses} guesses in a minute");
    assert_eq!(statuses.last(), Some(&429));
    // A stranger's guesses are nothing against the peer: its state stands.
    assert_eq!(w.a.peer(&known).await.unwrap()["status"], "connected");
}

async fn handshake(to: SocketAddr, host: &str, secret: &str) -> Answered {
    let body = json!({"name": "X", "host": host, "url": format!("https://{host}"),
                      "sharedSecret": secret, "features": {}, "autoAccept": true});
    let path = format!("{BASE}/handshake");
    post(to, &path, &[], &body.to_string()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_fills_nothing_and_hurts_nobody() {
    let w = world(|s| {
        s.allow("*")
            .line("max_pending", "5")
            .line("handshakes_per_minute", "25")
    })
    .await;
    let mut statuses = Vec::new();
    for n in 0..40 {
        let host = format!("stranger-{n}.example");
        statuses.push(handshake(w.to(), &host, &random_hex(32)).await.status);
    }
    assert_eq!(statuses.last(), Some(&429), "{statuses:?}");
    let peers = w.a.peers().await;
    let waiting = peers.iter().filter(|p| p["status"] == "pending").count();
    assert!((1..=5).contains(&waiting), "{waiting} strangers wait");
    // Whoever is accepted goes on.
    let host = w.mainline.host();
    let token = w.parts().sign(&w.peer.secret);
    assert_eq!(w.push(&token, &host, "relay_1").await.status, 200);
    assert_eq!(w.a.peer(&host).await.unwrap()["status"], "connected");
    // An operator still asks whom he likes.
    let (status, answer) =
        w.a.api(
            "POST",
            "/peers",
            Some(crate::support::volt_world::MODERATOR),
            Some(json!({"name": "N", "url": "https://new.example"})),
        )
        .await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_mebibytes_are_refused_on_every_route() {
    let w = world(|s| s).await;
    let big = format!("{{\"x\":\"{}\"}}", "y".repeat(10 * 1024 * 1024 + 1));
    for path in [
        "/handshake",
        "/ping",
        "/relay/push",
        "/relay/fetch",
        "/peers",
        "/invites/share",
    ] {
        let answer = post(w.to(), &format!("{BASE}{path}"), &[], &big).await;
        // Refused while it is still being sent: the answer may be lost with the connection.
        if let Ok(answer) = answer {
            assert_eq!(answer.status, 413, "{path}: {}", answer.text());
        }
    }
    let host = w.mainline.host();
    let token = w.parts().sign(&w.peer.secret);
    assert_eq!(w.push(&token, &host, "relay_1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_odd_are_refused_and_nothing_falls_over() {
    let w = world(|s| s).await;
    let host = w.mainline.host();
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    for body in [
        "",
        "{",
        "7",
        "\"text\"",
        "null",
        "[]",
        "{}",
        "{\"host\":7,\"token\":[]}",
        "{\"host\":{\"toString\":1},\"token\":null}",
        "\u{feff}{}",
        "{\"a\":1e999}",
        "{\"host\":\"x\",\"host\":\"y\"}",
        deep.as_str(),
        "\u{0}",
        "{\"token\":\"\\ud800\",\"host\":\"\\udc00\"}",
    ] {
        for path in [
            "/handshake",
            "/ping",
            "/relay/push",
            "/relay/fetch",
            "/member-joined",
        ] {
            let answer = post(w.to(), &format!("{BASE}{path}"), &[], body)
                .await
                .unwrap();
            assert!(
                (400..500).contains(&answer.status),
                "{path} {body:?}: {}",
                answer.text()
            );
            assert!(
                answer.json()["error"].is_string(),
                "{path} {body:?}: {}",
                answer.text()
            );
        }
    }
    // As many failures as these do not keep a proven peer out for good.
    let token = w.parts().sign(&w.peer.secret);
    let answer = w.push(&token, &host, "relay_1").await;
    assert!([200, 429].contains(&answer.status), "{}", answer.text());
}
