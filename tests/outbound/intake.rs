//! What becomes of messages between the broker and a row.

use serde_json::Value;

use super::peer::{PATIENCE, Peer, Say};
use super::uam_client::public_of;
use super::world::{Setup, World, exchange};

const SUBJECT: &str = "fed.out.uam.beta_test.message";

#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_id_twice_is_delivered_once_even_after_the_brokers_window_and_a_restart() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new().peer(&beta).start().await;
    let stream = world.js.get_stream("FED_OUT").await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.duplicate_window = std::time::Duration::from_millis(100);
    world.js.update_stream(config).await.unwrap();
    let first = World::envelope("beta.test", "once").to_string();
    for restart in [false, true] {
        let publish_again = async {
            // The broker forgets after its window; then it is new to it, and ours to notice.
            while !world
                .publish(SUBJECT, &[("Nats-Msg-Id", "same")], first.clone().into())
                .await
            {}
        };
        tokio::time::timeout(PATIENCE, publish_again).await.unwrap();
        beta.saw(1).await;
        world.acknowledged().await;
        if restart {
            break;
        }
        let again = async {
            while !world
                .publish(SUBJECT, &[("Nats-Msg-Id", "same")], first.clone().into())
                .await
            {}
        };
        tokio::time::timeout(PATIENCE, again).await.unwrap();
        world.acknowledged().await;
        world.close().await;
        world.open().await;
    }
    world.send("beta.test", "last").await;
    let seen = beta.saw(2).await;
    let texts: Vec<_> = seen.iter().map(super::peer::Seen::text).collect();
    assert_eq!(texts, ["once", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_id_twice_in_one_batch_is_delivered_once_and_both_are_acknowledged() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new().peer(&beta).start().await;
    let stream = world.js.get_stream("FED_OUT").await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.duplicate_window = std::time::Duration::from_millis(100);
    world.js.update_stream(config).await.unwrap();
    world.close().await;
    let body = World::envelope("beta.test", "once").to_string();
    for _ in 0..2 {
        let publish = async {
            while !world
                .publish(SUBJECT, &[("Nats-Msg-Id", "same")], body.clone().into())
                .await
            {}
        };
        tokio::time::timeout(PATIENCE, publish).await.unwrap();
    }
    world.open().await;
    world.acknowledged().await;
    world.send("beta.test", "last").await;
    let texts: Vec<_> = beta
        .saw(2)
        .await
        .iter()
        .map(super::peer::Seen::text)
        .collect();
    assert_eq!(texts, ["once", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_message_id_the_same_body_twice_goes_twice() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let world = Setup::new().peer(&beta).start().await;
    let body = World::envelope("beta.test", "twice").to_string();
    for _ in 0..2 {
        assert!(world.publish(SUBJECT, &[], body.clone().into()).await);
    }
    let seen = beta.saw(2).await;
    assert_eq!(seen[0].id(), seen[1].id());
    let rows = world.rows("pending,delivered").await;
    assert_eq!(rows.len(), 2);
    assert_ne!(rows[0]["msg_id"], rows[1]["msg_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_acknowledged_when_its_row_is_durable_and_no_peer_is_waited_for() {
    let beta = Peer::start("beta.test", |_, _| Say::Hang).await;
    let world = Setup::new()
        .set("http.timeout", r#""15s""#)
        .peer(&beta)
        .start()
        .await;
    for n in 0..50 {
        world
            .send_as(&format!("a{}", n % 10), "beta.test", "x")
            .await;
    }
    world.acknowledged().await;
    let stream = world.js.get_stream("FED_OUT").await.unwrap();
    let names: Vec<String> = futures_util::TryStreamExt::try_collect(stream.consumer_names())
        .await
        .unwrap();
    assert_eq!(names.len(), 1, "one consumer: {names:?}");
    let info = stream.consumer_info(&names[0]).await.unwrap();
    assert_eq!((info.num_ack_pending, info.num_pending), (0, 0));
    let rows = world.rows("pending").await;
    assert_eq!(rows.len(), 50, "all durable, none delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_at_all_is_a_dead_letter_with_a_code_and_a_sentence() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new().peer(&beta).start().await;
    let good = World::envelope("beta.test", "x").to_string();
    let own = World::envelope("alpha.test", "x").to_string();
    let huge = World::envelope("beta.test", &"x".repeat(60_000)).to_string();
    let monster = "x".repeat(2 * 1024 * 1024);
    let mut missing: Value = serde_json::from_str(&good).unwrap();
    missing.as_object_mut().unwrap().remove("payload");
    let missing = missing.to_string();
    let cases: [(&str, &str, &str); 11] = [
        ("fed.out.smoke.beta_test.message", &good, "unknown_protocol"),
        ("fed.out.uam", &good, "bad_subject"),
        ("fed.out.uam.BETA.message", &good, "bad_subject"),
        (SUBJECT, "no json", "bad_envelope"),
        (SUBJECT, "[]", "bad_envelope"),
        (SUBJECT, &missing, "bad_envelope"),
        (
            "fed.out.uam.gamma_test.message",
            &good,
            "destination_mismatch",
        ),
        ("fed.out.uam._all.message", &good, "no_such_target"),
        ("fed.out.uam._to.message", &own, "own_domain"),
        (SUBJECT, &huge, "bad_envelope"),
        (SUBJECT, &monster, "too_large"),
    ];
    for (n, (subject, body, code)) in cases.iter().enumerate() {
        let id = format!("case-{n}");
        world
            .publish(subject, &[("Nats-Msg-Id", &id)], body.as_bytes().to_vec())
            .await;
        let dead = world.dead().await;
        assert_eq!(dead.code(), *code, "{subject}: {dead:?}");
        assert_eq!(dead.header("Fed-Msg-Id"), id);
        assert_eq!(dead.header("Fed-Attempts"), "0");
        assert!(
            dead.header("Fed-Reason").contains(' '),
            "a sentence: {dead:?}"
        );
        assert_eq!(dead.body, body.as_bytes(), "the body, untouched");
    }
    for (name, value) in [("Fed-Expires", "tomorrow"), ("Fed-Hops", "many")] {
        world
            .publish(SUBJECT, &[(name, value)], good.clone().into())
            .await;
        let dead = world.dead().await;
        assert_eq!(dead.code(), "bad_header", "{dead:?}");
    }
    world
        .publish(SUBJECT, &[("Fed-Hops", "3")], good.clone().into())
        .await;
    assert_eq!(world.dead().await.code(), "hop_limit");
    world.acknowledged().await;
    assert!(beta.seen().is_empty(), "none was attempted");
    world.send("beta.test", "after").await;
    beta.saw(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_that_is_switched_off_keeps_its_messages_and_refuses_what_comes() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new()
        .set("uam.enabled", "false")
        .peer(&beta)
        .start()
        .await;
    world.send("beta.test", "kept").await;
    let body = serde_json::json!({"envelope": {}, "via": [], "hop_count": 0,
        "timestamp": "2026-01-01T00:00:00.000Z", "from_relay": "beta.test"})
    .to_string();
    let request = format!(
        "POST /api/v1/federation/deliver HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nX-UAM-Relay-Signature: {}\r\nContent-Length: {}\r\n\r\n{body}",
        public_of("x"),
        body.len()
    );
    let at = world.bridge.as_ref().unwrap().public;
    assert_eq!(exchange(at, &request).await.0, 501);

    let mut stream = world.js.get_stream("FED_OUT").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1, "it is kept");
    assert!(beta.seen().is_empty());
    world.close().await;
    world.setup = Setup::new().peer(&beta);
    world.open().await;
    assert_eq!(beta.saw(1).await[0].text(), "kept");
}
