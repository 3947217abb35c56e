//! When attempts are made, and when a message is given up.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::jetstream::stream::Stream;

use super::peer::{PATIENCE, Peer, Say};
use super::world::{Setup, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_message_is_tried_at_once_and_after_each_delay_then_is_a_dead_letter() {
    let beta = Peer::start("beta.test", |_, _| Say::Status(500, "", "boom")).await;
    let mut world = Setup::new().peer(&beta).start().await;
    let envelope = World::envelope("beta.test", "hello");
    let text = serde_json::to_string_pretty(&envelope).unwrap();
    let headers = [("Nats-Msg-Id", "order-66")];
    world
        .publish(
            "fed.out.uam.beta_test.message",
            &headers,
            text.clone().into(),
        )
        .await;

    let dead = world.dead().await;
    let seen = beta.seen();
    assert_eq!(seen.len(), 3, "one attempt more than delays");
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(200));
    assert!(seen[2].at - seen[1].at >= Duration::from_millis(400));
    for attempt in &seen {
        assert_eq!(attempt.envelope_text, text, "the envelope's own text");
        assert_eq!(attempt.body["via"], serde_json::json!(["alpha.test"]));
        assert_eq!(attempt.body["hop_count"], 1);
    }
    let fresh = |what: fn(&super::peer::Seen) -> String| {
        seen.iter().map(what).collect::<HashSet<_>>().len()
    };
    assert_eq!(fresh(|s| s.body["timestamp"].to_string()), 3);
    assert_eq!(fresh(|s| s.signature.clone()), 3);
    assert_eq!(fresh(|s| s.id()), 1);

    assert_eq!(dead.subject, "fed.dead.uam.beta_test.message");
    assert_eq!(dead.code(), "server_error");
    assert!(dead.header("Fed-Reason").contains("boom"), "{dead:?}");
    assert_eq!(dead.header("Fed-Msg-Id"), "order-66");
    assert_eq!(
        dead.header("Fed-Event-Id"),
        envelope["message_id"].as_str().unwrap()
    );
    assert_eq!(dead.header("Fed-Attempts"), "3");
    assert_eq!(dead.header("Fed-Peer"), "beta.test");
    assert_eq!(dead.body, text.into_bytes(), "the body, untouched");
    let stored = world.js.get_stream("FED_DEAD").await.unwrap();
    let stored = stored.get_raw_message(1).await.unwrap();
    assert_eq!(stored.payload.to_vec(), dead.body, "it is in the stream");

    let event = world.event("delivery.dead").await;
    assert_eq!(event["msg_id"], "order-66");
    assert_eq!(event["attempts"], 3);
    assert_eq!(event["code"], "server_error");
    assert_eq!(event["out_seq"], 1);
    let rows = world.rows("failed").await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["attempts"], 3, "{rows:?}");
    assert_eq!(beta.seen().len(), 3, "and never again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_the_broker_refuses_hides_none_behind_it() {
    let beta = Peer::start("beta.test", |_, _| Say::Status(400, "", "no")).await;
    let mut world = Setup::new().peer(&beta).start().await;
    let stream = world.js.get_stream("FED_DEAD").await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_message_size = 4096;
    world.js.update_stream(&config).await.unwrap();

    // Tried, as whoever listens without asking for an acknowledgement sees; the stream refuses it.
    let large = world.send("beta.test", &"x".repeat(8192)).await;
    let tried = world.dead().await;
    assert_eq!(tried.header("Fed-Msg-Id"), large["message_id"]);
    let small = world.send("beta.test", "hello").await;
    assert_eq!(told_of(&stream, 1).await, small["message_id"]);

    // The other is told as soon as the broker takes it.
    config.max_message_size = -1;
    world.js.update_stream(&config).await.unwrap();
    world.send("beta.test", "a third one").await;
    assert_eq!(told_of(&stream, 2).await, large["message_id"]);
}

