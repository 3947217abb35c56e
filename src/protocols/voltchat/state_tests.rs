//! Every transition of the sheet's sections 3.3 to 3.5, as promises.

use super::*;
use proptest::prelude::*;

const NOW: UnixMs = 1_700_000_000_000;
const ALL: [Status; 5] = [
    Status::Requested,
    Status::Pending,
    Status::Connected,
    Status::Error,
    Status::Rejected,
];

fn name(host: &str) -> PeerName {
    PeerName::parse(host).unwrap()
}

fn secret(letter: char) -> SharedSecret {
    SharedSecret::new(&letter.to_string().repeat(64)).unwrap()
}

/// Of `m.example`, in this state, sharing secret `a`.
fn peer(status: Status) -> Peer {
    let direction = match status {
        Status::Requested => Direction::Outgoing,
        _ => Direction::Incoming,
    };
    let asked = request(None, ask('a')).unwrap();
    Peer {
        status,
        direction,
        ..asked
    }
}

fn ask(letter: char) -> Ask {
    Ask {
        id: "peer_1".into(),
        name: "M".into(),
        host: name("m.example"),
        url: "https://m.example".into(),
        secret: secret(letter),
        now_ms: NOW,
    }
}

fn offer(letter: char) -> Offer {
    Offer {
        id: "peer_2".into(),
        name: "M2".into(),
        host: name("m.example"),
        url: "https://m.example".into(),
        secret: secret(letter),
        features: Map::from_iter([("x".to_owned(), Value::Bool(true))]),
        bridge: false,
        now_ms: NOW + 1,
    }
}

fn own() -> PeerName {
    name("k.example")
}

#[test]
fn a_request_is_open_until_a_ping_whatever_the_handshake_was_answered() {
    let asked = request(None, ask('a')).unwrap();
    assert_eq!(asked.status, Status::Requested);
    assert_eq!(asked.status.wire(), "pending");
    assert_eq!(asked.direction, Direction::Outgoing);
    let answer = Answered::Received {
        remote_peer_id: Some("peer_9".into()),
        features: Map::new(),
    };
    let received = answered(&asked, answer, NOW + 1).unwrap();
    assert_eq!(received.status, Status::Requested);
    assert_eq!(received.remote_peer_id.as_deref(), Some("peer_9"));
    let failed = answered(&asked, Answered::Failed("no answer".into()), NOW + 1).unwrap();
    assert_eq!(failed.status, Status::Requested);
    assert_eq!(failed.last_error.as_deref(), Some("no answer"));
    assert!(heard(&received, Contact::Other, NOW + 2).is_none());
    let connected = heard(&received, Contact::Ping, NOW + 2).unwrap();
    assert_eq!(connected.status, Status::Connected);
    assert_eq!(connected.last_seen_ms, Some(NOW + 2));
    assert_eq!(connected.last_error, None);
}

#[test]
fn a_host_that_has_a_record_is_not_asked_again() {
    for status in ALL {
        assert!(
            request(Some(&peer(status)), ask('b')).is_none(),
            "{status:?}"
        );
    }
}

#[test]
fn a_late_answer_to_a_handshake_moves_nobody_who_was_decided_about() {
    for status in [Status::Pending, Status::Connected, Status::Rejected] {
        let late = Answered::Failed("no answer".into());
        assert!(answered(&peer(status), late, NOW).is_none(), "{status:?}");
    }
}

#[test]
fn a_stranger_waits_for_the_operator() {
    let Offered::Asked(asked) = offered(None, offer('a'), &own(), true) else {
        panic!("not asked");
    };
    assert_eq!(asked.status, Status::Pending);
    assert_eq!(asked.direction, Direction::Incoming);
    for by in [Contact::Ping, Contact::Other] {
        assert!(heard(&asked, by, NOW).is_none(), "a token moves it nowhere");
    }
    assert!(matches!(
        offered(None, offer('a'), &own(), false),
        Offered::Full
    ));
}

#[test]
fn a_repeated_handshake_brings_up_to_date_and_changes_no_state() {
    for status in ALL {
        let Offered::Repeated(next) = offered(Some(&peer(status)), offer('a'), &own(), false)
        else {
            panic!("{status:?}: not repeated");
        };
        assert_eq!(next.status, status);
        assert_eq!(next.id, "peer_1", "the id stays");
        assert_eq!(next.name, "M2");
        assert!(next.features.contains_key("x"));
    }
}

#[test]
fn another_secret_is_refused_and_remembered_as_refused() {
    for status in ALL.into_iter().filter(|s| *s != Status::Requested) {
        let Offered::OtherSecret(next) = offered(Some(&peer(status)), offer('b'), &own(), true)
        else {
            panic!("{status:?}: not refused");
        };
        assert_eq!(next.status, status);
        assert!(next.secret.same(secret('a').as_text()));
        assert_eq!(next.refused_secret_ms, Some(NOW + 1));
        assert_eq!(next.name, "M", "nothing it says is taken over");
    }
}

#[test]
fn a_crossing_secret_counts_only_once_it_is_proven() {
    let open = peer(Status::Requested);
    let Offered::Crossing(next) = offered(Some(&open), offer('b'), &own(), true) else {
        panic!("not crossing");
    };
    assert_eq!(next.status, Status::Requested);
    assert!(next.secret.same(secret('a').as_text()));
    assert!(adopted(&next, &secret('c'), NOW).is_none(), "never offered");
    let settled = adopted(&next, &secret('b'), NOW + 2).unwrap();
    assert_eq!(settled.status, Status::Connected);
    assert!(settled.secret.same(secret('b').as_text()));
    assert!(settled.candidates.is_empty());
    let heard = heard(&next, Contact::Ping, NOW + 2).unwrap();
    assert!(heard.candidates.is_empty() && heard.secret.same(secret('a').as_text()));
    assert!(adopted(&heard, &secret('b'), NOW + 3).is_none(), "too late");
}

