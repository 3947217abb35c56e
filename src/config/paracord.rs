//! `[paracord]`, validated: what the protocol is started with.

use std::path::PathBuf;
use std::time::Duration;

use super::Secret;

/// `[paracord]`
#[derive(Clone, Debug)]
pub struct ParacordConfig {
    /// False: every request that needs trust is refused, and the discovery page says so.
    pub enabled: bool,
    /// Our name among servers: a lower-case host name, optionally with a port. `None`: the protocol
    /// is not set up.
    pub server_name: Option<String>,
    /// The name space of our users, rooms and events; our server name if not given.
    pub domain: Option<String>,
    /// Our public base URL; `None`: `https://SERVER_NAME`.
    pub url: Option<String>,
    /// Our Ed25519 signing key.
    pub key_path: PathBuf,
    /// The id of our first key; `None`: one made from the key itself.
    pub key_id: Option<String>,
    /// How long a replaced key stays published.
    pub key_overlap: Duration,
    /// A server that we look up by its name is trusted at once.
    pub auto_trust: bool,
    /// Guilds that others may be invited to, join and leave, besides the rooms put by a backend.
    pub allowed_guild_ids: Vec<i64>,
    /// Lets anybody who shows it read rooms and events.
    pub read_token: Option<Secret>,
    /// Events a minute taken from one server; 0: any number.
    pub max_events_per_peer_per_minute: u32,
    /// New users an hour that one server may make join; 0: any number.
    pub max_user_creates_per_peer_per_hour: u32,
    /// Events a minute sent to a server whose answers do not say how many it takes; 0: any number.
    pub push_per_minute: u32,
    /// Delays after the 1st, 2nd, … failed push.
    pub retry_delays: Vec<Duration>,
    /// Between two rounds of polling one server.
    pub poll_interval: Duration,
    /// Servers polled at once.
    pub poll_at_once: usize,
    /// Events asked for in one page, 1 to 1000.
    pub poll_page: usize,
    /// How often the keys of a server are fetched again.
    pub keys_refresh: Duration,
    /// Proven requests with bad events within `quarantine_within` that put a server under
    /// quarantine; 0: never.
    pub quarantine_after: u32,
    pub quarantine_within: Duration,
    /// How long such a quarantine lasts.
    pub quarantine_for: Duration,
    /// How long the bodies of events are kept for readers; `None`: for ever.
    pub keep_bodies: Option<Duration>,
    /// Requests a minute without a valid signature that one client address may send.
    pub unproven_per_minute: u32,
    /// How long a backend has to answer on `fed.ask`.
    pub backend_timeout: Duration,
}

impl ParacordConfig {
    /// Our name when the protocol is set up.
    pub fn running(&self) -> Option<&str> {
        self.server_name.as_deref()
    }
}
