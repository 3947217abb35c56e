//! `drawbridge peers` of protocols whose peerings a person decides, by the binary, against an admin API
//! that answers as told: what an operator sees before accepting, and what is asked of the bridge.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use serde_json::{Value, json};

const TOKEN: &str = "a-token-of-these-tests-alone";

/// An admin API of canned answers.
struct Bridge {
    _dir: tempfile::TempDir,
    config: std::path::PathBuf,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

fn peer(status: &str, error: Option<&str>) -> Value {
    json!({
        "id": "peer_1", "name": "Chat \u{1b}[2J", "host": "chat.example.org",
        "url": "https://chat.example.org", "status": "pending", "state": status,
        "direction": "incoming", "features": {}, "lastSeen": "2027-01-15T07:59:30.000Z",
        "lastError": error,
    })
}

fn reply(path: &str, accepted: &Value) -> (StatusCode, Value) {
    let call = path.strip_prefix("/api/v1/protocols/voltchat/call/");
    let result = match call {
        Some("peer.list") => json!([peer("pending", None)]),
        Some("peer.get" | "peer.reject" | "peer.remove" | "peer.handshake") => {
            peer("pending", None)
        }
        Some("peer.inspect") => json!({
            "peer": peer("pending", None),
            "info": {"name": "Volt", "host": "other.example.org"},
            "warnings": ["what answers there calls itself other.example.org"],
        }),
        Some("peer.accept" | "peer.request") => accepted.clone(),
        Some(_) => {
            return (
                StatusCode::NOT_FOUND,
                json!({"error": "unknown_method", "detail": "?"}),
            );
        }
        None if path == "/api/v1/peers" => {
            let row = json!({"protocol": "uam", "name": "beta.com", "endpoint": "https://beta.com",
                "standing": "ordinary", "pending": 0, "dead": 0, "pin": null, "state": "idle"});
            let body = json!({"now_ms": 1_800_000_000_000_i64, "peers": [row], "next": null});
            return (StatusCode::OK, body);
        }
        None => {
            return (
                StatusCode::NOT_FOUND,
                json!({"error": "no_such_peer", "detail": "no such peer"}),
            );
        }
    };
    (StatusCode::OK, json!({"result": result}))
}

impl Bridge {
    async fn new(accepted: Value) -> Self {
        let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let heard = Arc::clone(&asked);
        let app = Router::new().fallback(move |method: Method, uri: Uri, body: Bytes| {
            let (heard, accepted) = (Arc::clone(&heard), accepted.clone());
            async move {
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let what = format!("{method} {}", uri.path());
                heard.lock().unwrap().push((what, body));
                let (status, answer) = reply(uri.path(), &accepted);
                (status, answer.to_string())
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("d.toml");
        let text = format!(
            "[admin]\naddress = \"{}\"\ntoken = \"{TOKEN}\"\n",
            listener.local_addr().unwrap()
        );
        std::fs::write(&config, text).unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            _dir: dir,
            config,
            asked,
        }
    }

    /// Runs the command without a terminal: success, what it said, what it complained of.
    async fn run(&self, args: &[&str]) -> (bool, String, String) {
        let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
            .arg("peers")
            .args(args)
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.success(), text(&out.stdout), text(&out.stderr))
    }

    fn asked(&self, method: &str) -> Vec<Value> {
        let path = format!("POST /api/v1/protocols/voltchat/call/{method}");
        let asked = self.asked.lock().unwrap();
        let these = asked.iter().filter(|(what, _)| *what == path);
        these.map(|(_, body)| body.clone()).collect()
    }
}

#[tokio::test]
async fn before_a_peer_is_accepted_its_operator_sees_who_asks_and_what_stands_there() {
    let b = Bridge::new(peer("connected", None)).await;
    let (ok, said, complaint) = b.run(&["accept", "chat.example.org"]).await;
    assert!(!ok && complaint.contains("--yes"), "{complaint}");
    for part in [
        "url         https://chat.example.org",
        "name        Chat  [2J",
        "peering     pending (it asked)",
        "name = Volt",
        "WARNING: what answers there calls itself other.example.org",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(b.asked("peer.accept").is_empty(), "nobody said yes");
    let (ok, said, _) = b
        .run(&["accept", "voltchat", "chat.example.org", "--yes"])
        .await;
    assert!(
        ok && said.contains("chat.example.org is connected."),
        "{said}"
    );
    assert_eq!(
        b.asked("peer.accept"),
        [json!({"peer": "chat.example.org"})]
    );
}

#[tokio::test]
async fn a_peer_that_was_accepted_but_does_not_answer_is_said() {
    let b = Bridge::new(peer("error", Some("it answered 401"))).await;
    let (ok, said, _) = b.run(&["accept", "chat.example.org", "--yes"]).await;
    assert!(
        ok && said.contains("is accepted, but our ping failed"),
        "{said}"
    );
    assert!(said.contains("it answered 401") && said.contains("drawbridge probe voltchat"));
}

#[tokio::test]
async fn asking_a_peer_names_it_and_says_what_came_of_it() {
    let b = Bridge::new(peer("requested", None)).await;
    let (ok, said, _) = b
        .run(&[
            "add",
            "voltchat",
            "chat.example.org",
            "--url",
            "https://chat.example.org",
        ])
        .await;
    assert!(ok && said.contains("chat.example.org was asked"), "{said}");
    assert_eq!(
        b.asked("peer.request"),
        [
            json!({"name": "chat.example.org", "host": "chat.example.org",
            "url": "https://chat.example.org"})
        ]
    );
    let b = Bridge::new(peer("requested", Some("nobody listens there"))).await;
    let (ok, said, _) = b.run(&["add", "chat.example.org", "--name", "Chat"]).await;
    assert!(!ok && said.contains("nobody listens there"), "{said}");
    let (ok, _, complaint) = b.run(&["add", "uam", "beta.com"]).await;
    assert!(
        !ok && complaint.contains("that is for voltchat"),
        "{complaint}"
    );
}

#[tokio::test]
async fn the_list_shows_lanes_and_peerings_together() {
    let b = Bridge::new(Value::Null).await;
    let (ok, said, complaint) = b.run(&["list"]).await;
    assert!(ok, "{complaint}");
    let row = |name: &str| said.lines().find(|l| l.contains(name)).unwrap_or_default();
    assert!(row("beta.com").contains("uam"), "{said}");
    let chat = row("chat.example.org");
    for part in ["voltchat", "pending", "incoming", "30 s"] {
        assert!(chat.contains(part), "{part}: {said}");
    }
    let (ok, said, _) = b.run(&["list", "--json", "--protocol", "voltchat"]).await;
    assert!(ok && said.contains("\"peering\""), "{said}");
}

#[tokio::test]
async fn a_peering_without_a_lane_is_shown_all_the_same() {
    let b = Bridge::new(Value::Null).await;
    let (ok, said, complaint) = b.run(&["show", "Chat.example.org"]).await;
    assert!(ok, "{complaint}");
    assert!(said.starts_with("chat.example.org over voltchat"), "{said}");
    assert!(
        said.contains("last seen   2027-01-15T07:59:30.000Z"),
        "{said}"
    );
}

#[tokio::test]
async fn rejecting_and_removing_say_that_nobody_is_told() {
    let b = Bridge::new(Value::Null).await;
    for (verb, method, done) in [
        ("reject", "peer.reject", "is rejected"),
        ("remove", "peer.remove", "is removed"),
    ] {
        let (ok, said, _) = b.run(&[verb, "chat.example.org"]).await;
        assert!(
            ok && said.contains(done) && said.contains("not told"),
            "{said}"
        );
        assert_eq!(b.asked(method), [json!({"peer": "chat.example.org"})]);
    }
}
