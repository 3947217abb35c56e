//! What a token proves, and to whom.

use super::*;

const NOW: UnixMs = 1_700_000_000_000;
const FROM: Sender<'_> = Sender {
    peer_id: "peer_1_0a1b2c3d",
    host: "volt-b.example",
    name: "Volt \u{1f680} \"B\"",
};

fn secret() -> SharedSecret {
    SharedSecret::new("0123456789abcdef").unwrap()
}

fn verdict(token: &str, now: UnixMs) -> Result<(), Why> {
    verify(Some(&secret()), "volt-b.example", token, now).map(drop)
}

fn signed(text: &str) -> Result<(), Why> {
    verdict(&sealed(&secret(), text), NOW)
}

#[test]
fn a_token_holds_for_its_host_and_its_time_only() {
    let token = make(&secret(), &FROM, NOW, "aa");
    let held = verify(Some(&secret()), FROM.host, &token, NOW).unwrap();
    assert_eq!(held.nonce, b"aa");
    assert_eq!(held.timestamp_ms, NOW);
    assert_eq!(held.peer_id.as_deref(), Some(FROM.peer_id));
    for (now, verdict_then) in [
        (NOW + MAX_AGE_MS, Ok(())),
        (NOW + MAX_AGE_MS + 1, Err(Why::Expired)),
        (NOW - MAX_AHEAD_MS, Ok(())),
        (NOW - MAX_AHEAD_MS - 1, Err(Why::Ahead)),
    ] {
        assert_eq!(verdict(&token, now), verdict_then);
    }
    let elsewhere = verify(Some(&secret()), "volt-c.example", &token, NOW).map(drop);
    assert_eq!(elsewhere, Err(Why::OtherHost));
    let other = SharedSecret::new("fedcba9876543210").unwrap();
    let under_another = verify(Some(&other), FROM.host, &token, NOW).map(drop);
    assert_eq!(under_another, Err(Why::Mismatch));
    let unknown = verify(None, FROM.host, &token, NOW).map(drop);
    assert_eq!(unknown, Err(Why::UnknownHost));
}

#[test]
fn a_changed_character_anywhere_is_refused() {
    let token = make(&secret(), &FROM, NOW, "aa");
    let text = decoded(&token).unwrap();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        assert!(verdict(&b64::encode(bytes), NOW).is_err(), "{at}");
    }
    for end in 0..token.len() {
        assert!(verdict(&token[..end], NOW).is_err(), "{end}");
    }
}

#[test]
fn what_the_secret_s_holder_signs_still_needs_every_member() {
    let whole = |host: &str, time: &str, nonce: &str| {
        signed(&format!(
            "{{\"host\":{host},\"name\":\"\\ud800\",\"timestamp\":{time},\"nonce\":{nonce}}}"
        ))
    };
    let (host, time, nonce) = ("\"volt-b.example\"", "1700000000000", "\"aa\"");
    assert_eq!(whole(host, time, nonce), Ok(()));
    assert_eq!(whole(host, "1.7e12", nonce), Ok(()));
    assert_eq!(whole("\"VOLT-B.example\"", time, nonce), Ok(()));
    for other in ["null", "5", "[\"volt-b.example\"]", "\"evil.example\""] {
        assert_eq!(whole(other, time, nonce), Err(Why::OtherHost), "{other}");
    }
    for no_time in ["null", "\"1700000000000\"", "true", "\"never\""] {
        assert_eq!(
            whole(host, no_time, nonce),
            Err(Why::NoTimestamp),
            "{no_time}"
        );
    }
    for no_nonce in ["null", "5", "\"\"", "\"\\ud800\""] {
        assert_eq!(whole(host, time, no_nonce), Err(Why::NoNonce), "{no_nonce}");
    }
    assert_eq!(
        signed("{\"host\":\"volt-b.example\"}"),
        Err(Why::NoTimestamp)
    );
    assert_eq!(signed("[\"a\"}"), Err(Why::NotJson));
}

#[test]
fn a_long_nonce_is_remembered_by_its_hash() {
    let token = make(&secret(), &FROM, NOW, &"n".repeat(4000));
    let held = verify(Some(&secret()), FROM.host, &token, NOW).unwrap();
    assert_eq!(held.nonce.len(), 32);
}

#[test]
fn a_token_of_more_than_8192_characters_is_not_read() {
    let token = make(&secret(), &FROM, NOW, &"n".repeat(8000));
    assert_eq!(verdict(&token, NOW), Err(Why::TooLong));
}

#[test]
fn a_token_tells_the_host_it_claims_without_proof() {
    let other = SharedSecret::new("fedcba9876543210").unwrap();
    let token = make(&other, &FROM, NOW, "aa");
    assert_eq!(claimed_host(&token).as_deref(), Some("volt-b.example"));
    assert_eq!(claimed_host("aGVsbG8"), None);
}

proptest::proptest! {
    #[test]
    fn what_is_signed_reads_back_as_it_was_meant(
        peer_id: String, host: String, name: String, nonce: String, time in 0i64..=NOW * 2,
    ) {
        let units: Vec<u16> = name.encode_utf16().collect();
        let text = signed_text(&peer_id, &host, Name::Units(&units), time, &nonce);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let meant = serde_json::json!({
            "peerId": peer_id, "host": host, "name": name, "timestamp": time, "nonce": nonce,
        });
        proptest::prop_assert_eq!(&read, &meant);
        // The one way ECMAScript writes a string.
        proptest::prop_assert!(text.contains(&meant["name"].to_string()));
    }

    #[test]
    fn no_text_is_a_token_by_chance(token: String, inside: String, bytes: Vec<u8>) {
        for token in [token, b64::encode(inside), b64::encode(bytes)] {
            proptest::prop_assert!(verdict(&token, NOW).is_err());
            let _ = claimed_host(&token);
        }
    }
}
