//! Paracord in the demo: two servers look each other up and trust each other, and share a room.

use bytes::Bytes;
use serde_json::{Value, json};

use super::side::Side;
use super::take;
use crate::bus::{Bus, Tail};
use crate::identity::SigningKey;

const ID: &str = "paracord";
/// The guild that is shared, and its channel.
const GUILD: &str = "7010";
const CHANNEL: &str = "7020";

/// A method of the bridge, as a backend calls it.
async fn ask(bus: &Bus, method: &str, body: &Value) -> Result<Value, String> {
    bus.call_bridge(ID, method, body.to_string().into())
        .await
        .map_err(|e| format!("{method}: {e}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("-")
}

/// One looks the other up, compares the fingerprint with what that one's operator says, and trusts it.
pub(super) async fn trust(from: &Side, from_bus: &Bus, to: &Side) -> Result<(), String> {
    let (name, url) = (to.server(), format!("http://{}", to.host));
    let found = ask(from_bus, "peer.request", &json!({"name": name, "url": url})).await?;
    let shown = text(&found["keys"][0], "fingerprint");
    println!(
        "   {} looks up {name}: domain {}, key {shown}",
        from.name,
        text(&found, "domain")
    );
    let own = SigningKey::load(&to.config.paracord.key_path).map_err(|e| e.to_string())?;
    let own = own.map(|key| key.public().fingerprint());
    if own.as_deref() != Some(shown) {
        return Err(format!("{} has another key than it shows", to.name));
    }
    let body = json!({"peer": name, "fingerprint": shown});
    let accepted = ask(from_bus, "peer.accept", &body).await?;
    match text(&accepted, "status") {
        "trusted" => Ok(()),
        other => Err(format!("{name} is {other}, not trusted")),
    }
}

/// The room that both share; it lives on this side.
pub(super) fn room(home: &Side) -> String {
    format!("!{GUILD}:{}", home.server())
}

/// One has a room; somebody of the other is invited to it and joins.
pub(super) async fn join(
    home: &Side,
    home_bus: &Bus,
    guest_bus: &Bus,
    user: &str,
) -> Result<(), String> {
    let room = room(home);
    let put = json!({"room_id": room, "name": "Tea", "default_channel_id": CHANNEL});
    ask(home_bus, "room.put", &put).await?;
    let invite = ask(
        guest_bus,
        "invite",
        &json!({"room_id": room, "sender": user}),
    )
    .await?;
    let joined = ask(
        guest_bus,
        "join",
        &json!({"room_id": room, "user_id": user}),
    )
    .await?;
    println!(
        "   {user} is invited to {room}, called {:?}, and joins: {}",
        text(&invite, "guild_name"),
        joined["joined"]
    );
    match joined["joined"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(format!("{user} could not join {room}")),
    }
}

/// Publishes one event in a room, as a backend would: to everybody who is in it.
async fn publish(bus: &Bus, kind: &str, body: &Value) -> Result<(), String> {
    let body = Bytes::from(body.to_string());
    bus.publish_out(ID, "_room", kind, Vec::new(), body)
        .await
        .map(|_| ())
        .map_err(|e| e.to_string())
}

/// A message in a room. `id`: its number, used once.
pub(super) async fn say(
    bus: &Bus,
    room: &str,
    user: &str,
    id: u32,
    said: &str,
) -> Result<(), String> {
    let body = json!({
        "room_id": room,
        "sender": user,
        "content": {
            "body": said,
            "msgtype": "m.text",
            "guild_id": GUILD,
            "channel_id": CHANNEL,
            "message_id": id.to_string(),
        },
    });
    publish(bus, "m.message", &body).await
}

/// A reaction to a message.
pub(super) async fn react(
    bus: &Bus,
    room: &str,
    user: &str,
    to: u32,
    emoji: &str,
) -> Result<(), String> {
    let body = json!({
        "room_id": room,
        "sender": user,
        "content": {
            "guild_id": GUILD,
            "channel_id": CHANNEL,
            "message_id": to.to_string(),
            "emoji": emoji,
        },
    });
    publish(bus, "m.reaction.add", &body).await
}

/// What an event on `fed.in` says.
pub(super) fn said(payload: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(payload).ok()?;
    let content = &event["content"];
    let said = content["body"].as_str().or(content["emoji"].as_str())?;
    Some(said.to_owned())
}

/// Shows events as they arrive.
pub(super) async fn show(tail: &mut Tail, n: usize) -> Result<(), String> {
    for message in take(tail, n).await? {
        let event: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let said = said(&message.payload).unwrap_or_else(|| "(cannot be read)".into());
        println!("   {} {}: {said}", message.subject, text(&event, "sender"));
    }
    Ok(())
}
