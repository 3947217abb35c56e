//! The admin routes of the specification: which relays are blocked and which are trusted.
//!
//! They live on the public listener, where the document puts them, and are closed until a key is
//! configured. The key is compared as an HMAC under a key of the moment, so the time taken says nothing.

use std::sync::Arc;

use ::http::{HeaderMap, StatusCode};
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{delete, get};
use jiff::Timestamp;
use serde_json::json;

use crate::http::server::ClientAddr;
use crate::identity::hmac;
use crate::protocol::PeerName;
use crate::trust::Rule;

use super::answer::{Fail, reply};
use super::{ID, Uam};

/// Wrong keys one client address may show in a minute.
const WRONG_KEYS: u32 = 20;
/// Longest reason, characters.
const MAX_REASON: usize = 500;

/// The two lists' routes.
pub fn routes() -> axum::Router<Arc<Uam>> {
    let mut router = axum::Router::new();
    for list in [List::Block, List::Allow] {
        let path = format!("/api/v1/admin/{}", list.path());
        router = router
            .route(
                &path,
                get(
                    move |State(uam): State<Arc<Uam>>, client: Client, headers: HeaderMap| async move {
                        show(&uam, list, client, &headers)
                    },
                )
                .post(
                    move |State(uam): State<Arc<Uam>>,
                          client: Client,
                          headers: HeaderMap,
                          body: Bytes| async move {
                        add(&uam, list, client, &headers, &body).await
                    },
                ),
            )
            .route(
                &format!("{path}/{{domain}}"),
                delete(
                    move |State(uam): State<Arc<Uam>>,
                          client: Client,
                          headers: HeaderMap,
                          domain: Result<Path<String>, PathRejection>| async move {
                        let domain = domain.map(|Path(text)| text).unwrap_or_default();
                        remove(&uam, list, client, &headers, &domain).await
                    },
                ),
            );
    }
    router
}

type Client = Option<axum::Extension<ClientAddr>>;

#[derive(Clone, Copy)]
enum List {
    Block,
    Allow,
}

impl List {
    fn path(self) -> &'static str {
        match self {
            Self::Block => "relay-blocklist",
            Self::Allow => "relay-allowlist",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Block => "blocklist",
            Self::Allow => "allowlist",
        }
    }

    fn rule(self) -> Rule {
        match self {
            Self::Block => Rule::Block,
            Self::Allow => Rule::Allow,
        }
    }
}

fn show(uam: &Uam, list: List, client: Client, headers: &HeaderMap) -> Result<Response, Fail> {
    authorise(uam, client, headers)?;
    let entries: Vec<_> = uam
        .trust
        .list(ID, list.rule())
        .into_iter()
        .map(|row| {
            json!({
                "id": row.id,
                "domain": row.pattern,
                "reason": row.reason,
                "created_at": Timestamp::from_millisecond(row.created_ms)
                    .map(|at| format!("{at:.3}"))
                    .unwrap_or_default(),
            })
        })
        .collect();
    let count = entries.len();
    Ok(reply(
        StatusCode::OK,
        &json!({"entries": entries, "count": count}),
    ))
}

#[derive(serde::Deserialize)]
struct NewEntry {
    domain: String,
    reason: Option<String>,
}

async fn add(
    uam: &Uam,
    list: List,
    client: Client,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Fail> {
    authorise(uam, client, headers)?;
    let entry: NewEntry = serde_json::from_slice(body).map_err(|_| {
        Fail::validation("expected a JSON object with \"domain\" and, if wanted, \"reason\"")
    })?;
    let domain = pattern(&entry.domain).ok_or_else(|| {
        Fail::bad_request(
            "domain must be a host name (e.g. 'relay.example.org' or '*.example.org')",
        )
    })?;
    let reason = entry
        .reason
        .map(|text| text.chars().take(MAX_REASON).collect::<String>());
    uam.trust
        .add(ID, list.rule(), &domain, reason.as_deref())
        .await
        .map_err(|error| Fail::unavailable(&error.to_string(), 5))?;
    changed(uam, list, &domain, "added", reason.as_deref());
    let body = json!({"domain": domain, "status": "added"});
    Ok(reply(StatusCode::CREATED, &body))
}

async fn remove(
    uam: &Uam,
    list: List,
    client: Client,
    headers: &HeaderMap,
    domain: &str,
) -> Result<Response, Fail> {
    authorise(uam, client, headers)?;
    let missing = || Fail::not_found(format!("Domain not found in {}", list.name()));
    let domain = pattern(domain).ok_or_else(missing)?;
    let there = uam
        .trust
        .remove(ID, list.rule(), &domain)
        .await
        .map_err(|error| Fail::unavailable(&error.to_string(), 5))?;
    if !there {
        return Err(missing());
    }
    changed(uam, list, &domain, "removed", None);
    Ok(reply(
        StatusCode::OK,
        &json!({"domain": domain, "status": "removed"}),
    ))
}

fn changed(uam: &Uam, list: List, domain: &str, what: &'static str, reason: Option<&str>) {
    tracing::info!(list = list.name(), domain, "relay {what} by an admin");
    uam.ops.event(
        "trust",
        what,
        ID,
        domain,
        json!({"list": list.name(), "domain": domain, "reason": reason}),
    );
}

/// A host name, or `*.` and one; lower-cased, for host names have no case.
fn pattern(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let host = text.strip_prefix("*.").unwrap_or(&text);
    PeerName::parse(host).ok()?;
    Some(text)
}

fn authorise(uam: &Uam, client: Client, headers: &HeaderMap) -> Result<(), Fail> {
    let Some(wanted) = &uam.config.admin_api_key else {
        return Err(Fail::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable",
            "Admin API not configured",
        ));
    };
    let window = client.map(|axum::Extension(ClientAddr(ip))| format!("uam/admin/{ip}"));
    if let Some(window) = &window
        && uam.trust.full(window, WRONG_KEYS)
    {
        return Err(Fail::rate_limited("Too many wrong admin API keys", 60));
    }
    let mut given = headers.get_all("x-admin-key").iter();
    let right = match (given.next(), given.next()) {
        (Some(given), None) => hmac::same(given.as_bytes(), wanted.0.as_bytes()),
        _ => false,
    };
    if right {
        return Ok(());
    }
    if let Some(window) = &window {
        uam.trust.admit(window, WRONG_KEYS);
    }
    Err(Fail::unauthorized("Invalid admin API key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_the_same_only_byte_for_byte() {
        assert!(hmac::same(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b""] {
            assert!(!hmac::same(other, b"abc"));
        }
    }

    #[test]
    fn a_pattern_is_a_host_name_or_a_star_and_one() {
        assert_eq!(pattern(" Spam.Test "), Some("spam.test".into()));
        assert_eq!(pattern("*.spam.test"), Some("*.spam.test".into()));
        for bad in ["", "*", "*.", "a b", "a/b", "**.x", "x.*"] {
            assert_eq!(pattern(bad), None, "{bad}");
        }
    }
}
