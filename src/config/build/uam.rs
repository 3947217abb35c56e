//! `[uam]`.

use super::{base_url, url_sentence};
use crate::config::ConfigError;
use crate::config::model::{UamConfig, WireForms};
use crate::config::read::Section;
use crate::protocol::PeerName;

pub(super) fn uam(s: &Section<'_>) -> Result<UamConfig, ConfigError> {
    let domain = match s.text_or_none("domain")? {
        Some(text) => Some(uam_domain(s, text)?),
        None => None,
    };
    let http_url = match s.text_or_none("http_url")? {
        Some(text) => Some(base_url(text).ok_or_else(|| s.wrong("http_url", &url_sentence(text)))?),
        None => domain.as_ref().map(|domain| format!("https://{domain}")),
    };
    let retry_delays = s.durations("retry_delays", "1ms", "7d")?;
    if retry_delays.len() > 32 {
        return Err(s.wrong(
            "retry_delays",
            &format!("must hold at most 32 delays, not {}", retry_delays.len()),
        ));
    }
    let wire_forms = match s.text("wire_forms")? {
        "both" => WireForms::Both,
        "legacy" => WireForms::Legacy,
        "nonce" => WireForms::Nonce,
        other => {
            return Err(s.wrong(
                "wire_forms",
                &format!("must be \"both\", \"legacy\" or \"nonce\", not {other:?}"),
            ));
        }
    };
    Ok(UamConfig {
        enabled: s.flag("enabled")?,
        domain,
        http_url,
        key_path: s.file("key_path")?,
        key_overlap: s.duration("key_overlap", "1m", "90d")?,
        max_hops: s.int("max_hops", 1, 16)?,
        relay_rate_limit: s.int("relay_rate_limit", 1, 10_000_000)?,
        timestamp_max_age: s.duration("timestamp_max_age", "1s", "1d")?,
        discovery_ttl: s.duration("discovery_ttl", "1s", "30d")?,
        admin_api_key: s.secret("admin_api_key")?,
        retry_delays,
        charge_unproven: s.flag("charge_unproven")?,
        unproven_per_minute: s.int("unproven_per_minute", 1, 1_000_000)?,
        discovery: s.flag("discovery")?,
        wire_forms,
    })
}

/// A domain as UAM addresses have it: no port.
fn uam_domain(s: &Section<'_>, text: &str) -> Result<String, ConfigError> {
    let lower = text.trim().to_ascii_lowercase();
    match PeerName::parse(&lower) {
        Ok(_) if !lower.contains([':', '[']) => Ok(lower),
        _ => Err(s.wrong(
            "domain",
            &format!("must be a domain such as \"chat.example.org\", without port, not {text:?}"),
        )),
    }
}
