//! VoltChat in the demo: a request, its acceptance, relayed announcements, a shared invite.

use bytes::Bytes;
use serde_json::{Value, json};

use super::side::Side;
use super::take;
use crate::bus::{Bus, Tail};

const ID: &str = "voltchat";
/// The code of the invite that is shared.
const CODE: &str = "welcome";

/// A method of the bridge, as a backend calls it.
async fn ask(bus: &Bus, method: &str, body: &Value) -> Result<Value, String> {
    bus.call_bridge(ID, method, body.to_string().into())
        .await
        .map_err(|e| format!("{method}: {e}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("-")
}

/// One asks, the other's operator looks and accepts; both end connected.
pub(super) async fn peer(
    from: &Side,
    from_bus: &Bus,
    to: &Side,
    to_bus: &Bus,
) -> Result<(), String> {
    let body = json!({"name": to.name, "host": to.host, "url": format!("http://{}", to.host)});
    let asked = ask(from_bus, "peer.request", &body).await?;
    println!(
        "   {} asks {}: {}",
        from.name,
        to.name,
        text(&asked, "state")
    );
    if let Some(why) = asked["lastError"].as_str() {
        return Err(format!("the handshake failed: {why}"));
    }
    let seen = ask(to_bus, "peer.inspect", &json!({"peer": from.host})).await?;
    println!(
        "   {} sees {:?} at {}: {}; GET /info there says {:?}",
        to.name,
        text(&seen["peer"], "name"),
        text(&seen["peer"], "url"),
        text(&seen["peer"], "state"),
        text(&seen["info"], "name"),
    );
    for warning in seen["warnings"].as_array().into_iter().flatten() {
        println!("     warning: {}", warning.as_str().unwrap_or_default());
    }
    let accepted = ask(to_bus, "peer.accept", &json!({"peer": from.host})).await?;
    let heard = ask(from_bus, "peer.get", &json!({"peer": to.host})).await?;
    println!(
        "   {} accepts; its ping tells {}. There: {}, here: {}",
        to.name,
        from.name,
        text(&accepted, "state"),
        text(&heard, "state")
    );
    match (text(&accepted, "state"), text(&heard, "state")) {
        ("connected", "connected") => Ok(()),
        _ => Err("the two did not become peers".to_owned()),
    }
}

/// Publishes one announcement as a backend would.
pub(super) async fn announce(bus: &Bus, to: &Side, said: &str) -> Result<(), String> {
    let body = json!({"payload": {"text": said}});
    bus.publish_out(
        ID,
        &to.host,
        "announcement",
        Vec::new(),
        Bytes::from(body.to_string()),
    )
    .await
    .map(|_| ())
    .map_err(|e| e.to_string())
}

/// What an event on `fed.in` says.
pub(super) fn said(payload: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(payload).ok()?;
    Some(event["payload"]["text"].as_str()?.to_owned())
}

/// Shows announcements as they arrive.
pub(super) async fn show(tail: &mut Tail, n: usize) -> Result<(), String> {
    for message in take(tail, n).await? {
        let said = said(&message.payload).unwrap_or_else(|| "(cannot be read)".into());
        println!("   {} {said}", message.subject);
    }
    Ok(())
}

/// One shares an invite to a server of its backend; the other browses it.
pub(super) async fn invite(
    from: &Side,
    from_bus: &Bus,
    to: &Side,
    to_bus: &Bus,
) -> Result<(), String> {
    let server = json!({"id": "lobby", "name": "The lobby"});
    ask(from_bus, "server.put", &server).await?;
    let share =
        json!({"code": CODE, "serverId": "lobby", "serverName": "The lobby", "maxUses": 10});
    let shared = ask(from_bus, "invite.share", &share).await?;
    println!(
        "   {} shares {} for {}",
        from.name,
        text(&shared, "code"),
        text(&shared, "serverName")
    );
    let seen = ask(to_bus, "invite.browse", &json!({"peer": from.host})).await?;
    let invites = seen["invites"].as_array().map_or(&[][..], Vec::as_slice);
    for invite in invites {
        println!(
            "   {} browses {}: {} for {}",
            to.name,
            text(invite, "sourceHost"),
            text(invite, "code"),
            text(invite, "serverName")
        );
    }
    match invites.iter().any(|invite| invite["code"] == CODE) {
        true => Ok(()),
        false => Err("the shared invite was not found there".to_owned()),
    }
}
