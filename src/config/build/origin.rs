//! Our own public origin, for the protocols that name one: scheme and host and nothing behind them.

use std::net::IpAddr;

use super::base_url;
use crate::config::model::HttpConfig;

/// `text` as a public origin: scheme and host, lower case, without a default port. Without TLS only
/// for this machine and for hosts of `http.plain_hosts`; `risk` says why, for the sentence.
pub(super) fn origin(text: &str, http: &HttpConfig, risk: &str) -> Result<String, String> {
    let form = || {
        format!(
            "must be an origin such as \"https://bridge.example.org\", without a path, \
             not {text:?}"
        )
    };
    let url = base_url(text).ok_or_else(form)?;
    let (scheme, host) = url.split_once("://").ok_or_else(form)?;
    let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
    if host.contains('/') {
        return Err(form());
    }
    let default_port = match scheme.as_str() {
        "http" => ":80",
        _ => ":443",
    };
    let host = host.strip_suffix(default_port).unwrap_or(&host);
    if scheme == "http" && !is_loopback(host) && !http.plain_hosts.iter().any(|p| p == host) {
        return Err(format!(
            "must begin with https://, not http://: {risk}; a test \
             without TLS needs {host:?} in http.plain_hosts"
        ));
    }
    Ok(format!("{scheme}://{host}"))
}

/// Whether `host` (optionally with a port) is this machine and nothing else.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
