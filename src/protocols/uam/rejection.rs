//! The answers that refuse a delivery, as values: status, words, and whom they cost something.

use super::python::repr;
use super::relay_request::SchemaError;

/// Whom a refusal is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// Nobody.
    Nobody,
    /// The relay is not proven: counted for the client's address.
    Client,
    /// The proven relay loses reputation.
    Relay,
}

/// An answer that refuses: status, the `error` code and the `detail` text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub status: u16,
    pub error: &'static str,
    pub detail: String,
    pub charge: Charge,
    /// The answer's body carries `request_id` too.
    pub with_request_id: bool,
}

impl Rejection {
    pub(super) fn new(status: u16, charge: Charge, detail: impl Into<String>) -> Self {
        Self {
            status,
            error: error_code(status),
            detail: detail.into(),
            charge,
            with_request_id: false,
        }
    }

    /// Check 1: the body.
    pub fn schema(error: &SchemaError) -> Self {
        Self {
            error: error.code(),
            ..Self::new(error.status(), Charge::Nobody, error.to_string())
        }
    }

    /// Check 1: the Content-Type.
    pub fn content_type() -> Self {
        Self::new(422, Charge::Nobody, "Content-Type must be application/json")
    }

    /// Check 0.
    pub fn too_large() -> Self {
        Self {
            error: "payload_too_large",
            ..Self::new(413, Charge::Nobody, "The body is too large")
        }
    }

    /// Check 2.
    pub fn not_enabled() -> Self {
        Self::new(501, Charge::Nobody, "Federation not enabled")
    }

    /// Check 3.
    pub fn blocked() -> Self {
        Self::new(403, Charge::Nobody, "Source relay is blocked")
    }

    /// Check 4.
    pub fn reputation() -> Self {
        Self::new(403, Charge::Nobody, "Source relay reputation too low")
    }

    /// Check 5.
    pub fn rate() -> Self {
        Self::new(429, Charge::Nobody, "Federation rate limit exceeded")
    }

    /// Check 13.
    pub fn relay_signature() -> Self {
        Self::new(401, Charge::Client, "Invalid relay signature")
    }

    /// Check 14.
    pub fn replay() -> Self {
        Self::new(
            409,
            Charge::Relay,
            "Federation request replay (nonce already seen)",
        )
    }

    /// Check 17: no key to be had for the sender.
    pub fn sender_unknown(from: &str) -> Self {
        Self::new(
            403,
            Charge::Relay,
            format!(
                "Cannot resolve sender key for {}: home relay unreachable or sender unknown",
                repr(from)
            ),
        )
    }

    /// Store or broker cannot take it now.
    pub fn unavailable() -> Self {
        Self::new(503, Charge::Nobody, "Temporarily unavailable")
    }
}

/// The protocol's `error` member for a status.
pub fn error_code(status: u16) -> &'static str {
    match status {
        400 => "bad_request",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        409 => "conflict",
        422 => "validation_error",
        429 => "rate_limited",
        503 => "service_unavailable",
        _ => "error",
    }
}
