//! VoltChat in the bench: mainlines that share a secret with us; every push has a token of its own
//! under it.
//!
//! The bench asks in each mainline's name for a peering and accepts it, so the mainlines have nothing
//! to remember: their secrets follow from the seed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::{Draft, Post, Reply, Speech, Taken, between, filler};
use crate::cli::bench::ask::ask;
use crate::cli::bench::pipeline::Bridge;
use crate::cli::bench::rig::Broker;
use crate::cli::bench::world::{OWN, World};
use crate::clock::{Clock, UnixMs};
use crate::identity::hex;
use crate::identity::hmac::SharedSecret;
use crate::protocols::voltchat::message::{Members, Outgoing, Received};
use crate::protocols::voltchat::token::{self, Sender};
use crate::protocols::voltchat::{BASE, ID, handshake, text};

const PUSH: &str = "/api/federation/relay/push";
const TOKEN: HeaderName = HeaderName::from_static("x-federation-token");
const HOST: HeaderName = HeaderName::from_static("x-federation-host");
/// The type of every message.
const KIND: &str = "message";

/// It, in one world.
pub struct Voltchat {
    world: World,
    /// By number: host and secret.
    peers: Vec<(String, SharedSecret)>,
    numbers: HashMap<String, usize>,
    filler: String,
}

impl Voltchat {
    pub fn new(world: World) -> Result<Self, String> {
        let peers = (0..world.peers).map(|n| {
            let host = match world.port {
                0 => world.host(n),
                port => format!("{}:{port}", world.host(n)),
            };
            let secret = SharedSecret::new(&hex(&world.secret(&world.host(n))));
            Ok((host, secret.ok_or("a secret is too short")?))
        });
        let peers = peers.collect::<Result<Vec<_>, String>>()?;
        let numbers = peers.iter().enumerate();
        let mut speech = Self {
            numbers: numbers.map(|(n, (host, _))| (host.clone(), n)).collect(),
            peers,
            filler: String::new(),
            world,
        };
        let (bare, _) = speech.message(0, &text::iso(0), OWN, &speech.payload()?)?;
        speech.filler = filler(speech.world.size.saturating_sub(bare.len()));
        Ok(speech)
    }

    fn payload(&self) -> Result<Box<RawValue>, String> {
        to_raw_value(&json!({"text": self.filler})).map_err(|e| e.to_string())
    }

    /// A message on its way, and its id.
    fn message(
        &self,
        index: usize,
        time: &str,
        host: &str,
        payload: &RawValue,
    ) -> Result<(Bytes, String), String> {
        let now = Clock::system().now_ms();
        let id = id(index, now);
        let body = outgoing(&id, time, host, payload)?;
        Ok((body, id))
    }

    fn proof(&self, n: usize, from: &str, now_ms: UnixMs) -> Result<HeaderMap, String> {
        let (_, secret) = self.peers.get(n).ok_or("the bench has no peers")?;
        let sender = Sender {
            peer_id: "peer_bench",
            host: from,
            name: from,
        };
        let nonce = token::fresh_nonce().map_err(|e| e.to_string())?;
        let token = token::make(secret, &sender, now_ms, &nonce);
        let value = |text: &str| HeaderValue::from_str(text).map_err(|e| e.to_string());
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(TOKEN, value(&token)?);
        headers.insert(HOST, value(from)?);
        Ok(headers)
    }

    /// Whose token it is, once it held under the secret of peer `n`.
    fn holds(&self, headers: &HeaderMap, n: usize) -> Option<()> {
        let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
        let (_, secret) = self.peers.get(n)?;
        let (host, now) = (text(&HOST)?, Clock::system().now_ms());
        token::verify(Some(secret), host, text(&TOKEN)?, now)
            .ok()
            .map(drop)
    }

    async fn peering(&self, bridge: &Bridge, broker: &Broker, n: usize) -> Result<(), String> {
        let (host, secret) = self.peers.get(n).ok_or("the bench has no peers")?;
        let body = json!({
            "name": host,
            "host": host,
            "url": format!("http://{host}"),
            "sharedSecret": secret.as_text(),
            "features": handshake::features(),
        });
        let path = format!("{BASE}/handshake");
        let json = [("content-type", "application/json")];
        let body = body.to_string().into();
        let (status, said) = ask(bridge.public, Method::POST, &path, &json, body).await?;
        if status != 200 {
            let said = String::from_utf8_lossy(&said);
            return Err(format!(
                "the handshake of {host} was answered {status} {said}"
            ));
        }
        let body = json!({"peer": host}).to_string().into();
        let accepted = broker.bus.call_bridge(ID, "peer.accept", body).await;
        let accepted = accepted.map_err(|e| format!("accepting {host}: {e}"))?;
        match accepted["state"].as_str() {
            Some("connected") => Ok(()),
            _ => Err(format!("{host} is not connected: {accepted}")),
        }
    }
}

/// The form of relay ids that a backend may choose.
fn id(index: usize, now_ms: UnixMs) -> String {
    format!("relay_{now_ms:013}_{index:08x}")
}

fn outgoing(id: &str, time: &str, host: &str, payload: &RawValue) -> Result<Bytes, String> {
    let message = Outgoing {
        id,
        schema_version: 1,
        kind: KIND,
        payload,
        timestamp: time,
        from_host: host,
        from_mainline: host,
        hops: 0,
    };
    let body = serde_json::to_vec(&message).map_err(|e| e.to_string())?;
    Ok(body.into())
}

fn reply(status: StatusCode, body: &'static str) -> Reply {
    (status, Bytes::from_static(body.as_bytes()))
}

