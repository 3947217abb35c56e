//! A broker, a bridge `alpha.test` and a peer, for one test.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::jetstream;

use crate::support::bridge::{self, Bridge, Broker};
use crate::support::sink::{self, Line, SinkOptions};
use crate::support::uam_client;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A peer served inside the test.
pub struct Peer {
    pub name: String,
    pub dir: PathBuf,
    pub pin: String,
    task: tokio::task::JoinHandle<()>,
}

impl Peer {
    /// Answers by `mode` (see [`sink::set_mode`]).
    pub async fn start(root: &Path, name: &str, mode: &str) -> Self {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        sink::set_mode(&dir, mode);
        let options = SinkOptions {
            address: bridge::free_address(),
            domain: name.to_owned(),
            trusts: "alpha.test".into(),
            dir: dir.clone(),
        };
        let pin = bridge::pin(name, options.address);
        let listener = tokio::net::TcpListener::bind(options.address)
            .await
            .expect("a listener");
        let task = tokio::spawn(async move {
            let _ = sink::serve(listener, options).await;
        });
        Self {
            name: name.to_owned(),
            dir,
            pin,
            task,
        }
    }

    /// Every time this message came.
    pub fn arrivals(&self, id: &str) -> Vec<Line> {
        let mut lines = sink::read_log(&self.dir);
        lines.retain(|l| l.what == "arrival" && l.id == id);
        lines
    }

    /// Waits until a message came.
    pub async fn gets(&self, id: &str) {
        within(&format!("{} gets {id}", self.name), async || {
            (!self.arrivals(id).is_empty()).then_some(())
        })
        .await;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks again and again until there is an answer.
pub async fn within<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A broker that runs, in a folder of its own.
pub async fn broker(dir: &Path) -> Broker {
    let cache = drawbridge::bus::find::default_cache_dir();
    let binary = drawbridge::bus::find::server_binary(None, &cache)
        .await
        .expect("a nats-server");
    let mut broker = Broker::new(binary, &dir.join("broker"));
    broker.start().await;
    broker
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub broker: Broker,
    pub bridge: Bridge,
    pub nats: async_nats::Client,
    pub js: jetstream::Context,
}

impl World {
    /// The bridge is configured but not started: `uam` are further keys of `[uam]`, `tables` whole
    /// tables.
    pub async fn new(uam: &str, tables: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let broker = broker(dir.path()).await;
        let bridge = Bridge::new(
            &dir.path().join("bridge"),
            "alpha.test",
            Some(&broker.url()),
            uam,
            tables,
        );
        let nats = bridge::connect(&broker.url()).await;
        let js = jetstream::new(nats.clone());
        Self {
            dir,
            broker,
            bridge,
            nats,
            js,
        }
    }

    /// Publishes one message to an agent at `domain`; answers its id.
    pub async fn publish(&self, domain: &str, headers: &[(&str, &str)]) -> String {
        let id = uam_client::message_id();
        let to = format!("bob::{domain}");
        let envelope = uam_client::envelope(&id, "alice::alpha.test", &to, "hello");
        let mut map = async_nats::HeaderMap::new();
        map.insert("Nats-Msg-Id", id.as_str());
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let subject = format!("fed.out.uam.{}.message", domain.replace('.', "_"));
        self.js
            .publish_with_headers(subject, map, envelope.to_string().into())
            .await
            .expect("published")
            .await
            .expect("acknowledged");
        id
    }

    /// The configuration file with `change` made to its text.
    pub fn rewrite(&self, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.bridge.config()).expect("the configuration");
        std::fs::write(self.bridge.config(), change(text)).expect("the configuration");
    }

    /// Waits for a line of the bridge's log that holds `text`.
    pub async fn logs(&self, text: &str) -> String {
        let what = format!("a log line with {text:?}");
        within(&what, async || {
            let log = self.bridge.log();
            log.lines().find(|l| l.contains(text)).map(str::to_owned)
        })
        .await
    }

    /// `/readyz`: status and body.
    pub async fn readiness(&self) -> Option<(u16, serde_json::Value)> {
        let url = format!("{}/readyz", self.bridge.admin_url());
        let answer = bridge::client().get(url).send().await.ok()?;
        let status = answer.status().as_u16();
        let body = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        Some((status, body))
    }
}
