//! The load of `bench in` and its relatives: requests of many peers, signed beforehand, posted over
//! kept-alive connections, each with one request in hand; as fast as they are answered, or at a
//! steady rate. At a rate a request's time begins when it was due, not when a connection was free.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::header::{CONTENT_TYPE, HOST};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::figures::percentile;
use super::speech::{Post, Speech};
use crate::clock::Clock;

/// What to send where.
#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    pub to: SocketAddr,
    /// Index of the first request, and how many.
    pub first: usize,
    pub count: usize,
    pub connections: usize,
    /// Requests a second; none: as fast as they are answered.
    #[serde(default)]
    pub rate: Option<f64>,
    /// What is not taken, or not answered, is sent again with another proof until it is, as real
    /// senders do.
    #[serde(default)]
    pub stubborn: bool,
}

/// Pause before a stubborn request is sent again.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(100);
/// How long a request is repeated at most.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// What to sign.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// Number of the first message.
    #[serde(default)]
    pub first: usize,
    pub count: usize,
    /// Every one with a bit of its proof changed.
    pub forged: bool,
}

/// What came of it. Times in nanoseconds, of all that were answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    pub delivered: usize,
    /// Taken, but known already.
    pub duplicates: usize,
    /// Refused because of their proof.
    pub unproven: usize,
    /// How often one was sent again.
    pub again: usize,
    /// First answer that refused one, if there was one.
    pub refused: Option<String>,
    pub elapsed_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
}

/// Signs them, on two threads.
pub fn prepare(speech: &dyn Speech, what: Prepare) -> Result<Vec<Post>, String> {
    let Prepare {
        first,
        count,
        forged,
    } = what;
    let (half, end) = (first + count / 2, first + count);
    std::thread::scope(|scope| {
        let make = move |n| {
            let mut post = speech.post(n, Clock::system().now_ms())?;
            if forged {
                speech.forge(&mut post)?;
            }
            Ok(post)
        };
        let part = |range: std::ops::Range<usize>| {
            scope.spawn(move || range.map(make).collect::<Result<Vec<_>, String>>())
        };
        let (first, second) = (part(first..half), part(half..end));
        let ended = || "a thread that signs ended abnormally".to_owned();
        let mut all = first.join().map_err(|_| ended())??;
        all.extend(second.join().map_err(|_| ended())??);
        Ok(all)
    })
}

/// Sends them on a thread of its own.
pub async fn run(
    load: Load,
    speech: Arc<dyn Speech>,
    requests: Arc<Vec<Post>>,
) -> Result<Done, String> {
    let (answer, done) = tokio::sync::oneshot::channel();
    super::shard_thread(move || async move {
        let _ = answer.send(send_all(load, speech, requests).await);
    })?;
    done.await
        .map_err(|_| "the load's thread ended abnormally".to_owned())?
}

#[derive(Default)]
struct Tally {
    delivered: usize,
    duplicates: usize,
    unproven: usize,
    again: usize,
    refused: Option<String>,
    times: Vec<u64>,
}

async fn send_all(
    load: Load,
    speech: Arc<dyn Speech>,
    requests: Arc<Vec<Post>>,
) -> Result<Done, String> {
    let next = Arc::new(AtomicUsize::new(load.first));
    let end = (load.first + load.count).min(requests.len());
    let begun = Instant::now();
    let pace = Pace {
        begun,
        first: load.first,
        rate: load.rate,
    };
    let connections: Vec<_> = (0..load.connections.max(1))
        .map(|_| {
            tokio::spawn(connection(
                load.to,
                speech.clone(),
                requests.clone(),
                next.clone(),
                (end, pace, load.stubborn),
            ))
        })
        .collect();
    let mut all = Tally::default();
    for connection in connections {
        let tally = connection.await.map_err(|e| e.to_string())??;
        all.delivered += tally.delivered;
        all.duplicates += tally.duplicates;
        all.unproven += tally.unproven;
        all.again += tally.again;
        all.refused = all.refused.or(tally.refused);
        all.times.extend(tally.times);
    }
    Ok(Done {
        delivered: all.delivered,
        duplicates: all.duplicates,
        unproven: all.unproven,
        again: all.again,
        refused: all.refused,
        elapsed_ns: nanos(begun),
        p50_ns: percentile(&mut all.times, 0.50),
        p99_ns: percentile(&mut all.times, 0.99),
    })
}

