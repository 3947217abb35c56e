//! The request by which one relay hands an envelope to another, in both wire forms.
//!
//! The forms differ by one signed field: `nonce`. Reading: a body with `nonce` is of the newer form,
//! one without is of the older; the signature covers exactly the fields of the form, so neither can
//! be passed off as the other. Writing: the envelope's own text is spliced in, while the signed bytes
//! are made from its tree, because the receiver checks over what it parsed.

use bytes::Bytes;

use super::canonical;
use super::envelope::{self, Envelope};
use super::json::{self, Json, JsonErrorKind, Object};
use crate::config::WireForms;
use crate::identity::{SigningKey, b64};

/// Which wire form a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Five fields: relays of 0.2 and 0.3.
    Legacy,
    /// The same and a signed `nonce`: relays of 1.0.
    Nonce,
}

impl Form {
    /// The name kept with a peer's facts and shown to operators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nonce => "nonce",
        }
    }

    /// The form of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "legacy" => Some(Self::Legacy),
            "nonce" => Some(Self::Nonce),
            _ => None,
        }
    }
}

/// Entries of `via`, and hops, that the form with nonce allows at most.
const MAX_VIA: usize = 16;
const MAX_HOPS: u64 = 16;

/// A body that is no relay request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The body cannot be read at all (not UTF-8, too deep, endless numbers).
    #[error("There was an error parsing the body: {0}")]
    Unreadable(json::JsonError),
    /// It is not JSON, or holds what we never sign.
    #[error("body: {0}")]
    Json(json::JsonError),
    /// A field is missing or wrong: its name and what was expected.
    #[error("{field}: {problem}")]
    Field {
        field: &'static str,
        problem: String,
    },
}

impl SchemaError {
    /// 422, or 400 for what a relay cannot even read.
    pub fn status(&self) -> u16 {
        match self {
            Self::Unreadable(_) => 400,
            Self::Json(_) | Self::Field { .. } => 422,
        }
    }

    /// The `error` member of the answer.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "bad_request",
            Self::Json(_) | Self::Field { .. } => "validation_error",
        }
    }

    fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field {
            field,
            problem: problem.into(),
        }
    }
}

/// A relay request with valid fields; nothing about it is proven yet.
#[derive(Clone, Debug)]
pub struct RelayRequest {
    pub envelope: Envelope,
    pub via: Vec<String>,
    pub hop_count: u64,
    pub timestamp: String,
    pub from_relay: String,
    /// Present in the form with nonce only.
    pub nonce: Option<String>,
}

impl RelayRequest {
    /// Reads a body. `forms` says which forms are taken: with both, `nonce` present means the newer.
    /// Fields that the form does not know are ignored.
    pub fn parse(body: &Bytes, forms: WireForms) -> Result<Self, SchemaError> {
        let mut members = json::parse_members(body).map_err(|e| match e.kind {
            JsonErrorKind::NotUtf8
            | JsonErrorKind::TooDeep
            | JsonErrorKind::TooManyDigits
            | JsonErrorKind::TooManyValues => SchemaError::Unreadable(e),
            _ => SchemaError::Json(e),
        })?;
        let form = match forms {
            WireForms::Legacy => Form::Legacy,
            WireForms::Nonce => Form::Nonce,
            WireForms::Both if members.object.contains_key("nonce") => Form::Nonce,
            WireForms::Both => Form::Legacy,
        };
        let text = members
            .spans
            .get("envelope")
            .map_or_else(Bytes::new, |span| body.slice(span.clone()));
        let envelope = match members.object.remove("envelope") {
            Some(Json::Object(tree)) => Envelope::new(tree, text),
            other => return Err(expected("envelope", "an object", other.as_ref())),
        };
        let request = Self {
            envelope,
            via: via(members.object.get("via"))?,
            hop_count: hop_count(members.object.get("hop_count"))?,
            timestamp: string(&members.object, "timestamp")?,
            from_relay: string(&members.object, "from_relay")?,
            nonce: match form {
                Form::Legacy => None,
                Form::Nonce => Some(string(&members.object, "nonce")?),
            },
        };
        request.check_limits()?;
        Ok(request)
    }

    /// Which form it has.
    pub fn form(&self) -> Form {
        match self.nonce {
            Some(_) => Form::Nonce,
            None => Form::Legacy,
        }
    }

    /// What the relay signs: its five or six fields, the envelope as received, nulls and its own
    /// signature included.
    pub fn signing_bytes(&self) -> String {
        signing_bytes(
            &self.envelope,
            &self.via,
            self.hop_count,
            &self.timestamp,
            &self.from_relay,
            self.nonce.as_deref(),
        )
    }

    /// The limits that only the form with nonce has.
    fn check_limits(&self) -> Result<(), SchemaError> {
        let Some(nonce) = &self.nonce else {
            return Ok(());
        };
        let too = |field, limit: String| Err(SchemaError::field(field, limit));
        if self.via.len() > MAX_VIA {
            return too("via", format!("at most {MAX_VIA} entries"));
        }
        if self.hop_count > MAX_HOPS {
            return too("hop_count", format!("at most {MAX_HOPS}"));
        }
        if self.timestamp.chars().count() > 64 {
            return too("timestamp", "at most 64 characters".into());
        }
        let relay = &self.from_relay;
        let plain =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
        if relay.is_empty() || relay.len() > 255 || !relay.bytes().all(plain) {
            return too(
                "from_relay",
                "1 to 255 characters of a-z 0-9 . - (no port, no upper case)".into(),
            );
        }
        if !(22..=64).contains(&nonce.chars().count()) {
            return too("nonce", "22 to 64 characters".into());
        }
        if let Some(size) = self.envelope.excess() {
            return too(
                "envelope",
                format!("{size} bytes, at most {}", envelope::MAX_SIZE),
            );
        }
        Ok(())
    }
}

