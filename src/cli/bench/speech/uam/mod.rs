//! UAM in the bench: relays with 32 agents each; every message has its agent's signature, every
//! delivery its relay's.

mod bare;
mod writer;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::json;

use super::{Draft, Post, Reply, Speech, Taken, Way, write_secret};
use crate::cli::bench::ask::ask;
use crate::cli::bench::pipeline::Bridge;
use crate::cli::bench::rig::Broker;
use crate::cli::bench::world::{OWN, World};
use crate::clock::UnixMs;
use crate::config::WireForms;
use crate::identity::{PublicKey, SigningKey, b64};
use crate::protocols::uam::discover::DELIVER_PATH;
use crate::protocols::uam::envelope::Envelope;
use crate::protocols::uam::relay_request::{Attempt, RelayRequest, sign_relay_request};
use crate::protocols::uam::{time, verify};
use writer::{Writer, index_of, message_id_in};

const SIGNATURE: HeaderName = HeaderName::from_static("x-uam-relay-signature");
const RELAY: HeaderName = HeaderName::from_static("x-uam-relay-domain");
/// Key of the bridge's allow-list route.
const ADMIN_KEY: &str = "bench";

/// It, in one world. Keys are derived when they are first needed.
pub struct Uam {
    own: SigningKey,
    own_public: PublicKey,
    relays: OnceLock<Vec<(String, SigningKey)>>,
    out: OnceLock<Result<Writer, String>>,
    incoming: OnceLock<Result<Writer, String>>,
    bare: OnceLock<Result<bare::Keys, String>>,
    /// Of the agents that were asked for.
    shown: Mutex<HashMap<String, String>>,
    world: World,
}

impl Uam {
    pub fn new(world: World) -> Self {
        let own = world.key(OWN);
        Self {
            own_public: own.public(),
            own,
            relays: OnceLock::new(),
            out: OnceLock::new(),
            incoming: OnceLock::new(),
            bare: OnceLock::new(),
            shown: Mutex::default(),
            world,
        }
    }

    fn writer(&self, way: Way) -> Result<&Writer, String> {
        let made = match way {
            Way::Out => &self.out,
            Way::In => &self.incoming,
        };
        made.get_or_init(|| Writer::new(&self.world, way))
            .as_ref()
            .map_err(Clone::clone)
    }

    fn relays(&self) -> &[(String, SigningKey)] {
        self.relays.get_or_init(|| {
            let names = (0..self.world.peers).map(|n| self.world.host(n));
            names
                .map(|name| (name.clone(), self.world.key(&name)))
                .collect()
        })
    }

    /// `/api/v1/agents/ADDRESS/public-key`
    fn agent(&self, path: &str) -> Reply {
        let address = path
            .trim_start_matches("/api/v1/agents/")
            .trim_end_matches("/public-key")
            .replace("%3A", ":");
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let key = shown
            .entry(address)
            .or_insert_with_key(|address| self.world.key(address).public().to_base64());
        (
            StatusCode::OK,
            json!({"public_key": key}).to_string().into(),
        )
    }
}

/// An envelope as its relay delivers it now.
fn delivery(
    envelope: &Envelope,
    relay: &String,
    key: &SigningKey,
    now_ms: UnixMs,
) -> Result<Post, String> {
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|e| e.to_string())?;
    let signed = sign_relay_request(
        envelope,
        &Attempt {
            via: std::slice::from_ref(relay),
            hop_count: 1,
            timestamp: &time::format_ms(now_ms),
            from_relay: relay,
            nonce: Some(&b64::encode(nonce)),
        },
        key,
    );
    let value = |text: &str| HeaderValue::from_str(text).map_err(|e| e.to_string());
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(SIGNATURE, value(&signed.signature)?);
    headers.insert(RELAY, value(relay)?);
    Ok(Post {
        headers,
        body: signed.body,
    })
}

fn reply(status: StatusCode, body: &'static str) -> Reply {
    (status, Bytes::from_static(body.as_bytes()))
}

