//! What each answer of a relay means.

use super::*;
use crate::identity::SigningKey;
use crate::identity::ring::Keyring;
use crate::protocol::PeerName;
use ::http::HeaderMap;
use bytes::Bytes;

fn peer(dialect: Option<&str>) -> PeerRecord {
    let mut facts = serde_json::Map::new();
    if let Some(dialect) = dialect {
        facts.insert(DIALECT.into(), dialect.into());
    }
    PeerRecord {
        protocol: "uam",
        name: PeerName::parse("beta.test").unwrap(),
        endpoint: "https://beta.test/api/v1/federation/deliver".into(),
        alternatives: vec![],
        public_key: None,
        discovered_via: "well-known".into(),
        last_verified_ms: 0,
        ttl_ms: None,
        facts,
    }
}

fn attempt(again: u32) -> Try {
    Try {
        number: 1,
        now_ms: 1_777_636_800_000,
        again,
        traceparent: None,
    }
}

fn answer(status: u16, body: &str) -> Answer {
    Answer {
        status,
        headers: HeaderMap::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        elapsed: Duration::ZERO,
    }
}

fn verdict(status: u16, body: &str) -> Verdict {
    judge(Ok(&answer(status, body)), &peer(None), &attempt(0)).verdict
}

#[test]
fn only_a_relays_own_word_is_a_success() {
    assert_eq!(
        verdict(200, r#"{"status":"delivered","detail":null}"#),
        Verdict::Delivered
    );
    assert_eq!(
        verdict(201, r#"{"status":"delivered"}"#),
        Verdict::Delivered
    );
    assert_eq!(
        verdict(200, r#"{"status":"duplicate","detail":"x"}"#),
        Verdict::Duplicate
    );
    for body in [
        "<html>for sale</html>",
        "",
        "[]",
        "{}",
        r#"{"status":1}"#,
        "null",
    ] {
        let found = verdict(200, body);
        assert!(
            matches!(&found, Verdict::Retry { fault: Fault::Peer, reason, .. } if reason.code == "not_uam"),
            "{body}: {found:?}"
        );
    }
}

#[test]
fn what_cannot_get_better_is_not_repeated_and_says_why() {
    for (status, code) in [(400, "refused_400"), (403, "forbidden"), (413, "too_large")] {
        let Verdict::Refused(reason) =
            verdict(status, r#"{"error":"x","detail":"because\nof this"}"#)
        else {
            panic!("{status} is final");
        };
        assert_eq!(reason.code, code);
        assert!(
            reason.detail.ends_with("because of this"),
            "{}",
            reason.detail
        );
    }
}

#[test]
fn a_relays_own_faults_are_repeated() {
    for status in [500, 501, 502, 503, 504, 302, 100] {
        let found = verdict(status, "Internal Server Error");
        assert!(
            matches!(
                found,
                Verdict::Retry {
                    fault: Fault::Peer,
                    ..
                }
            ),
            "{status}: {found:?}"
        );
    }
}

#[test]
fn a_422_switches_the_wire_form_once_and_is_then_final() {
    let first = judge(Ok(&answer(422, "{}")), &peer(None), &attempt(0));
    assert_eq!(first.verdict, Verdict::Again);
    assert_eq!(first.learned, vec![learned(Form::Nonce)]);
    let second = judge(Ok(&answer(422, "{}")), &peer(Some("nonce")), &attempt(1));
    assert!(matches!(second.verdict, Verdict::Refused(_)));
    assert_eq!(second.learned, vec![learned(Form::Legacy)]);
}

#[test]
fn a_reused_nonce_is_made_anew_once() {
    assert_eq!(verdict(409, "{}"), Verdict::Again);
    let second = judge(Ok(&answer(409, "{}")), &peer(None), &attempt(1));
    assert!(matches!(
        second.verdict,
        Verdict::Retry {
            fault: Fault::Message,
            ..
        }
    ));
}

#[test]
fn a_401_looks_form_and_key_up_again() {
    let answer = answer(401, "{}");
    let found = judge(Ok(&answer), &peer(Some("nonce")), &attempt(0));
    assert!(rediscovers(&found, Fault::Message));
    assert_eq!(found.learned[0].value, serde_json::Value::Null);
    let found = judge(Ok(&answer), &peer(Some("legacy")), &attempt(0));
    assert!(rediscovers(&found, Fault::Message) && found.learned.is_empty());
}

fn rediscovers(found: &Judgement, whose: Fault) -> bool {
    matches!(found.verdict, Verdict::Rediscover { fault, .. } if fault == whose)
}

#[test]
fn a_page_of_a_web_server_is_the_whole_peers_fault_and_condemns_no_message() {
    for status in [400, 401, 403, 404, 405, 409, 410, 421, 422] {
        for page in ["<html>for sale</html>", "", "\"text\""] {
            let found = judge(Ok(&answer(status, page)), &peer(None), &attempt(0));
            assert!(rediscovers(&found, Fault::Peer), "{status}: {found:?}");
        }
    }
    assert!(matches!(
        verdict(418, "<html>"),
        Verdict::Retry {
            fault: Fault::Peer,
            ..
        }
    ));
    let found = judge(
        Ok(&answer(404, r#"{"detail":"Not Found"}"#)),
        &peer(None),
        &attempt(0),
    );
    assert!(rediscovers(&found, Fault::Peer));
}

#[test]
fn retry_after_is_read_in_both_spellings() {
    let mut slow = answer(429, "{}");
    slow.headers.insert("retry-after", "17".parse().unwrap());
    let found = judge(Ok(&slow), &peer(None), &attempt(0)).verdict;
    assert!(
        matches!(found, Verdict::Throttled { after: Some(d), .. } if d == Duration::from_secs(17))
    );
    let mut later = answer(503, "{}");
    let date = "Fri, 01 May 2026 12:01:00 GMT".parse().unwrap();
    later.headers.insert("retry-after", date);
    let found = judge(Ok(&later), &peer(None), &attempt(0)).verdict;
    assert!(
        matches!(found, Verdict::Retry { after: Some(d), .. } if d == Duration::from_secs(60)),
        "{found:?}"
    );
    let mut odd = answer(429, "{}");
    odd.headers.insert("retry-after", "soon".parse().unwrap());
    let found = judge(Ok(&odd), &peer(None), &attempt(0)).verdict;
    assert!(matches!(found, Verdict::Throttled { after: None, .. }));
}

#[test]
fn no_answer_is_the_peers_fault_and_carries_its_kind() {
    let error = TransportError {
        kind: TransportKind::Timeout,
        detail: "no answer within 30 s".into(),
    };
    let found = judge(Err(&error), &peer(None), &attempt(0)).verdict;
    assert!(
        matches!(found, Verdict::Retry { fault: Fault::Peer, reason, .. } if reason.code == "timeout")
    );
}

#[test]
fn a_peers_words_are_bounded() {
    let body = format!(r#"{{"detail":"{}"}}"#, "x".repeat(100_000));
    let Verdict::Refused(reason) = verdict(400, &body) else {
        panic!("400 is final");
    };
    assert!(reason.detail.len() < 400);
}

/// The judgement of a relay whose key is not changing.
fn judge(answer: Result<&Answer, &TransportError>, peer: &PeerRecord, attempt: &Try) -> Judgement {
    let keys = InForce {
        ring: Keyring {
            active: SigningKey::from_seed([1; 32]),
            since_ms: 0,
            next: None,
            old: None,
        },
        swapped_ms: 0,
    };
    super::judge(answer, peer, attempt, &keys)
}