#[test]
fn crossing_secrets_are_few_and_the_newest_stay() {
    let mut open = peer(Status::Requested);
    for letter in ['b', 'c', 'b', 'd', 'e', 'f'] {
        let Offered::Crossing(next) = offered(Some(&open), offer(letter), &own(), true) else {
            panic!("not crossing");
        };
        open = next;
    }
    assert_eq!(open.candidates.len(), MAX_CANDIDATES);
    assert!(adopted(&open, &secret('f'), NOW).is_some());
    assert!(adopted(&open, &secret('c'), NOW).is_none());
}

#[test]
fn of_two_bridges_the_secret_of_the_first_by_name_stands_at_both() {
    let by_bridge = |from: &str, own: &str| {
        let open = Peer {
            host: name(from),
            ..peer(Status::Requested)
        };
        let offer = Offer {
            host: name(from),
            bridge: true,
            ..offer('b')
        };
        offered(Some(&open), offer, &name(own), true)
    };
    let Offered::OursStands(ours) = by_bridge("b.example", "a.example") else {
        panic!("ours does not stand");
    };
    assert!(ours.beats(), "ours is sent until it is received");
    let received = Answered::Received {
        remote_peer_id: None,
        features: Map::new(),
    };
    assert!(!answered(&ours, received, NOW).unwrap().beats());
    assert!(
        answered(&ours, Answered::Failed("x".into()), NOW)
            .unwrap()
            .beats()
    );
    assert!(!reject(&ours, NOW).beats());
    assert!(matches!(
        by_bridge("a.example", "b.example"),
        Offered::Crossing(_)
    ));
}

#[test]
fn the_operator_decides_from_any_state() {
    for status in ALL {
        assert_eq!(accept(&peer(status), NOW).status, Status::Connected);
        assert_eq!(reject(&peer(status), NOW).status, Status::Rejected);
    }
}

#[test]
fn rejected_stays_until_an_operator_acts() {
    let rejected = reject(&peer(Status::Connected), NOW);
    for by in [Contact::Ping, Contact::Other] {
        assert!(heard(&rejected, by, NOW).is_none());
    }
    assert!(failed(&rejected, "x", NOW).is_none());
    assert_eq!(accept(&rejected, NOW).status, Status::Connected);
}

#[test]
fn a_failure_is_an_error_that_the_next_contact_ends() {
    let failing = failed(&peer(Status::Connected), "no answer", NOW).unwrap();
    assert_eq!(failing.status, Status::Error);
    assert!(failing.status.is_accepted(), "still authenticated");
    assert!(
        failed(&failing, "no answer", NOW + 1).is_none(),
        "said once"
    );
    assert!(failed(&failing, "another", NOW + 1).is_some());
    for by in [Contact::Ping, Contact::Other] {
        let again = heard(&failing, by, NOW + 2).unwrap();
        assert_eq!(again.status, Status::Connected);
        assert_eq!(again.last_error, None);
    }
    for status in [Status::Pending, Status::Rejected] {
        assert!(failed(&peer(status), "x", NOW).is_none(), "{status:?}");
    }
}

#[test]
fn strangers_vanish_after_a_week_however_often_they_ask_and_nobody_else_does() {
    let Offered::Asked(asked) = offered(None, offer('a'), &own(), true) else {
        panic!("not asked");
    };
    let later = Offer {
        now_ms: NOW + STRANGER_AGE_MS,
        ..offer('a')
    };
    let Offered::Repeated(again) = offered(Some(&asked), later, &own(), true) else {
        panic!("not repeated");
    };
    assert!(!is_stale(&asked, NOW + STRANGER_AGE_MS));
    assert!(is_stale(&again, NOW + 1 + STRANGER_AGE_MS));
    for status in ALL.into_iter().filter(|s| *s != Status::Pending) {
        assert!(!is_stale(&peer(status), i64::MAX), "{status:?}");
    }
}

#[test]
fn crossing_secrets_nobody_proves_are_forgotten() {
    let open = peer(Status::Requested);
    let Offered::Crossing(next) = offered(Some(&open), offer('b'), &own(), true) else {
        panic!("not crossing");
    };
    assert!(without_old(&next, NOW + STRANGER_AGE_MS).is_none());
    let later = without_old(&next, NOW + 1 + STRANGER_AGE_MS).unwrap();
    assert!(later.candidates.is_empty() && !later.beats());
}

#[derive(Clone, Debug)]
enum Stranger {
    Offer(char, bool),
    Token,
}

proptest! {
    #[test]
    fn nothing_a_stranger_does_moves_an_accepted_or_a_rejected_peer(
        start in prop::sample::select(vec![Status::Connected, Status::Error, Status::Rejected]),
        acts in prop::collection::vec(prop_oneof![
            (prop::char::range('b', 'f'), any::<bool>()).prop_map(|(l, b)| Stranger::Offer(l, b)),
            Just(Stranger::Token),
        ], 0..12),
    ) {
        let mut now = peer(start);
        for act in acts {
            let next = match act {
                Stranger::Offer(letter, bridge) => {
                    match offered(Some(&now), Offer { bridge, ..offer(letter) }, &own(), true) {
                        Offered::OtherSecret(next) => Some(next),
                        other => panic!("{other:?}"),
                    }
                }
                Stranger::Token => adopted(&now, &secret('b'), NOW),
            };
            now = next.unwrap_or(now);
            prop_assert_eq!(now.status, start);
            prop_assert!(now.secret.same(secret('a').as_text()));
            prop_assert!(now.candidates.is_empty());
        }
    }
}
