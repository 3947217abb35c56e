//! Reading and writing a request, in both forms.

use super::*;

fn parse(text: &str) -> Result<RelayRequest, SchemaError> {
    RelayRequest::parse(&Bytes::copy_from_slice(text.as_bytes()), WireForms::Both)
}

#[test]
fn what_we_sign_verifies_at_the_receiver_in_both_forms() {
    let key = SigningKey::from_seed([5; 32]);
    let text = "{ \"b\" : 1.10, \"ü\":\"\\u00fc\", \"n\":null, \"signature\":\"x\" }";
    let envelope = Envelope::parse(Bytes::from(text)).unwrap();
    for nonce in [None, Some("AAECAwQFBgcICQoLDA0ODw")] {
        let signed = sign_relay_request(
            &envelope,
            &Attempt {
                via: &["alpha.test".into()],
                hop_count: 1,
                timestamp: "2026-05-01T11:59:58.250Z",
                from_relay: "alpha.test",
                nonce,
            },
            &key,
        );
        let read = RelayRequest::parse(&signed.body, WireForms::Both).unwrap();
        assert_eq!(&read.envelope.text()[..], text.as_bytes());
        assert_eq!(read.form() == Form::Nonce, nonce.is_some());
        let signature = b64::decode(&signed.signature).unwrap();
        let bytes = read.signing_bytes();
        assert!(key.public().verify(bytes.as_bytes(), &signature).is_ok());
        assert!(bytes.contains(r#""n":null,"signature":"x""#), "{bytes}");
    }
}

#[test]
fn fields_of_the_wrong_type_are_refused_by_name() {
    let whole = |change: &str| {
        format!(r#"{{"envelope":{{}},"timestamp":"t","from_relay":"a.test"{change}}}"#)
    };
    assert!(parse(&whole("")).is_ok());
    for (change, field) in [
        (r#","envelope":[]"#, "envelope"),
        (r#","envelope":null"#, "envelope"),
        (r#","via":null"#, "via"),
        (r#","via":"a""#, "via"),
        (r#","via":["a",1]"#, "via"),
        (r#","hop_count":"1""#, "hop_count"),
        (r#","hop_count":1.0"#, "hop_count"),
        (r#","hop_count":true"#, "hop_count"),
        (r#","hop_count":null"#, "hop_count"),
        (r#","hop_count":-1"#, "hop_count"),
        (r#","hop_count":18446744073709551616"#, "hop_count"),
        (r#","timestamp":1"#, "timestamp"),
        (r#","from_relay":null"#, "from_relay"),
        (r#","nonce":null"#, "nonce"),
        (r#","nonce":"short""#, "nonce"),
    ] {
        let error = parse(&whole(change)).unwrap_err();
        assert_eq!(error.status(), 422);
        assert!(error.to_string().starts_with(field), "{change}: {error}");
    }
}

#[test]
fn what_cannot_be_read_is_a_4xx() {
    assert_eq!(parse("{\"envelope\": ").unwrap_err().status(), 422);
    assert_eq!(parse("[]").unwrap_err().status(), 422);
    assert_eq!(parse(&"[".repeat(300)).unwrap_err().status(), 400);
    assert_eq!(parse(&"9".repeat(5000)).unwrap_err().status(), 400);
}

#[test]
fn one_form_can_be_demanded() {
    let old = Bytes::from_static(br#"{"envelope":{},"timestamp":"t","from_relay":"a.test"}"#);
    assert!(RelayRequest::parse(&old, WireForms::Nonce).is_err());
    assert!(RelayRequest::parse(&old, WireForms::Legacy).is_ok());
}

#[test]
fn json_content_types_are_known() {
    for good in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/x+json",
    ] {
        assert!(is_json_content_type(good), "{good}");
    }
    for bad in ["", "json", "text/json", "application/jsonx", "text/plain"] {
        assert!(!is_json_content_type(bad), "{bad}");
    }
}
