//! What inbound is measured against: the same requests at the same wire, by the fastest program we
//! can write with the same crates and none of the bridge's rules.
//!
//! One shard a core, each a thread with its own runtime, listener (SO_REUSEPORT) and NATS connection.
//! A request is read, what the protocol asks for is verified (UAM: relay and agent, strictly),
//! the event is published with `Nats-Msg-Id`, and the answer is given once JetStream acknowledged it.
//! What is not proven is refused at once: for `bench forged` this is verification without a publish. No ledger, no replay check, no trust, no limits, no log.

use std::convert::Infallible;
use std::sync::Arc;

use async_nats::jetstream;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::args::WorldArgs;
use super::speech::{Reply, Speech};
use super::{reuse_port, shard_thread, shards, wait_for_the_end};
use crate::bus::subject::token;
use crate::cli::Outcome;

/// How bare inbound is started.
#[derive(Debug, clap::Args)]
pub struct BareInArgs {
    #[command(flatten)]
    world: WorldArgs,
    #[arg(long)]
    nats: String,
}

/// What is spoken, and its name.
type Spoken = (Arc<dyn Speech>, &'static str);

/// Serves until standard input is closed.
pub async fn bare_in(args: BareInArgs) -> Outcome {
    let spoken: Spoken = (args.world.speech()?, args.world.protocol.id());
    let first = reuse_port("127.0.0.1:0".parse().map_err(|_| "no loopback address")?)?;
    let at = first.local_addr().map_err(|e| e.to_string())?;
    let mut listeners = vec![first];
    for _ in 1..shards() {
        listeners.push(reuse_port(at)?);
    }
    for listener in listeners {
        let (nats, spoken) = (args.nats.clone(), spoken.clone());
        shard_thread(move || async move {
            if let Err(why) = shard(listener, &nats, spoken).await {
                eprintln!("bare: {why}");
                std::process::exit(1);
            }
        })?;
    }
    println!("{}", json!({"address": at.to_string()}));
    wait_for_the_end().await;
    Ok(std::process::ExitCode::SUCCESS)
}

async fn shard(listener: std::net::TcpListener, nats: &str, spoken: Spoken) -> Result<(), String> {
    let client = async_nats::connect(nats).await.map_err(|e| e.to_string())?;
    let js = jetstream::new(client);
    let listener = TcpListener::from_std(listener).map_err(|e| e.to_string())?;
    loop {
        let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (js, spoken) = (js.clone(), spoken.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (js, spoken) = (js.clone(), spoken.clone());
            async move { Ok::<_, Infallible>(answer(request, &js, &spoken).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: Request<Incoming>,
    js: &jetstream::Context,
    spoken: &Spoken,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let taken = match body.collect().await {
        Ok(body) => take(&head.headers, &body.to_bytes(), js, spoken).await,
        Err(_) => None,
    };
    let (status, text) = match taken {
        Some(said) => said,
        None => (
            StatusCode::UNAUTHORIZED,
            Bytes::from_static(br#"{"error":"unauthorized","detail":"refused"}"#),
        ),
    };
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

async fn take(
    headers: &HeaderMap,
    body: &Bytes,
    js: &jetstream::Context,
    (speech, protocol): &Spoken,
) -> Option<Reply> {
    let taken = speech.bare_in(headers, body)?;
    let mut published = async_nats::HeaderMap::new();
    published.insert(async_nats::header::NATS_MESSAGE_ID, taken.id.as_str());
    let subject = format!(
        "fed.in.{protocol}.{}.{}",
        token(&taken.peer),
        token(taken.kind)
    );
    let ack = js
        .publish_with_headers(subject, published, taken.text)
        .await
        .ok()?;
    ack.await.ok()?;
    Some(speech.taken(body))
}
