//! `[http]`: what may be dialled, and how.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use toml::Value;

use super::cidr;
use crate::config::ConfigError;
use crate::config::layers::{Layers, kind};
use crate::config::model::{HttpConfig, PeerPin};
use crate::config::read::Section;
use crate::protocol::PeerName;

/// Idle connections kept open to one host, at least.
const IDLE_PER_HOST: usize = 16;

pub(super) fn http(layers: &Layers, s: &Section<'_>) -> Result<HttpConfig, ConfigError> {
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
        idle_per_host: IDLE_PER_HOST,
    })
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
pub(super) fn name_plain_hosts(http: &mut HttpConfig, peers: &[Arc<PeerPin>]) {
    let plain = peers
        .iter()
        .filter_map(|p| p.endpoint.as_deref()?.strip_prefix("http://"))
        .map(|rest| rest.split('/').next().unwrap_or(rest).to_ascii_lowercase());
    let plain: Vec<String> = plain.collect();
    for list in [&mut http.plain_hosts, &mut http.allow_hosts] {
        // Ten thousand peers are looked up, not compared with one another.
        let mut named: HashSet<String> = list.iter().cloned().collect();
        let new = plain.iter().filter(|host| named.insert((*host).clone()));
        list.extend(new.cloned());
    }
}
