//! VoltChat: mainline servers that push, fetch and ping over HTTPS, each pair of them sharing one
//! secret.
//!
//! The bridge is one peer among others, with a host name of its own. It pushes what its backend
//! publishes, or keeps it for peers that fetch; it takes pushes, and fetches where it can. Facts and
//! numbers of sections are those of the protocol sheet.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`token`], [`host`], [`allow`], [`ids`], [`text`] | the pure part: tokens, names, limits |
//! | [`invites`] | what we share and what peers share |
//! | [`pages`] | what we say of ourselves to anybody |

pub mod allow;
pub mod host;
pub mod ids;
pub mod invites;
pub mod pages;
pub mod text;
pub mod token;

use std::sync::{Arc, Weak};
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::VoltChatConfig;
use crate::http::client::Client;
use crate::identity::KeyFileError;
use crate::inbound::Door;
use crate::ops::Ops;
use crate::outbound::Mailbox;
use crate::peers::Peers;
use crate::protocol::{Answer, PeerName, ProtocolId, Request, TransportError};
use crate::store::{Store, StoreError};
use crate::trust::Trust;

use allow::AllowList;
use invites::Invites;

/// Its name in subjects, tables and settings.
pub const ID: ProtocolId = "voltchat";
/// Where the protocol's routes are, at every server.
pub const BASE: &str = "/api/federation";
/// Largest request body, either way, bytes (sheet, 6.1).
pub const MAX_BODY: usize = 10 * 1024 * 1024;
/// How we name ourselves to peers. A mainline distrusts short names and those of tools (sheet, 6.1).
const USER_AGENT: &str = concat!("Drawbridge/", env!("CARGO_PKG_VERSION"), " (federation)");

/// Sends requests to other servers; usually the outgoing HTTP client.
pub trait Net: Send + Sync + 'static {
    /// One request and its answer, read up to `max_answer` bytes. Redirects are answers.
    fn send<'a>(
        &'a self,
        request: Request,
        timeout: Duration,
        max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>>;

    /// The client behind it, for a probe; a stub has none.
    fn client(&self) -> Option<&Client> {
        None
    }
}

impl Net for Client {
    fn send<'a>(
        &'a self,
        request: Request,
        timeout: Duration,
        max_answer: usize,
    ) -> BoxFuture<'a, Result<Answer, TransportError>> {
        Box::pin(Client::send(self, request, timeout, max_answer))
    }

    fn client(&self) -> Option<&Client> {
        Some(self)
    }
}

/// What a bridge's VoltChat side is made of.
pub struct VoltChatParts {
    pub config: VoltChatConfig,
    pub store: Store,
    pub peers: Peers,
    pub trust: Trust,
    pub door: Door,
    pub net: Arc<dyn Net>,
    /// For questions to backends and for messages an operator queues; `None` where there is no bus
    /// (tests of routes).
    pub bus: Option<Bus>,
    pub ops: Ops,
    pub clock: Clock,
}

/// Why it cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum VoltChatError {
    /// A setting is wrong or missing; the sentence names it.
    #[error("{0}")]
    Setting(String),
    /// The file with the sealing key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who we are on the wire.
#[derive(Clone, Debug)]
pub struct Own {
    /// Host of our URL, with its port unless that is the default one.
    pub host: PeerName,
    /// Our origin, without a slash at its end.
    pub url: String,
    /// Our display name.
    pub name: String,
}

impl Own {
    /// By the configuration.
    fn of(config: &VoltChatConfig) -> Result<Self, VoltChatError> {
        let setting = |why: &str| VoltChatError::Setting(format!("voltchat.url: {why}"));
        let url = config.url.as_deref();
        let url = url.ok_or_else(|| setting("is not set: other servers need our address"))?;
        let host = host::strict(url).and_then(|host| PeerName::parse(&host).ok());
        let host = host.ok_or_else(|| setting("has no host that can be a peer's name"))?;
        Ok(Self {
            host,
            url: url.trim_end_matches('/').to_owned(),
            name: config.name.clone(),
        })
    }
}

/// The VoltChat side of the bridge.
pub struct VoltChat {
    pub(super) config: VoltChatConfig,
    pub(super) own: Own,
    pub(super) allow: AllowList,
    pub(super) store: Store,
    pub(super) peers: Peers,
    pub(super) trust: Trust,
    pub(super) door: Door,
    pub(super) net: Arc<dyn Net>,
    pub(super) bus: Option<Bus>,
    pub(super) mailbox: Mailbox,
    pub(super) invites: Invites,
    pub(super) ops: Ops,
    pub(super) clock: Clock,
    me: Weak<Self>,
}

impl VoltChat {
    /// Over these parts: reads or makes the sealing key, loads peers and invites.
    pub async fn new(parts: VoltChatParts) -> Result<Arc<Self>, VoltChatError> {
        let config = parts.config;
        let own = Own::of(&config)?;
        let allow = AllowList::new(&config.allowed_servers);
        let mailbox = Mailbox::new(parts.store.clone(), parts.ops.clone(), parts.clock.clone());
        let (store, ops, clock) = (parts.store.clone(), parts.ops.clone(), parts.clock.clone());
        let invites = Invites::open(store, ops, clock, own.host.as_str(), &own.name).await?;
        Ok(Arc::new_cyclic(|me| Self {
            config,
            own,
            allow,
            store: parts.store,
            peers: parts.peers,
            trust: parts.trust,
            door: parts.door,
            net: parts.net,
            bus: parts.bus,
            mailbox,
            invites,
            ops: parts.ops,
            clock: parts.clock,
            me: me.clone(),
        }))
    }

    /// One request to a server at `base` (its URL without a slash at the end): JSON where there is a
    /// body, and our name. `headers`: what proves us, where it goes there.
    pub(super) async fn ask(
        &self,
        method: Method,
        base: &str,
        path: &str,
        headers: HeaderMap,
        body: Option<&serde_json::Value>,
        limits: Limits,
    ) -> Result<Answer, TransportError> {
        let request = Request {
            method,
            url: format!("{base}{BASE}{path}"),
            headers: dressed(headers),
            body: body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string())),
        };
        self.net.send(request, limits.time, limits.answer).await
    }
}

/// What a request may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub time: Duration,
    /// Bytes of the answer.
    pub answer: usize,
}

/// The headers every request of ours has.
fn dressed(mut headers: HeaderMap) -> HeaderMap {
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json.clone());
    headers.insert(header::ACCEPT, json);
    headers
}
