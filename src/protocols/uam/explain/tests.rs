use bytes::Bytes;

use super::super::discover::DELIVER_PATH;
use super::super::envelope::{Draft, Envelope, build};
use super::super::relay_request::{Attempt, RelayRequest, SignedRequest, sign_relay_request};
use super::super::time;
use super::*;
use crate::identity::SigningKey;
use crate::protocols::uam::address::Address;

fn relay() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

fn agent() -> SigningKey {
    SigningKey::from_seed([2; 32])
}

fn context() -> Context {
    Context {
        own_domain: Some("beta.test".into()),
        relay_key: Some(relay().public()),
        agent_key: Some(agent().public()),
        ..Context::default()
    }
}

fn signed(nonce: Option<&str>) -> SignedRequest {
    let from = Address::parse("alice::alpha.test").unwrap();
    let to = Address::parse("bob::beta.test").unwrap();
    let text = build(
        &Draft {
            from: &from,
            to: &to,
            kind: "message",
            payload: "AAAA",
            message_id: "m-1",
            timestamp: "2026-05-01T12:00:00.000Z",
            nonce: &[0; 24],
            thread_id: Some("Zoë"),
            reply_to: None,
            expires: None,
            media_type: None,
        },
        &agent(),
    );
    let envelope = Envelope::parse(Bytes::from(text)).unwrap();
    let attempt = Attempt {
        via: &["alpha.test".to_owned()],
        hop_count: 1,
        timestamp: "2026-05-01T12:00:00.000Z",
        from_relay: "alpha.test",
        nonce,
    };
    sign_relay_request(&envelope, &attempt, &relay())
}

fn http(request: &SignedRequest, extra: &str) -> Vec<u8> {
    let mut text = format!(
        "POST {DELIVER_PATH} HTTP/1.1\r\nHost: beta.test\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nX-UAM-Relay-Signature: {}\r\n{extra}\r\n",
        request.body.len(),
        request.signature
    )
    .into_bytes();
    text.extend_from_slice(&request.body);
    text
}

fn verdict(steps: &[Step]) -> (Option<bool>, &str) {
    let last = steps.last().unwrap();
    assert_eq!(last.name, "verdict");
    (last.ok, &last.detail)
}

fn hint(steps: &[Step]) -> &str {
    let hint = steps.iter().find(|step| step.name == "hint");
    hint.map_or("", |step| step.detail.as_str())
}

#[test]
fn a_good_request_holds_in_every_step_and_shows_the_signed_bytes() {
    let request = signed(Some("AAECAwQFBgcICQoLDA0ODw"));
    let steps = explain(&http(&request, ""), &context());
    assert_eq!(verdict(&steps).0, Some(true), "{steps:#?}");
    let shown = steps.iter().find(|s| s.name == "bytes the relay signs");
    let read = RelayRequest::parse(&request.body, WireForms::Both).unwrap();
    let bytes = read.signing_bytes();
    let detail = &shown.unwrap().detail;
    assert!(detail.ends_with(&bytes));
    assert!(detail.contains(&hex(&Sha256::digest(bytes.as_bytes()))));
}

