//! The far side: one process that plays every peer.
//!
//! It takes deliveries and notes when each came, answers what the protocol asks of them besides, and for `bench in` makes the
//! load ([`super::load`]). Plain threads, each with its own runtime and socket, so that it costs the
//! machine as little as possible. All peers listen on one address; the bench gives its orders on
//! another, so that the peers can be down: then the address refuses connections, as a machine does
//! whose server is stopped. Some of them may be sick ([`ill`]). It ends when its standard input is
//! closed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::load::{self, Load, Prepare};
use super::speech::{Post, Reply, Speech};
use super::world::World;
use super::{bound, reuse_port, wait_for_the_end};
use crate::cli::Outcome;

/// One delivery in so many is verified; all would cost more than the bridge under test.
const SAMPLED: usize = 256;
/// Threads of the far side.
const THREADS: usize = 2;

/// How the far side is started.
#[derive(Debug, clap::Args)]
pub struct FarArgs {
    #[command(flatten)]
    pub world: super::args::WorldArgs,
}

/// How long a slow peer takes over an answer.
const SLOW: Duration = Duration::from_secs(8);
/// When nobody is sick.
const NONE_SICK: usize = usize::MAX;

/// What is wrong with a sick peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ill {
    /// It takes no connection; the bridge is told another address for it, where nobody listens.
    Refuses,
    /// It reads a request and never answers.
    Hangs,
    /// It answers after [`SLOW`].
    Slow,
}

/// The illness of a sick peer: each has a third of them.
pub fn ill(peer: usize) -> Ill {
    match peer % 3 {
        0 => Ill::Refuses,
        1 => Ill::Hangs,
        _ => Ill::Slow,
    }
}

struct Far {
    world: World,
    speech: Arc<dyn Speech>,
    book: Mutex<Arc<Book>>,
    prepared: Mutex<Arc<Vec<Post>>>,
    /// Peers from this number on are sick.
    sick: AtomicUsize,
    up: watch::Sender<bool>,
}

/// Arrivals by message index.
#[derive(Default)]
struct Book {
    /// Nanoseconds since 1970; 0: not yet.
    at: Vec<AtomicU64>,
    seen: AtomicUsize,
    again: AtomicUsize,
    wrong: AtomicUsize,
    /// First arrivals before the message that was to come first.
    early: AtomicUsize,
}

/// Serves until standard input is closed.
pub async fn far(args: FarArgs) -> Outcome {
    let loopback = "127.0.0.1:0".parse().map_err(|_| "no loopback address")?;
    // Never listens itself: it keeps the port ours while the peers are down.
    let held = bound(loopback)?;
    let at = held.local_addr().map_err(|e| e.to_string())?;
    let at = at.as_socket().ok_or("no loopback address")?;
    let control = reuse_port(loopback)?;
    let control_at = control.local_addr().map_err(|e| e.to_string())?;
    let args = args.world.at(at.port());
    let far = Arc::new(Far {
        world: args.world(),
        speech: args.speech()?,
        book: Mutex::default(),
        prepared: Mutex::default(),
        sick: AtomicUsize::new(NONE_SICK),
        up: watch::Sender::new(true),
    });
    for _ in 0..THREADS {
        let first = reuse_port(at)?;
        let far = far.clone();
        super::shard_thread(move || peers(first, at, far))?;
    }
    let orders = far.clone();
    super::shard_thread(move || serve(control, orders, Role::Orders))?;
    println!(
        "{}",
        json!({"address": at.to_string(), "control": control_at.to_string()})
    );
    wait_for_the_end().await;
    drop(held);
    Ok(std::process::ExitCode::SUCCESS)
}

/// What a connection is for.
#[derive(Clone, Copy)]
enum Role {
    Peers,
    Orders,
}

/// The peers' side of one thread: listens while they are up; going down cuts every connection.
async fn peers(first: std::net::TcpListener, at: SocketAddr, far: Arc<Far>) {
    let mut up = far.up.subscribe();
    let mut listener = Some(first);
    loop {
        let socket = match listener.take() {
            Some(socket) => socket,
            None => match reuse_port(at) {
                Ok(socket) => socket,
                Err(why) => {
                    eprintln!("{why}");
                    std::process::exit(1);
                }
            },
        };
        tokio::select! {
            () = serve(socket, far.clone(), Role::Peers) => return,
            _ = up.wait_for(|up| !up) => {}
        }
        if up.wait_for(|up| *up).await.is_err() {
            return;
        }
    }
}

