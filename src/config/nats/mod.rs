//! `[nats]`: how the broker is reached, who we are to it, what is asked of it.

mod read;

use std::path::PathBuf;
use std::time::Duration;

use super::model::StreamPolicy;
use super::secret::SecretFrom;

pub(super) use read::nats;

/// `[nats]`
#[derive(Clone)]
pub struct NatsConfig {
    /// Addresses with commas between; None: managed server. May hold a password: not shown by
    /// `Debug`.
    pub url: Option<String>,
    /// First token of every subject.
    pub prefix: String,
    /// Who we are to the broker; `None`: what the URL says, if anything.
    pub login: NatsLogin,
    pub tls: NatsTls,
    /// JetStream domain (`$JS.<domain>.API`).
    pub jetstream_domain: Option<String>,
    /// JetStream API prefix in place of `$JS.API`; not together with a domain.
    pub jetstream_api_prefix: Option<String>,
    /// First tokens of the subjects that answers come to.
    pub inbox_prefix: String,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    /// ensure | verify | off
    pub streams: StreamPolicy,
    pub partitions: u8,
    /// Servers of a cluster that keep each stream that the bridge makes.
    pub replicas: u8,
    /// Messages pulled but not yet acknowledged at most.
    pub max_ack_pending: u32,
    /// Inbound publishes in flight at most.
    pub publish_window: usize,
    /// Messages wait and none arrives for this long: the bridge is stuck.
    pub stuck_after: Duration,
    /// require | warn | accept
    pub durability: DurabilityPolicy,
    /// Base URLs of the servers' monitoring ports.
    pub monitoring_urls: Vec<String>,
    pub managed: ManagedConfig,
    /// `url` is the managed server's.
    pub on_managed: bool,
}

/// Who we are to the broker.
#[derive(Clone, Debug)]
pub enum NatsLogin {
    /// Nobody, or what the URL says.
    None,
    /// A credentials file: JWT and nkey seed.
    Credentials(PathBuf),
    /// An nkey's seed.
    Nkey(SecretFrom),
    Password {
        user: String,
        password: SecretFrom,
    },
    Token(SecretFrom),
}

/// TLS to the broker. Files are read at each connect, so renewed ones are taken.
#[derive(Clone, Debug, Default)]
pub struct NatsTls {
    /// Refuse a connection without TLS (with `tls://` in the URL it is refused anyway).
    pub required: bool,
    /// TLS before the server's greeting (`handshake_first` of nats-server).
    pub first: bool,
    /// PEM files with the certificate authorities to trust; empty: the system's.
    pub roots: Vec<PathBuf>,
    /// PEM file with our client certificate.
    pub certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub key: Option<PathBuf>,
}

/// What to do when the broker may lose acknowledged messages in a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurabilityPolicy {
    /// Do not start; be not ready when it changes later.
    Require,
    /// Say so.
    Warn,
    /// Say so where asked only.
    Accept,
}

/// `[nats.managed]`
#[derive(Clone, Debug)]
pub struct ManagedConfig {
    /// None: looked for, else fetched.
    pub binary: Option<PathBuf>,
    /// None: any free port.
    pub port: Option<u16>,
    pub store_dir: PathBuf,
    pub cache_dir: PathBuf,
    /// `always` or a duration as nats-server reads it.
    pub sync_interval: String,
    /// bytes, 16 MiB
    pub max_payload: usize,
    /// No password: every user of this machine may publish.
    pub open: bool,
}

impl std::fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsConfig")
            .field("url", &self.shown_url())
            .field("prefix", &self.prefix)
            .field("login", &self.login)
            .field("tls", &self.tls)
            .field("jetstream_domain", &self.jetstream_domain)
            .field("jetstream_api_prefix", &self.jetstream_api_prefix)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("streams", &self.streams)
            .field("partitions", &self.partitions)
            .field("replicas", &self.replicas)
            .field("max_ack_pending", &self.max_ack_pending)
            .field("publish_window", &self.publish_window)
            .field("stuck_after", &self.stuck_after)
            .field("durability", &self.durability)
            .field("monitoring_urls", &self.monitoring_urls)
            .field("managed", &self.managed)
            .finish()
    }
}

impl NatsConfig {
    /// The same settings on the managed server that answers under `url`.
    pub fn with_managed(&self, url: String) -> Self {
        Self {
            url: Some(url),
            on_managed: true,
            ..self.clone()
        }
    }

    /// The URL for logs and errors: without user, password or token. None: managed server.
    pub fn shown_url(&self) -> Option<String> {
        self.url.as_deref().map(shown)
    }
}

/// A list of addresses without user, password or token.
pub fn shown(urls: &str) -> String {
    let shown = urls.split(',').map(|one| {
        let one = one.trim();
        let (scheme, rest) = one.split_once("://").unwrap_or(("nats", one));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        format!("{scheme}://{host}")
    });
    shown.collect::<Vec<_>>().join(",")
}