#[test]
fn a_file_saved_with_unix_line_ends_or_in_chunks_is_read() {
    let request = signed(None);
    let text = String::from_utf8(http(&request, "")).unwrap();
    let steps = explain(text.replace("\r\n", "\n").as_bytes(), &context());
    assert_eq!(verdict(&steps).0, Some(true), "{steps:#?}");

    let (first, second) = request.body.split_at(10);
    let mut chunked = format!(
        "POST {DELIVER_PATH} HTTP/1.1\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\nX-UAM-Relay-Signature: {}\r\n\r\n",
        request.signature
    )
    .into_bytes();
    for part in [first, second, b""] {
        chunked.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(verdict(&explain(&chunked, &context())).0, Some(true));
}

#[test]
fn what_is_not_given_is_said_to_be_unchecked() {
    let steps = explain(&http(&signed(None), ""), &Context::default());
    let (ok, text) = verdict(&steps);
    assert_eq!(ok, None);
    assert!(
        text.contains("the relay's signature (no key given)"),
        "{text}"
    );
}

#[test]
fn a_nonce_added_after_signing_is_recognised() {
    let request = signed(None);
    let mut body = request.body.to_vec();
    body.pop();
    body.extend_from_slice(br#","nonce":"AAECAwQFBgcICQoLDA0ODw"}"#);
    let changed = SignedRequest {
        body: body.into(),
        signature: request.signature,
    };
    let steps = explain(&http(&changed, ""), &context());
    assert_eq!(
        verdict(&steps).1,
        "the bridge answers 401 unauthorized \"Invalid relay signature\""
    );
    assert!(hint(&steps).contains("older form"), "{steps:#?}");
}

#[test]
fn signers_that_sign_other_bytes_are_recognised() {
    let mut request = signed(None);
    let spaced = String::from_utf8(request.body.to_vec()).unwrap();
    request.body = spaced.replace("\"via\":", "\"via\" : ").into();
    let read = RelayRequest::parse(&request.body, WireForms::Both).unwrap();
    let raw = read.signing_bytes().replace("\\u00eb", "ë");
    for (bytes, said) in [
        (request.body.to_vec(), "text of the body"),
        (raw.into_bytes(), "unescaped"),
    ] {
        let wrong = SignedRequest {
            body: request.body.clone(),
            signature: b64::encode(relay().sign(&bytes)),
        };
        let steps = explain(&http(&wrong, ""), &context());
        assert!(hint(&steps).contains(said), "{said}: {steps:#?}");
    }
    let by_agent = SignedRequest {
        body: request.body.clone(),
        signature: b64::encode(agent().sign(read.signing_bytes().as_bytes())),
    };
    assert!(hint(&explain(&http(&by_agent, ""), &context())).contains("agent's key"));
}

#[test]
fn the_first_failure_decides_and_later_ones_are_shown() {
    let context = Context {
        own_domain: Some("gamma.test".into()),
        now_ms: Some(time::parse_ms("2026-05-01T13:00:00Z").unwrap()),
        ..context()
    };
    let steps = explain(&http(&signed(None), ""), &context);
    assert!(verdict(&steps).1.contains("too old (3600s > 300s)"));
    let destination = steps.iter().find(|s| s.name == "destination").unwrap();
    assert_eq!(destination.ok, Some(false));
}

#[test]
fn a_bare_envelope_is_checked_as_one() {
    let request = signed(None);
    let read = RelayRequest::parse(&request.body, WireForms::Both).unwrap();
    let steps = explain(read.envelope.text(), &context());
    assert_eq!(verdict(&steps).0, Some(true), "{steps:#?}");
    let other = Context {
        agent_key: Some(relay().public()),
        ..context()
    };
    assert_eq!(
        verdict(&explain(read.envelope.text(), &other)).0,
        Some(false)
    );
}

#[test]
fn broken_files_are_named_with_the_place() {
    let steps = explain(b"{\n \"envelope\": {\"a\": 1e400}}", &context());
    assert!(
        steps.iter().any(|s| s.detail.contains("line 2, byte 20")),
        "{steps:#?}"
    );
    for text in [
        &b""[..],
        b"POST /x HTTP/1.1\r\nHost: a",
        b"{}",
        b"\xff",
        b"[]",
    ] {
        assert_eq!(
            verdict(&explain(text, &context())).0,
            Some(false),
            "{text:?}"
        );
    }
}

#[test]
fn a_body_encoded_twice_is_recognised() {
    let request = signed(Some("AAECAwQFBgcICQoLDA0ODw"));
    let text = String::from_utf8(request.body.to_vec()).unwrap();
    // The same value, written without an escape.
    let text = text.replace("\\u00eb", "ë");
    assert!(!text.is_ascii());
    let twice: String = text.bytes().map(char::from).collect();
    let context = Context {
        signature: Some(request.signature.clone()),
        ..context()
    };
    let steps = explain(twice.as_bytes(), &context);
    let hint = steps.iter().find(|s| s.name == "hint").unwrap();
    assert!(hint.detail.contains("Latin-1"), "{}", hint.detail);
}
