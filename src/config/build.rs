//! From merged layers to the typed configuration: every value within its bounds, then what concerns
//! several keys.

mod http;
mod origin;
mod paracord;
mod peers;
mod uam;
mod voltchat;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::ConfigError;
use super::layers::Layers;
use super::model::*;
use super::read::Section;
use crate::protocol::PeerName;

/// Reads and judges everything.
pub(super) fn config(layers: &Layers) -> Result<Config, ConfigError> {
    let top = Section::new(layers, "", Path::new(""));
    let data_dir = top.file("data_dir")?;
    let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
    let section = |name| Section::new(layers, name, &data_dir);
    let peers = peers::peers(layers)?;
    let mut http = http::http(layers, &section("http"))?;
    http::name_plain_hosts(&mut http, &peers);
    let outbound = outbound(&section("outbound"))?;
    // What a whole window brought back need not be dialled again.
    http.idle_per_host = http.idle_per_host.max(outbound.peer_window);
    Ok(Config {
        nats: super::nats::nats(layers, &section("nats"), &section("nats.managed"))?,
        store: super::store::read(&section("store"), &data_dir)?,
        voltchat: voltchat::voltchat(layers, &section("voltchat"), &http)?,
        paracord: paracord::paracord(&section("paracord"), &http)?,
        http,
        public: public(&section("public"), &section("http"))?,
        admin: admin(&section("admin"))?,
        admin_access: admin_access(&section("admin"))?,
        outbound,
        log: log(&section("log"))?,
        ops_single: section("ops").flag("single")?,
        uam: uam::uam(&section("uam"))?,
        peers,
        data_dir,
        given: layers.given(),
    })
}

fn cidr(text: &str) -> Option<IpNet> {
    let single = |ip: IpAddr| IpNet::from(ip);
    text.parse().ok().or_else(|| text.parse().ok().map(single))
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

fn public(s: &Section<'_>, http: &Section<'_>) -> Result<ListenConfig, ConfigError> {
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
        trusted_proxies: http.parsed("trusted_proxies", "ranges such as \"10.0.0.0/8\"", cidr)?,
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

/// Fewest characters of a bearer token that operators may use.
const MIN_TOKEN: usize = 16;

/// Whether a bearer token is long enough and fits into a header.
fn usable_token(token: &Secret) -> bool {
    token.0.len() >= MIN_TOKEN && token.0.bytes().all(|b| b.is_ascii_graphic())
}

fn token_sentence() -> String {
    format!(
        "must be at least {MIN_TOKEN} printable ASCII characters without spaces, such as \
         `openssl rand -hex 32` prints"
    )
}

fn admin_access(s: &Section<'_>) -> Result<AdminAccess, ConfigError> {
    let token = s.secret("token")?;
    if let Some(token) = &token
        && !usable_token(token)
    {
        return Err(s.wrong("token", &token_sentence()));
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
