//! The commands' way to a running bridge: its admin API, with the token that the configuration names
//! or that the bridge left in its data directory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::Value;

use crate::admin::params::encode;
use crate::admin::token;
use crate::config::{Config, HttpConfig, Secret};
use crate::http::client::Client;
use crate::protocol::{Request, TransportKind};

/// Longest answer read, bytes.
const MAX_ANSWER: usize = 64 << 20;
/// The bridge ends a request by itself before this.
const PATIENCE: Duration = Duration::from_secs(60);

/// A look at a listener that may be anybody's.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// A client of one bridge's admin API.
pub struct AdminClient {
    base: String,
    token: Secret,
    client: Client,
}

/// Why there is no answer to go by.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens there.
    #[error(
        "no bridge answers at {0}: is `drawbridge run` up with this configuration? (--config FILE, \
         admin.address, admin.url)"
    )]
    Nobody(String),
    /// It answered, and says no.
    #[error("{detail}")]
    Refused {
        status: u16,
        /// The API's code, such as `no_such_row`.
        code: String,
        detail: String,
    },
    /// The way there is broken.
    #[error("{0}")]
    Broken(String),
}

impl From<AdminError> for String {
    fn from(error: AdminError) -> Self {
        error.to_string()
    }
}

impl AdminClient {
    /// The client for this configuration's bridge. Asks nothing yet; an error is a sentence about the
    /// token or the TLS roots.
    pub fn from_config(config: &Config) -> Result<Self, String> {
        Ok(Self {
            base: base(config),
            token: token::find(config)?,
            client: Client::new(&reaching(config))?,
        })
    }

    /// Status and body of a route that needs no token; `None`: nobody listens there. The bridge need
    /// not ever have run with this configuration.
    pub async fn look(config: &Config, path: &str) -> Result<Option<(u16, Value)>, String> {
        let asking = Self {
            base: base(config),
            token: Secret(String::new().into()),
            client: Client::new(&reaching(config))?,
        };
        let request = Request {
            method: Method::GET,
            url: format!("{}{path}", asking.base),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        match asking.client.send(request, LOOK_PATIENCE, MAX_ANSWER).await {
            Ok(answer) => {
                let body = serde_json::from_slice(&answer.body).unwrap_or_default();
                Ok(Some((answer.status, body)))
            }
            Err(e) if e.kind == TransportKind::Connect => Ok(None),
            Err(e) => Err(e.detail),
        }
    }

    /// Where it asks, for messages.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The body of a `GET`; `path` begins with a slash.
    pub async fn get(&self, path: &str) -> Result<Value, AdminError> {
        self.ask(Method::GET, path, None).await
    }

    /// The body of a `POST` with or without a JSON body.
    pub async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, AdminError> {
        self.ask(Method::POST, path, body).await
    }

    /// What a protocol's own method answers (`fed.do.<protocol>.<method>`).
    pub async fn call(
        &self,
        protocol: &str,
        method: &str,
        body: &Value,
    ) -> Result<Value, AdminError> {
        let path = format!(
            "/api/v1/protocols/{}/call/{}",
            encode(protocol),
            encode(method)
        );
        let mut answer = self.post(&path, Some(body)).await?;
        Ok(answer["result"].take())
    }

    /// The body of a `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<Value, AdminError> {
        self.ask(Method::DELETE, path, None).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, AdminError> {
        let broken = |what: &dyn std::fmt::Display| {
            AdminError::Broken(format!("the admin API at {}: {what}", self.base))
        };
        let mut headers = HeaderMap::new();
        let bearer = format!("Bearer {}", self.token.0.as_str());
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|e| broken(&e))?;
        bearer.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, bearer);
        if body.is_some() {
            let kind = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, kind);
        }
        let request = Request {
            method,
            url: format!("{}{path}", self.base),
            headers,
            body: body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string())),
        };
        let answer = match self.client.send(request, PATIENCE, MAX_ANSWER).await {
            Ok(answer) => answer,
            Err(e) if e.kind == TransportKind::Connect => {
                return Err(AdminError::Nobody(self.base.clone()));
            }
            Err(e) => return Err(broken(&e)),
        };
        let body: Value = serde_json::from_slice(&answer.body).map_err(|_| {
            broken(&format!(
                "answered {} with something that is no JSON; does another program listen there?",
                answer.status
            ))
        })?;
        if (200..300).contains(&answer.status) {
            return Ok(body);
        }
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let detail = match text("detail") {
            empty if empty.is_empty() => format!("answered {}: {body}", answer.status),
            detail => detail,
        };
        Err(AdminError::Refused {
            status: answer.status,
            code: text("error"),
            detail: format!("{}: {detail}", self.base),
        })
    }
}

/// The settings of outgoing requests, with the admin listener let through.
fn reaching(config: &Config) -> HttpConfig {
    let base = base(config);
    let mut http = config.http.clone();
    let host = base.split_once("://").map_or("", |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default().to_owned();
    if base.starts_with("http://") {
        http.plain_hosts.push(host.clone());
    }
    http.allow_hosts.push(host);
    http.extra_roots
        .extend(config.admin.tls_certificate.clone());
    http
}

/// The base URL without a slash at its end.
fn base(config: &Config) -> String {
    if let Some(url) = &config.admin_access.url {
        return url.clone();
    }
    let scheme = match &config.admin.tls_certificate {
        Some(_) => "https",
        None => "http",
    };
    format!("{scheme}://{}", reachable(config.admin.address))
}

/// A listener on every address is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        for (at, asked) in [
            ("0.0.0.0:8001", "127.0.0.1:8001"),
            ("[::]:8001", "[::1]:8001"),
            ("192.0.2.7:1", "192.0.2.7:1"),
        ] {
            assert_eq!(reachable(at.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
