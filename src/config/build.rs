//! From merged layers to the typed configuration: every value within its bounds, then what concerns
//! several keys.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use base64::Engine as _;
use ipnet::IpNet;
use toml::{Table, Value};

use super::ConfigError;
use super::layers::{Layers, PEERS, kind, nearest};
use super::model::*;
use super::read::Section;
use crate::protocol::PeerName;

/// Protocols a peer may be pinned for in this version.
const PROTOCOLS: [&str; 1] = ["uam"];

/// Reads and judges everything.
pub(super) fn config(layers: &Layers) -> Result<Config, ConfigError> {
    let top = Section::new(layers, "", Path::new(""));
    let data_dir = top.file("data_dir")?;
    let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
    let section = |name| Section::new(layers, name, &data_dir);
    let peers = peers(layers)?;
    let mut http = http(layers, &section("http"))?;
    name_plain_hosts(&mut http, &peers);
    Ok(Config {
        nats: super::nats::nats(layers, &section("nats"), &section("nats.managed"))?,
        http,
        public: public(&section("public"))?,
        admin: admin(&section("admin"))?,
        outbound: outbound(&section("outbound"))?,
        log: log(&section("log"))?,
        ops_single: section("ops").flag("single")?,
        uam: uam(&section("uam"))?,
        peers,
        data_dir,
    })
}

fn http(layers: &Layers, s: &Section<'_>) -> Result<HttpConfig, ConfigError> {
    let host = |text: &str| {
        PeerName::parse(&text.to_ascii_lowercase())
            .ok()
            .or_else(|| {
                // A bare IPv6 literal is welcome too; it is kept with its brackets.
                let ip: std::net::Ipv6Addr = text.parse().ok()?;
                PeerName::parse(&format!("[{ip}]")).ok()
            })
    };
    let hosts = |key| -> Result<Vec<String>, ConfigError> {
        let wanted = "host names or addresses, optionally with :port";
        let names = s.parsed(key, wanted, host)?;
        Ok(names.iter().map(ToString::to_string).collect())
    };
    let dns = |text: &str| {
        let ip = |text: &str| text.parse::<IpAddr>().ok();
        text.parse()
            .ok()
            .or_else(|| ip(text).map(|ip| SocketAddr::new(ip, 53)))
    };
    let connect_timeout = s.duration("connect_timeout", "50ms", "5m")?;
    let timeout = s.duration("timeout", "50ms", "10m")?;
    if connect_timeout > timeout {
        return Err(s.wrong("connect_timeout", "must not be longer than http.timeout"));
    }
    let extra_roots = s.list("extra_roots")?;
    Ok(HttpConfig {
        connect_timeout,
        timeout,
        max_answer_bytes: s.size("max_answer_bytes", "1KiB", "64MiB")?,
        extra_roots: extra_roots.iter().map(|p| s.join(p)).collect(),
        allow_cidrs: s.parsed("allow_cidrs", "ranges such as \"10.0.0.0/8\"", cidr)?,
        allow_hosts: hosts("allow_hosts")?,
        plain_hosts: hosts("plain_hosts")?,
        dns_servers: s.parsed("dns_servers", "addresses such as \"192.0.2.53:53\"", dns)?,
        hosts: static_hosts(layers)?,
        srv: s.flag("srv")?,
    })
}

/// A range, or one address as the range of itself.
fn cidr(text: &str) -> Option<IpNet> {
    let single = |ip: IpAddr| IpNet::from(ip);
    text.parse().ok().or_else(|| text.parse().ok().map(single))
}

fn static_hosts(layers: &Layers) -> Result<Vec<(String, Vec<IpAddr>)>, ConfigError> {
    let Some(Value::Table(table)) = layers.value("http.hosts") else {
        return Ok(Vec::new());
    };
    table
        .iter()
        .map(|(name, value)| {
            let path = format!("http.hosts.{name}");
            let wrong = |what: &str| {
                layers.wrong(
                    &path,
                    &format!("must be a list of IP addresses, not {what}"),
                )
            };
            let one = |item: &Value| match item {
                Value::String(text) => text.parse().map_err(|_| wrong(&format!("{text:?}"))),
                other => Err(wrong(kind(other))),
            };
            let addresses: Vec<IpAddr> = match value {
                Value::Array(items) => items.iter().map(one).collect::<Result<_, _>>()?,
                single => vec![one(single)?],
            };
            if addresses.is_empty() {
                return Err(wrong("an empty one"));
            }
            Ok((name.to_ascii_lowercase(), addresses))
        })
        .collect()
}

/// A pinned `http://` endpoint names its host as one that may be spoken to without TLS, wherever it
/// resolves.
fn name_plain_hosts(http: &mut HttpConfig, peers: &[PeerPin]) {
    let plain = peers
        .iter()
        .filter_map(|p| p.endpoint.as_deref()?.strip_prefix("http://"));
    for rest in plain {
        let host = rest.split('/').next().unwrap_or(rest).to_ascii_lowercase();
        for list in [&mut http.plain_hosts, &mut http.allow_hosts] {
            if !list.contains(&host) {
                list.push(host.clone());
            }
        }
    }
}

fn address(s: &Section<'_>) -> Result<SocketAddr, ConfigError> {
    let text = s.text("address")?;
    text.parse().map_err(|_| {
        s.wrong(
            "address",
            &format!("must be IP:PORT such as \"127.0.0.1:8000\" or \"[::]:8000\", not {text:?}"),
        )
    })
}

