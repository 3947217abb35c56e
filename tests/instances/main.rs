//! Several instances on one PostgreSQL database and one nats-server: the outbound work is shared, order
//! per key holds, each message goes out once, and who is killed, frozen or stopped is replaced.

mod parts;
mod world;

#[path = "../support"]
mod support {
    pub mod bridge;
    #[allow(
        dead_code,
        reason = "shared by several test binaries, each uses its part"
    )]
    pub mod nats;
    pub mod postgres;
    pub mod uam_client;
}

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use world::World;

/// What the issue allows for the peers of an instance that is gone.
const TAKEN_OVER: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_the_work_and_one_that_stops_hands_over_at_once() {
    let Some(mut world) = World::new(2, "").await else {
        return;
    };
    world.settled(2).await;
    world.counted().await;
    let traffic = world.traffic(5, Duration::from_millis(20));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stopped = Instant::now();
    world.instances[0].stop().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    traffic.end().await;
    world.arrived(Duration::from_secs(20)).await;
    world.emptied().await;
    assert_eq!(
        world.judge(),
        0,
        "nothing comes twice when all is in good order"
    );
    let longest = world.served_after(stopped);
    eprintln!(
        "handed over within {longest:?}, {} messages",
        world.sent().len()
    );
    assert!(longest < Duration::from_secs(4), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "some thirty seconds; in .ci/run"]
async fn an_instance_killed_in_traffic_is_replaced_within_ten_seconds() {
    let Some(mut world) = World::new(3, "").await else {
        return;
    };
    world.settled(3).await;
    let traffic = world.traffic(5, Duration::from_millis(50));
    for victim in 0..2 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let killed = Instant::now();
        world.faults.push(killed);
        world.instances[victim].kill9();
        tokio::time::sleep(TAKEN_OVER).await;
        let longest = world.served_after(killed);
        eprintln!("taken over within {longest:?}");
        assert!(longest < TAKEN_OVER, "{longest:?}");
    }
    // And who comes back gets a share again.
    world.instances[0].start().await;
    world.settled(2).await;
    traffic.end().await;
    world.arrived(Duration::from_secs(30)).await;
    world.emptied().await;
    let repeats = world.judge();
    eprintln!("{repeats} repeats of {} messages", world.sent().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "some thirty seconds; in .ci/run"]
async fn an_instance_frozen_past_its_lease_repeats_at_most_what_it_had_in_flight() {
    let Some(mut world) = World::new(3, "").await else {
        return;
    };
    world.settled(3).await;
    // So slow that attempts are in flight at every moment.
    world.peers.slow_ms.store(20, Ordering::Relaxed);
    let traffic = world.traffic(5, Duration::from_millis(50));
    for victim in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let frozen = Instant::now();
        world.faults.push(frozen);
        world.instances[victim].signal("STOP");
        tokio::time::sleep(TAKEN_OVER).await;
        let longest = world.served_after(frozen);
        eprintln!("taken over within {longest:?}");
        assert!(longest < TAKEN_OVER, "{longest:?}");
        // What it had handed to its connections when it was frozen goes out now, after its new
        // owner's; it begins nothing else.
        world.faults.push(Instant::now());
        world.instances[victim].signal("CONT");
        world.settled(3).await;
    }
    traffic.end().await;
    world.arrived(Duration::from_secs(30)).await;
    world.emptied().await;
    let repeats = world.judge();
    eprintln!("{repeats} repeats of {} messages", world.sent().len());
    // Each time a third of the peers, with a window of eight each.
    assert!(repeats <= 2 * 8 * world::PEERS, "{repeats}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "some fifteen seconds; in .ci/run"]
async fn an_order_given_to_any_instance_takes_effect_where_the_lane_is() {
    let Some(world) = World::new(2, "").await else {
        return;
    };
    world.settled(2).await;
    let (one, other) = (&world.instances[0], &world.instances[1]);
    for n in 0..world::PEERS {
        let path = format!("/api/v1/peers/uam/{}/pause", world::peer(n));
        let (status, body) = one.admin_api("POST", &path).await;
        assert_eq!(status, 200, "{body}");
    }
    world.publish(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.peers.seen().is_empty(), "every lane is paused");
    for n in 0..world::PEERS {
        let path = format!("/api/v1/peers/uam/{}/resume", world::peer(n));
        let (status, body) = other.admin_api("POST", &path).await;
        assert_eq!(status, 200, "{body}");
    }
    let resumed = Instant::now();
    world.arrived(Duration::from_secs(10)).await;
    assert!(resumed.elapsed() < Duration::from_secs(3));
    assert_eq!(world.judge(), 0);
}