/// Which message the dead letter at this place of the stream is of; waits for it.
async fn told_of(stream: &Stream, sequence: u64) -> String {
    let stored = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(stored) = stream.get_raw_message(sequence).await {
                return stored;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let stored = stored.await.expect("a dead letter in the stream, in time");
    stored.headers.get("Fed-Msg-Id").unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_form_with_nonce_every_attempt_has_a_nonce_of_its_own() {
    let beta = Peer::start("beta.test", |seen, n| match n {
        _ if seen.body.get("nonce").is_none() => Say::Status(422, "", "nonce: field required"),
        4 => Say::Delivered,
        _ => Say::Status(500, "", "boom"),
    })
    .await;
    let mut world = Setup::new().peer(&beta).start().await;
    world.send("beta.test", "hello").await;
    world.event("delivery.delivered").await;
    let seen = beta.seen();
    let nonces: HashSet<_> = seen[1..]
        .iter()
        .map(|s| s.body["nonce"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((seen.len(), nonces.len()), (4, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed_and_uses_up_no_attempt() {
    let beta = Peer::start("beta.test", |_, n| match n {
        1 => Say::Status(429, "Retry-After: 1\r\n", "slow down"),
        2 => Say::Status(503, "Retry-After: 1\r\n", "draining"),
        3 => Say::Status(500, "", "boom"),
        _ => Say::Delivered,
    })
    .await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["100ms", "30s"]"#)
        .peer(&beta)
        .start()
        .await;
    world.send("beta.test", "hello").await;
    let first = world.event("delivery.retrying").await;
    assert_eq!(
        (&first["code"], &first["attempts"]),
        (&"rate_limited".into(), &0.into())
    );
    let second = world.event("delivery.retrying").await;
    assert_eq!(
        (&second["code"], &second["attempts"]),
        (&"unavailable".into(), &0.into())
    );
    let done = world.event("delivery.delivered").await;
    assert_eq!(done["attempts"], 2);
    let seen = beta.seen();
    assert_eq!(seen.len(), 4);
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(1));
    assert!(seen[2].at - seen[1].at >= Duration::from_secs(1));
    let gap = seen[3].at - seen[2].at;
    assert!(
        gap >= Duration::from_millis(100) && gap < Duration::from_secs(20),
        "{gap:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_pauses_the_whole_peer_and_no_other() {
    let beta = Peer::start("beta.test", |_, n| match n {
        1 => Say::Status(429, "Retry-After: 1\r\n", "slow down"),
        _ => Say::Delivered,
    })
    .await;
    let gamma = Peer::start("gamma.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["2s", "2s"]"#)
        .peer(&beta)
        .peer(&gamma)
        .start()
        .await;
    world.send_as("a", "beta.test", "one").await;
    world.event("delivery.retrying").await;
    world.send_as("b", "beta.test", "two").await;
    world.send_as("c", "gamma.test", "three").await;
    let other = gamma.saw(1).await;
    let seen = beta.saw(3).await;
    let pause = Duration::from_secs(1);
    assert!(seen[1].at - seen[0].at >= pause && seen[2].at - seen[0].at >= pause);
    assert!(other[0].at < seen[1].at, "another peer is not paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_is_dead_without_an_attempt() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new().peer(&beta).start().await;
    let body = World::envelope("beta.test", "late").to_string();
    let headers = [
        ("Fed-Expires", "2020-01-01T00:00:00Z"),
        ("Nats-Msg-Id", "late"),
    ];
    world
        .publish("fed.out.uam.beta_test.message", &headers, body.into())
        .await;
    let dead = world.dead().await;
    assert_eq!(dead.code(), "expired");
    assert_eq!(dead.header("Fed-Attempts"), "0");
    assert_eq!(dead.header("Fed-Msg-Id"), "late");
    world.send("beta.test", "in time").await;
    let seen = beta.saw(1).await;
    assert_eq!(seen[0].text(), "in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_between_two_attempts_is_not_attempted_again() {
    let beta = Peer::start("beta.test", |_, _| Say::Status(500, "", "boom")).await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["700ms", "700ms"]"#)
        .peer(&beta)
        .start()
        .await;
    let body = World::envelope("beta.test", "soon").to_string();
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(600);
    world
        .publish(
            "fed.out.uam.beta_test.message",
            &[("Fed-Expires", &at.to_string())],
            body.into(),
        )
        .await;
    let dead = world.dead().await;
    assert_eq!((dead.code(), dead.header("Fed-Attempts")), ("expired", "1"));
    assert_eq!(beta.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_arms_the_retries_from_the_store_and_makes_none_earlier() {
    let beta = Peer::start("beta.test", |_, n| match n {
        1 => Say::Status(500, "", "boom"),
        _ => Say::Delivered,
    })
    .await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["2500ms", "30s"]"#)
        .peer(&beta)
        .start()
        .await;
    world.send("beta.test", "first").await;
    world.event("delivery.retrying").await;
    world.send("beta.test", "second").await;
    world.acknowledged().await;
    world.close().await;
    assert_eq!(beta.seen().len(), 1);
    world.open().await;
    assert_eq!(world.rows("pending").await.len(), 2);
    let seen = beta.saw(3).await;
    assert!(
        seen[1].at - seen[0].at >= Duration::from_millis(2500),
        "{:?} is earlier than the delay",
        seen[1].at - seen[0].at
    );
    let texts: Vec<_> = seen.iter().map(super::peer::Seen::text).collect();
    assert_eq!(texts, ["first", "first", "second"]);
}