impl Speech for Voltchat {
    fn path(&self) -> &'static str {
        PUSH
    }

    fn peer(&self, n: usize) -> String {
        let peer = self.peers.get(n);
        peer.map(|(host, _)| host.clone()).unwrap_or_default()
    }

    fn draft(&self, index: usize, now_ms: UnixMs) -> Result<Draft, String> {
        let body = json!({"payload": self.payload()?});
        Ok(Draft {
            index,
            peer: self.world.peer_of(index),
            kind: KIND,
            id: id(index, now_ms),
            payload: body.to_string().into(),
        })
    }

    fn post(&self, index: usize, now_ms: UnixMs) -> Result<Post, String> {
        let n = self.world.peer_of(index);
        let host = self.peer(n);
        let (body, _) = self.message(index, &text::iso(now_ms), &host, &self.payload()?)?;
        Ok(Post {
            headers: self.proof(n, &host, now_ms)?,
            body,
        })
    }

    fn again(&self, post: &Post, now_ms: UnixMs) -> Result<Post, String> {
        let host = post.headers.get(&HOST).and_then(|v| v.to_str().ok());
        let host = host.ok_or("a push of nobody")?;
        let number = self.numbers.get(host).ok_or("a push of nobody")?;
        Ok(Post {
            headers: self.proof(*number, host, now_ms)?,
            body: post.body.clone(),
        })
    }

    /// A repeat has the same answer.
    fn took(&self, status: u16, _: &[u8]) -> Option<bool> {
        (status == 200).then_some(true)
    }

    /// All that one mainline is sent is in one order.
    fn keys_of_a_peer(&self) -> usize {
        1
    }

    fn proof(&self) -> HeaderName {
        TOKEN
    }

    fn index(&self, body: &[u8]) -> Result<usize, Reply> {
        between(body, b"\"id\":\"relay_", b'"')
            .and_then(|id| usize::from_str_radix(id.split_once('_')?.1, 16).ok())
            .ok_or_else(|| reply(StatusCode::BAD_REQUEST, r#"{"error":"Invalid message id"}"#))
    }

    fn proves(&self, headers: &HeaderMap, _: &Bytes) -> bool {
        let host = headers
            .get(http::header::HOST)
            .and_then(|v| v.to_str().ok());
        let number = host.and_then(|host| self.numbers.get(host).copied());
        number.and_then(|n| self.holds(headers, n)).is_some()
    }

    fn taken(&self, _: &[u8]) -> Reply {
        reply(StatusCode::OK, r#"{"success":true}"#)
    }

    fn page(&self, method: &Method, path: &str, _: &str) -> Option<Reply> {
        let path = path.strip_prefix(BASE).filter(|_| method == Method::POST)?;
        match path {
            "/ping" => Some(reply(StatusCode::OK, r#"{"success":true}"#)),
            "/relay/fetch" => Some(reply(StatusCode::OK, "[]")),
            _ => None,
        }
    }

    fn settings(
        &self,
        _: &Path,
        public: SocketAddr,
        far: Option<SocketAddr>,
    ) -> Result<String, String> {
        let mut text = format!(
            "[voltchat]\nurl = \"http://{public}\"\nserver_name = \"bench\"\n\
             sync_interval = \"1h\"\nmax_pending = 100000\npeer_rate_limit = 10000000\n\
             handshakes_per_minute = 1000000\n"
        );
        if far.is_some() {
            let hosts: Vec<_> = self.peers.iter().map(|(host, _)| host).collect();
            let hosts = json!(hosts);
            let _ = write!(
                text,
                "[http]\nplain_hosts = {hosts}\nallow_hosts = {hosts}\n"
            );
        }
        Ok(text)
    }

    fn needs_introduction(&self) -> bool {
        true
    }

    fn introduce<'a>(
        &'a self,
        bridge: &'a Bridge,
        broker: &'a Broker,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            for n in 0..self.peers.len() {
                self.peering(bridge, broker, n).await?;
            }
            Ok(())
        })
    }

    fn bare_out(&self, peer: &str, id: &str, payload: &[u8]) -> Result<Post, String> {
        #[derive(serde::Deserialize)]
        struct Body<'a> {
            #[serde(borrow)]
            payload: &'a RawValue,
        }
        let body: Body<'_> = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
        let now = Clock::system().now_ms();
        let n = self.numbers.get(peer).ok_or("a message for nobody")?;
        Ok(Post {
            headers: self.proof(*n, OWN, now)?,
            body: outgoing(id, &text::iso(now), OWN, body.payload)?,
        })
    }

    fn bare_in(&self, headers: &HeaderMap, body: &Bytes) -> Option<Taken> {
        let host = headers.get(&HOST)?.to_str().ok()?;
        self.holds(headers, *self.numbers.get(host)?)?;
        let received = Received::read(&Members::read(body)?, host, host).ok()?;
        Some(Taken {
            peer: host.to_owned(),
            kind: KIND,
            id: received.id,
            text: received.event,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_has_the_size_asked_for_shows_its_index_and_is_proven() {
        let speech = Voltchat::new(World::new(7, 3, 1024, 4000)).unwrap();
        let now = Clock::system().now_ms();
        let post = speech.post(70_001, now).unwrap();
        assert!(
            (1000..=1100).contains(&post.body.len()),
            "{}",
            post.body.len()
        );
        assert_eq!(speech.index(&post.body), Ok(70_001));
        let taken = speech.bare_in(&post.headers, &post.body).unwrap();
        assert_eq!(taken.peer, speech.peer(70_001 % 3));
        let draft = speech.draft(70_001, now).unwrap();
        let out = speech
            .bare_out(&speech.peer(draft.peer), &draft.id, &draft.payload)
            .unwrap();
        assert_eq!(speech.index(&out.body), Ok(70_001));
    }
}