/// Answers on a socket; every connection ends when this future is dropped.
async fn serve(listener: std::net::TcpListener, far: Arc<Far>, role: Role) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let _ = stream.set_nodelay(true);
        let far = far.clone();
        let service = service_fn(move |request| {
            let far = far.clone();
            async move {
                Ok::<_, Infallible>(match role {
                    Role::Peers => far.answer(request).await,
                    Role::Orders => far.order(request).await,
                })
            }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

fn said_by((status, body): Reply) -> Response<Full<Bytes>> {
    reply(status, body)
}

fn ok(body: &Value) -> Response<Full<Bytes>> {
    reply(StatusCode::OK, body.to_string())
}

fn failed(why: &str) -> Response<Full<Bytes>> {
    reply(StatusCode::INTERNAL_SERVER_ERROR, why.to_owned())
}

impl Far {
    /// As a peer.
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else {
            return reply(StatusCode::BAD_REQUEST, Bytes::new());
        };
        let body = body.to_bytes();
        let path = head.uri.path();
        let host = head.headers.get(http::header::HOST);
        let host = host.and_then(|v| v.to_str().ok()).unwrap_or_default();
        let sick = self.sick.load(Ordering::Relaxed);
        if sick != NONE_SICK && self.world.number(host).is_some_and(|n| n >= sick) {
            match self.world.number(host).map(ill) {
                Some(Ill::Slow) => tokio::time::sleep(SLOW).await,
                _ => std::future::pending().await,
            }
            return said_by(self.speech.taken(&body));
        }
        match (&head.method, path) {
            (&Method::POST, path) if path == self.speech.path() => {
                self.delivery(&head.headers, &body)
            }
            _ => match self.speech.page(&head.method, path, host) {
                Some(said) => said_by(said),
                None => reply(StatusCode::NOT_FOUND, Bytes::new()),
            },
        }
    }

    /// For the bench.
    async fn order(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else {
            return reply(StatusCode::BAD_REQUEST, Bytes::new());
        };
        let body = body.to_bytes();
        match (&head.method, head.uri.path()) {
            (&Method::POST, "/bench/expect") => self.expect(&body),
            (&Method::GET, "/bench/seen") => self.seen(),
            (&Method::GET, "/bench/arrivals") => self.arrivals(),
            (&Method::POST, "/bench/prepare") => self.prepare(&body),
            (&Method::POST, "/bench/load") => self.load(&body).await,
            (&Method::POST, "/bench/up") => {
                self.up.send_replace(&*body != b"0");
                ok(&json!({}))
            }
            (&Method::POST, "/bench/sick") => {
                let from = number(&body).unwrap_or(NONE_SICK);
                self.sick.store(from, Ordering::Relaxed);
                ok(&json!({}))
            }
            _ => reply(StatusCode::NOT_FOUND, Bytes::new()),
        }
    }

    /// Takes a delivery.
    fn delivery(&self, headers: &HeaderMap, body: &Bytes) -> Response<Full<Bytes>> {
        let now = now_ns();
        let book = lock(&self.book).clone();
        let place = match self.speech.index(body) {
            Ok(index) => book.at.get(index).map(|slot| (index, slot)),
            Err(said) => {
                // Another form of the protocol may follow; what is none at all is counted.
                if said.0 != StatusCode::UNPROCESSABLE_ENTITY {
                    book.wrong.fetch_add(1, Ordering::Relaxed);
                }
                return said_by(said);
            }
        };
        let Some((index, slot)) = place else {
            book.wrong.fetch_add(1, Ordering::Relaxed);
            return reply(StatusCode::BAD_REQUEST, r#"{"error":"unknown message"}"#);
        };
        if index % SAMPLED == 0 && !self.speech.proves(headers, body) {
            book.wrong.fetch_add(1, Ordering::Relaxed);
            return reply(StatusCode::UNAUTHORIZED, r#"{"error":"not proven"}"#);
        }
        if slot
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            let period = self
                .world
                .active
                .saturating_mul(self.speech.keys_of_a_peer());
            let before = index.checked_sub(period).and_then(|n| book.at.get(n));
            if before.is_some_and(|slot| slot.load(Ordering::Relaxed) == 0) {
                book.early.fetch_add(1, Ordering::Relaxed);
            }
            book.seen.fetch_add(1, Ordering::Release);
        } else {
            book.again.fetch_add(1, Ordering::Relaxed);
        }
        said_by(self.speech.taken(body))
    }

    fn expect(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let Some(n) = number(body) else {
            return failed("how many?");
        };
        let book = Book {
            at: std::iter::repeat_with(AtomicU64::default).take(n).collect(),
            ..Book::default()
        };
        *lock(&self.book) = Arc::new(book);
        ok(&json!({}))
    }

    fn seen(&self) -> Response<Full<Bytes>> {
        let book = lock(&self.book).clone();
        ok(&json!({
            "seen": book.seen.load(Ordering::Acquire),
            "again": book.again.load(Ordering::Relaxed),
            "wrong": book.wrong.load(Ordering::Relaxed),
            "early": book.early.load(Ordering::Relaxed),
        }))
    }

    /// All arrival times, eight little-endian bytes each.
    fn arrivals(&self) -> Response<Full<Bytes>> {
        let book = lock(&self.book).clone();
        let times = book
            .at
            .iter()
            .flat_map(|t| t.load(Ordering::Relaxed).to_le_bytes());
        reply(StatusCode::OK, times.collect::<Vec<u8>>())
    }

    fn prepare(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let Ok(what) = serde_json::from_slice::<Prepare>(body) else {
            return failed("how many?");
        };
        *lock(&self.prepared) = Arc::default();
        match load::prepare(&*self.speech, what) {
            Ok(all) => {
                *lock(&self.prepared) = Arc::new(all);
                ok(&json!({}))
            }
            Err(why) => failed(&why),
        }
    }

    async fn load(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let Ok(order) = serde_json::from_slice::<Load>(body) else {
            return failed("which load?");
        };
        let requests = lock(&self.prepared).clone();
        match load::run(order, self.speech.clone(), requests).await {
            Ok(done) => ok(&json!(done)),
            Err(why) => failed(&why),
        }
    }
}

fn number(body: &[u8]) -> Option<usize> {
    std::str::from_utf8(body).ok()?.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wall clock, nanoseconds since 1970: the same for all processes of the machine.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// What the far side has taken so far.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
pub struct Seen {
    pub seen: usize,
    /// Deliveries of a message that had come before.
    pub again: usize,
    /// Deliveries that nobody sent, or whose signature is wrong.
    pub wrong: usize,
    /// Messages that came before the one ahead of them under their ordering key.
    pub early: usize,
}

/// The bench's hold on the far side.
#[derive(Clone, Copy, Debug)]
pub struct FarSide {
    /// Where every peer listens.
    pub peers: SocketAddr,
    /// Where it takes orders.
    pub control: SocketAddr,
}

impl FarSide {
    async fn call(&self, method: Method, path: &str, body: String) -> Result<Bytes, String> {
        let (status, answer) =
            super::ask::ask(self.control, method, path, &[], body.into()).await?;
        if status == 200 {
            return Ok(answer);
        }
        Err(format!(
            "the far side of the bench: {}",
            String::from_utf8_lossy(&answer)
        ))
    }

    /// Whether the peers listen.
    pub async fn up(&self, up: bool) -> Result<(), String> {
        let text = if up { "1" } else { "0" };
        self.call(Method::POST, "/bench/up", text.to_owned())
            .await
            .map(drop)
    }

    /// Makes the peers from this number on sick; none: all are well.
    pub async fn sick(&self, from: Option<usize>) -> Result<(), String> {
        let from = from.unwrap_or(NONE_SICK).to_string();
        self.call(Method::POST, "/bench/sick", from).await.map(drop)
    }

    /// Forgets what came; indexes below `n` are expected.
    pub async fn expect(&self, n: usize) -> Result<(), String> {
        self.call(Method::POST, "/bench/expect", n.to_string())
            .await
            .map(drop)
    }

    /// What came since.
    pub async fn seen(&self) -> Result<Seen, String> {
        let answer = self.call(Method::GET, "/bench/seen", String::new()).await?;
        serde_json::from_slice(&answer).map_err(|e| e.to_string())
    }

    /// When each index came, nanoseconds since 1970 (0: not yet).
    pub async fn arrivals(&self) -> Result<Vec<u64>, String> {
        let answer = self
            .call(Method::GET, "/bench/arrivals", String::new())
            .await?;
        let times = answer.as_chunks::<8>().0.iter();
        Ok(times.map(|bytes| u64::from_le_bytes(*bytes)).collect())
    }

    /// Makes and signs requests.
    pub async fn prepare(&self, what: Prepare) -> Result<(), String> {
        let order = serde_json::to_string(&what).map_err(|e| e.to_string())?;
        self.call(Method::POST, "/bench/prepare", order)
            .await
            .map(drop)
    }

    /// Posts prepared requests to a listener and waits for every answer.
    pub async fn load(&self, load: &Load) -> Result<load::Done, String> {
        let order = serde_json::to_string(load).map_err(|e| e.to_string())?;
        let answer = self.call(Method::POST, "/bench/load", order).await?;
        serde_json::from_slice(&answer).map_err(|e| e.to_string())
    }
}
