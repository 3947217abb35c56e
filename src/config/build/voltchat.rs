//! `[voltchat]` and its `[[voltchat.operators]]`.

use toml::{Table, Value};

use super::origin::origin;
use super::{MIN_TOKEN, token_sentence, usable_token};
use crate::config::ConfigError;
use crate::config::layers::{Layers, OPERATORS, kind, nearest};
use crate::config::model::{HttpConfig, Operator, OperatorRole, Secret, VoltChatConfig};
use crate::config::read::Section;
use crate::config::secret::read_secret;

/// Why our own URL needs TLS.
const RISK: &str = "peers send secrets and tokens there";
/// Longest name on the wire, in UTF-16 units.
const MAX_NAME: usize = 140;
/// Longest token that the specification's clients may send.
const MAX_TOKEN: usize = 4096;
const ROLES: [OperatorRole; 3] = [
    OperatorRole::Reader,
    OperatorRole::Moderator,
    OperatorRole::Admin,
];

/// Reads the section; `http` says which hosts may do without TLS.
pub(super) fn voltchat(
    layers: &Layers,
    s: &Section<'_>,
    http: &HttpConfig,
) -> Result<VoltChatConfig, ConfigError> {
    let url = match s.text_or_none("url")? {
        Some(text) => Some(origin(text, http, RISK).map_err(|what| s.wrong("url", &what))?),
        None => None,
    };
    let retry_delays = s.durations("retry_delays", "1ms", "7d")?;
    if retry_delays.len() > 32 {
        return Err(s.wrong(
            "retry_delays",
            &format!("must hold at most 32 delays, not {}", retry_delays.len()),
        ));
    }
    Ok(VoltChatConfig {
        enabled: s.flag("enabled")?,
        name: name(s, url.as_deref())?,
        url,
        allowed_servers: s
            .list("allowed_servers")?
            .into_iter()
            .map(ToOwned::to_owned)
            .collect(),
        max_hops: s.int("max_hops", 1, 16)?,
        operators: operators(layers, s)?,
        key_path: s.file("key_path")?,
        retry_delays,
        sync_interval: s.duration("sync_interval", "100ms", "1d")?,
        sync_at_once: s.int("sync_at_once", 1, 1024)?,
        fetch_batch: s.int("fetch_batch", 1, 200)?,
        handout_gap: s.duration("handout_gap", "10ms", "10m")?,
        mailbox_max_messages: s.int("mailbox_max_messages", 1, 100_000_000)?,
        mailbox_max_age: s.duration("mailbox_max_age", "1s", "365d")?,
        max_pending: s.int("max_pending", 0, 100_000)?,
        peer_rate_limit: s.int("peer_rate_limit", 1, 10_000_000)?,
        unproven_per_minute: s.int("unproven_per_minute", 1, 1_000_000)?,
        handshakes_per_minute: s.int("handshakes_per_minute", 1, 1_000_000)?,
        backend_timeout: s.duration("backend_timeout", "10ms", "30s")?,
    })
}

/// The name shown to peers; our host if none is given.
fn name(s: &Section<'_>, url: Option<&str>) -> Result<String, ConfigError> {
    match s.text("server_name")?.trim() {
        "" => {
            let host = url.and_then(|url| url.split_once("://")).map(|(_, h)| h);
            Ok(host.unwrap_or("Drawbridge").to_owned())
        }
        text if text.encode_utf16().count() > MAX_NAME => Err(s.wrong(
            "server_name",
            &format!("must be at most {MAX_NAME} characters long"),
        )),
        text => Ok(text.to_owned()),
    }
}

fn operators(layers: &Layers, s: &Section<'_>) -> Result<Vec<Operator>, ConfigError> {
    let Some(Value::Array(blocks)) = layers.value(OPERATORS) else {
        return Ok(Vec::new());
    };
    let mut known: Vec<Operator> = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.iter().filter_map(Value::as_table).enumerate() {
        let one = operator(layers, s, index + 1, block)?;
        if known.iter().any(|k| k.name == one.name) {
            return Err(layers.wrong(OPERATORS, &format!("names {} twice", one.name)));
        }
        if let Some(other) = known.iter().find(|k| k.token.0 == one.token.0) {
            let sentence = format!("gives {} and {} the same token", other.name, one.name);
            return Err(layers.wrong(OPERATORS, &sentence));
        }
        known.push(one);
    }
    Ok(known)
}

fn operator(
    layers: &Layers,
    s: &Section<'_>,
    number: usize,
    block: &Table,
) -> Result<Operator, ConfigError> {
    let shown = block
        .get("name")
        .and_then(Value::as_str)
        .map_or_else(|| format!("block {number}"), ToOwned::to_owned);
    let wrong = |key: &str, sentence: &str| {
        layers.wrong(OPERATORS, &format!("({shown}): {key} {sentence}"))
    };
    let text = |key: &str| match block.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim()).filter(|t| !t.is_empty())),
        Some(other) => Err(wrong(key, &format!("must be a text, not {}", kind(other)))),
    };
    let needed = |key: &str| {
        text(key)?.ok_or_else(|| wrong(key, "is needed in every [[voltchat.operators]] block"))
    };
    let name = needed("name")?;
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        let sentence = format!("must be at most {MAX_NAME} characters without control characters");
        return Err(wrong("name", &sentence));
    }
    let role = role(needed("role")?).map_err(|what| wrong("role", &what))?;
    let (key, token) = match (text("token")?, text("token_file")?) {
        (Some(_), Some(_)) => {
            let sentence = "and token_file are two forms of one setting; keep one";
            return Err(wrong("token", sentence));
        }
        (Some(token), None) => ("token", Secret(token.to_owned().into())),
        (None, Some(file)) => {
            let token = read_secret(&s.join(file))
                .map_err(|what| wrong("token_file", &format!("names {what}")))?;
            layers.read_secret(format!("{OPERATORS}.{name}.token"), &token);
            ("token_file", token)
        }
        (None, None) => {
            let sentence = "or token_file is needed in every [[voltchat.operators]] block";
            return Err(wrong("token", sentence));
        }
    };
    if !usable_token(&token) || token.0.len() > MAX_TOKEN {
        let sentence = match token.0.len() < MIN_TOKEN || token.0.len() <= MAX_TOKEN {
            true => token_sentence(),
            false => format!("must be at most {MAX_TOKEN} characters long"),
        };
        return Err(wrong(key, &sentence));
    }
    Ok(Operator {
        name: name.to_owned(),
        role,
        token,
    })
}

fn role(text: &str) -> Result<OperatorRole, String> {
    ROLES
        .into_iter()
        .find(|role| role.as_str() == text)
        .ok_or_else(|| {
            let known = ROLES.map(|role| role.as_str().to_owned());
            let hint = nearest(text, &known)
                .map_or_else(String::new, |near| format!("; did you mean {near}?"));
            format!("must be one of {}, not {text:?}{hint}", known.join(", "))
        })
}
