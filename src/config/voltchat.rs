//! `[voltchat]`, validated: what the protocol is started with.

use std::path::PathBuf;
use std::time::Duration;

use super::Secret;

/// `[voltchat]`
#[derive(Clone, Debug)]
pub struct VoltChatConfig {
    /// False: the protocol answers, but every exchange is refused with `Federation is not enabled`.
    pub enabled: bool,
    /// Our public origin, `https://bridge.example.org`, without a slash at its end. `None`: the
    /// protocol is not set up.
    pub url: Option<String>,
    /// What peers are shown as our name; 1 to 140 UTF-16 units.
    pub name: String,
    /// Which hosts may be peers, as they were written. Empty: strangers may ask, and only an operator
    /// connects them.
    pub allowed_servers: Vec<String>,
    /// An event that has come this many hops is not sent on.
    pub max_hops: u32,
    /// Who may use the administrative routes.
    pub operators: Vec<Operator>,
    /// The file whose key seals peers' secrets in the store.
    pub key_path: PathBuf,
    /// Delays after the 1st, 2nd, ... failed push.
    pub retry_delays: Vec<Duration>,
    /// Between two rounds of ping and fetch with a peer.
    pub sync_interval: Duration,
    /// Peers that a round speaks to at once.
    pub sync_at_once: usize,
    /// Messages handed out in one fetch that were in none before, 1 to 200.
    pub fetch_batch: usize,
    /// Between the two fetches that a message is handed out in, at least.
    pub handout_gap: Duration,
    /// Messages that may wait for one peer's fetches.
    pub mailbox_max_messages: u64,
    /// How long a message may wait for a fetch.
    pub mailbox_max_age: Duration,
    /// Strangers that may wait for an operator at once.
    pub max_pending: usize,
    /// Requests a minute of one proven peer.
    pub peer_rate_limit: u32,
    /// Failed credentials a minute of one client address.
    pub unproven_per_minute: u32,
    /// Handshakes a minute of one client address.
    pub handshakes_per_minute: u32,
    /// How long a backend has to answer on `fed.ask`.
    pub backend_timeout: Duration,
}

/// Somebody who may use the administrative routes with a bearer token.
#[derive(Clone, Debug)]
pub struct Operator {
    /// Whom the log and `fed.ops` name.
    pub name: String,
    pub role: OperatorRole,
    pub token: Secret,
}

/// What an operator may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperatorRole {
    /// Reads peers.
    Reader,
    /// Peers, relays and shares invites.
    Moderator,
    /// The same as a moderator: the specification's "admin".
    Admin,
}

impl OperatorRole {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Moderator => "moderator",
            Self::Admin => "admin",
        }
    }

    /// Whether changes are allowed.
    pub fn moderates(self) -> bool {
        self >= Self::Moderator
    }
}

impl VoltChatConfig {
    /// Our public origin when the protocol is set up.
    pub fn running(&self) -> Option<&str> {
        self.url.as_deref()
    }
}