fn expected(field: &'static str, what: &str, found: Option<&Json>) -> SchemaError {
    SchemaError::field(
        field,
        match found {
            None => format!("missing, expected {what}"),
            Some(value) => format!("expected {what}, found {}", value.kind()),
        },
    )
}

fn string(object: &Object, field: &'static str) -> Result<String, SchemaError> {
    match object.get(field) {
        Some(Json::String(text)) => Ok(text.clone()),
        other => Err(expected(field, "a string", other)),
    }
}

fn via(value: Option<&Json>) -> Result<Vec<String>, SchemaError> {
    const WHAT: &str = "a list of strings";
    match value {
        None => Ok(Vec::new()),
        Some(Json::Array(items)) => items
            .iter()
            .map(|item| match item {
                Json::String(text) => Ok(text.clone()),
                other => Err(SchemaError::field(
                    "via",
                    format!("expected {WHAT}, found {} in it", other.kind()),
                )),
            })
            .collect(),
        other => Err(expected("via", WHAT, other)),
    }
}

fn hop_count(value: Option<&Json>) -> Result<u64, SchemaError> {
    const WHAT: &str = "an integer from 0 that fits 64 bits";
    match value {
        None => Ok(0),
        Some(Json::Number(text)) if &**text == "-0" => Ok(0),
        Some(Json::Number(text)) => text
            .parse()
            .map_err(|_| SchemaError::field("hop_count", format!("expected {WHAT}"))),
        other => Err(expected("hop_count", WHAT, other)),
    }
}

fn signing_bytes(
    envelope: &Envelope,
    via: &[String],
    hop_count: u64,
    timestamp: &str,
    from_relay: &str,
    nonce: Option<&str>,
) -> String {
    let mut out = String::with_capacity(envelope.text().len() + 512);
    out.push_str("{\"envelope\":");
    canonical::write_object(envelope.tree(), &mut out);
    write_rest(&mut out, via, hop_count, timestamp, from_relay, nonce);
    out
}

/// Everything after the envelope, sorted by key.
fn write_rest(
    out: &mut String,
    via: &[String],
    hop_count: u64,
    timestamp: &str,
    from_relay: &str,
    nonce: Option<&str>,
) {
    out.push_str(",\"from_relay\":");
    canonical::write_string(from_relay, out);
    out.push_str(",\"hop_count\":");
    out.push_str(&hop_count.to_string());
    if let Some(nonce) = nonce {
        out.push_str(",\"nonce\":");
        canonical::write_string(nonce, out);
    }
    out.push_str(",\"timestamp\":");
    canonical::write_string(timestamp, out);
    out.push_str(",\"via\":[");
    for (i, hop) in via.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        canonical::write_string(hop, out);
    }
    out.push_str("]}");
}

/// What a relay says of itself in one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Relays passed, our own domain last.
    pub via: &'a [String],
    pub hop_count: u64,
    /// [`super::time::format_ms`] of now.
    pub timestamp: &'a str,
    pub from_relay: &'a str,
    /// Base64 of 16 fresh random bytes for the form with nonce, `None` for the older form.
    pub nonce: Option<&'a str>,
}

/// A body and the value of its `X-UAM-Relay-Signature` header.
#[derive(Clone, Debug)]
pub struct SignedRequest {
    pub body: Bytes,
    pub signature: String,
}

/// Makes and signs one request; the envelope goes in with its own text unchanged.
pub fn sign_relay_request(
    envelope: &Envelope,
    attempt: &Attempt<'_>,
    key: &SigningKey,
) -> SignedRequest {
    let Attempt {
        via,
        hop_count,
        timestamp,
        from_relay,
        nonce,
    } = *attempt;
    let signed = signing_bytes(envelope, via, hop_count, timestamp, from_relay, nonce);
    let mut rest = String::with_capacity(256);
    write_rest(&mut rest, via, hop_count, timestamp, from_relay, nonce);
    let mut body = Vec::with_capacity(envelope.text().len() + rest.len() + 16);
    body.extend_from_slice(b"{\"envelope\":");
    body.extend_from_slice(envelope.text());
    body.extend_from_slice(rest.as_bytes());
    SignedRequest {
        body: body.into(),
        signature: b64::encode(key.sign(signed.as_bytes())),
    }
}

/// Whether a Content-Type names JSON: `application/json` or `application/…+json`.
pub fn is_json_content_type(value: &str) -> bool {
    let essence = value.split(';').next().unwrap_or_default().trim();
    let Some((kind, sub)) = essence.split_once('/') else {
        return false;
    };
    let sub = sub.to_ascii_lowercase();
    kind.eq_ignore_ascii_case("application") && (sub == "json" || sub.ends_with("+json"))
}

#[cfg(test)]
#[path = "relay_request_tests.rs"]
mod tests;
