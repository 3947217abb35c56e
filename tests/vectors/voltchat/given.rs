//! What the world is like before a request, as a case says it.

use std::collections::BTreeMap;

use drawbridge::protocols::voltchat::record::{Direction, Status};
use serde::Deserialize;
use serde_json::{Map, Value};

/// What the world is like before the request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Given {
    #[serde(rename = "now_ms")]
    pub now_ms: i64,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(rename = "self", default)]
    pub own: Own,
    #[serde(default)]
    pub allowed_servers: Vec<String>,
    #[serde(default)]
    pub peers: Vec<GivenPeer>,
    /// Bearer → role.
    #[serde(default)]
    pub operators: BTreeMap<String, String>,
    /// Our own, in the order of sharing.
    #[serde(default)]
    pub invites: Vec<GivenInvite>,
    /// Messages that wait for the first peer.
    #[serde(default)]
    pub queue: Vec<Value>,
    #[serde(rename = "seen_relay_ids", default)]
    pub seen_relay_ids: Vec<SeenId>,
    #[serde(rename = "secret_sent")]
    pub secret_sent: Option<String>,
    /// What the peer answers, by the last part of the path.
    #[serde(default)]
    pub remote: BTreeMap<String, Remote>,
}

fn yes() -> bool {
    true
}

/// Who we are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Own {
    pub url: String,
    pub name: String,
}

impl Default for Own {
    fn default() -> Self {
        Self {
            url: "https://volt-a.example".into(),
            name: "Volt A".into(),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GivenPeer {
    pub id: String,
    pub name: String,
    pub host: String,
    pub url: String,
    pub status: Status,
    pub direction: Direction,
    #[serde(default)]
    pub features: Map<String, Value>,
    pub secret: String,
    pub last_seen: Option<String>,
    pub remote_peer_id: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GivenInvite {
    pub id: String,
    pub code: String,
    pub server_id: String,
    pub server_name: Option<String>,
    pub target_peer_id: Option<String>,
    #[serde(default)]
    pub max_uses: u64,
    #[serde(default)]
    pub uses: u64,
    pub expires_at: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenId {
    pub host: String,
    pub id: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    pub status: u16,
    pub body: Option<Value>,
}

impl Given {
    /// A bridge that knows nobody and lets these hosts ask.
    pub fn empty(now_ms: i64, allowed_servers: Vec<String>) -> Self {
        Self {
            now_ms,
            enabled: true,
            own: Own::default(),
            allowed_servers,
            peers: Vec::new(),
            operators: BTreeMap::new(),
            invites: Vec::new(),
            queue: Vec::new(),
            seen_relay_ids: Vec::new(),
            secret_sent: None,
            remote: BTreeMap::new(),
        }
    }

    /// Words for bearers and the tokens they stand for.
    pub fn bearers(&self) -> Vec<(String, String)> {
        let words = self.operators.keys().enumerate();
        words
            .map(|(n, word)| (word.clone(), format!("bearer-of-operator-{n}")))
            .collect()
    }
}