fn public(s: &Section<'_>) -> Result<ListenConfig, ConfigError> {
    let tls_certificate = s.file_or_none("tls_certificate")?;
    let tls_key = s.file_or_none("tls_key")?;
    match (&tls_certificate, &tls_key) {
        (Some(_), None) => {
            return Err(s.wrong("tls_certificate", "needs public.tls_key beside it"));
        }
        (None, Some(_)) => {
            return Err(s.wrong("tls_key", "needs public.tls_certificate beside it"));
        }
        _ => {}
    }
    Ok(ListenConfig {
        address: address(s)?,
        tls_certificate,
        tls_key,
        max_body_bytes: s.size("max_body_bytes", "1KiB", "256MiB")?,
        max_header_bytes: s.size("max_header_bytes", "1KiB", "1MiB")?,
        max_connections: s.int("max_connections", 1, 1_000_000)?,
        header_timeout: s.duration("header_timeout", "100ms", "5m")?,
        request_timeout: s.duration("request_timeout", "100ms", "10m")?,
        idle_timeout: s.duration("idle_timeout", "100ms", "1h")?,
        drain_timeout: s.duration("drain_timeout", "0s", "10m")?,
        trusted_proxies: s.parsed("trusted_proxies", "ranges such as \"10.0.0.0/8\"", cidr)?,
    })
}

fn admin(s: &Section<'_>) -> Result<ListenConfig, ConfigError> {
    let address = address(s)?;
    if !address.ip().is_loopback() {
        return Err(s.wrong(
            "address",
            &format!(
                "must be a loopback address such as \"127.0.0.1:8001\", since the admin listener \
                 asks for no password, not {address}"
            ),
        ));
    }
    let request_timeout = s.duration("request_timeout", "100ms", "10m")?;
    Ok(ListenConfig {
        address,
        tls_certificate: None,
        tls_key: None,
        max_body_bytes: 64 * 1024,
        max_header_bytes: 16 * 1024,
        max_connections: s.int("max_connections", 1, 100_000)?,
        header_timeout: request_timeout,
        request_timeout,
        idle_timeout: std::time::Duration::from_secs(60),
        drain_timeout: s.duration("drain_timeout", "0s", "10m")?,
        trusted_proxies: Vec::new(),
    })
}

fn outbound(s: &Section<'_>) -> Result<OutboundConfig, ConfigError> {
    let peer_window: usize = s.int("peer_window", 1, 1024)?;
    let global_window = s.int("global_window", 2, 65_536)?;
    if peer_window > global_window {
        return Err(s.wrong(
            "peer_window",
            &format!(
                "must not be over outbound.global_window ({global_window}), not {peer_window}"
            ),
        ));
    }
    let breaker_initial = s.duration("breaker_initial", "1ms", "1h")?;
    let breaker_max = s.duration("breaker_max", "1ms", "1d")?;
    if breaker_initial > breaker_max {
        return Err(s.wrong(
            "breaker_initial",
            "must not be longer than outbound.breaker_max",
        ));
    }
    Ok(OutboundConfig {
        shards: s.int("shards", 0, 64)?,
        peer_window,
        global_window,
        lane_head: s.int("lane_head", 1, 65_536)?,
        breaker_threshold: s.int("breaker_threshold", 1, 1000)?,
        breaker_initial,
        breaker_max,
        throttle_pause: s.duration("throttle_pause", "1ms", "1h")?,
        jitter: s.fraction("jitter", 0.0, 1.0)?,
    })
}

fn log(s: &Section<'_>) -> Result<LogConfig, ConfigError> {
    let level = s.text("level")?;
    let filter: Result<tracing_subscriber::EnvFilter, _> = level.parse();
    // A filter reads any single word as a target, which would log nothing at all.
    let bare = !level.contains(['=', ',']);
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    if filter.is_err() || (bare && !known.contains(&level.to_ascii_lowercase().as_str())) {
        return Err(s.wrong(
            "level",
            &format!(
                "must be error, warn, info, debug or trace, or a filter such as \
                 \"info,drawbridge::bus=debug\", not {level:?}"
            ),
        ));
    }
    Ok(LogConfig {
        level: level.to_owned(),
        json: s.flag("json")?,
    })
}

fn uam(s: &Section<'_>) -> Result<UamConfig, ConfigError> {
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

/// `http(s)://HOST[:PORT]`, without the slash at its end; a path in front of the protocol's own is
/// kept.
fn base_url(text: &str) -> Option<String> {
    let trimmed = text.trim().trim_end_matches('/');
    let uri: ::http::Uri = trimmed.parse().ok()?;
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri.authority()?;
    let plain =
        !authority.as_str().contains('@') && uri.query().is_none() && !trimmed.contains('#');
    let host = PeerName::parse(&authority.as_str().to_ascii_lowercase()).is_ok();
    (scheme && plain && host).then(|| trimmed.to_owned())
}

fn url_sentence(text: &str) -> String {
    format!("must be a base URL such as \"https://relay.example.org\", not {text:?}")
}

fn peers(layers: &Layers) -> Result<Vec<PeerPin>, ConfigError> {
    let Some(Value::Array(blocks)) = layers.value(PEERS) else {
        return Ok(Vec::new());
    };
    let mut pins: Vec<PeerPin> = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.iter().filter_map(Value::as_table).enumerate() {
        let pin = peer(layers, index + 1, block)?;
        if pins
            .iter()
            .any(|p| p.protocol == pin.protocol && p.name == pin.name)
        {
            return Err(layers.wrong(
                PEERS,
                &format!("names {} twice for {}", pin.name, pin.protocol),
            ));
        }
        pins.push(pin);
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
    if let Some(key) = &public_key
        && !is_key(key)
    {
        return Err(wrong(
            "public_key",
            "must be an Ed25519 key, base64 of 32 bytes".to_owned(),
        ));
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
        accepted,
    })
}

/// Base64 of either alphabet, padded or not, of 32 bytes.
fn is_key(text: &str) -> bool {
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
