//! What is asked of a bridge from outside: the checks in their order, what comes through, what is
//! told to whom.

mod reads;
mod world;

use ::http::{HeaderName, Method, header};
use serde_json::{Value, json};

use super::record::Status;
use super::transport::{self, ORIGIN, SIGNATURE, TIMESTAMP};
use super::{BASE, ID};
use crate::identity::{SigningKey, hex};
use crate::trust::{Rule, Standing};
use world::*;

/// A fault of a pushed event, in the order in which they are found.
type Fault = (&'static str, fn(&mut Faulty));

struct Faulty {
    envelope: super::envelope::Envelope,
    /// Done to the request after it was signed.
    then: Vec<(HeaderName, Option<&'static str>)>,
    at: i64,
    body: Option<&'static [u8]>,
    again: bool,
}

const FAULTS: [(Fault, u16); 8] = [
    (
        ("content type", |f| {
            f.then.push((header::CONTENT_TYPE, Some("text/plain")));
        }),
        415,
    ),
    (("shape", |f| f.body = Some(b"{}")), 422),
    (("headers", |f| f.then.push((TIMESTAMP, None))), 401),
    (("trust", |f| f.then.push((ORIGIN, Some("x.example")))), 403),
    (("replay", |f| f.again = true), 409),
    (
        ("limits", |f| f.envelope.content = json!(vec![0; 10_001])),
        400,
    ),
    (("unsigned", |f| f.envelope.signatures = json!({})), 401),
    (
        ("sender", |f| f.envelope.sender = "@a:x.example".into()),
        403,
    ),
];

#[tokio::test]
async fn of_two_faults_the_one_checked_first_is_answered() {
    for (at, ((first, spoil), status)) in FAULTS.iter().enumerate() {
        for ((second, spoil_too), _) in FAULTS.iter().skip(at) {
            let world = world().await;
            let mut faulty = Faulty {
                envelope: message(1),
                then: Vec::new(),
                at: NOW,
                body: None,
                again: false,
            };
            spoil_too(&mut faulty);
            spoil(&mut faulty);
            let mut ask = pushed_at(&faulty.envelope, THEM, faulty.at);
            if let Some(body) = faulty.body {
                ask.body = body.to_vec();
            }
            if faulty.again {
                world.send(&ask).await;
            }
            for (name, value) in faulty.then {
                ask = ask.with(name, value);
            }
            let answer = world.send(&ask).await;
            assert_eq!(answer.0, *status, "{first} and {second}: {answer:?}");
            assert!(
                world.bus.all().is_empty() || faulty.again,
                "{first}, {second}"
            );
        }
    }
}

#[tokio::test]
async fn an_event_comes_through_once_and_says_so() {
    let world = world_with(|config| config.max_events_per_peer_per_minute = 77).await;
    let (status, headers, body) = world.send_whole(&pushed(&message(1), THEM)).await;
    assert_eq!(status, TAKEN);
    assert_eq!(
        body,
        json!({"event_id": "$1:Their.example", "inserted": true})
    );
    assert_eq!(headers["ratelimit-policy"], "\"events\";q=77;w=60");
    let later = pushed_at(&message(1), THEM, NOW + 1);
    let (status, body) = world.send(&later).await;
    assert_eq!((status, &body["inserted"]), (TAKEN, &Value::Bool(false)));
    assert_eq!(code(&world.send(&later).await), CONFLICT);
    let all = world.bus.all();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].0, "fed.in.paracord.them_example.m.message");
}

#[tokio::test]
async fn an_event_is_the_same_bytes_however_it_was_written() {
    let mut bytes = Vec::new();
    for form in 0..3 {
        let world = world().await;
        let envelope = message(1);
        let mut ask = pushed(&envelope, THEM);
        let value: Value = serde_json::from_slice(&ask.body).unwrap();
        let path = ask.path.clone();
        match form {
            0 => {}
            // Sorted and indented, signed as sent.
            1 => {
                let body = serde_json::to_vec_pretty(&value).unwrap();
                ask = Ask::signed(Method::POST, &path, body, THEM, NOW);
            }
            // The same, signed over the normal form; signatures in capitals.
            _ => {
                let mut value = value;
                let signature = &mut value["signatures"][THEM][KEY_ID];
                *signature = signature.as_str().unwrap().to_uppercase().into();
                let sent = serde_json::to_vec_pretty(&value).unwrap();
                let again = super::envelope::Envelope::decode(&sent).unwrap();
                ask = Ask::signed(Method::POST, &path, again.wire(), THEM, NOW);
                ask.body = sent;
            }
        }
        let answer = world.send(&ask).await;
        assert_eq!(answer.0, TAKEN, "{answer:?}");
        bytes.extend(world.bus.bodies());
    }
    assert_eq!(bytes.len(), 3);
    assert!(bytes.iter().all(|one| *one == bytes[0]), "{bytes:?}");
}

