//! Who may ask.
//!
//! - On a loopback address only requests that name a loopback host pass: a page in a browser cannot
//!   reach the admin routes under a name of its own (DNS rebinding).
//! - `/api/v1/*` asks for the bearer token, always; a browser does not send it by itself, so no page
//!   can write either.
//! - A body must call itself `application/json`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::{AdminState, failure, token};

/// Who may read a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody who reaches the listener.
    Open,
    /// Whoever has the token.
    Token,
    /// As `admin.metrics` says.
    Metrics,
}

/// Refuses with 403 what names another host, on a listener for this machine alone.
pub(super) async fn named_rightly(
    State(state): State<Arc<AdminState>>,
    request: Request,
    next: Next,
) -> Response {
    let named = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request
            .headers()
            .get(header::HOST)
            .and_then(|host| host.to_str().ok()),
    };
    if !state.loopback_only || named.is_some_and(is_loopback) {
        return next.run(request).await;
    }
    failure(
        StatusCode::FORBIDDEN,
        "host_forbidden",
        "the admin listener answers only under localhost or a loopback address",
    )
}

/// Refuses with 401 what lacks the token, and with 415 a body that is no JSON.
pub(super) async fn with_token(
    State(state): State<Arc<AdminState>>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(refusal) = refused(&state, request.headers()) {
        return refusal;
    }
    let headers = request.headers();
    let json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    let body = headers
        .get(header::CONTENT_LENGTH)
        .is_some_and(|n| n != HeaderValue::from_static("0"))
        || headers.contains_key(header::TRANSFER_ENCODING);
    if !request.method().is_safe() && body && !json {
        return failure(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            "a body needs the header Content-Type: application/json",
        );
    }
    next.run(request).await
}

/// The same for a route that a setting may open.
pub(super) async fn with_token_unless_open(
    State(state): State<Arc<AdminState>>,
    request: Request,
    next: Next,
) -> Response {
    match refused(&state, request.headers()) {
        Some(refusal) if !state.metrics_open => refusal,
        _ => next.run(request).await,
    }
}

/// The answer for whoever lacks the token.
fn refused(state: &AdminState, headers: &HeaderMap) -> Option<Response> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let bearer = match (given.next(), given.next()) {
        (Some(one), None) => bearer(one.as_bytes()),
        _ => None,
    };
    let (challenge, detail) = match bearer {
        Some(given) if token::matches(&state.token, given) => return None,
        Some(_) => (
            "Bearer realm=\"drawbridge\", error=\"invalid_token\"",
            "this is not the admin API's token (admin.token, admin.token_file, or admin.token in \
             the bridge's data directory)",
        ),
        None => (
            "Bearer realm=\"drawbridge\"",
            "the admin API needs its token: Authorization: Bearer TOKEN (admin.token, \
             admin.token_file, or the file admin.token in the bridge's data directory)",
        ),
    };
    let mut refusal = failure(StatusCode::UNAUTHORIZED, "unauthorized", detail);
    refusal.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static(challenge),
    );
    Some(refusal)
}

/// What follows the word `Bearer`, which has no case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| rest.trim_ascii())
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_bearer_has_no_case_and_one_token() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"abc"), None);
    }

    #[test]
    fn only_names_of_this_machine_pass() {
        for yes in [
            "localhost",
            "LOCALHOST:8001",
            "127.0.0.1:8001",
            "127.9.9.9",
            "[::1]:8001",
            "[::1]",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "",
            "evil.example",
            "localhost.evil.example:8001",
            "192.0.2.1:8001",
            "[::2]:1",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
