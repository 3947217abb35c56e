//! Only requests that name a loopback host pass: a page in a browser cannot reach the admin routes
//! under a name of its own (DNS rebinding).

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::failure;

/// Refuses with 403 what names another host.
pub(super) async fn only_loopback(request: Request, next: Next) -> Response {
    let named = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request
            .headers()
            .get(header::HOST)
            .and_then(|host| host.to_str().ok()),
    };
    if named.is_some_and(is_loopback) {
        return next.run(request).await;
    }
    failure(
        StatusCode::FORBIDDEN,
        "host_forbidden",
        "the admin listener answers only under localhost or a loopback address",
    )
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
    use super::is_loopback;

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
