//! What operators tell the lanes: pause, resume, probe, reset, flush, look; and a stop.

use std::time::{Duration, Instant};

use drawbridge::outbound::{ControlError, PeerState, Probed};

use super::peer::{Peer, Say};
use super::world::{Setup, World, name};

const FAR: &str = r#"["1h", "1h"]"#;

/// A peer that failed one message, whose retry is an hour away.
async fn failed_once() -> (Peer, World) {
    let beta = Peer::start("beta.test", |_, _| Say::Status(503, "", "not now")).await;
    let mut world = Setup::new()
        .set("uam.retry_delays", FAR)
        .peer(&beta)
        .start()
        .await;
    world.send("beta.test", "one").await;
    world.event("delivery.retrying").await;
    (beta, world)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_peer_gets_nothing_over_a_restart_until_it_is_resumed() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let gamma = Peer::start("gamma.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new().peer(&beta).peer(&gamma).start().await;
    let reason = Some("they move house".to_owned());
    let paused = world
        .lanes()
        .pause("uam", &name("beta.test"), reason, None)
        .await;
    paused.unwrap();
    let event = world.event("peer.paused").await;
    assert_eq!(event["pause"]["reason"], "they move house");
    for n in 0..5 {
        world.send("beta.test", &n.to_string()).await;
    }
    world.acknowledged().await;
    world.send("gamma.test", "x").await;
    gamma.saw(1).await;
    let seen = world.look("beta.test").await;
    assert_eq!((seen.state, seen.lane.in_memory), (PeerState::Paused, 0));
    assert!(seen.lane.more_on_disk, "the messages are rows");
    assert!(seen.lane.next_why.contains("they move house"), "{seen:?}");
    let probed = world.lanes().probe("uam", &name("beta.test")).await;
    assert!(matches!(probed, Err(ControlError::Paused(_))));

    world.close().await;
    world.open().await;
    world.send("beta.test", "5").await;
    world.acknowledged().await;
    let seen = world.look("beta.test").await;
    assert_eq!(seen.state, PeerState::Paused);
    assert_eq!(world.rows("pending").await.len(), 6);
    assert!(beta.seen().is_empty());

    let resumed = world.lanes().resume("uam", &name("beta.test")).await;
    resumed.unwrap();
    world.event("peer.resumed").await;
    let texts: Vec<_> = beta.saw(6).await.iter().map(|s| s.text()).collect();
    assert_eq!(texts, ["0", "1", "2", "3", "4", "5"], "in order");
    assert_eq!(world.look("beta.test").await.state, PeerState::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_at_its_time_and_fed_expires_runs_on_meanwhile() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new().peer(&beta).start().await;
    let lanes = world.lanes();
    let past = lanes.pause("uam", &name("beta.test"), None, Some(1)).await;
    assert!(matches!(past, Err(ControlError::PauseIsOver)));
    let now = jiff::Timestamp::now();
    let until = now.as_millisecond() + 1_500;
    let pause = lanes
        .pause("uam", &name("beta.test"), None, Some(until))
        .await;
    pause.unwrap();
    let body = World::envelope_of("late", "beta.test", "late").to_string();
    let soon = (now + jiff::SignedDuration::from_millis(300)).to_string();
    let headers = [("Fed-Expires", soon.as_str())];
    let subject = "fed.out.uam.beta_test.message";
    world.publish(subject, &headers, body.into()).await;
    world.send("beta.test", "in time").await;
    world.event("peer.resumed").await;
    let seen = beta.saw(1).await;
    assert!(jiff::Timestamp::now().as_millisecond() >= until);
    assert_eq!(seen[0].text(), "in time");
    let dead = world.dead().await;
    assert_eq!((dead.code(), dead.header("Fed-Attempts")), ("expired", "0"));
    assert_eq!(beta.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_stops_the_clock_of_the_schedule() {
    let beta = Peer::start("beta.test", |_, _| Say::Status(503, "", "not now")).await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["300ms", "300ms", "300ms"]"#)
        .peer(&beta)
        .start()
        .await;
    world.send("beta.test", "one").await;
    world.event("delivery.retrying").await;
    let lanes = world.lanes();
    lanes
        .pause("uam", &name("beta.test"), None, None)
        .await
        .unwrap();
    // Longer than the schedule has left.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    beta.script(|_, n| match n {
        2 => Say::Status(503, "", "not yet"),
        _ => Say::Delivered,
    });
    lanes.resume("uam", &name("beta.test")).await.unwrap();
    world.event("delivery.delivered").await;
    assert_eq!(beta.seen().len(), 3, "it failed once more and went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_tries_one_message_early_and_costs_it_nothing_when_it_fails() {
    let (beta, mut world) = failed_once().await;
    let lanes = world.lanes();
    assert_eq!(
        lanes.probe("uam", &name("gamma.test")).await.unwrap(),
        Probed::NothingWaits
    );
    let before = world.look("beta.test").await;
    assert_eq!(
        lanes.probe("uam", &name("beta.test")).await.unwrap(),
        Probed::Begun
    );
    world.event("peer.probed").await;
    let after = world.look("beta.test").await;
    assert_eq!(after.failures, before.failures);
    assert_eq!(after.lane.next_at_ms, before.lane.next_at_ms);
    let rows = world.rows("pending").await;
    assert_eq!(rows[0]["attempts"], 1, "{rows:?}");
    beta.script(|_, _| Say::Delivered);
    lanes.probe("uam", &name("beta.test")).await.unwrap();
    let event = world.event("delivery.delivered").await;
    assert_eq!(event["attempts"], 2);
    assert_eq!(beta.seen().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_makes_everything_that_waits_due() {
    let (beta, mut world) = failed_once().await;
    for n in 0..5 {
        world.send_as(&format!("a{n}"), "beta.test", "more").await;
        world.event("delivery.retrying").await;
    }
    beta.script(|_, _| Say::Delivered);
    let flushed = world.lanes().flush("uam", &name("beta.test")).await;
    assert_eq!(flushed.unwrap(), 6);
    beta.saw(12).await;
    world.event("peer.flushed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_forgets_the_failures_of_an_open_peer() {
    let beta = Peer::start("beta.test", |_, _| Say::Status(503, "", "not now")).await;
    let mut world = Setup::new()
        .set("uam.retry_delays", FAR)
        .set("outbound.breaker_threshold", "1")
        .set("outbound.breaker_initial", r#""1h""#)
        .set("outbound.breaker_max", r#""1h""#)
        .peer(&beta)
        .start()
        .await;
    world.send("beta.test", "one").await;
    world.event("peer.open").await;
    world.send_as("other", "beta.test", "two").await;
    world.acknowledged().await;
    let seen = world.look("beta.test").await;
    assert_eq!((seen.state, seen.failures), (PeerState::Open, 1));
    assert_eq!(seen.last_failure_code.as_deref(), Some("unavailable"));
    assert!(seen.lane.next_at_ms.is_some(), "{seen:?}");
    assert_eq!(beta.seen().len(), 1);
    beta.script(|_, _| Say::Delivered);
    let reset = world.lanes().reset("uam", &name("beta.test")).await;
    reset.unwrap();
    world.event("peer.reset").await;
    let seen = beta.saw(2).await;
    assert_eq!(seen[1].text(), "two", "what was not tried yet goes at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_no_protocol_has_is_said_so() {
    let world = Setup::new().start().await;
    let asked = world.lanes().resume("smtp", &name("beta.test")).await;
    assert!(matches!(asked, Err(ControlError::UnknownProtocol(p)) if p == "smtp"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_in_flight_takes_nothing_more_and_ends_in_time() {
    let beta = Peer::start("beta.test", |_, _| Say::After(Duration::from_millis(400))).await;
    let gamma = Peer::start("gamma.test", |_, _| Say::Hang).await;
    let mut world = Setup::new()
        .set("http.timeout", r#""20s""#)
        .peer(&beta)
        .peer(&gamma)
        .start()
        .await;
    world.send("beta.test", "one").await;
    world.send("gamma.test", "stuck").await;
    beta.saw(1).await;
    gamma.saw(1).await;
    world.send("beta.test", "two").await; // waits for the first: the same agent
    let begun = Instant::now();
    world.close().await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "the drain time is 1 s: {:?}",
        begun.elapsed()
    );
    assert_eq!(beta.seen().len(), 1, "nothing new began");
    world.send("beta.test", "three").await;
    world.open().await;
    let texts: Vec<_> = beta.saw(3).await.iter().map(|s| s.text()).collect();
    assert_eq!(texts, ["one", "two", "three"], "the first is not repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_protocol_that_was_switched_off_say_why_they_wait() {
    let (beta, mut world) = failed_once().await;
    world.close().await;
    let setup = std::mem::replace(&mut world.setup, Setup::new());
    world.setup = setup.set("uam.enabled", "false");
    world.open().await;
    let rows = world.rows("pending").await;
    assert_eq!(rows[0]["reason_code"], "not_attempted", "{rows:?}");
    let why = rows[0]["reason"].as_str().unwrap_or_default();
    assert!(why.contains("switched off"), "{why}");
    world.close().await;
    beta.script(|_, _| Say::Delivered);
    let setup = std::mem::replace(&mut world.setup, Setup::new());
    world.setup = setup.set("uam.enabled", "true");
    world.open().await;
    assert_eq!(world.rows("pending").await[0]["reason_code"], "unavailable");
    let flushed = world.lanes().flush("uam", &name("beta.test")).await;
    assert_eq!(flushed.unwrap(), 1);
    beta.saw(2).await;
}
