//! What inbound is measured against: the same requests at the same wire, by the fastest program we
//! can write with the same crates and none of the bridge's rules.
//!
//! One shard a core, each a thread with its own runtime, listener (SO_REUSEPORT) and NATS connection.
//! A request is read, both signatures that the protocol asks for (relay and agent) are verified
//! strictly with keys parsed beforehand, the envelope is published with `Nats-Msg-Id`, and the answer
//! is 200 once JetStream acknowledged it. No ledger, no replay check, no trust, no limits, no log.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use async_nats::jetstream;
use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::bare_out::Signed;
use super::world::World;
use super::{WorldArgs, reuse_port, shard_thread, shards, wait_for_the_end};
use crate::bus::subject::token;
use crate::cli::Outcome;
use crate::identity::b64;

/// How bare inbound is started.
#[derive(Debug, clap::Args)]
pub struct BareInArgs {
    #[command(flatten)]
    world: WorldArgs,
    #[arg(long)]
    nats: String,
}

type Keys = HashMap<String, VerifyingKey>;

/// Serves until standard input is closed.
pub async fn bare_in(args: BareInArgs) -> Outcome {
    let keys = Arc::new(keys(&args.world.world())?);
    let first = reuse_port("127.0.0.1:0".parse().map_err(|_| "no loopback address")?)?;
    let at = first.local_addr().map_err(|e| e.to_string())?;
    let mut listeners = vec![first];
    for _ in 1..shards() {
        listeners.push(reuse_port(at)?);
    }
    for listener in listeners {
        let (nats, keys) = (args.nats.clone(), keys.clone());
        shard_thread(move || async move {
            if let Err(why) = shard(listener, &nats, keys).await {
                eprintln!("bare: {why}");
                std::process::exit(1);
            }
        })?;
    }
    println!("{}", json!({"address": at.to_string()}));
    wait_for_the_end().await;
    Ok(std::process::ExitCode::SUCCESS)
}

/// Every relay's and every agent's key, parsed once.
fn keys(world: &World) -> Result<Keys, String> {
    let mut keys = Keys::new();
    for n in 0..world.peers {
        let peer = world.peer(n);
        let agents = world
            .agents(&peer)?
            .into_iter()
            .map(|a| a.as_str().to_owned());
        for name in agents.chain([peer]) {
            let bytes = world.key(&name).public().to_bytes();
            keys.insert(
                name,
                VerifyingKey::from_bytes(&bytes).map_err(|e| e.to_string())?,
            );
        }
    }
    Ok(keys)
}

async fn shard(listener: std::net::TcpListener, nats: &str, keys: Arc<Keys>) -> Result<(), String> {
    let client = async_nats::connect(nats).await.map_err(|e| e.to_string())?;
    let js = jetstream::new(client);
    let listener = TcpListener::from_std(listener).map_err(|e| e.to_string())?;
    loop {
        let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (js, keys) = (js.clone(), keys.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (js, keys) = (js.clone(), keys.clone());
            async move { Ok::<_, Infallible>(answer(request, &js, &keys).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: Request<Incoming>,
    js: &jetstream::Context,
    keys: &Keys,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let taken = match body.collect().await {
        Ok(body) => take(&head.headers, &body.to_bytes(), js, keys).await,
        Err(_) => None,
    };
    let (status, text) = match taken {
        Some(()) => (StatusCode::OK, r#"{"status":"delivered","detail":null}"#),
        None => (
            StatusCode::BAD_REQUEST,
            r#"{"error":"bad_request","detail":"refused"}"#,
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
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
    keys: &Keys,
) -> Option<()> {
    let (relay, id, text) = verified(headers, body, keys)?;
    let mut published = async_nats::HeaderMap::new();
    published.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
    let subject = format!("fed.in.uam.{}.message", token(relay));
    let ack = js
        .publish_with_headers(subject, published, text)
        .await
        .ok()?;
    ack.await.ok().map(drop)
}

/// The relay, the message id and the envelope's own text, once both signatures held.
fn verified<'a>(
    headers: &HeaderMap,
    body: &'a Bytes,
    keys: &Keys,
) -> Option<(&'a str, String, Bytes)> {
    let request: Signed<'a, &'a RawValue> = serde_json::from_slice(body).ok()?;
    let text = request.envelope.get();
    let mut envelope: Value = serde_json::from_str(text).ok()?;
    let signed = serde_json::to_vec(&Signed {
        envelope: &envelope,
        from_relay: request.from_relay,
        hop_count: request.hop_count,
        nonce: request.nonce,
        timestamp: request.timestamp,
        via: request.via,
    })
    .ok()?;
    let signature = headers.get("x-uam-relay-signature")?.to_str().ok()?;
    holds(keys.get(request.from_relay)?, &signed, signature)?;
    let own = envelope.as_object_mut()?.remove("signature")?;
    let agent = keys.get(envelope["from"].as_str()?)?;
    holds(agent, &serde_json::to_vec(&envelope).ok()?, own.as_str()?)?;
    let id = envelope["message_id"].as_str()?.to_owned();
    Some((request.from_relay, id, body.slice_ref(text.as_bytes())))
}

fn holds(key: &VerifyingKey, message: &[u8], signature: &str) -> Option<()> {
    let bytes: [u8; 64] = b64::decode(signature).ok()?.try_into().ok()?;
    key.verify_strict(message, &Signature::from_bytes(&bytes))
        .ok()
}
