//! Why a signature may not hold: the bytes that other signers are known to sign are tried in turn.
//! A match is an explanation, never an acceptance.

use bytes::Bytes;

use super::super::canonical::{self, canonical};
use super::super::envelope::Envelope;
use super::super::json::{self, Json, Object};
use super::super::relay_request::{Form, RelayRequest};
use crate::config::WireForms;
use crate::identity::PublicKey;

/// For a relay's signature over a request.
pub(super) fn relay(
    request: &RelayRequest,
    body: &[u8],
    key: &PublicKey,
    agent_key: Option<&PublicKey>,
    signature: &[u8],
) -> String {
    let signed = request.signing_bytes();
    let holds = |text: &[u8]| key.verify(text, signature).is_ok();
    if agent_key.is_some_and(|key| key.verify(signed.as_bytes(), signature).is_ok()) {
        return "it holds under the agent's key: the relay must sign with its own".into();
    }
    if request.form() == Form::Nonce {
        let mut older = request.clone();
        older.nonce = None;
        if holds(older.signing_bytes().as_bytes()) {
            return "it holds without the nonce: the sender signed the older form and added a nonce, \
                    or something on the way did"
                .into();
        }
    }
    if holds(body) {
        return "it holds over the body as sent: the sender signed the text of the body, not its \
                canonical form"
            .into();
    }
    if holds(unescaped(&signed).as_bytes()) {
        return "it holds over the same text with non-ASCII characters left unescaped: the sender \
                must write them as \\u escapes before signing"
            .into();
    }
    if let Some(what) = re_encoded(request, body, holds) {
        return what;
    }
    let Ok(Json::Object(whole)) = json::parse(body) else {
        return unexplained(request.form());
    };
    if holds(canonical(&whole).as_bytes()) {
        return "it holds over every field of the body: only envelope, via, hop_count, timestamp, \
                from_relay and nonce are signed; a left-out via or hop_count is signed as [] and 0"
            .into();
    }
    if request.form() == Form::Legacy && whole.contains_key("nonce") {
        let mut object = whole.clone();
        object.retain(|name, _| FIELDS.contains(&name.as_str()));
        if holds(canonical(&object).as_bytes()) {
            return "it holds with the nonce: the request is of the newer form, which is switched \
                    off here (uam.wire_forms)"
                .into();
        }
    }
    if holds(inner_dropped(&whole).as_bytes()) {
        return "it holds with nulls and the signature left out of the envelope: the envelope is \
                signed as received, with both"
            .into();
    }
    unexplained(request.form())
}

/// Whether something on the way wrote the body anew: the ways that are known are undone one by one.
fn re_encoded(
    request: &RelayRequest,
    body: &[u8],
    holds: impl Fn(&[u8]) -> bool,
) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let forms = match request.form() {
        Form::Nonce => WireForms::Nonce,
        Form::Legacy => WireForms::Legacy,
    };
    let signed_as = |text: String| {
        let read = RelayRequest::parse(&Bytes::from(text), forms).ok();
        read.is_some_and(|read| holds(read.signing_bytes().as_bytes()))
    };
    if latin1_undone(text).is_some_and(&signed_as) {
        return Some(
            "it holds once the text is read as UTF-8 that was taken for Latin-1 and encoded again: a \
             proxy or the program that saved the file changed the body's encoding"
                .into(),
        );
    }
    if text.contains('&') && signed_as(entities_undone(text)) {
        return Some(
            "it holds with &amp;, &lt; and the like turned back into characters: a filter on the way \
             escapes the body as if it were HTML"
                .into(),
        );
    }
    if text.contains(' ') && signed_as(text.replace(' ', "+")) {
        return Some(
            "it holds with + for the spaces: something on the way decoded the body as a form"
                .into(),
        );
    }
    None
}

/// Text whose UTF-8 was encoded a second time; `None`: it was not.
fn latin1_undone(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
    String::from_utf8(bytes?).ok()
}

