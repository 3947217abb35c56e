//! A Paracord server's hands, written from the protocol sheet and not from the library: the text that
//! is signed, the canonical envelope, the four headers. What the tests sign and check must not depend
//! on the code under test.
//!
//! `serde_json` keeps members sorted by key and text raw, so compact JSON of a [`Value`] *is* the sorted
//! form of the sheet's section 4; wire order is written by hand.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Base of the protocol's routes.
pub const BASE: &str = "/_paracord/federation/v1";
/// The discovery page.
pub const WELL_KNOWN: &str = "/.well-known/paracord/server";

/// The members of an envelope in wire order.
pub const WIRE: [&str; 10] = [
    "event_id",
    "room_id",
    "event_type",
    "sender",
    "origin_server",
    "origin_ts",
    "content",
    "depth",
    "state_key",
    "signatures",
];

/// Wall clock, milliseconds since 1970.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes of hex in either case, exactly so many.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// SHA-256 in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A key pair that every process derives from the same name.
pub fn key_of(name: &str) -> SigningKey {
    SigningKey::from_bytes(&Sha256::digest(format!("drawbridge test key {name}")).into())
}

/// A public key in hex, as the protocol writes it.
pub fn public_hex(key: &SigningKey) -> String {
    hex(key.verifying_key().as_bytes())
}

/// Compact JSON of an object with these members in this order; what is not there is left out.
pub fn ordered(value: &Value, members: &[&str]) -> String {
    let mut parts = Vec::new();
    for member in members {
        if let Some(value) = value.get(*member) {
            parts.push(format!("{}:{value}", json!(member)));
        }
    }
    format!("{{{}}}", parts.join(","))
}

/// An envelope as it goes over the wire.
pub fn wire(envelope: &Value) -> String {
    ordered(envelope, &WIRE)
}

/// The bytes that an envelope's signature covers: nine members, sorted at every level.
pub fn canonical(envelope: &Value) -> String {
    let mut nine = envelope.clone();
    if let Some(members) = nine.as_object_mut() {
        members.remove("signatures");
    }
    nine.to_string()
}

/// The text that a request's signature covers.
pub fn string_to_sign(method: &str, path: &str, timestamp: i64, body: &[u8]) -> String {
    format!(
        "{}\n{path}\n{timestamp}\n{}",
        method.to_ascii_uppercase(),
        sha256(body)
    )
}

/// Whether a signature in hex holds over these bytes under a key in hex.
pub fn holds(public: &str, bytes: &[u8], signature: &str) -> bool {
    let key = unhex(public).and_then(|k| VerifyingKey::from_bytes(&k).ok());
    match (key, unhex(signature)) {
        (Some(key), Some(signature)) => key
            .verify_strict(bytes, &Signature::from_bytes(&signature))
            .is_ok(),
        _ => false,
    }
}

/// A server in whose name requests are made.
#[derive(Clone)]
pub struct Identity {
    /// Its `server_name`.
    pub name: String,
    /// What stands behind the colon of its ids.
    pub domain: String,
    pub key_id: String,
    pub key: SigningKey,
}

impl Identity {
    /// Name and domain are one; its key comes of the name.
    pub fn new(name: &str) -> Self {
        Self::with_domain(name, name)
    }

    /// A server whose domain is another than its name.
    pub fn with_domain(name: &str, domain: &str) -> Self {
        Self {
            name: name.into(),
            domain: domain.into(),
            key_id: "ed25519:auto".into(),
            key: key_of(name),
        }
    }

    /// Its public key in hex.
    pub fn public(&self) -> String {
        public_hex(&self.key)
    }

    /// A user of it.
    pub fn user(&self, localpart: &str) -> String {
        format!("@{localpart}:{}", self.domain)
    }

    /// An envelope without signature, of now, with an id that nobody has used: a message by alice.
    pub fn draft(&self, room: &str) -> Value {
        let now = now_ms();
        let message = fresh();
        json!({
            "event_id": format!("${message}:{}", self.domain),
            "room_id": room,
            "event_type": "m.message",
            "sender": self.user("alice"),
            "origin_server": self.name,
            "origin_ts": now,
            "content": {
                "body": "hello",
                "msgtype": "m.text",
                "guild_id": guild_of(room),
                "channel_id": "20",
                "message_id": message,
            },
            "depth": now,
            "state_key": null,
            "signatures": {},
        })
    }

    /// The same with some members replaced, signed.
    pub fn event(&self, room: &str, changes: Value) -> Value {
        let mut envelope = self.draft(room);
        change(&mut envelope, &changes);
        self.sign(&mut envelope);
        envelope
    }

