//! From merged layers to the typed configuration: every value within its bounds, then what concerns
//! several keys.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use ipnet::IpNet;
use toml::{Table, Value};

use super::ConfigError;
use super::layers::{Layers, PEERS, kind, nearest};
use super::model::*;
use super::read::{Section, parse_duration};
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
        nats: nats(&section("nats"), &section("nats.managed"))?,
        http,
        public: public(&section("public"))?,
        admin: admin(&section("admin"))?,
        admin_access: admin_access(&section("admin"))?,
        outbound: outbound(&section("outbound"))?,
        log: log(&section("log"))?,
        ops_single: section("ops").flag("single")?,
        uam: uam(&section("uam"))?,
        peers,
        data_dir,
    })
}

fn nats(s: &Section<'_>, managed: &Section<'_>) -> Result<NatsConfig, ConfigError> {
    let url = s.secret("url")?.map(|url| url.0.to_string());
    if let Some(url) = &url {
        let scheme = |one: &str| match one.split_once("://") {
            Some((scheme, rest)) => {
                matches!(scheme, "nats" | "tls" | "ws" | "wss") && !rest.is_empty()
            }
            None => !one.is_empty(),
        };
        if !url.split(',').all(|one| scheme(one.trim())) {
            // The value may hold a password: it is not repeated.
            return Err(s.wrong("url", "must be nats://HOST:PORT or tls://HOST:PORT"));
        }
    }
    let prefix = s.text("prefix")?;
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !prefix.starts_with(|c: char| c.is_ascii_alphabetic())
        || !prefix.chars().all(letters)
        || prefix.len() > 32
    {
        return Err(s.wrong(
            "prefix",
            &format!(
                "must be a letter, then up to 31 letters, digits, \"_\" or \"-\", not {prefix:?}"
            ),
        ));
    }
    let streams = match s.text("streams")? {
        "ensure" => StreamPolicy::Ensure,
        "verify" => StreamPolicy::Verify,
        "off" => StreamPolicy::Off,
        other => {
            return Err(s.wrong(
                "streams",
                &format!("must be \"ensure\", \"verify\" or \"off\", not {other:?}"),
            ));
        }
    };
    let credentials_file = s.file_or_none("credentials_file")?;
    if credentials_file.is_some() && url.is_none() {
        return Err(s.wrong(
            "credentials_file",
            "is for the server under nats.url, which is not set",
        ));
    }
    let sync_interval = managed.text("sync_interval")?;
    if sync_interval != "always" && parse_duration(sync_interval).is_none_or(|d| d.is_zero()) {
        return Err(managed.wrong(
            "sync_interval",
            &format!("must be \"always\" or a duration such as \"2m\", not {sync_interval:?}"),
        ));
    }
    Ok(NatsConfig {
        url,
        prefix: prefix.to_owned(),
        credentials_file,
        connect_timeout: s.duration("connect_timeout", "100ms", "1h")?,
        request_timeout: s.duration("request_timeout", "100ms", "5m")?,
        streams,
        partitions: s.int("partitions", 1, 64)?,
        max_ack_pending: s.int("max_ack_pending", 1, 100_000)?,
        publish_window: s.int("publish_window", 1, 10_000)?,
        managed: ManagedConfig {
            binary: managed.file_or_none("binary")?,
            port: Some(managed.int("port", 0, 65_535)?).filter(|port| *port != 0),
            store_dir: managed.file("store_dir")?,
            cache_dir: match managed.file_or_none("cache_dir")? {
                Some(dir) => dir,
                None => default_cache_dir(),
            },
            sync_interval: sync_interval.to_owned(),
            max_payload: managed.size("max_payload", "64KiB", "64MiB")?,
        },
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

/// Certificate and key of a listener: both or none.
fn certificate(s: &Section<'_>) -> Result<(Option<PathBuf>, Option<PathBuf>), ConfigError> {
    let pair = (
        s.file_or_none("tls_certificate")?,
        s.file_or_none("tls_key")?,
    );
    let needs = |key, other| s.wrong(key, &format!("needs {} beside it", s.path(other)));
    match pair {
        (Some(_), None) => Err(needs("tls_certificate", "tls_key")),
        (None, Some(_)) => Err(needs("tls_key", "tls_certificate")),
        pair => Ok(pair),
    }
}

fn public(s: &Section<'_>) -> Result<ListenConfig, ConfigError> {
    let (tls_certificate, tls_key) = certificate(s)?;
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
    let (tls_certificate, tls_key) = certificate(s)?;
    let request_timeout = s.duration("request_timeout", "100ms", "10m")?;
    Ok(ListenConfig {
        address: address(s)?,
        tls_certificate,
        tls_key,
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

/// Fewest characters of a token that may open the admin API.
const MIN_TOKEN: usize = 16;

fn admin_access(s: &Section<'_>) -> Result<AdminAccess, ConfigError> {
    let token = s.secret("token")?;
    if let Some(token) = &token
        && (token.0.len() < MIN_TOKEN || !token.0.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(s.wrong(
            "token",
            "must be at least 16 printable ASCII characters without spaces, such as \
             `openssl rand -hex 32` prints",
        ));
    }
    let address = address(s)?;
    if token.is_none() && !address.ip().is_loopback() {
        return Err(s.wrong(
            "address",
            &format!(
                "must be a loopback address such as \"127.0.0.1:8001\" as long as neither \
                 admin.token nor admin.token_file is set, not {address}: the admin API would \
                 stand open to the network"
            ),
        ));
    }
    let metrics = match s.text("metrics")? {
        "auto" => MetricsAccess::Auto,
        "open" => MetricsAccess::Open,
        "token" => MetricsAccess::Token,
        other => {
            return Err(s.wrong(
                "metrics",
                &format!("must be \"auto\", \"open\" or \"token\", not {other:?}"),
            ));
        }
    };
    let url = s.text_or_none("url")?.map(|url| url.trim_end_matches('/'));
    if let Some(url) = url
        && !(url.starts_with("http://") || url.starts_with("https://"))
    {
        return Err(s.wrong(
            "url",
            &format!("must be a URL such as \"https://bridge.example.org:8001\", not {url:?}"),
        ));
    }
    Ok(AdminAccess {
        token,
        metrics,
        url: url.map(str::to_owned),
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
