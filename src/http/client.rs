//! The one outgoing HTTP client: guarded resolver, no redirects, bounded answers.
//!
//! Two pools stand behind it: one whose resolver refuses every address that is not public, and one
//! for the hosts that `http.allow_hosts` names. Which one a request uses is decided by host *and*
//! port before it is sent; a literal address never meets a resolver and is judged here.
//! Proxy environment variables and system roots are not looked at.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy;
use url::Url;

use super::dial::{self, Pool};
use super::failure::{classify, failure};
use super::guard::{Guard, HostRules, bare, split_host};
use super::resolver::Names;
use super::tls;
use crate::config::HttpConfig;
use crate::protocol::{Answer, PeerName, Request, TransportError, TransportKind};

/// What we call ourselves.
pub const USER_AGENT: &str = concat!("Drawbridge/", env!("CARGO_PKG_VERSION"), " (federation)");

/// URLs remembered as admitted: a delivery's URL is its peer's endpoint, the same each time.
const ADMITTED: usize = 4_096;

/// An outgoing client with its own connection pool; one a shard. Cloning shares the pool.
#[derive(Clone)]
pub struct Client(Arc<ArcSwap<Inner>>);

/// New settings, judged and ready to be put in force by [`Client::adopt`].
pub struct Prepared(Inner);

struct Inner {
    /// For everybody.
    guarded: Pool,
    /// For the hosts that may resolve anywhere.
    exempt: Pool,
    /// Where a URL leads; they follow from the settings alone, so none is ever out of date.
    admitted: Mutex<HashMap<String, Target>>,
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
        let inner = self.0.load_full();
        let target = inner.target(&request.url)?;
        let pool = if target.exempt {
            &inner.exempt
        } else {
            &inner.guarded
        };
        let mut outgoing = http::Request::new(Full::new(request.body));
        *outgoing.method_mut() = request.method;
        *outgoing.uri_mut() = target.uri.clone();
        let headers = outgoing.headers_mut();
        *headers = request.headers;
        headers
            .entry(header::USER_AGENT)
            .or_insert(HeaderValue::from_static(USER_AGENT));
        headers
            .entry(header::ACCEPT)
            .or_insert(HeaderValue::from_static("*/*"));
        match tokio::time::timeout(timeout, exchange(pool, outgoing, max_body)).await {
            Ok(Ok((status, headers, body))) => Ok(Answer {
                status,
                headers,
                body,
                elapsed: started.elapsed(),
            }),
            Ok(Err(Failed::Request(error))) => {
                let connecting = error.is_connect();
                Err(classify(&error, connecting, &target.authority()))
            }
            Ok(Err(Failed::Body(error))) => Err(classify(&error, false, &target.authority())),
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
        let (patience, idle) = (config.connect_timeout, config.idle_per_host);
        let pool = |guard| dial::pool(&tls, &names, guard, patience, idle);
        Ok(Self {
            guarded: pool(Some(Arc::clone(&guard))),
            exempt: pool(None),
            admitted: Mutex::default(),
            guard,
            allow_hosts: HostRules::new(config.allow_hosts.iter().map(String::as_str)),
            plain_hosts: HostRules::new(config.plain_hosts.iter().map(String::as_str)),
            names,
            srv: config.srv,
            settings: config.clone(),
        })
    }

    /// Where a URL leads, if it may be asked at all.
    fn target(&self, url: &str) -> Result<Target, TransportError> {
        let lock = || self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(url) {
            return Ok(known.clone());
        }
        let no_url = |why: &dyn std::fmt::Display| {
            failure(
                TransportKind::Invalid,
                format!("{} is no URL: {why}", shown(url)),
            )
        };
        let mut parsed = Url::parse(url).map_err(|e| no_url(&e))?;
        parsed.set_fragment(None);
        let exempt = self.admit(&parsed)?;
        let uri: Uri = parsed.as_str().parse().map_err(|e| no_url(&e))?;
        let target = Target { uri, exempt };
        let mut admitted = lock();
        if admitted.len() >= ADMITTED {
            admitted.clear();
        }
        admitted.insert(url.to_owned(), target.clone());
        Ok(target)
    }

    /// Whether this URL may be asked at all, and whether its host may resolve anywhere.
    fn admit(&self, url: &Url) -> Result<bool, TransportError> {
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
            return Ok(true);
        }
        if let Some(address) = literal(host) {
            self.guard
                .check(address)
                .map_err(|e| failure(TransportKind::Forbidden, e.to_string()))?;
        }
        Ok(false)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Why an exchange gave no answer, before it has its sentence.
enum Failed {
    Request(legacy::Error),
    Body(hyper::Error),
    TooLarge,
}

async fn exchange(
    pool: &Pool,
    request: http::Request<Full<Bytes>>,
    max_body: usize,
) -> Result<(u16, http::HeaderMap, Bytes), Failed> {
    let response = pool.request(request).await.map_err(Failed::Request)?;
    let (head, mut body) = response.into_parts();
    let (status, headers) = (head.status.as_u16(), head.headers);
    if body.size_hint().lower() > max_body as u64 {
        return Err(Failed::TooLarge);
    }
    // Most answers are one chunk: it is kept as it came, without a copy.
    let Some(first) = next_chunk(&mut body, max_body).await? else {
        return Ok((status, headers, Bytes::new()));
    };
    let Some(second) = next_chunk(&mut body, max_body - first.len()).await? else {
        return Ok((status, headers, first));
    };
    let mut whole = BytesMut::with_capacity(first.len() + second.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&second);
    while let Some(chunk) = next_chunk(&mut body, max_body - whole.len()).await? {
        whole.extend_from_slice(&chunk);
    }
    Ok((status, headers, whole.freeze()))
}

/// The next piece of a body that is no longer than `room`; trailers are passed over.
async fn next_chunk(body: &mut Incoming, room: usize) -> Result<Option<Bytes>, Failed> {
    while let Some(frame) = body.frame().await {
        if let Ok(chunk) = frame.map_err(Failed::Body)?.into_data() {
            if chunk.len() > room {
                return Err(Failed::TooLarge);
            }
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

/// An address written as host. URL parsing has already made `0x7f.1` and the like plain.
fn literal(host: &str) -> Option<IpAddr> {
    let last = host.bytes().last()?;
    // No top-level domain ends in a digit, and only IPv6 has colons: names are not parsed in vain.
    (last.is_ascii_digit() || host.contains(':'))
        .then(|| host.parse().ok())
        .flatten()
}

/// Where a URL leads.
#[derive(Clone)]
struct Target {
    uri: Uri,
    /// Its host may resolve anywhere.
    exempt: bool,
}

impl Target {
    /// Host and port, for sentences.
    fn authority(&self) -> String {
        let port = match (self.uri.port_u16(), self.uri.scheme_str()) {
            (Some(port), _) => port,
            (None, Some("http")) => 80,
            (None, _) => 443,
        };
        format!("{}:{port}", self.uri.host().unwrap_or("?"))
    }
}

/// A URL cut for a sentence.
fn shown(url: &str) -> String {
    let cut: String = url.chars().take(120).collect();
    format!("{cut:?}")
}