/// When each request is due.
#[derive(Clone, Copy)]
struct Pace {
    begun: Instant,
    first: usize,
    rate: Option<f64>,
}

impl Pace {
    /// Waits for a request's turn; answers when it was.
    async fn turn(&self, index: usize) -> Instant {
        let Some(rate) = self.rate.filter(|rate| *rate > 0.0) else {
            return Instant::now();
        };
        let before = super::figures::approximate((index - self.first) as u64);
        let due = self.begun + std::time::Duration::from_secs_f64(before / rate);
        tokio::time::sleep_until(due.into()).await;
        due
    }
}

/// One connection, one request in hand.
async fn connection(
    to: SocketAddr,
    speech: Arc<dyn Speech>,
    requests: Arc<Vec<Post>>,
    next: Arc<AtomicUsize>,
    (end, pace, stubborn): (usize, Pace, bool),
) -> Result<Tally, String> {
    let told = |e: &dyn std::fmt::Display| format!("posting to {to}: {e}");
    let host = http::HeaderValue::from_str(&to.to_string()).map_err(|e| told(&e))?;
    let mut sender = None;
    let mut tally = Tally::default();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(prepared) = requests.get(index).filter(|_| index < end) else {
            return Ok(tally);
        };
        let begun = pace.turn(index).await;
        let first_sent = Instant::now();
        let mut once_more = None;
        let (status, new, body) = loop {
            let post = once_more.as_ref().unwrap_or(prepared);
            let asked = exchange(&mut sender, to, &host, &*speech, post).await;
            let why = match asked {
                Ok((status, body)) => match speech.took(status, &body) {
                    None if stubborn => String::from_utf8_lossy(&body).into_owned(),
                    took => break (status, took, body),
                },
                Err(why) => {
                    sender = None;
                    why
                }
            };
            if !stubborn || first_sent.elapsed() > PATIENCE {
                return Err(told(&why));
            }
            tally.again += 1;
            tokio::time::sleep(AGAIN).await;
            once_more = Some(speech.again(prepared, Clock::system().now_ms())?);
        };
        tally.times.push(nanos(begun));
        match new {
            Some(true) => tally.delivered += 1,
            Some(false) => tally.duplicates += 1,
            None => {
                if matches!(status, 401 | 403) {
                    tally.unproven += 1;
                }
                tally
                    .refused
                    .get_or_insert_with(|| format!("{status} {}", String::from_utf8_lossy(&body)));
            }
        }
    }
}

type Sender = http1::SendRequest<Full<bytes::Bytes>>;

/// Sends one request on the connection, which is made if there is none.
async fn exchange(
    sender: &mut Option<Sender>,
    to: SocketAddr,
    host: &http::HeaderValue,
    speech: &dyn Speech,
    prepared: &Post,
) -> Result<(u16, bytes::Bytes), String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let sender = match sender {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(to).await.map_err(|e| told(&e))?;
            stream.set_nodelay(true).map_err(|e| told(&e))?;
            let (made, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| told(&e))?;
            tokio::spawn(connection);
            sender.insert(made)
        }
    };
    let mut request = http::Request::new(Full::new(prepared.body.clone()));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(speech.path());
    let headers = request.headers_mut();
    headers.clone_from(&prepared.headers);
    headers.insert(HOST, host.clone());
    headers.insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    let answer = sender.send_request(request).await.map_err(|e| told(&e))?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(|e| told(&e))?;
    Ok((status, body.to_bytes()))
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
