//! The shapes of the configuration, validated: what every room reads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::StoreConfig;
pub use super::given::Given;
pub use super::nats::{DurabilityPolicy, ManagedConfig, NatsConfig, NatsLogin, NatsTls};
pub use super::paracord::ParacordConfig;
pub use super::secret::{Secret, SecretFrom};
pub use super::voltchat::{Operator, OperatorRole, VoltChatConfig};

/// Everything, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where keys, the database and the managed NATS server's files live. Relative paths elsewhere
    /// were joined to it.
    pub data_dir: PathBuf,
    pub nats: NatsConfig,
    pub store: StoreConfig,
    pub http: HttpConfig,
    pub public: ListenConfig,
    pub admin: ListenConfig,
    pub admin_access: AdminAccess,
    pub outbound: OutboundConfig,
    pub log: LogConfig,
    /// Each delivered or accepted message its own operator event, instead of sums.
    pub ops_single: bool,
    pub uam: UamConfig,
    pub voltchat: VoltChatConfig,
    pub paracord: ParacordConfig,
    pub peers: Vec<Arc<PeerPin>>,
    /// What was written, for telling one reading from another.
    pub given: Given,
}

/// What to do about stream definitions at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamPolicy {
    Ensure,
    Verify,
    Off,
}

/// `[http]`: outgoing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    pub connect_timeout: Duration,
    pub timeout: Duration,
    pub max_answer_bytes: usize,
    /// PEM files with extra roots.
    pub extra_roots: Vec<PathBuf>,
    /// CIDRs that the SSRF guard lets through besides public addresses.
    pub allow_cidrs: Vec<ipnet::IpNet>,
    /// Hosts (name or literal, optionally `:port`) that may resolve anywhere.
    pub allow_hosts: Vec<String>,
    /// Hosts that may be spoken to without TLS.
    pub plain_hosts: Vec<String>,
    /// `IP:port`; empty: the system's.
    pub dns_servers: Vec<SocketAddr>,
    /// host → addresses, asked before DNS (like a hosts file).
    pub hosts: Vec<(String, Vec<std::net::IpAddr>)>,
    /// Look SRV records up at all.
    pub srv: bool,
    /// Connections kept open to one host when idle, of each pool.
    pub idle_per_host: usize,
}

/// `[public]`, `[admin]`: a listener.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    pub address: SocketAddr,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub max_body_bytes: usize,
    pub max_header_bytes: usize,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub request_timeout: Duration,
    pub idle_timeout: Duration,
    pub drain_timeout: Duration,
    pub trusted_proxies: Vec<ipnet::IpNet>,
}

/// `[admin]`: who may ask, and how the command line reaches it.
#[derive(Clone, Debug)]
pub struct AdminAccess {
    /// The bearer token of `/api/v1`. `None` only on a loopback address: one is made in the data
    /// directory then.
    pub token: Option<Secret>,
    pub metrics: MetricsAccess,
    /// Base URL for the command line; `None`: made from the address.
    pub url: Option<String>,
}

/// Who may read `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAccess {
    /// Everybody on a loopback address, else whoever has the token.
    Auto,
    Open,
    Token,
}

/// `[outbound]`
#[derive(Clone, Debug)]
pub struct OutboundConfig {
    /// Threads; 0: one a core, at most 8.
    pub shards: usize,
    /// Attempts in flight to one peer at most.
    pub peer_window: usize,
    /// Attempts in flight in all.
    pub global_window: usize,
    /// Items of a lane kept in memory.
    pub lane_head: usize,
    pub breaker_threshold: u32,
    pub breaker_initial: Duration,
    pub breaker_max: Duration,
    /// Pause after a 429 without `Retry-After`.
    pub throttle_pause: Duration,
    /// Share of a delay added at random at most (0.1 = 10 %).
    pub jitter: f64,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogConfig {
    pub level: String,
    pub json: bool,
}

/// `[uam]`
#[derive(Clone, Debug)]
pub struct UamConfig {
    /// The protocol runs when a domain is set and this is true.
    pub enabled: bool,
    pub domain: Option<String>,
    /// Public base URL, `https://relay.example.org`.
    pub http_url: Option<String>,
    pub key_path: PathBuf,
    /// How long the replaced key serves peers that have not noticed a rotation.
    pub key_overlap: Duration,
    pub max_hops: i64,
    pub relay_rate_limit: u32,
    pub timestamp_max_age: Duration,
    pub discovery_ttl: Duration,
    pub admin_api_key: Option<Secret>,
    pub retry_delays: Vec<Duration>,
    /// The document's literal rule: unproven failures cost the named relay its score.
    pub charge_unproven: bool,
    /// Unproven failures one client address may cause a minute.
    pub unproven_per_minute: u32,
    /// Allow discovery of peers not pinned (false: only `[[peers]]`).
    pub discovery: bool,
    /// Wire forms taken from other relays.
    pub wire_forms: WireForms,
}

/// Wire forms of UAM: with the signed field `nonce` (relays of 1.0) and without (0.2, 0.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireForms {
    Both,
    Legacy,
    Nonce,
}

/// `[[peers]]`: what is pinned for one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPin {
    pub protocol: String,
    pub name: String,
    /// Base URL, `https://relay.beta.com` (the protocol appends its own path).
    pub endpoint: Option<String>,
    /// Its key, as the protocol writes keys: base64, or 64 hex digits.
    pub public_key: Option<String>,
    /// Paracord: the only id under which that key counts; `None`: any.
    pub key_id: Option<String>,
    /// Paracord: what stands behind the colon in its ids; `None`: what it says itself.
    pub domain: Option<String>,
    /// `_all` reaches it.
    pub accepted: bool,
}

impl UamConfig {
    /// Our domain when the protocol is to run: enabled, and a domain is set.
    pub fn running(&self) -> Option<&str> {
        self.domain.as_deref().filter(|_| self.enabled)
    }
}

/// The user's cache directory for Drawbridge: `$XDG_CACHE_HOME/drawbridge`, else
/// `~/.cache/drawbridge`, else a directory for temporary files.
pub(super) fn default_cache_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("drawbridge")
}
