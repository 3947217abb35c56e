//! `[paracord]`.

use super::origin::origin;
use super::{token_sentence, usable_token};
use crate::config::ConfigError;
use crate::config::model::{HttpConfig, ParacordConfig};
use crate::config::read::Section;
use crate::protocol::PeerName;

/// Longest id of a key, bytes.
const MAX_KEY_ID: usize = 128;

/// Why our own URL needs TLS.
const RISK: &str = "servers read our keys there before they trust us, and send read tokens";

/// Reads the section; `http` says which hosts may do without TLS.
pub(super) fn paracord(s: &Section<'_>, http: &HttpConfig) -> Result<ParacordConfig, ConfigError> {
    let retry_delays = s.durations("retry_delays", "1ms", "7d")?;
    if retry_delays.len() > 32 {
        return Err(s.wrong(
            "retry_delays",
            &format!("must hold at most 32 delays, not {}", retry_delays.len()),
        ));
    }
    let read_token = s.secret("read_token")?;
    if read_token
        .as_ref()
        .is_some_and(|token| !usable_token(token))
    {
        return Err(s.wrong("read_token", &token_sentence()));
    }
    let url = match s.text_or_none("url")? {
        Some(text) => Some(origin(text, http, RISK).map_err(|what| s.wrong("url", &what))?),
        None => None,
    };
    let keep_bodies = s.duration("keep_bodies", "0s", "36500d")?;
    Ok(ParacordConfig {
        enabled: s.flag("enabled")?,
        server_name: name(s, "server_name")?,
        domain: name(s, "domain")?,
        url,
        key_path: s.file("key_path")?,
        key_id: key_id(s)?,
        key_overlap: s.duration("key_overlap", "0s", "365d")?,
        auto_trust: s.flag("auto_trust")?,
        allowed_guild_ids: guilds(s)?,
        read_token,
        max_events_per_peer_per_minute: s.int("max_events_per_peer_per_minute", 0, 10_000_000)?,
        max_user_creates_per_peer_per_hour: s.int(
            "max_user_creates_per_peer_per_hour",
            0,
            10_000_000,
        )?,
        push_per_minute: s.int("push_per_minute", 0, 10_000_000)?,
        retry_delays,
        poll_interval: s.duration("poll_interval", "100ms", "1d")?,
        poll_at_once: s.int("poll_at_once", 1, 1024)?,
        poll_page: s.int("poll_page", 1, 1000)?,
        keys_refresh: s.duration("keys_refresh", "1s", "30d")?,
        quarantine_after: s.int("quarantine_after", 0, 1_000_000)?,
        quarantine_within: s.duration("quarantine_within", "1s", "1d")?,
        quarantine_for: s.duration("quarantine_for", "1s", "365d")?,
        keep_bodies: (!keep_bodies.is_zero()).then_some(keep_bodies),
        unproven_per_minute: s.int("unproven_per_minute", 1, 1_000_000)?,
        backend_timeout: s.duration("backend_timeout", "10ms", "30s")?,
    })
}

/// A server's name, lower case, as both sides of a signature write it.
fn name(s: &Section<'_>, key: &str) -> Result<Option<String>, ConfigError> {
    let Some(text) = s.text_or_none(key)? else {
        return Ok(None);
    };
    let name = PeerName::parse(text).map_err(|_| {
        s.wrong(
            key,
            &format!(
                "must be a lower-case host name such as \"chat.example.org\", optionally with \
                 :port, not {text:?}"
            ),
        )
    })?;
    Ok(Some(name.to_string()))
}

fn key_id(s: &Section<'_>) -> Result<Option<String>, ConfigError> {
    match s.text_or_none("key_id")? {
        Some(id) if id.len() > MAX_KEY_ID || !id.bytes().all(|b| b.is_ascii_graphic()) => Err(s
            .wrong(
                "key_id",
                &format!(
                    "must be at most {MAX_KEY_ID} printable ASCII characters without spaces, such \
                     as \"ed25519:auto\", not {id:?}"
                ),
            )),
        id => Ok(id.map(str::to_owned)),
    }
}

fn guilds(s: &Section<'_>) -> Result<Vec<i64>, ConfigError> {
    let ids = s.list("allowed_guild_ids")?.into_iter();
    ids.map(|text| {
        text.trim().parse().map_err(|_| {
            let what = format!("must hold guild ids (decimal numbers as text), not {text:?}");
            s.wrong("allowed_guild_ids", &what)
        })
    })
    .collect()
}