#[tokio::test]
async fn the_clocks_may_be_a_minute_apart_and_no_millisecond_more() {
    let world = world().await;
    for (n, (at, wanted)) in [
        (NOW - 60_000, 202),
        (NOW + 60_000, 202),
        (NOW - 60_001, 401),
        (NOW + 60_001, 401),
        (i64::MIN, 401),
        (i64::MAX, 401),
    ]
    .into_iter()
    .enumerate()
    {
        let envelope = message(u32::try_from(n).unwrap());
        let answer = world.send(&pushed_at(&envelope, THEM, at)).await;
        assert_eq!(answer.0, wanted, "{at}");
    }
}

#[tokio::test]
async fn a_signature_in_capitals_is_the_same_signature() {
    let world = world().await;
    let ask = pushed(&message(1), THEM);
    let upper = ask.headers[&SIGNATURE].to_str().unwrap().to_uppercase();
    assert_eq!(world.send(&ask).await.0, TAKEN);
    let again = ask.with(SIGNATURE, Some(&upper));
    assert_eq!(code(&world.send(&again).await), CONFLICT);
}

#[tokio::test]
async fn who_is_not_trusted_is_told_the_same_whatever_the_reason() {
    let world = world().await;
    world
        .server("new.example", "new.example", Status::Pending)
        .await;
    world
        .server("no.example", "no.example", Status::Rejected)
        .await;
    world
        .server("bad.example.org", "bad.example.org", Status::Trusted)
        .await;
    let blocked = world.p.trust.add(ID, Rule::Block, "bad.example.org", None);
    blocked.await.unwrap();
    let mut seen = Vec::new();
    for by in [
        "new.example",
        "no.example",
        "bad.example.org",
        "stranger.example",
        "us.example",
    ] {
        let answer = world.push(&event(by, "$1:x", |_| {})).await;
        assert_eq!(code(&answer), FORBIDDEN, "{by}");
        // A trusted server may not bring it either.
        if by != "us.example" {
            let carried = world.send(&pushed(&event(by, "$2:x", |_| {}), THEM)).await;
            assert_eq!(code(&carried), FORBIDDEN, "{by}");
        }
        seen.push(answer.1);
    }
    assert!(seen.iter().all(|one| *one == seen[0]));
    let upper = pushed(&message(1), THEM).with(ORIGIN, Some("Them.example"));
    assert_eq!(code(&world.send(&upper).await), FORBIDDEN);
}

#[tokio::test]
async fn another_trusted_server_may_bring_an_event() {
    let world = world().await;
    world
        .server("third.example", "third.example", Status::Trusted)
        .await;
    let answer = world.send(&pushed(&message(1), "third.example")).await;
    assert_eq!(answer.0, TAKEN);
    // Its own server's copy is the same event.
    let (_, body) = world.push(&message(1)).await;
    assert_eq!(body["inserted"], false);
    assert_eq!(
        world.bus.all()[0].0,
        "fed.in.paracord.them_example.m.message"
    );
}

#[tokio::test]
async fn a_server_speaks_for_its_own_users_only() {
    let world = world().await;
    for (n, (sender, wanted)) in [
        ("@a:them.example", 202),
        ("@a:THEM.EXAMPLE", 202),
        ("@a:their.example", 202),
        ("@a:elsewhere.example", 403),
        ("@a:us.example", 403),
        ("a:them.example", 403),
        ("@:them.example", 403),
        ("", 403),
    ]
    .into_iter()
    .enumerate()
    {
        let envelope = event(THEM, &format!("${n}:x"), |e| e.sender = sender.to_owned());
        assert_eq!(world.push(&envelope).await.0, wanted, "{sender:?}");
    }
}

#[tokio::test]
async fn an_event_that_says_it_is_ours_is_one_we_made_or_refused() {
    let world = world().await;
    let forged = event("us.example", "$1:us.example", |_| {});
    let answer = world.send(&pushed(&forged, THEM)).await;
    assert_eq!(code(&answer), FORBIDDEN);
    assert!(world.bus.all().is_empty());
}

