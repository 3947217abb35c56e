//! `drawbridge probe voltchat` and `drawbridge verify voltchat`, by the binary, with a ledger beside
//! them as a bridge leaves it: every fault has its step and its sentence.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{StatusCode, Uri};
use drawbridge::clock::Clock;
use drawbridge::identity::hmac::SharedSecret;
use drawbridge::identity::vault::Vault;
use drawbridge::protocol::{PeerName, Record};
use drawbridge::protocols::voltchat::record::{Direction, Peer, Status};
use drawbridge::protocols::voltchat::token::{self, Sender};
use drawbridge::protocols::voltchat::{ID, book};
use drawbridge::store::Store;
use serde_json::{Map, Value, json};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A configuration and a ledger, nothing that runs.
struct Desk {
    dir: tempfile::TempDir,
    config: PathBuf,
    clock: Clock,
}

/// What the command printed and how it ended.
#[derive(Debug)]
struct Said {
    lines: Vec<Value>,
    success: bool,
}

impl Said {
    fn step(&self, name: &str) -> (Option<bool>, &str) {
        let step = self.lines.iter().find(|s| s["name"] == name);
        let step = step.unwrap_or_else(|| panic!("no step {name}: {self:#?}"));
        (
            step["ok"].as_bool(),
            step["detail"].as_str().unwrap_or_default(),
        )
    }

    fn fault(&self) -> &str {
        let end = self.lines.last().expect("an end");
        end["fault"]["code"].as_str().unwrap_or("none")
    }
}

impl Desk {
    fn new(host: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("d.toml");
        let text = format!(
            "data_dir = {:?}\n[http]\nplain_hosts = [{host:?}]\nallow_hosts = [{host:?}]\n\
             [voltchat]\nurl = \"https://bridge.example.org\"\nallowed_servers = [{host:?}]\n",
            dir.path()
        );
        std::fs::write(&config, text).unwrap();
        Self {
            dir,
            config,
            clock: Clock::system(),
        }
    }

    /// Keeps a peer as the bridge does.
    async fn keep(&self, host: &str, status: Status) {
        let vault = Vault::open_file(&self.dir.path().join("voltchat.key")).unwrap();
        let peer = Peer {
            id: "peer_1".into(),
            name: "Chat".into(),
            host: PeerName::parse(host).unwrap(),
            url: format!("http://{host}"),
            secret: SharedSecret::new(SECRET).unwrap(),
            status,
            direction: Direction::Incoming,
            features: Map::new(),
            last_seen_ms: None,
            last_synced_ms: None,
            last_error: None,
            remote_peer_id: None,
            created_ms: 0,
            updated_ms: 0,
            candidates: Vec::new(),
            resend: false,
            refused_secret_ms: None,
        };
        let file = self.dir.path().join("drawbridge.db");
        let store = Store::open(&file, self.clock.clone()).await.unwrap();
        let row = Record {
            kind: book::KIND,
            key: host.to_owned(),
            value: Some(peer.to_kept(&vault).unwrap()),
        };
        let commit = store.put_records(ID, vec![row]).await.unwrap();
        commit.await.unwrap();
        store.close().await;
    }

    async fn run(&self, args: &[&str]) -> Said {
        let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
            .args(args)
            .args(["--json", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(!text.contains(SECRET), "a secret is shown: {text}");
        let lines = text.lines().map(|l| serde_json::from_str(l).expect("JSON"));
        let said = Said {
            lines: lines.collect(),
            success: out.status.success(),
        };
        assert!(
            !said.lines.is_empty(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        said
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("request.http");
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn verify(&self, request: &Path) -> Said {
        let request = request.to_str().unwrap();
        self.run(&["verify", "voltchat", "--at", "now", "--request", request])
            .await
    }
}

/// A server that answers its ping with this status, and pushes as mainlines do; which paths it saw.
async fn server(ping: u16) -> (String, Arc<Mutex<Vec<String>>>) {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&seen);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let own = host.clone();
    let app = Router::new().fallback(move |uri: Uri| {
        let path = uri.path().to_owned();
        heard.lock().unwrap().push(path.clone());
        let (status, body) = match path.as_str() {
            "/api/federation/info" => (200, json!({"name": "Volt", "host": own})),
            "/api/federation/ping" => (
                ping,
                json!({"error": "Missing or invalid federation credentials"}),
            ),
            "/api/federation/relay/push" => (401, json!({"error": "Access token required"})),
            _ => (404, json!({})),
        };
        let status = StatusCode::from_u16(status).unwrap();
        std::future::ready((status, body.to_string()))
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    (host, seen)
}

#[tokio::test]
async fn a_mainline_that_only_fetches_has_no_fault() {
    let (host, _) = server(200).await;
    let desk = Desk::new(&host);
    desk.keep(&host, Status::Connected).await;
    let said = desk.run(&["probe", "voltchat", &host]).await;
    assert!(said.success && said.fault() == "none", "{said:#?}");
    assert_eq!(said.step("ping").0, Some(true));
    let (ok, detail) = said.step("push");
    assert!(
        ok.is_none() && detail.contains("this is no fault"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_peer_that_has_forgotten_us_is_the_fault() {
    let (host, _) = server(401).await;
    let desk = Desk::new(&host);
    desk.keep(&host, Status::Error).await;
    let said = desk.run(&["probe", "voltchat", &host]).await;
    assert!(!said.success && said.fault() == "forgotten", "{said:#?}");
    assert!(said.step("ping").1.contains("peers add --again"));
}

#[tokio::test]
async fn who_waits_for_our_operator_is_not_pinged_by_a_probe() {
    let (host, seen) = server(200).await;
    let desk = Desk::new(&host);
    desk.keep(&host, Status::Pending).await;
    let said = desk.run(&["probe", "voltchat", &host]).await;
    assert!(!said.success && said.fault() == "waits_for_us", "{said:#?}");
    assert_eq!(*seen.lock().unwrap(), ["/api/federation/info"]);
}

#[tokio::test]
async fn without_a_peering_or_a_way_the_probe_says_so() {
    let (host, _) = server(200).await;
    let desk = Desk::new(&host);
    let said = desk.run(&["probe", "voltchat", &host]).await;
    assert!(
        said.success && said.step("peering").1.contains("peers add"),
        "{said:#?}"
    );
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let said = Desk::new(&host).run(&["probe", "voltchat", &host]).await;
    assert!(!said.success && said.fault() == "connect", "{said:#?}");
}

#[tokio::test]
async fn a_saved_request_is_judged_under_the_secret_of_the_ledger() {
    let host = "127.0.0.1:9";
    let desk = Desk::new(host);
    desk.keep(host, Status::Connected).await;
    let from = Sender {
        peer_id: "peer_2",
        host,
        name: "Chat",
    };
    let secret = SharedSecret::new(SECRET).unwrap();
    let token = token::make(&secret, &from, desk.clock.now_ms(), "00ff");
    let request = desk.file(&format!(
        "POST /api/federation/ping HTTP/1.1\r\ncontent-type: application/json\r\n\r\n\
         {{\"host\":\"{host}\",\"token\":\"{token}\"}}"
    ));
    let said = desk.verify(&request).await;
    assert!(said.success, "{said:#?}");
    assert_eq!(said.step("peering").0, Some(true));
    let other = SharedSecret::new("another secret, long enough").unwrap();
    let token = token::make(&other, &from, desk.clock.now_ms(), "00ff");
    let said = desk.verify(&desk.file(&token)).await;
    assert!(
        !said.success && said.step("signature").0 == Some(false),
        "{said:#?}"
    );
}
