//! `invite.browse`: what a peer shares, asked of it when it is there and remembered for when it is not.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::listing::Listing;
use super::refused::Refused;
use crate::clock::UnixMs;
use crate::protocol::Refusal;
use crate::protocols::voltchat::record::Peer;
use crate::protocols::voltchat::{ID, Limits, VoltChat, acts};
use crate::trust::Standing;

/// A list is a stranger's text of any length.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(10),
    answer: 1 << 20,
};
/// A list younger than this is not asked for again.
const FRESH_MS: i64 = 2_000;

/// Asks a peer for its public list, or shows the last one known when it does not answer. `named` is
/// the peer's host or id.
pub async fn browse(v: &VoltChat, named: &str) -> Result<Value, Refusal> {
    if !v.config.enabled {
        return Err(Refused::Disabled.into());
    }
    let peer = find(v, named)?;
    let (host, now) = (peer.host.as_str(), v.clock.now_ms());
    let last = v.invites.last_seen(host).await;
    if let Some(last) = &last
        && (0..FRESH_MS).contains(&now.saturating_sub(last.fetched_ms))
    {
        return Ok(last.shown(host, now, None));
    }
    match fetch(v, &peer.url, now).await {
        Ok(listing) => {
            v.invites.keep_seen(host, &listing).await;
            let body = json!({"count": listing.invites.len(), "left_out": listing.left_out});
            v.ops.event("invite", "browsed", ID, host, body);
            Ok(listing.shown(host, now, None))
        }
        Err(why) => match last {
            Some(last) => Ok(last.shown(host, now, Some(&why))),
            None => Err(Refusal::new(
                "peer_unavailable",
                format!("{host}: {why}, and no earlier list of it is known"),
            )),
        },
    }
}

/// An accepted peer by its host or id.
fn find(v: &VoltChat, named: &str) -> Result<Arc<Peer>, Refusal> {
    let peer = acts::find(v, named)?;
    if !peer.status.is_accepted() {
        let detail = format!(
            "{} is {} and not connected: its invites are read once both sides have accepted",
            peer.host,
            peer.status.wire()
        );
        return Err(Refusal::new("not_connected", detail));
    }
    let host = peer.host.as_str();
    if !v.allow.admits(host) || v.trust.standing(ID, host) == Standing::Blocked {
        let detail = format!(
            "{host} is asked nothing: voltchat.allowed_servers does not admit it, or a trust rule \
             blocks it"
        );
        return Err(Refusal::new("not_allowed", detail));
    }
    Ok(peer)
}

/// The error is half a sentence about the peer.
async fn fetch(v: &VoltChat, base: &str, now: UnixMs) -> Result<Listing, String> {
    let path = format!("/invites/public?host={}", escaped(v.own.host.as_str()));
    let asked = v.ask(Method::GET, base, &path, HeaderMap::new(), None, LIMITS);
    let answer = asked.await.map_err(|error| error.to_string())?;
    if answer.status != 200 {
        return Err(format!("it answered {}", answer.status));
    }
    Listing::read(&answer.body, now)
}

/// A host as a query value.
fn escaped(host: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    host.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_a_port_is_one_query_value() {
        assert_eq!(escaped("b.example:8443"), "b.example%3A8443");
        assert_eq!(escaped("[::1]"), "%5B%3A%3A1%5D");
    }
}
