//! The one outgoing HTTP client: guarded resolver, no redirects, bounded answers.
//!
//! Two pools stand behind it: one whose resolver refuses every address that is not public, and one
//! for the hosts that `http.allow_hosts` names. Which one a request uses is decided by host *and*
//! port before it is sent; a literal address never meets a resolver and is judged here.
//! Proxy environment variables and system roots are not looked at.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use reqwest::Url;

use super::failure::{classify, failure};
use super::guard::{Guard, HostRules, bare, split_host};
use super::resolver::{GuardedResolver, Names};
use super::tls;
use crate::config::HttpConfig;
use crate::protocol::{Answer, PeerName, Request, TransportError, TransportKind};

/// What we call ourselves.
pub const USER_AGENT: &str = concat!("Drawbridge/", env!("CARGO_PKG_VERSION"), " (federation)");

/// Connections kept open to one peer when idle; its default window is 8.
const IDLE_PER_HOST: usize = 16;
/// How long an idle connection is kept. Below what servers and balancers usually allow (60 s), so
/// that we close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// While requests are in hand on HTTP/2, and as long for the answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of answer headers in HTTP/2; HTTP/1 has hyper's own bound.
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// An outgoing client with its own connection pool; one a shard. Cloning shares the pool.
#[derive(Clone)]
pub struct Client(Arc<ArcSwap<Inner>>);

/// New settings, judged and ready to be put in force by [`Client::adopt`].
pub struct Prepared(Inner);

struct Inner {
    /// For everybody.
    guarded: reqwest::Client,
    /// For the hosts that may resolve anywhere.
    exempt: reqwest::Client,
    guard: Arc<Guard>,
    allow_hosts: HostRules,
    plain_hosts: HostRules,
    names: Arc<Names>,
    srv: bool,
    /// What all this was made from.
    settings: HttpConfig,
}

/// One SRV target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvTarget {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    pub target: String,
}

impl Client {
    /// A client by these settings (roots, exceptions, DNS servers, timeouts). The error is a
    /// sentence that names the file or setting.
    pub fn new(config: &HttpConfig) -> Result<Self, String> {
        let inner = Inner::new(config)?;
        Ok(Self(Arc::new(ArcSwap::from_pointee(inner))))
    }

    /// The first half of a change of settings: all that can go wrong.
    pub fn prepare(config: &HttpConfig) -> Result<Prepared, String> {
        Inner::new(config).map(Prepared)
    }

    /// The second half: requests from now on follow the new settings, those on their way end under
    /// the old ones. The connections kept open so far are given up.
    pub fn adopt(&self, prepared: Prepared) {
        self.0.store(Arc::new(prepared.0));
    }

    /// Sends one request; the answer's body is read up to `max_body` bytes (more: `TooLarge`).
    /// `timeout` covers everything from resolving to the end of the body. Redirects are answers.
    /// Plain http only to hosts that the configuration names.
    pub async fn send(
        &self,
        request: Request,
        timeout: Duration,
        max_body: usize,
    ) -> Result<Answer, TransportError> {
        let started = Instant::now();
        let url = Url::parse(&request.url).map_err(|e| {
            failure(
                TransportKind::Invalid,
                format!("{} is no URL: {e}", shown(&request.url)),
            )
        })?;
        let inner = self.0.load_full();
        let pool = inner.admit(&url)?;
        let mut outgoing = reqwest::Request::new(request.method, url);
        *outgoing.headers_mut() = request.headers;
        if !request.body.is_empty() {
            *outgoing.body_mut() = Some(request.body.into());
        }
        // The target is kept for error sentences only; it is read from the request when needed.
        let target = Target(request.url);
        match tokio::time::timeout(timeout, exchange(pool, outgoing, max_body)).await {
            Ok(Ok((status, headers, body))) => Ok(Answer {
                status,
                headers,
                body,
                elapsed: started.elapsed(),
            }),
            Ok(Err(Failed::Transport(error))) => Err(classify(&error, &target.authority())),
            Ok(Err(Failed::TooLarge)) => Err(failure(
                TransportKind::TooLarge,
                format!(
                    "the answer of {} is larger than {max_body} bytes",
                    target.authority()
                ),
            )),
            Err(_) => Err(failure(
                TransportKind::Timeout,
                format!(
                    "{} did not finish its answer within {} ms",
                    target.authority(),
                    timeout.as_millis()
                ),
            )),
        }
    }

    /// Whether this server may be spoken to without TLS (`http.plain_hosts`).
    pub fn speaks_plain(&self, server: &PeerName) -> bool {
        let (host, port) = split_host(server.as_str());
        self.0.load().plain_hosts.names(host, port.unwrap_or(80))
    }

    /// The settings in force, for whoever looks at a host in another way than by a request.
    pub fn settings(&self) -> HttpConfig {
        self.0.load().settings.clone()
    }

    /// SRV lookup through the configured DNS servers, 2 s a query; best first (priority, then weight).
    /// `Ok(vec![])`: no such record. `Err`: no answer (SERVFAIL, timeout), so a fallback may be tried.
    pub async fn srv(&self, name: &str) -> Result<Vec<SrvTarget>, TransportError> {
        let inner = self.0.load_full();
        if !inner.srv {
            return Ok(Vec::new());
        }
        inner.names.srv(name).await
    }
}

