//! A NATS cluster of three servers that loses any one of them: the bridge goes on, and what it
//! promises holds.
//!
//! Streams with three replicas, traffic both ways without a pause, servers killed and frozen one at a
//! time and brought back; then everything is drained and `support/checker.rs` judges by what the
//! outside saw. Where no bridge is killed nothing at all may be repeated, neither at a peer nor on
//! `fed.in`; where an instance is, at a peer only what was in flight then.
//! `DRAWBRIDGE_CLUSTER_SEED` asks for the same traffic again, `DRAWBRIDGE_CLUSTER_KEEP` keeps the
//! files.

mod world;

#[path = "../support"]
mod support {
    pub mod bridge;
    pub mod checker;
    pub mod cluster;
    pub mod custom_broker;
    pub mod postgres;
    pub mod sink;
    pub mod traffic;
    pub mod uam_client;
}

use std::time::Duration;

use support::{postgres, sink};
use world::World;

/// A process of this test, not a test: see [`sink::main_if_asked`].
#[test]
#[ignore = "the receiver's process, started by the cluster test itself"]
fn sink_main() {
    sink::main_if_asked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "one to three minutes: servers are lost and elect leaders; run by .ci/run"]
async fn whichever_server_of_the_cluster_is_lost_nothing_is_lost_repeated_or_out_of_order() {
    let mut world = World::start().await;
    assert_eq!(world.durability().await, "replicated");
    let traffic = world.begin_traffic();
    world.flows("before anything fails").await;

    let follower = world.follower("FED_IN").await;
    world.without(follower, Duration::from_secs(2)).await;

    let out = world.leader("FED_OUT").await;
    world.without(out, Duration::from_secs(5)).await;

    let inward = world.leader("FED_IN").await;
    world.without(inward, Duration::from_secs(5)).await;

    let frozen = world.leader("FED_IN").await;
    world.frozen(frozen, Duration::from_secs(12)).await;

    world.flows("after everything").await;
    world.end_traffic(traffic).await;
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "some minutes: instances and servers are lost; by hand"]
async fn of_three_instances_on_the_cluster_one_is_lost_together_with_a_server() {
    let Some(database) = postgres::Server::start_own().await else {
        return;
    };
    let mut world = World::sharing(3, database).await;
    let traffic = world.begin_traffic();
    world.flows("before anything fails").await;

    let out = world.leader("FED_OUT").await;
    world.without_both(0, out).await;

    let inward = world.follower("FED_IN").await;
    world.without_both(1, inward).await;

    world.frozen_instance(2, Duration::from_secs(12)).await;

    world.flows("after everything").await;
    world.end_traffic(traffic).await;
    world.judge().await;
}
