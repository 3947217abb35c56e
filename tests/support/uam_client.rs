//! A remote UAM relay's hands, written from the protocol sheet and not from the library: what the
//! tests sign and check must not depend on the code under test.
//!
//! Keys are derived from names, so that the process that posts and the process that serves key
//! look-ups agree without talking. Text stays in printable ASCII and numbers stay small integers;
//! within that, sorted compact JSON *is* the canonical form (sheet, section 3).
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A key pair that every process derives from the same name.
pub fn key_of(name: &str) -> SigningKey {
    SigningKey::from_bytes(&Sha256::digest(format!("drawbridge test key {name}")).into())
}

/// Unpadded URL-safe base64, as relays write keys and signatures.
pub fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The public key of a name, in the form of the wire.
pub fn public_of(name: &str) -> String {
    b64(key_of(name).verifying_key().as_bytes())
}

/// The text of a relay key file that holds the key of a name.
pub fn key_file_of(name: &str) -> String {
    format!("{}\n", b64(key_of(name).as_bytes()))
}

/// Wall clock, nanoseconds since 1970.
pub fn now_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Now, in the relays' own form: UTC, milliseconds, `Z`.
pub fn now_text() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
        .to_string()
}

fn canonical(value: &Value) -> String {
    let text = value.to_string();
    assert!(
        text.bytes().all(|b| (0x20..0x7f).contains(&b)),
        "test data must stay in printable ASCII: {text}"
    );
    text
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// An id of the right look (version 7 by convention, nobody checks).
pub fn message_id() -> String {
    let ms = now_ns() / 1_000_000;
    let r = random::<10>();
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    format!(
        "{:08x}-{:04x}-7{}-8{}-{}",
        ms >> 16,
        ms & 0xffff,
        &hex(&r[0..2])[1..],
        &hex(&r[2..4])[1..],
        hex(&r[4..10])
    )
}

/// A signed envelope. `payload` is put into base64 (tests send clear text: relays never decrypt).
pub fn envelope(id: &str, from: &str, to: &str, payload: &str) -> Value {
    let mut envelope = json!({
        "uam_version": "0.1",
        "message_id": id,
        "from": from,
        "to": to,
        "timestamp": now_text(),
        "type": "message",
        "nonce": b64(&random::<24>()),
        "payload": b64(payload.as_bytes()),
    });
    let signature = key_of(from).sign(canonical(&envelope).as_bytes());
    envelope["signature"] = b64(&signature.to_bytes()).into();
    envelope
}

/// The clear text in an envelope made by [`envelope`].
pub fn payload_text(envelope: &Value) -> String {
    let text = envelope["payload"].as_str().unwrap_or_default();
    String::from_utf8(decode(text).unwrap_or_default()).unwrap_or_default()
}

/// Base64 in either alphabet, with padding or none.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let plain = text
        .trim_end_matches('=')
        .replace('-', "+")
        .replace('_', "/");
    STANDARD_NO_PAD.decode(plain).ok()
}

/// A federation request of `relay`, signed now. `nonce`: the newer wire form.
pub struct Delivery {
    pub body: String,
    pub signature: String,
    pub relay: String,
}

/// Signs one delivery of an envelope, as the relay `relay` does.
pub fn delivery(relay: &str, envelope: &Value, with_nonce: bool) -> Delivery {
    delivery_signed_by(relay, relay, envelope, with_nonce)
}

/// The same with the key of another name: after a rotation, or a forgery.
pub fn delivery_signed_by(
    relay: &str,
    key_name: &str,
    envelope: &Value,
    with_nonce: bool,
) -> Delivery {
    let mut body = json!({
        "envelope": envelope,
        "via": [relay],
        "hop_count": 1,
        "timestamp": now_text(),
        "from_relay": relay,
    });
    if with_nonce {
        body["nonce"] = b64(&random::<16>()).into();
    }
    let body = canonical(&body);
    let signature = key_of(key_name).sign(body.as_bytes());
    Delivery {
        body,
        signature: b64(&signature.to_bytes()),
        relay: relay.to_owned(),
    }
}

/// Checks what a bridge sent: `Ok` gives the envelope.
///
/// # Errors
/// A sentence, when the body is no federation request or the signature is not that of `key`.
pub fn verify_delivery(body: &[u8], signature: &str, key: &VerifyingKey) -> Result<Value, String> {
    let body: Value = serde_json::from_slice(body).map_err(|e| format!("body is no JSON: {e}"))?;
    let mut signed = serde_json::Map::new();
    for field in [
        "envelope",
        "via",
        "hop_count",
        "timestamp",
        "from_relay",
        "nonce",
    ] {
        if let Some(value) = body.get(field) {
            signed.insert(field.into(), value.clone());
        }
    }
    let bytes: [u8; 64] = decode(signature)
        .and_then(|b| b.try_into().ok())
        .ok_or("the signature is not 64 bytes")?;
    key.verify_strict(
        canonical(&Value::Object(signed)).as_bytes(),
        &ed25519_dalek::Signature::from_bytes(&bytes),
    )
    .map_err(|_| "the relay signature does not match".to_owned())?;
    let envelope = &body["envelope"];
    let mut own = envelope.clone();
    if let Some(own) = own.as_object_mut() {
        own.remove("signature");
    }
    let from = envelope["from"].as_str().unwrap_or_default();
    let bytes: [u8; 64] = envelope["signature"]
        .as_str()
        .and_then(decode)
        .and_then(|b| b.try_into().ok())
        .ok_or("the envelope's signature is not 64 bytes")?;
    key_of(from)
        .verifying_key()
        .verify_strict(
            canonical(&own).as_bytes(),
            &ed25519_dalek::Signature::from_bytes(&bytes),
        )
        .map_err(|_| "the envelope was changed on its way".to_owned())?;
    Ok(envelope.clone())
}

/// What the answer to a posted delivery tells the poster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Posted {
    /// 200: the bridge has it; `true` when it said `duplicate`.
    Ok { duplicate: bool },
    /// An answer that promises the event was not taken.
    Refused(u16, String),
    /// No answer, or 5xx: it may have been taken.
    Unknown(String),
}

/// Posts one delivery to a bridge at `base` (`http://127.0.0.1:PORT`).
pub async fn post(client: &reqwest::Client, base: &str, delivery: &Delivery) -> Posted {
    let sent = client
        .post(format!("{base}/api/v1/federation/deliver"))
        .header("content-type", "application/json")
        .header("x-uam-relay-signature", &delivery.signature)
        .header("x-uam-relay-domain", &delivery.relay)
        .body(delivery.body.clone())
        .send()
        .await;
    let answer = match sent {
        Ok(answer) => answer,
        Err(e) => return Posted::Unknown(format!("{e:?}")),
    };
    let status = answer.status().as_u16();
    let Ok(text) = answer.text().await else {
        return Posted::Unknown(format!("{status} without its body"));
    };
    match status {
        200 => {
            let said: Value = serde_json::from_str(&text).unwrap_or_default();
            match said["status"].as_str() {
                Some("delivered") => Posted::Ok { duplicate: false },
                Some("duplicate") => Posted::Ok { duplicate: true },
                _ => Posted::Unknown(format!("200 with an unknown body: {text}")),
            }
        }
        400..=499 => Posted::Refused(status, text),
        _ => Posted::Unknown(format!("{status} {text}")),
    }
}