impl Inner {
    fn new(config: &HttpConfig) -> Result<Self, String> {
        let tls = tls::client_config(&config.extra_roots).map_err(|e| e.to_string())?;
        let names = Arc::new(Names::new(config));
        let guard = Arc::new(Guard::new(&config.allow_cidrs));
        let pool = |guard: Option<Arc<Guard>>| {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .dns_resolver(GuardedResolver {
                    names: Arc::clone(&names),
                    guard,
                })
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .user_agent(USER_AGENT)
                .connect_timeout(config.connect_timeout)
                .tcp_nodelay(true)
                .pool_max_idle_per_host(IDLE_PER_HOST)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .http2_max_header_list_size(MAX_HEADER_LIST)
                // All requests to a peer share one HTTP/2 connection, and a request that times out
                // does not close it: a peer that vanished is found out by pings.
                .http2_keep_alive_interval(PING_INTERVAL)
                .http2_keep_alive_timeout(PING_INTERVAL)
                .build()
                .map_err(|e| format!("the HTTP client cannot be set up: {e}"))
        };
        Ok(Self {
            guarded: pool(Some(Arc::clone(&guard)))?,
            exempt: pool(None)?,
            guard,
            allow_hosts: HostRules::new(config.allow_hosts.iter().map(String::as_str)),
            plain_hosts: HostRules::new(config.plain_hosts.iter().map(String::as_str)),
            names,
            srv: config.srv,
            settings: config.clone(),
        })
    }

    /// Whether this URL may be asked at all, and through which pool.
    fn admit(&self, url: &Url) -> Result<&reqwest::Client, TransportError> {
        let invalid = |why: &str| {
            failure(
                TransportKind::Invalid,
                format!("{why}: {}", shown(url.as_str())),
            )
        };
        let host = bare(
            url.host_str()
                .ok_or_else(|| invalid("the URL has no host"))?,
        );
        let port = url
            .port_or_known_default()
            .ok_or_else(|| invalid("the URL has no port"))?;
        if !url.username().is_empty() || url.password().is_some() {
            // Not shown: it may hold a password.
            return Err(failure(
                TransportKind::Invalid,
                format!("the URL for {host} holds a user name or password; remove it"),
            ));
        }
        match url.scheme() {
            "https" => {}
            "http" if self.plain_hosts.names(host, port) => {}
            "http" => {
                return Err(failure(
                    TransportKind::Forbidden,
                    format!(
                        "{host}:{port} is spoken to without TLS only if http.plain_hosts names it"
                    ),
                ));
            }
            _ => return Err(invalid("only https (and http to named hosts) is spoken")),
        }
        if self.allow_hosts.names(host, port) {
            return Ok(&self.exempt);
        }
        if let Some(address) = literal(host) {
            self.guard
                .check(address)
                .map_err(|e| failure(TransportKind::Forbidden, e.to_string()))?;
        }
        Ok(&self.guarded)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Why an exchange gave no answer, before it has its sentence.
enum Failed {
    Transport(reqwest::Error),
    TooLarge,
}

async fn exchange(
    pool: &reqwest::Client,
    request: reqwest::Request,
    max_body: usize,
) -> Result<(u16, http::HeaderMap, Bytes), Failed> {
    let mut response = pool.execute(request).await.map_err(Failed::Transport)?;
    let announced = response.content_length().unwrap_or(0);
    if announced > max_body as u64 {
        return Err(Failed::TooLarge);
    }
    let status = response.status().as_u16();
    let headers = std::mem::take(response.headers_mut());
    // Most answers are one chunk: it is kept as it came, without a copy.
    let Some(first) = next_chunk(&mut response, max_body).await? else {
        return Ok((status, headers, Bytes::new()));
    };
    let Some(second) = next_chunk(&mut response, max_body - first.len()).await? else {
        return Ok((status, headers, first));
    };
    let mut body = BytesMut::with_capacity(first.len() + second.len());
    body.extend_from_slice(&first);
    body.extend_from_slice(&second);
    while let Some(chunk) = next_chunk(&mut response, max_body - body.len()).await? {
        body.extend_from_slice(&chunk);
    }
    Ok((status, headers, body.freeze()))
}

async fn next_chunk(
    response: &mut reqwest::Response,
    room: usize,
) -> Result<Option<Bytes>, Failed> {
    match response.chunk().await.map_err(Failed::Transport)? {
        Some(chunk) if chunk.len() > room => Err(Failed::TooLarge),
        other => Ok(other),
    }
}

/// An address written as host. URL parsing has already made `0x7f.1` and the like plain.
fn literal(host: &str) -> Option<IpAddr> {
    let last = host.bytes().last()?;
    // No top-level domain ends in a digit, and only IPv6 has colons: names are not parsed in vain.
    (last.is_ascii_digit() || host.contains(':'))
        .then(|| host.parse().ok())
        .flatten()
}

/// Host and port of a URL, worked out only when a sentence needs it.
struct Target(String);

impl Target {
    fn authority(&self) -> String {
        Url::parse(&self.0).map_or_else(
            |_| "the peer".to_owned(),
            |url| {
                format!(
                    "{}:{}",
                    url.host_str().unwrap_or("?"),
                    url.port_or_known_default().unwrap_or(0)
                )
            },
        )
    }
}

/// A URL cut for a sentence.
fn shown(url: &str) -> String {
    let cut: String = url.chars().take(120).collect();
    format!("{cut:?}")
}