fn entities_undone(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

const FIELDS: [&str; 6] = [
    "envelope",
    "from_relay",
    "hop_count",
    "nonce",
    "timestamp",
    "via",
];

/// The body's canonical text with the rule for the top level applied to the envelope too.
fn inner_dropped(body: &Object) -> String {
    let mut body = body.clone();
    body.retain(|name, _| FIELDS.contains(&name.as_str()));
    if let Some(Json::Object(envelope)) = body.get_mut("envelope") {
        envelope.retain(|name, value| name != "signature" && !value.is_null());
    }
    canonical(&body)
}

fn unexplained(form: Form) -> String {
    let other = match form {
        Form::Nonce => "A relay of 0.2 or 0.3 does not sign the nonce; one of 1.0 does. ",
        Form::Legacy => {
            "If the sender is a relay of 1.0, its nonce was lost on the way: the form without nonce \
             is not what it signed. "
        }
    };
    format!(
        "no known slip explains it. {other}Compare the sha256 above with the sender's: if they differ, \
         something between changed a value of the body (order, spaces and escapes do not matter; \
         values, and 1 against 1.0, do). If they are equal, the key is another one: compare the \
         fingerprint with the sender's well-known file, which a proxy or an old cache may answer"
    )
}

/// For an agent's signature over an envelope.
pub(super) fn agent(
    envelope: &Envelope,
    key: &PublicKey,
    sender_key: Option<&PublicKey>,
    signature: &[u8],
) -> String {
    let signed = envelope.signing_bytes();
    let holds = |text: &[u8]| key.verify(text, signature).is_ok();
    if sender_key.is_some_and(|key| key.verify(signed.as_bytes(), signature).is_ok()) {
        return "it holds under the envelope's own sender_key, which is not the key given: the agent \
                has another key by now, or somebody else signed"
            .into();
    }
    if holds(unescaped(&signed).as_bytes()) {
        return "it holds over the same text with non-ASCII characters left unescaped (the TypeScript \
                SDK signs so): relays refuse it too"
            .into();
    }
    if holds(canonical(envelope.tree()).as_bytes()) {
        return "it holds over every field of the envelope: attachments, sender_key and unknown fields \
                are not signed"
            .into();
    }
    let mut with_nulls = String::new();
    let mut tree = envelope.tree().clone();
    tree.remove("signature");
    canonical::write_object(&tree, &mut with_nulls);
    if holds(with_nulls.as_bytes()) {
        return "it holds with null fields written out: a null counts as absent".into();
    }
    "no known slip explains it. A signed field was changed after signing, or another key signed: \
     compare the sha256 above with the sender's, then the fingerprint with the home relay's record"
        .into()
}

/// Canonical text with its escapes for U+0080 and above turned back into characters.
fn unescaped(canonical: &str) -> String {
    let mut out = String::with_capacity(canonical.len());
    let mut rest = canonical;
    while let Some((before, tail)) = rest.find('\\').map(|at| rest.split_at(at)) {
        out.push_str(before);
        let (text, length) = match escape_run(tail) {
            Some((text, length)) => (text, length),
            // A short escape, or one below U+0080, stays: a backslash and the next character.
            None => (tail.chars().take(2).collect(), tail.len().min(2)),
        };
        out.push_str(&text);
        rest = tail.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// One escaped character of U+0080 or above at the beginning, and how long its escape is.
fn escape_run(text: &str) -> Option<(String, usize)> {
    let unit = |from: usize| {
        let escape = text.get(from..from + 6)?;
        u16::from_str_radix(escape.strip_prefix("\\u")?, 16).ok()
    };
    let first = unit(0)?;
    if first < 0x80 {
        return None;
    }
    let pair = (0xd800..0xdc00).contains(&first);
    let units: Vec<u16> = if pair {
        vec![first, unit(6)?]
    } else {
        vec![first]
    };
    Some((String::from_utf16(&units).ok()?, 6 * units.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_escapes_above_ascii_are_turned_back() {
        assert_eq!(
            unescaped(r#"{"a":"\u00e9\ud83d\ude00\u0000\\u00e9\n\u007f"}"#),
            "{\"a\":\"é😀\\u0000\\\\u00e9\\n\\u007f\"}"
        );
    }
}
