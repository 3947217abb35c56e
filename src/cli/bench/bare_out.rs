//! What outbound is measured against: the same messages from the same stream to the same peers, by
//! the fastest program we can write with the same crates and none of the bridge's rules.
//!
//! One shard a core, each a thread with its own runtime, NATS connection and HTTP connections; all
//! pull from one durable consumer. A message is read, put into canonical form, signed, posted over a
//! raw hyper connection (last used first) and acknowledged as the bridge acknowledges (explicit, not
//! doubled). No ledger, no order, no retry, no limits, no guard, no log, no metrics: what it cannot
//! deliver ends it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use async_nats::jetstream::{self, consumer::PullConsumer};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;

use super::world::OWN;
use super::{WorldArgs, shard_thread, wait_for_the_end};
use crate::cli::Outcome;
use crate::clock::Clock;
use crate::identity::{SigningKey, b64};
use crate::protocols::uam::discover::DELIVER_PATH;
use crate::protocols::uam::time;

/// Posts in flight in one shard.
const WINDOW: usize = 64;
/// Messages asked for ahead by one shard.
const AHEAD: usize = 512;

/// How bare outbound is started.
#[derive(Debug, clap::Args)]
pub struct BareOutArgs {
    #[command(flatten)]
    world: WorldArgs,
    #[arg(long)]
    nats: String,
    /// Where every peer listens.
    #[arg(long)]
    far: SocketAddr,
}

/// Delivers until standard input is closed.
pub async fn bare_out(args: BareOutArgs) -> Outcome {
    let told = |e: &dyn std::fmt::Display| format!("bare: {e}");
    let client = async_nats::connect(&args.nats)
        .await
        .map_err(|e| told(&e))?;
    let stream = jetstream::new(client)
        .get_stream("FED_OUT")
        .await
        .map_err(|e| told(&e))?;
    stream
        .create_consumer(jetstream::consumer::pull::Config {
            durable_name: Some("bare".into()),
            max_ack_pending: 4096,
            ..Default::default()
        })
        .await
        .map_err(|e| told(&e))?;
    let world = args.world.world();
    for _ in 0..super::shards() {
        let (nats, far, key) = (args.nats.clone(), args.far, world.key(OWN));
        shard_thread(move || async move {
            if let Err(why) = shard(&nats, far, key).await {
                eprintln!("bare: {why}");
                std::process::exit(1);
            }
        })?;
    }
    println!("{{}}");
    wait_for_the_end().await;
    Ok(std::process::ExitCode::SUCCESS)
}

async fn shard(nats: &str, far: SocketAddr, key: SigningKey) -> Result<(), String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let client = async_nats::connect(nats).await.map_err(|e| told(&e))?;
    let consumer: PullConsumer = jetstream::new(client)
        .get_consumer_from_stream("bare", "FED_OUT")
        .await
        .map_err(|e| told(&e))?;
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(AHEAD)
        .messages()
        .await
        .map_err(|e| told(&e))?;
    let tools = Rc::new(Tools {
        far,
        key,
        idle: RefCell::default(),
    });
    let mut flying = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(done) = flying.next(), if !flying.is_empty() => done?,
            message = messages.next(), if flying.len() < WINDOW => {
                let Some(message) = message else { return Err("the pull ended".into()) };
                flying.push(deliver(tools.clone(), message.map_err(|e| told(&e))?));
            }
        }
    }
}

type Connection = SendRequest<Full<Bytes>>;

struct Tools {
    far: SocketAddr,
    key: SigningKey,
    /// By peer, the last used at the end.
    idle: RefCell<HashMap<Arc<str>, Vec<Connection>>>,
}

async fn deliver(tools: Rc<Tools>, message: jetstream::Message) -> Result<(), String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    // fed.outp.PARTITION.uam.PEER.TYPE
    let peer: Arc<str> = message
        .subject
        .split('.')
        .nth(4)
        .unwrap_or_default()
        .replace('_', ".")
        .into();
    let (body, signature) = signed(&message.payload, &tools.key)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(DELIVER_PATH);
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(&peer).map_err(|e| told(&e))?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        "x-uam-relay-signature",
        HeaderValue::from_str(&signature).map_err(|e| told(&e))?,
    );
    headers.insert("x-uam-relay-domain", HeaderValue::from_static(OWN));
    let idle = tools.idle.borrow_mut().get_mut(&peer).and_then(Vec::pop);
    let mut sender = match idle {
        Some(sender) => sender,
        None => connect(tools.far).await?,
    };
    sender.ready().await.map_err(|e| told(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| told(&e))?;
    let status = answer.status();
    answer.into_body().collect().await.map_err(|e| told(&e))?;
    tools
        .idle
        .borrow_mut()
        .entry(peer)
        .or_default()
        .push(sender);
    if status != http::StatusCode::OK {
        return Err(format!("a peer answered {status}"));
    }
    message.ack().await.map_err(|e| told(&e))
}

async fn connect(far: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(far).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// What the relay signs, in the order of its canonical form. The bench's texts are ASCII without
/// numbers, so that serde_json's sorted compact text is that form.
#[derive(Serialize, Deserialize)]
pub(super) struct Signed<'a, E> {
    pub envelope: E,
    #[serde(borrow)]
    pub from_relay: &'a str,
    pub hop_count: u32,
    #[serde(borrow)]
    pub nonce: &'a str,
    #[serde(borrow)]
    pub timestamp: &'a str,
    #[serde(borrow)]
    pub via: Vec<&'a str>,
}

/// The body, which is the signed text itself, and its signature.
fn signed(envelope: &[u8], key: &SigningKey) -> Result<(Bytes, String), String> {
    let envelope: Value = serde_json::from_slice(envelope).map_err(|e| e.to_string())?;
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|e| e.to_string())?;
    let body = serde_json::to_vec(&Signed {
        envelope,
        from_relay: OWN,
        hop_count: 1,
        nonce: &b64::encode(nonce),
        timestamp: &time::format_ms(Clock::system().now_ms()),
        via: vec![OWN],
    })
    .map_err(|e| e.to_string())?;
    let signature = b64::encode(key.sign(&body));
    Ok((body.into(), signature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::world::{Way, World};
    use crate::config::WireForms;
    use crate::protocols::uam::relay_request::RelayRequest;
    use crate::protocols::uam::verify::check_relay_signature;

    #[test]
    fn what_bare_signs_is_a_relay_request_that_verifies() {
        let world = World::new(1, 2, 700);
        let text = world
            .writer(Way::Out)
            .unwrap()
            .envelope(3, 1_700_000_000_000)
            .unwrap();
        let (body, signature) = signed(&text, &world.key(OWN)).unwrap();
        let request = RelayRequest::parse(&body, WireForms::Nonce).unwrap();
        let key = world.key(OWN).public();
        assert!(check_relay_signature(&request.signing_bytes(), &signature, &key).is_ok());
    }
}
