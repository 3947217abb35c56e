//! The far side: one process that plays every peer.
//!
//! It takes deliveries and notes when each came, answers what the protocol asks of them besides, and for `bench in` makes the
//! load ([`super::load`]). Plain threads, each with its own runtime and socket, so that it costs the
//! machine as little as possible. It ends when its standard input is closed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::load::{self, Load};
use super::speech::{Post, Reply, Speech};
use super::{reuse_port, wait_for_the_end};
use crate::cli::Outcome;

/// One delivery in so many is verified; all would cost more than the bridge under test.
const SAMPLED: usize = 256;
/// Threads of the far side.
const THREADS: usize = 2;

/// How the far side is started.
#[derive(Debug, clap::Args)]
pub struct FarArgs {
    #[command(flatten)]
    pub world: super::WorldArgs,
}

struct Far {
    speech: Arc<dyn Speech>,
    book: Mutex<Arc<Book>>,
    prepared: Mutex<Arc<Vec<Post>>>,
}

/// Arrivals by message index.
#[derive(Default)]
struct Book {
    /// Nanoseconds since 1970; 0: not yet.
    at: Vec<AtomicU64>,
    seen: AtomicUsize,
    again: AtomicUsize,
    wrong: AtomicUsize,
}

/// Serves until standard input is closed.
pub async fn far(args: FarArgs) -> Outcome {
    let first = reuse_port("127.0.0.1:0".parse().map_err(|_| "no loopback address")?)?;
    let at = first.local_addr().map_err(|e| e.to_string())?;
    let far = Arc::new(Far {
        speech: args.world.at(at.port()).speech()?,
        book: Mutex::default(),
        prepared: Mutex::default(),
    });
    let mut listeners = vec![first];
    for _ in 1..THREADS {
        listeners.push(reuse_port(at)?);
    }
    for listener in listeners {
        let far = far.clone();
        super::shard_thread(move || serve(listener, far))?;
    }
    println!("{}", json!({"address": at.to_string()}));
    wait_for_the_end().await;
    Ok(std::process::ExitCode::SUCCESS)
}

async fn serve(listener: std::net::TcpListener, far: Arc<Far>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let far = far.clone();
        let service = service_fn(move |request| {
            let far = far.clone();
            async move { Ok::<_, Infallible>(far.answer(request).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
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
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else {
            return reply(StatusCode::BAD_REQUEST, Bytes::new());
        };
        let body = body.to_bytes();
        let path = head.uri.path();
        match (&head.method, path) {
            (&Method::POST, path) if path == self.speech.path() => {
                self.delivery(&head.headers, &body)
            }
            (&Method::POST, "/bench/expect") => self.expect(&body),
            (&Method::GET, "/bench/seen") => self.seen(),
            (&Method::GET, "/bench/arrivals") => self.arrivals(),
            (&Method::POST, "/bench/prepare") => self.prepare(&body),
            (&Method::POST, "/bench/load") => self.load(&body).await,
            _ => {
                let host = head.headers.get(http::header::HOST);
                let host = host.and_then(|v| v.to_str().ok()).unwrap_or_default();
                match self.speech.page(&head.method, path, host) {
                    Some(said) => said_by(said),
                    None => reply(StatusCode::NOT_FOUND, Bytes::new()),
                }
            }
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
        let Some(n) = number(body) else {
            return failed("how many?");
        };
        *lock(&self.prepared) = Arc::default();
        match load::prepare(&*self.speech, n) {
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
}

/// The bench's hold on the far side.
#[derive(Clone, Copy, Debug)]
pub struct FarSide(pub SocketAddr);

impl FarSide {
    async fn call(&self, method: Method, path: &str, body: String) -> Result<Bytes, String> {
        let (status, answer) = super::ask::ask(self.0, method, path, &[], body.into()).await?;
        if status == 200 {
            return Ok(answer);
        }
        Err(format!(
            "the far side of the bench: {}",
            String::from_utf8_lossy(&answer)
        ))
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

    /// Makes and signs requests 0 to `n`.
    pub async fn prepare(&self, n: usize) -> Result<(), String> {
        self.call(Method::POST, "/bench/prepare", n.to_string())
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
