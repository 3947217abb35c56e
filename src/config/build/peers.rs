//! `[[peers]]`: what is pinned of each.

use std::collections::HashSet;
use std::sync::Arc;

use base64::Engine as _;
use toml::{Table, Value};

use super::{base_url, url_sentence};
use crate::config::ConfigError;
use crate::config::layers::{Layers, PEERS, kind, nearest};
use crate::config::model::PeerPin;
use crate::protocol::PeerName;

/// Protocols a peer may be pinned for in this version.
const PROTOCOLS: [&str; 2] = ["uam", "paracord"];

/// The protocol whose keys are hex, and have ids.
const PARACORD: &str = "paracord";

pub(super) fn peers(layers: &Layers) -> Result<Vec<Arc<PeerPin>>, ConfigError> {
    let Some(Value::Array(blocks)) = layers.value(PEERS) else {
        return Ok(Vec::new());
    };
    let mut pins: Vec<Arc<PeerPin>> = Vec::with_capacity(blocks.len());
    let mut met = HashSet::with_capacity(blocks.len());
    for (index, block) in blocks.iter().filter_map(Value::as_table).enumerate() {
        let pin = peer(layers, index + 1, block)?;
        if !met.insert((pin.protocol.clone(), pin.name.clone())) {
            return Err(layers.wrong(
                PEERS,
                &format!("names {} twice for {}", pin.name, pin.protocol),
            ));
        }
        pins.push(Arc::new(pin));
    }
    Ok(pins)
}

fn peer(layers: &Layers, number: usize, block: &Table) -> Result<PeerPin, ConfigError> {
    let shown = block
        .get("name")
        .and_then(Value::as_str)
        .map_or_else(|| format!("block {number}"), ToOwned::to_owned);
    let wrong =
        |key: &str, sentence: String| layers.wrong(PEERS, &format!("({shown}): {key} {sentence}"));
    let text = |key: &str| match block.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim()).filter(|t| !t.is_empty())),
        Some(other) => Err(wrong(key, format!("must be a text, not {}", kind(other)))),
    };
    let needed = |key: &str| {
        text(key)?.ok_or_else(|| wrong(key, "is needed in every [[peers]] block".to_owned()))
    };
    let protocol = needed("protocol")?;
    if !PROTOCOLS.contains(&protocol) {
        let known = PROTOCOLS.map(ToOwned::to_owned);
        let hint = nearest(protocol, &known)
            .map_or_else(String::new, |near| format!("; did you mean {near}?"));
        return Err(wrong(
            "protocol",
            format!(
                "must be one of {}, not {protocol:?}{hint}",
                PROTOCOLS.join(", ")
            ),
        ));
    }
    let name = needed("name")?;
    let name = PeerName::parse(&name.to_ascii_lowercase()).map_err(|_| {
        wrong(
            "name",
            format!("must be a server's name such as beta.com, not {name:?}"),
        )
    })?;
    let endpoint = match text("endpoint")? {
        Some(url) => Some(base_url(url).ok_or_else(|| wrong("endpoint", url_sentence(url)))?),
        None => None,
    };
    let public_key = text("public_key")?.map(ToOwned::to_owned);
    let hex = protocol == PARACORD;
    if let Some(key) = &public_key
        && !is_key(key, hex)
    {
        let form = match hex {
            true => "64 hex digits",
            false => "base64 of 32 bytes",
        };
        let sentence = format!("must be an Ed25519 key, {form}");
        return Err(wrong("public_key", sentence));
    }
    let key_id = text("key_id")?.map(ToOwned::to_owned);
    let domain = match text("domain")? {
        Some(domain) => Some(PeerName::parse(&domain.to_ascii_lowercase()).map_err(|_| {
            let sentence = format!("must be a host name such as beta.com, not {domain:?}");
            wrong("domain", sentence)
        })?),
        None => None,
    };
    for (key, given) in [("key_id", key_id.is_some()), ("domain", domain.is_some())] {
        if given && protocol != PARACORD {
            return Err(wrong(key, format!("is for protocol = {PARACORD:?} only")));
        }
    }
    if key_id.is_some() && public_key.is_none() {
        return Err(wrong("key_id", "needs public_key beside it".to_owned()));
    }
    let accepted = match block.get("accepted") {
        None => true,
        Some(Value::Boolean(accepted)) => *accepted,
        Some(other) => {
            return Err(wrong(
                "accepted",
                format!("must be true or false, not {}", kind(other)),
            ));
        }
    };
    Ok(PeerPin {
        protocol: protocol.to_owned(),
        name: name.to_string(),
        endpoint,
        public_key,
        key_id,
        domain: domain.map(String::from),
        accepted,
    })
}

/// A key in 64 hex digits, or base64 of either alphabet, padded or not, of 32 bytes.
fn is_key(text: &str, hex: bool) -> bool {
    if hex {
        return text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    }
    let plain: String = text
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            c => c,
        })
        .collect();
    base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(plain)
        .is_ok_and(|bytes| bytes.len() == 32)
}
