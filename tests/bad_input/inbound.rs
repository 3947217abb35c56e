//! What a hostile or broken relay may send us.

use drawbridge::identity::{SigningKey, b64};
use drawbridge::protocols::uam::time;

use crate::harness::{Bridge, DELIVER, NOW, Request};

const SIGNATURE: &str = "X-UAM-Relay-Signature";

#[tokio::test]
async fn an_honest_request_is_taken_in_both_forms_and_its_envelope_passes_unchanged() {
    let bridge = Bridge::start().await;
    let request = Request::new("m1");
    let reply = bridge.deliver(&request.sign()).await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (200, r#"{"detail":null,"status":"delivered"}"#)
    );
    let mut old = Request::new("m2");
    old.nonce = None;
    assert_eq!(bridge.deliver(&old.sign()).await.status, 200);
    let taken = bridge.taken.0.lock().unwrap();
    assert_eq!(taken[0].payload, request.envelope());
    assert_eq!(taken[0].subject, "fed.in.uam.alpha_test.message");
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 52);
}

#[tokio::test]
async fn a_quarantined_relay_is_answered_like_any_other_and_its_events_are_held() {
    let bridge = Bridge::start().await;
    let rule = drawbridge::trust::Rule::Quarantine;
    bridge.trust.add("uam", rule, "*.test", None).await.unwrap();
    let request = Request::new("m1");
    let reply = bridge.deliver(&request.sign()).await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (200, r#"{"detail":null,"status":"delivered"}"#)
    );
    {
        let taken = bridge.taken.0.lock().unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].stream, "FED_HELD");
        assert_eq!(taken[0].subject, "fed.held.uam.alpha_test.message");
    }
    // What is not verified is refused as ever.
    let body = Request::new("m2").sign().body;
    let reply = bridge.post(&body, &[(SIGNATURE, "AAAA")]).await;
    assert_eq!(reply.status, 401, "{}", reply.body);
    assert_eq!(bridge.published(), 1);
}

