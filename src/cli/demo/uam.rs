//! UAM in the demo: signed, encrypted messages between agents.

use bytes::Bytes;
use serde_json::json;

use super::side::Side;
use super::take;
use crate::bus::{Bus, Tail};
use crate::clock::Clock;
use crate::identity::SigningKey;
use crate::protocols::uam::address::Address;
use crate::protocols::uam::envelope::{self, Draft};
use crate::protocols::uam::{payload, time};

impl Side {
    /// Tells the bridge its agents' public keys, as a backend does.
    pub(super) async fn register(&self, bus: &Bus) -> Result<(), String> {
        for (address, key) in &self.agents {
            let put = json!({"address": address.as_str(), "public_key": key.public().to_base64()});
            bus.call_bridge("uam", "agent.put", put.to_string().into())
                .await
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// Publishes one signed, encrypted message as a backend would; answers its message id.
pub(super) async fn post(
    bus: &Bus,
    from: &(Address, SigningKey),
    to: &(Address, SigningKey),
    text: &str,
) -> Result<String, String> {
    let now = Clock::system().now_ms();
    let (mut nonce, mut id, mut cipher) = ([0u8; 24], [0u8; 10], [0u8; 24]);
    for bytes in [&mut nonce[..], &mut id[..], &mut cipher[..]] {
        getrandom::fill(bytes).map_err(|e| e.to_string())?;
    }
    let sealed = payload::seal_box(text.as_bytes(), &from.1, &to.1.public(), &cipher)
        .map_err(|e| e.to_string())?;
    let message_id = envelope::message_id(now, &id);
    let draft = Draft {
        from: &from.0,
        to: &to.0,
        kind: "message",
        payload: &sealed,
        message_id: &message_id,
        timestamp: &time::format_ms(now),
        nonce: &nonce,
        thread_id: None,
        reply_to: None,
        expires: None,
        media_type: None,
    };
    let body = Bytes::from(envelope::build(&draft, &from.1));
    let headers = vec![("Nats-Msg-Id".to_owned(), message_id.clone())];
    bus.publish_out("uam", "_to", "message", headers, body)
        .await
        .map_err(|e| e.to_string())?;
    Ok(message_id)
}

/// Shows arrivals with their text, as the receiving agent reads it.
pub(super) async fn show(tail: &mut Tail, n: usize, from: &Side, to: &Side) -> Result<(), String> {
    for message in take(tail, n).await? {
        let event: serde_json::Value =
            serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
        let sender = from
            .agents
            .iter()
            .find(|a| event["from"].as_str() == Some(a.0.as_str()));
        let text = sender.and_then(|s| {
            let open =
                payload::open_box(event["payload"].as_str()?, &to.agents[0].1, &s.1.public());
            String::from_utf8(open.ok()?).ok()
        });
        let sender = event["from"].as_str().unwrap_or("?");
        println!(
            "   {} {sender}: {}",
            message.subject,
            text.as_deref().unwrap_or("(cannot be read)")
        );
    }
    Ok(())
}
