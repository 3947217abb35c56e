//! The load of `bench in`: requests of many peers, signed beforehand, posted over kept-alive
//! connections, each with one request in hand.

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
}

/// What came of it. Times in nanoseconds, of requests that were taken.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    pub delivered: usize,
    /// Taken, but known already.
    pub duplicates: usize,
    /// First answer that refused one, if there was one.
    pub refused: Option<String>,
    pub elapsed_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
}

/// Signs requests 0 to `count`, on two threads.
pub fn prepare(speech: &dyn Speech, count: usize) -> Result<Vec<Post>, String> {
    let half = count / 2;
    std::thread::scope(|scope| {
        let part = |range: std::ops::Range<usize>| {
            scope.spawn(move || {
                range
                    .map(|n| speech.post(n, Clock::system().now_ms()))
                    .collect::<Result<Vec<_>, String>>()
            })
        };
        let (first, second) = (part(0..half), part(half..count));
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
    let connections: Vec<_> = (0..load.connections.max(1))
        .map(|_| {
            tokio::spawn(connection(
                load.to,
                speech.clone(),
                requests.clone(),
                next.clone(),
                end,
            ))
        })
        .collect();
    let mut all = Tally::default();
    for connection in connections {
        let tally = connection.await.map_err(|e| e.to_string())??;
        all.delivered += tally.delivered;
        all.duplicates += tally.duplicates;
        all.refused = all.refused.or(tally.refused);
        all.times.extend(tally.times);
    }
    Ok(Done {
        delivered: all.delivered,
        duplicates: all.duplicates,
        refused: all.refused,
        elapsed_ns: nanos(begun),
        p50_ns: percentile(&mut all.times, 0.50),
        p99_ns: percentile(&mut all.times, 0.99),
    })
}

/// One connection, one request in hand.
async fn connection(
    to: SocketAddr,
    speech: Arc<dyn Speech>,
    requests: Arc<Vec<Post>>,
    next: Arc<AtomicUsize>,
    end: usize,
) -> Result<Tally, String> {
    let told = |e: &dyn std::fmt::Display| format!("posting to {to}: {e}");
    let stream = TcpStream::connect(to).await.map_err(|e| told(&e))?;
    stream.set_nodelay(true).map_err(|e| told(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| told(&e))?;
    tokio::spawn(connection);
    let host = http::HeaderValue::from_str(&to.to_string()).map_err(|e| told(&e))?;
    let mut tally = Tally::default();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(prepared) = requests.get(index).filter(|_| index < end) else {
            return Ok(tally);
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
        let begun = Instant::now();
        let answer = sender.send_request(request).await.map_err(|e| told(&e))?;
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .map_err(|e| told(&e))?
            .to_bytes();
        let Some(new) = speech.took(status.as_u16(), &body) else {
            tally
                .refused
                .get_or_insert_with(|| format!("{status} {}", String::from_utf8_lossy(&body)));
            continue;
        };
        tally.times.push(nanos(begun));
        if new {
            tally.delivered += 1;
        } else {
            tally.duplicates += 1;
        }
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
