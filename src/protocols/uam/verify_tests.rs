//! The edges of each check.

use bytes::Bytes;

use super::*;

fn envelope(text: &str) -> Envelope {
    Envelope::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

const FULL: &str = r#"{"uam_version":"0.1","message_id":"m","from":"a::x","to":"b::y",
    "timestamp":"t","type":"message","nonce":"n","payload":"p","signature":"s""#;

fn with(change: &str) -> Envelope {
    envelope(&format!("{FULL}{change}}}"))
}

#[test]
fn exactly_the_maximum_age_passes_either_way_and_a_microsecond_more_does_not() {
    let now = time::parse_ms("2026-05-01T12:05:00Z").unwrap();
    assert!(check_age("2026-05-01T12:00:00Z", now, 300).is_ok());
    assert!(check_age("2026-05-01T12:10:00Z", now, 300).is_ok());
    let late = check_age("2026-05-01T11:59:59.999999Z", now, 300).unwrap_err();
    assert_eq!(late.detail, "Federation request too old (300s > 300s)");
    assert!(check_age("2026-05-01T12:10:00.000001Z", now, 300).is_err());
    assert!(check_age("2026-05-01T12:05:00", now, 300).is_err());
}

#[test]
fn a_hop_count_at_the_maximum_or_past_64_bits_is_refused() {
    assert!(check_hops(2, 3).is_ok());
    assert_eq!(
        check_hops(3, 3).unwrap_err().detail,
        "Hop count 3 exceeds maximum 3"
    );
    assert!(check_hops(u64::MAX, i64::MAX).is_err());
    assert!(check_hops(0, 0).is_err());
}

#[test]
fn nothing_before_the_relay_is_proven_costs_it_reputation() {
    let e = envelope(r#"{"to":1}"#);
    for rejection in [
        check_age("x", 0, 300).unwrap_err(),
        check_hops(9, 3).unwrap_err(),
        check_loop(&["y".into()], "y").unwrap_err(),
        check_destination(&e, "y").unwrap_err(),
        check_signature_header([].into_iter()).unwrap_err(),
        Rejection::relay_signature(),
    ] {
        assert_eq!(rejection.charge, Charge::Client, "{}", rejection.detail);
    }
}

#[test]
fn missing_and_null_required_fields_are_listed_sorted() {
    let e = envelope(
        r#"{"uam_version":"0.1","from":"a","to":"b","message_id":"m","timestamp":"t","type":"x","signature":"s"}"#,
    );
    let null = with(r#","nonce":null,"payload":null"#);
    assert_eq!(
        check_fields(&null).unwrap_err().detail,
        "Invalid envelope: Missing required fields: ['nonce', 'payload']"
    );
    let rejection = check_fields(&e).unwrap_err();
    assert_eq!(
        rejection.detail,
        "Invalid envelope: Missing required fields: ['nonce', 'payload']"
    );
    assert_eq!((rejection.status, rejection.charge), (400, Charge::Relay));
}

#[test]
fn known_fields_have_their_type_and_unknown_ones_any() {
    for good in [
        r#","thread_id":null"#,
        r#","metadata":{}"#,
        r#","attachments":[1]"#,
        r#","anything":[{}]"#,
    ] {
        assert!(check_fields(&with(good)).is_ok(), "{good}");
    }
    for bad in [
        r#","payload":{}"#,
        r#","thread_id":1"#,
        r#","metadata":"x""#,
        r#","attachments":{}"#,
        r#","sender_key":7"#,
    ] {
        assert_eq!(check_fields(&with(bad)).unwrap_err().status, 400, "{bad}");
    }
}

#[test]
fn the_version_is_zero_dot_something_in_ascii_digits() {
    let check = |v: &str| check_version(&with(&format!(r#","uam_version":{v}"#)));
    assert!(check(r#""0.1""#).is_ok() && check(r#""0.99""#).is_ok());
    let major = check(r#""1.0""#).unwrap_err();
    assert_eq!(major.error, "incompatible_version");
    assert!(major.with_request_id && major.charge == Charge::Nobody);
    for shape in [
        r#""0.1.0""#,
        r#""0""#,
        r#"".1""#,
        r#""0.1\n""#,
        r#""0.１""#,
        r#""""#,
    ] {
        assert_eq!(
            check(shape).unwrap_err().error,
            "validation_error",
            "{shape}"
        );
    }
    assert_eq!(check("null").unwrap_err().error, "validation_error");
    assert_eq!(check("0.1").unwrap_err().error, "validation_error");
    let absent = check_version(&envelope("{}")).unwrap_err();
    assert_eq!(
        (absent.error, absent.charge),
        ("bad_request", Charge::Relay)
    );
}

#[test]
fn one_signature_header_is_wanted() {
    let header = |values: &[&'static [u8]]| check_signature_header(values.iter().copied());
    assert_eq!(header(&[b"abc"]), Ok("abc"));
    assert_eq!(header(&[]).unwrap_err().status, 401);
    assert_eq!(header(&[b""]).unwrap_err().status, 401);
    assert_eq!(header(&[b"a", b"a"]).unwrap_err().status, 400);
    assert_eq!(header(&[b"\xff"]).unwrap_err().status, 401);
}
