//! What outbound is measured against: the same messages from the same stream to the same peers, by
//! the fastest program we can write with the same crates and none of the bridge's rules.
//!
//! One shard a core, each a thread with its own runtime, NATS connection and HTTP connections; all
//! pull from one durable consumer. A message is read, signed as the protocol asks, posted over a
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
use tokio::net::TcpStream;

use super::args::WorldArgs;
use super::speech::Speech;
use super::{shard_thread, wait_for_the_end};
use crate::bus::subject::untoken;
use crate::cli::Outcome;

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
    let speech = args.world.speech()?;
    for _ in 0..super::shards() {
        let (nats, far, speech) = (args.nats.clone(), args.far, speech.clone());
        shard_thread(move || async move {
            if let Err(why) = shard(&nats, far, speech).await {
                eprintln!("bare: {why}");
                std::process::exit(1);
            }
        })?;
    }
    println!("{{}}");
    wait_for_the_end().await;
    Ok(std::process::ExitCode::SUCCESS)
}

async fn shard(nats: &str, far: SocketAddr, speech: Arc<dyn Speech>) -> Result<(), String> {
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
        speech,
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
    speech: Arc<dyn Speech>,
    /// By peer, the last used at the end.
    idle: RefCell<HashMap<Arc<str>, Vec<Connection>>>,
}

async fn deliver(tools: Rc<Tools>, message: jetstream::Message) -> Result<(), String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    // fed.outp.PARTITION.PROTOCOL.PEER.TYPE
    let peer = message.subject.split('.').nth(4).and_then(untoken);
    let peer: Arc<str> = peer.unwrap_or_default().into();
    let headers = message.headers.as_ref();
    let id = headers.and_then(|h| h.get(async_nats::header::NATS_MESSAGE_ID));
    let id = id.map_or("", |id| id.as_str());
    let post = tools.speech.bare_out(&peer, id, &message.payload)?;
    let mut request = Request::new(Full::new(post.body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(tools.speech.path());
    let headers = request.headers_mut();
    *headers = post.headers;
    headers.insert(HOST, HeaderValue::from_str(&peer).map_err(|e| told(&e))?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
    if !status.is_success() {
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
