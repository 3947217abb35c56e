//! The load of `bench in`: requests of many relays, signed beforehand, posted over kept-alive
//! connections, each with one request in hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::figures::percentile;
use super::world::{Way, World, Writer};
use crate::clock::Clock;
use crate::identity::b64;
use crate::protocols::uam::discover::DELIVER_PATH;
use crate::protocols::uam::envelope::Envelope;
use crate::protocols::uam::relay_request::{Attempt, sign_relay_request};
use crate::protocols::uam::time;

/// A request ready to be sent.
pub struct Prepared {
    relay: http::HeaderValue,
    signature: http::HeaderValue,
    body: Bytes,
}

/// What to send where.
#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    pub to: SocketAddr,
    /// Index of the first request, and how many.
    pub first: usize,
    pub count: usize,
    pub connections: usize,
}

/// What came of it. Times in nanoseconds, of requests that were answered 200.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    pub delivered: usize,
    /// 200, but known already.
    pub duplicates: usize,
    /// First answer that was no 200, if there was one.
    pub refused: Option<String>,
    pub elapsed_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
}

/// Signs requests 0 to `count`, on two threads.
pub fn prepare(world: &World, count: usize) -> Result<Vec<Prepared>, String> {
    let writer = world.writer(Way::In)?;
    let keys: Vec<_> = (0..world.peers)
        .map(|n| (world.peer(n), world.key(&world.peer(n))))
        .collect();
    let half = count / 2;
    std::thread::scope(|scope| {
        let part = |range: std::ops::Range<usize>| {
            let (writer, keys) = (&writer, &keys);
            scope.spawn(move || {
                range
                    .map(|n| one(writer, keys, n))
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

fn one(
    writer: &Writer,
    keys: &[(String, crate::identity::SigningKey)],
    index: usize,
) -> Result<Prepared, String> {
    let now = Clock::system().now_ms();
    let (relay, key) = keys
        .get(index % keys.len().max(1))
        .ok_or("the bench has no peers")?;
    let envelope = Envelope::parse(writer.envelope(index, now)?).map_err(|e| e.to_string())?;
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|e| e.to_string())?;
    let signed = sign_relay_request(
        &envelope,
        &Attempt {
            via: std::slice::from_ref(relay),
            hop_count: 1,
            timestamp: &time::format_ms(now),
            from_relay: relay,
            nonce: Some(&b64::encode(nonce)),
        },
        key,
    );
    let value = |text: &str| http::HeaderValue::from_str(text).map_err(|e| e.to_string());
    Ok(Prepared {
        relay: value(relay)?,
        signature: value(&signed.signature)?,
        body: signed.body,
    })
}

/// Sends them on a thread of its own.
pub async fn run(load: Load, requests: Arc<Vec<Prepared>>) -> Result<Done, String> {
    let (answer, done) = tokio::sync::oneshot::channel();
    super::shard_thread(move || async move {
        let _ = answer.send(send_all(load, requests).await);
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

async fn send_all(load: Load, requests: Arc<Vec<Prepared>>) -> Result<Done, String> {
    let next = Arc::new(AtomicUsize::new(load.first));
    let end = (load.first + load.count).min(requests.len());
    let begun = Instant::now();
    let connections: Vec<_> = (0..load.connections.max(1))
        .map(|_| tokio::spawn(connection(load.to, requests.clone(), next.clone(), end)))
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
    requests: Arc<Vec<Prepared>>,
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
        *request.uri_mut() = http::Uri::from_static(DELIVER_PATH);
        let headers = request.headers_mut();
        headers.insert(HOST, host.clone());
        headers.insert(
            CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
        headers.insert("x-uam-relay-signature", prepared.signature.clone());
        headers.insert("x-uam-relay-domain", prepared.relay.clone());
        let begun = Instant::now();
        let answer = sender.send_request(request).await.map_err(|e| told(&e))?;
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .map_err(|e| told(&e))?
            .to_bytes();
        if status != http::StatusCode::OK {
            tally
                .refused
                .get_or_insert_with(|| format!("{status} {}", String::from_utf8_lossy(&body)));
            continue;
        }
        tally.times.push(nanos(begun));
        // The protocol's own words, see `deliver`.
        if body.windows(11).any(|w| w == b"\"delivered\"") {
            tally.delivered += 1;
        } else {
            tally.duplicates += 1;
        }
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