#[tokio::test]
async fn attachments_added_after_signing_are_kept_and_marked() {
    let world = world().await;
    let mut envelope = message(1);
    envelope.room_id = ROOM.to_owned();
    envelope.sign(&key(THEM), KEY_ID);
    envelope.content["attachments"] = json!([{"id": "1"}]);
    assert_eq!(world.push(&envelope).await.0, TAKEN);
    let (_, body) = world.bus.all().remove(0);
    assert_eq!(body["unauthenticated"], json!(["content.attachments"]));
    assert_eq!(body["content"]["attachments"][0]["id"], "1");
    let kept = world
        .p
        .store
        .room_event(ID, "$1:Their.example")
        .await
        .unwrap();
    let kept: Value = serde_json::from_slice(&kept[0].envelope).unwrap();
    assert!(
        kept.get("unauthenticated").is_none(),
        "readers get what they know"
    );
    envelope.content["body"] = "changed".into();
    envelope.event_id = "$2:x".into();
    assert_eq!(code(&world.push(&envelope).await), FORBIDDEN);
}

#[tokio::test]
async fn one_id_with_two_contents_is_one_event() {
    let world = world().await;
    assert_eq!(world.push(&message(1)).await.1["inserted"], true);
    let other = event(THEM, "$1:Their.example", |e| {
        e.content["body"] = "other".into()
    });
    assert_eq!(world.push(&other).await.1["inserted"], false);
    assert_eq!(world.bus.all().len(), 1);
}

#[tokio::test]
async fn a_server_over_its_rate_is_told_to_come_again() {
    let world = world_with(|config| config.max_events_per_peer_per_minute = 2).await;
    for n in 0..2 {
        assert_eq!(world.push(&message(n)).await.0, TAKEN);
    }
    let third = pushed(&message(3), THEM);
    let (status, headers, body) = world.send_whole(&third).await;
    assert_eq!((status, body["code"].as_str().unwrap()), LIMITED);
    assert_eq!(headers[header::RETRY_AFTER], "60");
    assert_eq!(
        code(&world.send(&third).await),
        CONFLICT,
        "it was spent all the same"
    );
}