#[tokio::test]
async fn an_oversized_body_is_a_413_announced_or_not() {
    let bridge = Bridge::start().await;
    let big = vec![b' '; 1024 * 1024 + 1];
    let reply = bridge.post(&big, &[]).await;
    assert_eq!(reply.status, 413, "{}", reply.body);
    assert_eq!(reply.json()["error"], "payload_too_large");
    let mut chunked = format!(
        "POST {DELIVER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..20 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b' '; 0x10000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let reply = bridge.raw(&chunked).await;
    // The server may close while we still send; then there is no answer to read.
    assert!(matches!(reply.status, 413 | 0), "{reply:?}");
    assert_eq!(bridge.published(), 0);
    bridge.still_works().await;
}

#[tokio::test]
async fn json_that_is_none_or_not_ours_is_a_4xx_and_costs_nobody() {
    let bridge = Bridge::start().await;
    let (good, signature) = Request::new("m1").text();
    let with = |old: &str, new: &str| {
        assert!(good.contains(old), "{old}");
        good.replacen(old, new, 1).into_bytes()
    };
    let payload = r#""payload":"AAAA""#;
    let deep = |n: usize| format!(r#""x":{}1{}"#, "[".repeat(n), "]".repeat(n));
    let many: String = (0..120_000).map(|n| format!("\"k{n}\":1,")).collect();
    let mut bad: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("an array", b"[]".to_vec()),
        ("null", b"null".to_vec()),
        ("truncated", good.as_bytes()[..good.len() - 9].to_vec()),
        ("two values", with("{\"envelope\"", "{} {\"envelope\"")),
        (
            "a byte order mark",
            [b"\xef\xbb\xbf", good.as_bytes()].concat(),
        ),
        (
            "UTF-16",
            good.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        ),
        (
            "too deep",
            with(payload, &format!("{payload},{}", deep(201))),
        ),
        (
            "far too deep",
            with(payload, &format!("{payload},{}", deep(200_000))),
        ),
        ("too many keys", with(payload, &format!("{many}{payload}"))),
        ("a lone surrogate", with(payload, r#""payload":"\ud800""#)),
        (
            "a reversed pair",
            with(payload, r#""payload":"\udc00\ud800""#),
        ),
        ("NaN", with(payload, r#""payload":NaN"#)),
        ("Infinity", with(payload, r#""payload":-Infinity"#)),
        ("1e400", with(payload, r#""payload":1e400"#)),
        ("a leading zero", with(payload, r#""payload":01"#)),
        (
            "a huge integer",
            with(payload, &format!("\"payload\":{}", "9".repeat(4301))),
        ),
        (
            "a raw control character",
            with(payload, "\"payload\":\"\u{1}\""),
        ),
        (
            "envelope a string",
            with("\"envelope\":{", "\"envelope\":\"\",\"e\":{"),
        ),
        (
            "envelope null",
            with("\"envelope\":{", "\"envelope\":null,\"e\":{"),
        ),
        (
            "via a string",
            with(r#""via":["alpha.test"]"#, r#""via":"alpha.test""#),
        ),
        (
            "via of numbers",
            with(r#""via":["alpha.test"]"#, r#""via":[1]"#),
        ),
        (
            "hop_count negative",
            with(r#""hop_count":1"#, r#""hop_count":-1"#),
        ),
        (
            "hop_count a float",
            with(r#""hop_count":1"#, r#""hop_count":1.0"#),
        ),
        (
            "hop_count a string",
            with(r#""hop_count":1"#, r#""hop_count":"1""#),
        ),
        (
            "hop_count past 64 bits",
            with(r#""hop_count":1"#, r#""hop_count":18446744073709551616"#),
        ),
        (
            "from_relay a list",
            with(r#""from_relay":"alpha.test""#, r#""from_relay":[]"#),
        ),
        (
            "from_relay missing",
            with(r#""from_relay""#, r#""from_relais""#),
        ),
        (
            "timestamp a number",
            with(
                r#""timestamp":"2026-05-01T12:00:00.000Z","via""#,
                r#""timestamp":1,"via""#,
            ),
        ),
        (
            "nonce a number",
            with("\"nonce\":\"", "\"nonce\":1,\"n\":\""),
        ),
    ];
    let mut broken = good.clone().into_bytes();
    let at = good.find("AAAA").unwrap();
    broken[at] = 0xff;
    bad.push(("not UTF-8", broken));
    for (name, body) in bad {
        let reply = bridge.post(&body, &[(SIGNATURE, &signature)]).await;
        assert!((400..500).contains(&reply.status), "{name}: {reply:?}");
        assert!(reply.json()["error"].is_string(), "{name}: {reply:?}");
    }
    assert_eq!(bridge.published(), 0);
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 50);
    bridge.still_works().await;
}

#[tokio::test]
async fn of_equal_keys_the_last_counts_as_at_every_relay() {
    let bridge = Bridge::start().await;
    let (good, signature) = Request::new("m1").text();
    let doubled = good.replacen(
        "{\"envelope\":",
        "{\"hop_count\":9,\"via\":7,\"envelope\":",
        1,
    );
    let reply = bridge
        .post(doubled.as_bytes(), &[(SIGNATURE, &signature)])
        .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let (good, signature) = Request::new("m2").text();
    let doubled = good.replacen(
        r#""from_relay":"alpha.test""#,
        r#""from_relay":"alpha.test","from_rel\u0061y":"gamma.test""#,
        1,
    );
    let reply = bridge
        .post(doubled.as_bytes(), &[(SIGNATURE, &signature)])
        .await;
    assert_eq!(
        reply.status, 401,
        "the last one is another relay: {}",
        reply.body
    );
}

#[tokio::test]
async fn integers_past_64_bits_keep_their_digits() {
    let bridge = Bridge::start().await;
    let request = Request::new("m1");
    let envelope = request
        .envelope()
        .replacen('{', r#"{"big":123456789012345678901234567890,"#, 1);
    let reply = bridge.deliver(&request.sign_over(&envelope)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(bridge.taken.0.lock().unwrap()[0].payload, envelope);
}

#[tokio::test]
async fn headers_missing_doubled_and_oversized_are_refused() {
    let bridge = Bridge::start().await;
    let signed = Request::new("m1").sign();
    let (body, signature) = (&signed.body[..], signed.signature.as_str());
    let reply = bridge.post(body, &[]).await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (401, "Missing X-UAM-Relay-Signature header")
    );
    let reply = bridge.post(body, &[(SIGNATURE, "")]).await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (401, "Missing X-UAM-Relay-Signature header")
    );
    let reply = bridge
        .post(body, &[(SIGNATURE, signature), (SIGNATURE, signature)])
        .await;
    assert_eq!(reply.status, 400, "{}", reply.body);
    for kind in ["<none>", "text/plain", "application/jsonx", "json"] {
        let reply = bridge
            .post(body, &[(SIGNATURE, signature), ("Content-Type", kind)])
            .await;
        assert_eq!(reply.status, 422, "{kind}: {}", reply.body);
    }
    let twice = [
        (SIGNATURE, signature),
        ("Content-Type", "application/json"),
        ("Content-Type", "application/json"),
    ];
    assert_eq!(bridge.post(body, &twice).await.status, 422);
    let long = "x".repeat(20_000);
    let reply = bridge
        .post(body, &[(SIGNATURE, signature), ("X-Long", &long)])
        .await;
    assert_eq!(reply.status, 431, "{}", reply.body);
    let many: Vec<(String, String)> = (0..300).map(|n| (format!("X-{n}"), "1".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let reply = bridge.post(body, &many).await;
    assert_eq!(reply.status, 431, "{}", reply.body);
    assert_eq!(bridge.published(), 0);
    bridge.still_works().await;
}

#[tokio::test]
async fn a_relay_signature_that_is_not_the_relays_is_a_401_and_costs_it_nothing() {
    let bridge = Bridge::start().await;
    let good = Request::new("m1").sign();
    let other_body = Request::new("m2").sign();
    let mut other_key = Request::new("m1");
    other_key.relay = SigningKey::from_seed([9; 32]);
    let other_key = other_key.sign();
    let short = b64::encode(&b64::decode(&good.signature).unwrap()[..63]);
    let long = format!("{}AAAA", good.signature);
    let zero = b64::encode([0u8; 64]);
    for (name, signature) in [
        ("other body", other_body.signature.as_str()),
        ("other key", &other_key.signature),
        ("63 bytes", &short),
        ("67 bytes", &long),
        ("zeros", &zero),
        ("no base64", "!!!"),
        ("hex", "00ff"),
    ] {
        let reply = bridge.post(&good.body, &[(SIGNATURE, signature)]).await;
        assert_eq!(
            (reply.status, reply.detail().as_str()),
            (401, "Invalid relay signature"),
            "{name}"
        );
    }
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 50);
    assert_eq!(bridge.published(), 0);
    bridge.still_works().await;
}

#[tokio::test]
async fn a_small_order_key_proves_nothing() {
    let bridge = Bridge::start().await;
    // The neutral point: with it, plain verification accepts a constant signature for any message.
    let mut neutral = [0u8; 32];
    neutral[0] = 1;
    bridge.home.show_relay(b64::encode(neutral));
    let mut signature = [0u8; 64];
    signature[0] = 1;
    let body = Request::new("m1").sign().body;
    let reply = bridge
        .post(&body, &[(SIGNATURE, &b64::encode(signature))])
        .await;
    assert_eq!(reply.status, 401, "{}", reply.body);
    assert_eq!(bridge.published(), 0);
}

#[tokio::test]
async fn a_small_order_agent_key_proves_nothing() {
    let bridge = Bridge::start().await;
    let mut neutral = [0u8; 32];
    neutral[0] = 1;
    bridge.home.show_alice(Some(b64::encode(neutral)));
    let reply = bridge.deliver(&Request::new("m1").sign()).await;
    assert_eq!(reply.status, 403, "{}", reply.body);
}

#[tokio::test]
async fn timestamps_old_future_or_unreadable_are_refused() {
    let bridge = Bridge::start().await;
    for (timestamp, status, detail) in [
        (time::format_ms(NOW - 300_000), 200, ""),
        (
            time::format_ms(NOW - 301_000),
            400,
            "Federation request too old (301s > 300s)",
        ),
        (
            time::format_ms(NOW + 301_000),
            400,
            "Federation request too old (301s > 300s)",
        ),
        (
            "2026-05-01T12:00:00".into(),
            400,
            "Invalid timestamp format",
        ),
        (
            "2026-05-01 12:00:00Z".into(),
            400,
            "Invalid timestamp format",
        ),
        ("yesterday".into(), 400, "Invalid timestamp format"),
        (
            "9999-99-99T99:99:99Z".into(),
            400,
            "Invalid timestamp format",
        ),
        (String::new(), 400, "Invalid timestamp format"),
    ] {
        let mut request = Request::new("m1");
        request.timestamp = timestamp.clone();
        let reply = bridge.deliver(&request.sign()).await;
        assert_eq!(reply.status, status, "{timestamp}: {}", reply.body);
        assert!(
            reply.detail().starts_with(detail),
            "{timestamp}: {}",
            reply.body
        );
    }
    let (good, signature) = Request::new("m2").text();
    let missing = good.replace(
        r#""timestamp":"2026-05-01T12:00:00.000Z","via""#,
        r#""via""#,
    );
    assert_ne!(missing, good);
    let reply = bridge
        .post(missing.as_bytes(), &[(SIGNATURE, &signature)])
        .await;
    assert_eq!(reply.status, 422);
    assert_eq!(bridge.published(), 1);
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 51);
}

#[tokio::test]
async fn hops_loops_and_wrong_destinations_are_refused() {
    let bridge = Bridge::start().await;
    let mut far = Request::new("m1");
    far.hops = 3;
    let mut repeated = Request::new("m2");
    repeated.via = vec!["alpha.test".into(), "alpha.test".into()];
    repeated.hops = 2;
    let mut looped = Request::new("m3");
    looped.via = vec!["alpha.test".into(), "beta.test".into()];
    let mut elsewhere = Request::new("m4");
    elsewhere.to = "bob::gamma.test";
    for (request, status, detail) in [
        (far, 400, "Hop count 3 exceeds maximum 3"),
        (repeated, 200, ""),
        (
            looped,
            400,
            "Loop detected: beta.test already in via chain ['alpha.test', 'beta.test']",
        ),
        (
            elsewhere,
            400,
            "Destination domain mismatch: envelope to 'gamma.test' but this relay is 'beta.test'",
        ),
    ] {
        let reply = bridge.deliver(&request.sign()).await;
        assert_eq!((reply.status, reply.detail().as_str()), (status, detail));
    }
    assert_eq!(bridge.published(), 1);
}

#[tokio::test]
async fn an_unknown_sender_and_a_forged_agent_cost_the_proven_relay() {
    let bridge = Bridge::start().await;
    let mut stranger = Request::new("m1");
    stranger.from = "mallory::alpha.test";
    let reply = bridge.deliver(&stranger.sign()).await;
    assert_eq!(reply.status, 403);
    assert_eq!(
        reply.detail(),
        "Cannot resolve sender key for 'mallory::alpha.test': home relay unreachable or sender unknown"
    );
    let mut own = Request::new("m2");
    own.from = "ghost::beta.test";
    assert_eq!(bridge.deliver(&own.sign()).await.status, 403);
    let mut forged = Request::new("m3");
    forged.agent = SigningKey::from_seed([9; 32]);
    let reply = bridge.deliver(&forged.sign()).await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (
            400,
            "Invalid agent envelope signature: Signature was forged or corrupt"
        )
    );
    let request = Request::new("m4");
    let other = SigningKey::from_seed([9; 32]).public().to_base64();
    let envelope = request
        .envelope()
        .replacen('{', &format!(r#"{{"sender_key":"{other}","#), 1);
    let reply = bridge.deliver(&request.sign_over(&envelope)).await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (403, "Envelope sender_key does not match home-relay record")
    );
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 30);
    assert_eq!(bridge.published(), 0);
}

#[tokio::test]
async fn a_replayed_nonce_is_a_409_and_a_repeated_message_a_duplicate() {
    let bridge = Bridge::start().await;
    let request = Request::new("m1").sign();
    assert_eq!(bridge.deliver(&request).await.status, 200);
    let reply = bridge.deliver(&request).await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (409, "Federation request replay (nonce already seen)")
    );
    let reply = bridge.deliver(&Request::new("m1").sign()).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["status"], "duplicate");
    assert_eq!(bridge.published(), 1);
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 46);
}

#[tokio::test]
async fn a_relay_that_rotates_its_key_is_believed_after_one_look_and_the_old_key_no_longer() {
    let bridge = Bridge::start().await;
    assert_eq!(bridge.deliver(&Request::new("m1").sign()).await.status, 200);
    let new = SigningKey::from_seed([5; 32]);
    bridge.home.show_relay(new.public().to_base64());
    let mut request = Request::new("m2");
    request.relay = new;
    let reply = bridge.deliver(&request.sign()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(bridge.deliver(&Request::new("m3").sign()).await.status, 401);
    assert_eq!(bridge.published(), 2);
}

#[tokio::test]
async fn a_client_that_proves_nothing_is_limited_and_its_victim_is_not() {
    let bridge = Bridge::with("unproven_per_minute = 5\nrelay_rate_limit = 20").await;
    let good = Request::new("m1").sign();
    for _ in 0..5 {
        let reply = bridge.post(&good.body, &[(SIGNATURE, "AAAA")]).await;
        assert_eq!(reply.status, 401);
    }
    let reply = bridge.post(&good.body, &[(SIGNATURE, "AAAA")]).await;
    assert_eq!(reply.status, 429, "{}", reply.body);
    assert!(!bridge.trust.full("uam/relay/alpha.test", 1));
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 50);
}

#[tokio::test]
async fn the_documents_literal_rule_charges_the_relay_that_is_named() {
    let bridge = Bridge::with("charge_unproven = true").await;
    let good = Request::new("m1").sign();
    bridge.post(&good.body, &[(SIGNATURE, "AAAA")]).await;
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 45);
}

#[tokio::test]
async fn a_relay_of_no_reputation_and_one_over_its_rate_are_turned_away() {
    let bridge = Bridge::with("relay_rate_limit = 4").await;
    assert_eq!(bridge.deliver(&Request::new("m1").sign()).await.status, 200);
    assert_eq!(bridge.deliver(&Request::new("m2").sign()).await.status, 200);
    let reply = bridge.deliver(&Request::new("m3").sign()).await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (429, "Federation rate limit exceeded")
    );
    bridge.trust.set_score("uam", "alpha.test", 19);
    let reply = bridge.deliver(&Request::new("m4").sign()).await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (403, "Source relay reputation too low")
    );
    assert_eq!(bridge.published(), 2);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_json() {
    let bridge = Bridge::start().await;
    for (line, status) in [
        ("GET /api/v1/federation/deliver", 405),
        ("DELETE /.well-known/uam-relay.json", 405),
        ("GET /nothing", 404),
        ("GET /api/v1/agents/%ff%fe/public-key", 404),
        ("GET /api/v1/agents/nobody::beta.test/public-key", 404),
        ("GET /api/v1/agents/nobody%3A%3Abeta.test/public-key", 404),
        ("GET /api/v1/admin/relay-blocklist", 503),
    ] {
        let raw = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let reply = bridge.raw(raw.as_bytes()).await;
        assert_eq!(reply.status, status, "{line}: {}", reply.body);
        assert!(reply.json()["detail"].is_string(), "{line}: {}", reply.body);
    }
}