impl Speech for Uam {
    fn path(&self) -> &'static str {
        DELIVER_PATH
    }

    fn peer(&self, n: usize) -> String {
        self.world.host(n)
    }

    fn draft(&self, index: usize, now_ms: UnixMs) -> Result<Draft, String> {
        let payload = self.writer(Way::Out)?.envelope(index, now_ms)?;
        let id = message_id_in(&payload).ok_or("an envelope without an id")?;
        Ok(Draft {
            index,
            peer: self.world.peer_of(index),
            kind: "message",
            id: id.to_owned(),
            payload,
        })
    }

    fn post(&self, index: usize, now_ms: UnixMs) -> Result<Post, String> {
        let relay = self.relays().get(self.world.peer_of(index));
        let (relay, key) = relay.ok_or("the bench has no peers")?;
        let text = self.writer(Way::In)?.envelope(index, now_ms)?;
        let envelope = Envelope::parse(text).map_err(|e| e.to_string())?;
        delivery(&envelope, relay, key, now_ms)
    }

    fn again(&self, post: &Post, now_ms: UnixMs) -> Result<Post, String> {
        let parsed = RelayRequest::parse(&post.body, WireForms::Nonce);
        let request = parsed.map_err(|e| e.to_string())?;
        let number = self.world.number(&request.from_relay);
        let relay = number.and_then(|n| self.relays().get(n));
        let (relay, key) = relay.ok_or("a delivery of nobody")?;
        delivery(&request.envelope, relay, key, now_ms)
    }

    fn took(&self, status: u16, body: &[u8]) -> Option<bool> {
        // The protocol's own words, see `deliver`.
        (status == 200).then(|| body.windows(11).any(|w| w == b"\"delivered\""))
    }

    fn keys_of_a_peer(&self) -> usize {
        writer::PAIRS
    }

    fn proof(&self) -> HeaderName {
        SIGNATURE
    }

    /// In the form with nonce; the other form is answered as a relay of 1.0 does.
    fn index(&self, body: &[u8]) -> Result<usize, Reply> {
        let after_envelope = body.len().saturating_sub(600);
        let tail = body.get(after_envelope..).unwrap_or_default();
        let from_relay = tail.windows(14).rposition(|w| w == b"\"from_relay\":\"");
        let nonced = from_relay.is_some_and(|at| {
            tail.get(at..)
                .unwrap_or_default()
                .windows(9)
                .any(|w| w == b"\"nonce\":\"")
        });
        if !nonced {
            return Err(reply(
                StatusCode::UNPROCESSABLE_ENTITY,
                r#"{"error":"validation_error","detail":"nonce: field required"}"#,
            ));
        }
        message_id_in(body).and_then(index_of).ok_or_else(|| {
            let said = r#"{"error":"bad_request","detail":"unknown message"}"#;
            reply(StatusCode::BAD_REQUEST, said)
        })
    }

    fn proves(&self, headers: &HeaderMap, body: &Bytes) -> bool {
        let signature = headers.get(SIGNATURE).and_then(|v| v.to_str().ok());
        let Ok(request) = RelayRequest::parse(body, WireForms::Nonce) else {
            return false;
        };
        let sender = self
            .world
            .key(request.envelope.from().unwrap_or_default())
            .public();
        let signature = signature.unwrap_or_default();
        verify::check_relay_signature(&request.signing_bytes(), signature, &self.own_public).is_ok()
            && verify::check_agent_signature(&request.envelope, &sender).is_ok()
    }

    fn taken(&self, _: &[u8]) -> Reply {
        reply(StatusCode::OK, r#"{"status":"delivered","detail":null}"#)
    }

    fn page(&self, method: &Method, path: &str, _: &str) -> Option<Reply> {
        match path {
            _ if method != Method::GET => None,
            "/api/v1/versions" => Some(reply(
                StatusCode::OK,
                r#"{"uam_version":"0.1","supported_major_versions":["0"]}"#,
            )),
            _ if path.ends_with("/public-key") => Some(self.agent(path)),
            _ => None,
        }
    }

    fn settings(
        &self,
        dir: &Path,
        public: SocketAddr,
        far: Option<SocketAddr>,
    ) -> Result<String, String> {
        let key = dir.join("relay_key.pem");
        write_secret(&key, &b64::encode(self.world.secret(OWN)))?;
        let mut text = format!(
            "[uam]\ndomain = \"{OWN}\"\nhttp_url = \"http://{public}\"\nkey_path = {key}\n\
             admin_api_key = \"{ADMIN_KEY}\"\n",
            key = json!(key),
        );
        let Some(far) = far else { return Ok(text) };
        for (name, key) in self.relays() {
            let _ = write!(
                text,
                "[[peers]]\nprotocol = \"uam\"\nname = \"{name}\"\nendpoint = \"http://{name}:{}\"\npublic_key = \"{}\"\n",
                far.port(),
                key.public().to_base64()
            );
        }
        Ok(text)
    }

    /// Puts every peer on the allow list: no rate limit then.
    fn introduce<'a>(
        &'a self,
        bridge: &'a Bridge,
        _: &'a Broker,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            for n in 0..self.world.active {
                let body = json!({"domain": self.peer(self.world.first + n), "reason": "bench"})
                    .to_string();
                let headers = [
                    ("x-admin-key", ADMIN_KEY),
                    ("content-type", "application/json"),
                ];
                let path = "/api/v1/admin/relay-allowlist";
                let (status, said) =
                    ask(bridge.public, Method::POST, path, &headers, body.into()).await?;
                if !(200..300).contains(&status) {
                    return Err(format!(
                        "the allow list answered {status} {}",
                        String::from_utf8_lossy(&said)
                    ));
                }
            }
            Ok(())
        })
    }

    fn bare_out(&self, _: &str, _: &str, payload: &[u8]) -> Result<Post, String> {
        bare::post(payload, &self.own)
    }

    fn bare_in(&self, headers: &HeaderMap, body: &Bytes) -> Option<Taken> {
        let keys = self.bare.get_or_init(|| bare::keys(&self.world));
        bare::taken(headers, body, keys.as_ref().ok()?)
    }
}