#[tokio::test]
async fn a_client_that_proves_nothing_is_refused_before_its_body_is_read() {
    let world = world_with(|config| config.unproven_per_minute = 3).await;
    let wrong = pushed(&message(1), THEM).with(ORIGIN, Some("x.example"));
    for _ in 0..3 {
        assert_eq!(code(&world.send(&wrong).await), FORBIDDEN);
    }
    let (status, headers, _) = world.send_whole(&wrong).await;
    assert_eq!(status, 429);
    assert!(headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn switched_off_everything_signed_is_refused_alike() {
    let world = world_with(|config| config.enabled = false).await;
    assert_eq!(code(&world.push(&message(1)).await), FORBIDDEN);
    let read = Ask::get("/event/none", THEM);
    assert_eq!(code(&world.send(&read).await), FORBIDDEN);
    let unsigned = read.with(SIGNATURE, None);
    assert_eq!(
        code(&world.send(&unsigned).await),
        FORBIDDEN,
        "before any header"
    );
}

#[tokio::test]
async fn a_server_under_quarantine_is_taken_at_its_word_and_held_back() {
    let world = world().await;
    world
        .server("third.example", "third.example", Status::Trusted)
        .await;
    let quarantine = world.p.trust.add(ID, Rule::Quarantine, THEM, None);
    quarantine.await.unwrap();
    let mut envelope = message(1);
    envelope.room_id = ROOM.to_owned();
    envelope.sign(&key(THEM), KEY_ID);
    let (status, body) = world.push(&envelope).await;
    assert_eq!((status, &body["inserted"]), (TAKEN, &Value::Bool(true)));
    let page = world.p.store.room_page(ID, ROOM, 0, 10).await.unwrap();
    assert!(page.is_empty(), "it is not passed on: {page:?}");
    let carried = event("third.example", "$2:x", |_| {});
    assert_eq!(world.send(&pushed(&carried, THEM)).await.0, TAKEN);
    let subjects: Vec<String> = world.bus.all().into_iter().map(|(s, _)| s).collect();
    assert!(
        subjects.iter().all(|s| s.starts_with("fed.held.")),
        "{subjects:?}"
    );
    let read = world.send(&Ask::get("/event/none", THEM)).await;
    assert_eq!(code(&read), FORBIDDEN);
}

#[tokio::test]
async fn a_run_of_bad_events_ends_in_quarantine() {
    let world = world_with(|config| config.quarantine_after = 3).await;
    let bad = |n: u32| {
        event(THEM, &format!("${n}:x"), |e| {
            e.sender = "@a:x.example".into()
        })
    };
    let standing = || world.p.trust.standing(ID, THEM);
    for n in 0..2 {
        assert_eq!(code(&world.push(&bad(n)).await), FORBIDDEN);
    }
    assert_eq!(standing(), Standing::Ordinary);
    assert_eq!(code(&world.push(&bad(3)).await), FORBIDDEN);
    assert_eq!(standing(), Standing::Quarantined);
    let (_, rule) = world.p.trust.ruling(ID, THEM).unwrap();
    let ends_ms = rule.ends_ms.expect("it ends by itself");
    world.clock.set(ends_ms + 1);
    assert_eq!(standing(), Standing::Ordinary);
}

#[tokio::test]
async fn a_server_that_an_operator_allows_is_never_put_under_quarantine() {
    let world = world_with(|config| config.quarantine_after = 1).await;
    world
        .p
        .trust
        .add(ID, Rule::Allow, THEM, None)
        .await
        .unwrap();
    let bad = event(THEM, "$1:x", |e| e.sender = "@a:x.example".into());
    assert_eq!(code(&world.push(&bad).await), FORBIDDEN);
    assert_eq!(world.p.trust.standing(ID, THEM), Standing::Allowed);
}

#[tokio::test]
async fn a_key_that_was_changed_is_fetched_again_and_the_check_done_once_more() {
    let world = world().await;
    let new = SigningKey::from_seed([200; 32]);
    *world.pages.keys.lock().unwrap() = Some(key_page(THEM, &new));
    let mut envelope = message(1);
    envelope.sign(&new, KEY_ID);
    let body = envelope.wire();
    let mut ask = pushed(&envelope, THEM);
    let text = transport::string_to_sign("POST", &ask.path, NOW, &body);
    let signature = hex(&new.sign(text.as_bytes()));
    ask = ask.with(SIGNATURE, Some(&signature));
    let answer = world.send(&ask).await;
    assert_eq!(answer.0, TAKEN, "{answer:?}");
    assert_eq!(*world.pages.asked.lock().unwrap(), 1);
}

#[tokio::test]
async fn wrong_signatures_do_not_make_us_ask_a_server_again_and_again() {
    let world = world().await;
    for n in 0..5 {
        let zeros = "00".repeat(64);
        let ask = pushed(&message(n), THEM).with(SIGNATURE, Some(&zeros));
        assert_eq!(code(&world.send(&ask).await), FORBIDDEN);
    }
    assert!(*world.pages.asked.lock().unwrap() <= 1);
}

#[tokio::test]
async fn numbers_at_their_ends_do_no_harm() {
    let world = world().await;
    for (n, (depth, at)) in [
        (0, 0),
        (i64::MIN, i64::MIN),
        (i64::MAX, i64::MAX),
        (-1, i64::MAX),
    ]
    .into_iter()
    .enumerate()
    {
        let envelope = event(THEM, &format!("${n}:x"), |e| {
            e.room_id = ROOM.to_owned();
            e.depth = depth;
            e.origin_ts = at;
        });
        assert_eq!(world.push(&envelope).await.0, TAKEN);
    }
    let page = world.p.store.room_page(ID, ROOM, 0, 10).await.unwrap();
    let places: Vec<i64> = page.iter().map(|event| event.position).collect();
    // Events of the far future reach backends, and no reader.
    assert_eq!(places, [1, 1]);
}

#[tokio::test]
async fn names_that_are_too_long_are_refused() {
    let world = world().await;
    let long = "x".repeat(513);
    let answer = world.push(&event(THEM, &long, |_| {})).await;
    assert_eq!(code(&answer), BAD);
    let nested = event(THEM, "$1:x", |e| {
        let mut content = json!({});
        for _ in 0..32 {
            content = json!({"a": content});
        }
        e.content = content;
    });
    assert_eq!(code(&world.push(&nested).await), BAD);
}

#[tokio::test]
async fn routes_that_a_bridge_has_no_use_for_are_not_there() {
    let world = world().await;
    for (method, path) in [
        (Method::POST, "/media/token"),
        (Method::POST, "/media/relay"),
        (Method::POST, "/file/token"),
        (Method::GET, "/file/5?token=x"),
        (Method::GET, "/servers"),
        (Method::DELETE, "/servers/x.example"),
    ] {
        let mut ask = Ask::get(path, THEM);
        ask.method = method;
        assert_eq!(code(&world.send(&ask).await), NOT_FOUND, "{path}");
    }
    let mut ask = Ask::get("/event", THEM);
    assert_eq!(world.send(&ask).await.0, 405);
    ask.path = format!("{BASE}/nothing");
    assert_eq!(world.send(&ask).await.0, 404);
}