    /// Signs an envelope under the name in `origin_server`.
    pub fn sign(&self, envelope: &mut Value) {
        let signature = hex(&self.key.sign(canonical(envelope).as_bytes()).to_bytes());
        let origin = envelope["origin_server"].as_str().unwrap_or(&self.name);
        envelope["signatures"] = json!({ origin: { &self.key_id: signature } });
    }

    /// A signed POST below [`BASE`] (`/event`).
    pub fn post(&self, route: &str, body: impl Into<Vec<u8>>) -> Request {
        let mut request = Request {
            method: "POST".into(),
            path: format!("{BASE}{route}"),
            body: Some(body.into()),
            content_type: Some("application/json".into()),
            headers: BTreeMap::new(),
        };
        self.dress(&mut request, now_ms());
        request
    }

    /// A signed GET of a path below [`BASE`], as it stands in the request line; the signature covers
    /// the query of `/events` and of nothing else.
    pub fn get(&self, route: &str) -> Request {
        let mut request = Request {
            method: "GET".into(),
            path: format!("{BASE}{route}"),
            body: None,
            content_type: None,
            headers: BTreeMap::new(),
        };
        self.dress(&mut request, now_ms());
        request
    }

    /// Signs it (again) with this time.
    pub fn dress(&self, request: &mut Request, timestamp: i64) {
        let body = request.body.clone().unwrap_or_default();
        let path = match request.path.split_once('?') {
            Some((path, _)) if !path.ends_with("/events") => path.to_owned(),
            _ => request.path.clone(),
        };
        self.dress_over(request, timestamp, &path, &body);
    }

    /// Signs it over another path and body than it has.
    pub fn dress_over(&self, request: &mut Request, timestamp: i64, path: &str, body: &[u8]) {
        let text = string_to_sign(&request.method, path, timestamp, body);
        let signature = hex(&self.key.sign(text.as_bytes()).to_bytes());
        for (name, value) in [
            ("x-paracord-origin", self.name.clone()),
            ("x-paracord-key-id", self.key_id.clone()),
            ("x-paracord-timestamp", timestamp.to_string()),
            ("x-paracord-signature", signature),
        ] {
            request.headers.insert(name.into(), value);
        }
    }

    /// `/event` with this envelope.
    pub fn push(&self, envelope: &Value) -> Request {
        self.post("/event", wire(envelope))
    }

    /// `/events` of a room.
    pub fn events(&self, room: &str, since: i64, limit: usize) -> Request {
        self.get(&format!(
            "/events?room_id={room}&since_depth={since}&limit={limit}"
        ))
    }
}

/// Replaces members of an object; objects in `content` are merged, anything else takes the old place.
pub fn change(envelope: &mut Value, changes: &Value) {
    for (member, value) in changes.as_object().into_iter().flatten() {
        match (member.as_str(), value.as_object()) {
            ("content", Some(more)) if envelope["content"].is_object() => {
                for (key, value) in more {
                    envelope["content"][key] = value.clone();
                }
            }
            _ => envelope[member] = value.clone(),
        }
    }
}

/// The guild in a room id.
pub fn guild_of(room: &str) -> String {
    let guild = room.trim_start_matches('!').split(':').next();
    guild.unwrap_or_default().to_owned()
}

/// A number that no other call gave: a message id.
pub fn fresh() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("{}{:06}", now_ms() % 1_000_000_000, n % 1_000_000)
}

/// A request, to be spoilt before it is sent.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// As it stands in the request line.
    pub path: String,
    pub body: Option<Vec<u8>>,
    pub content_type: Option<String>,
    /// The four headers and any others, lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// The same with another value of a header (`timestamp` means `x-paracord-timestamp`).
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .insert(format!("x-paracord-{name}"), value.into());
        self
    }

    /// The value of a header.
    pub fn value(&self, name: &str) -> &str {
        &self.headers[&format!("x-paracord-{name}")]
    }

    /// Sends it to a server, `http://127.0.0.1:1234`.
    pub async fn send(&self, client: &reqwest::Client, server: &str) -> Answer {
        self.try_send(client, server).await.expect("an answer")
    }

    /// The same; an error if no answer came.
    pub async fn try_send(
        &self,
        client: &reqwest::Client,
        server: &str,
    ) -> Result<Answer, reqwest::Error> {
        let method = reqwest::Method::from_bytes(self.method.as_bytes()).expect("a method");
        let mut request = client.request(method, format!("{server}{}", self.path));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(kind) = &self.content_type {
            request = request.header("content-type", kind);
        }
        if let Some(body) = &self.body {
            request = request.body(body.clone());
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let headers = answer.headers().clone();
        let text = answer.text().await?;
        Ok(Answer {
            status,
            headers,
            json: serde_json::from_str(&text).unwrap_or_default(),
            text,
        })
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub json: Value,
    pub text: String,
}

impl Answer {
    /// Value of a header, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default()
    }
}
