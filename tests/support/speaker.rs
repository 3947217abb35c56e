//! A protocol that has keys and nothing else, for what asks protocols about their keys. The answers are
//! the real ones of UAM, over real key files.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use drawbridge::identity::KeyText;
use drawbridge::identity::ring::Keyring;
use drawbridge::protocol::{
    Answer, Judgement, OutEvent, OwnKey, PeerName, PeerRecord, Protocol, ProtocolId, Refusal,
    Request, Rotation, Schedule, Sealed, Targets, TransportError, Try,
};
use drawbridge::protocols::uam::{ID, keys, rotation};
use futures_util::future::BoxFuture;

const OVERLAP: Duration = Duration::from_secs(3600);

/// The protocol; its key files lie in a folder of its own.
pub struct Speaker {
    path: PathBuf,
    schedule: Schedule,
    _dir: tempfile::TempDir,
}

impl Speaker {
    /// With a fresh key.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("relay_key.pem");
        Keyring::open(&path, KeyText::Base64, OVERLAP, 0).expect("a key");
        Self {
            path,
            schedule: Schedule { delays: Vec::new() },
            _dir: dir,
        }
    }

    fn ring(&self) -> Keyring {
        Keyring::read(&self.path, OVERLAP, 0)
            .expect("readable")
            .expect("there")
    }
}

fn no<T>() -> Result<T, Refusal> {
    Err(Refusal::new("no_such_thing", "it only has keys"))
}

impl Protocol for Speaker {
    fn id(&self) -> ProtocolId {
        ID
    }
    fn enabled(&self) -> bool {
        false
    }
    fn max_body(&self) -> usize {
        0
    }
    fn targets(&self, _: &OutEvent) -> Result<Targets, Refusal> {
        no()
    }
    fn seal(&self, _: &OutEvent, _: Option<&str>) -> Result<Sealed, Refusal> {
        no()
    }
    fn dress(&self, _: &Sealed, _: &PeerRecord, _: &Try) -> Result<Request, Refusal> {
        no()
    }
    fn judge(&self, _: Result<&Answer, &TransportError>, _: &PeerRecord, _: &Try) -> Judgement {
        unreachable!("nothing is sent")
    }
    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
    fn discover<'a>(
        &'a self,
        _: &'a PeerName,
    ) -> BoxFuture<'a, Result<PeerRecord, TransportError>> {
        unreachable!("nobody is looked for")
    }
    fn routes(self: std::sync::Arc<Self>) -> axum::Router {
        axum::Router::new()
    }
    fn call<'a>(
        &'a self,
        method: &'a str,
        body: Bytes,
    ) -> BoxFuture<'a, Result<serde_json::Value, Refusal>> {
        let refuse = |code| Err(Refusal::new(code, "as the test wants it"));
        Box::pin(std::future::ready(match method {
            "echo" => Ok(serde_json::from_slice(&body).expect("JSON")),
            "bad" => refuse("bad_request"),
            "missing" => refuse("no_such_peer"),
            "away" => refuse("store_unavailable"),
            "busy" => refuse("peer_exists"),
            _ => refuse("unknown_method"),
        }))
    }

    fn keys(&self) -> Vec<OwnKey> {
        keys::list(&self.ring(), "alpha.com")
    }

    fn rotate(&self, wanted: Rotation) -> BoxFuture<'_, Result<serde_json::Value, Refusal>> {
        keys::turn(&self.path, wanted, 0).expect("the files can be changed");
        let peer = PeerRecord {
            protocol: ID,
            name: PeerName::parse("beta.com").expect("a name"),
            endpoint: "https://beta.com/x".into(),
            alternatives: Vec::new(),
            public_key: None,
            discovered_via: "well-known".into(),
            last_verified_ms: 0,
            ttl_ms: None,
            facts: serde_json::Map::new(),
        };
        let report = rotation::report(
            &rotation::Facts {
                domain: "alpha.com",
                ring: &self.ring(),
                overlap: OVERLAP,
                peers: &[(std::sync::Arc::new(peer), false)],
                own_page: Some("it shows the active key"),
                now: 0,
            },
            wanted,
        );
        Box::pin(std::future::ready(Ok(report)))
    }
}
