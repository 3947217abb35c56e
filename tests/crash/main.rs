//! Nothing is lost, nothing comes twice, and order holds, whatever fails and whenever.
//!
//! The bridge ends itself at every arrow of both walks ([`points`]); then it, its nats-server, its
//! database and the receiver are killed, frozen, restarted, locked, filled, rolled back and robbed of
//! streams and consumers at random, the wires between them reset, silent or slow ([`wires`]), the
//! clock set wrong, while messages go both ways ([`trouble`]),
//! over UAM, over VoltChat, there to a peer that takes pushes and to one that fetches ([`volt`]), and
//! over Paracord, there to a server that is pushed to, polled, and polls ([`para`]);
//! then everything is healed and drained, and `support/checker.rs` judges by what the outside saw.
//! `DRAWBRIDGE_CRASH_ROUNDS` asks for more rounds over each store, `DRAWBRIDGE_CRASH_SEED` for the
//! same misfortunes again (the machine's own timing differs all the same), `DRAWBRIDGE_CRASH_ONLY`
//! for some kinds of them (`BridgeKilled,PeerUnwell`), `DRAWBRIDGE_CRASH_KEEP` keeps the files,
//! `DRAWBRIDGE_TEST_BINARY` names another binary than the one that was built with the test.
//!
//! With the cargo feature `faults` the tests named `seeded_…` break one promise each on purpose and
//! expect the checker to say so: `cargo test --features faults --test crash seeded`.

mod ledger;
mod para;
mod points;
mod seen;
mod trouble;
mod volt;
mod wires;
mod world;

#[path = "../support"]
mod support {
    pub mod bridge;
    pub mod checker;
    pub mod mainline;
    pub mod paracord_client;
    pub mod postgres;
    pub mod reference;
    pub mod sink;
    pub mod toxic;
    pub mod traffic;
    pub mod uam_client;
    pub mod volt_client;
}

use std::time::Duration;

use points::Share;
use support::uam_client::now_ns;
use support::{postgres, sink};
use world::World;

/// A process of the crash test, not a test: see [`sink::main_if_asked`].
#[test]
#[ignore = "the receiver's process, started by the crash test itself"]
fn sink_main() {
    sink::main_if_asked();
}

/// Runs `rounds` rounds, and a few more when those were mostly outages and prove little; stops at
/// the first that breaks a promise.
async fn run(
    rounds: usize,
    seed: u64,
    server: Option<postgres::Server>,
    fault: Option<&str>,
    points: Option<Share>,
    drain: Duration,
) -> Result<(), String> {
    let mut world = World::new(seed, server, fault, drain).await;
    world.long = rounds >= MANY;
    for round in 1.. {
        let first = points.filter(|_| round == 1);
        world.round(round, first).await;
        let found = world.judge().await;
        eprintln!(
            "round {round} of {rounds}, seed {seed}: {}",
            world.summary()
        );
        if !found.is_empty() {
            let mut text = format!(
                "{} promises broken, seed {seed}, {}\n",
                found.len(),
                world.summary()
            );
            for violation in found.iter().take(8) {
                text.push_str(&format!("{violation}\n"));
                for id in violation.ids() {
                    text.push_str(&format!("{}\n", world.story(id)));
                }
            }
            // What went wrong long before has been judged already.
            let lately = world.luck.len().saturating_sub(20);
            text.push_str(&format!("{}\n", world.luck[lately..].join("\n")));
            if std::env::var_os("DRAWBRIDGE_CRASH_KEEP").is_some() {
                world.dir.disable_cleanup(true);
                text.push_str(&format!("files: {}\n", world.dir.path().display()));
            }
            return Err(text);
        }
        if first.is_some() {
            let never = world.reached.never();
            assert!(never.is_empty(), "never came by: {never:?}");
        }
        if round >= rounds {
            let (sent, taken) = world.accepted();
            if sent > 50 * rounds
                && taken > 10 * rounds
                && world.volt.proves(rounds)
                && world.para.proves(rounds)
            {
                break;
            }
            assert!(
                round < rounds + 4,
                "too little traffic to prove anything: {sent} out, {taken} in; {}; {}",
                world.volt.summary(),
                world.para.summary()
            );
        }
        world.bridge.start().await;
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Rounds of one world at most: it keeps and judges everything that ever happened in it.
const MANY: usize = 20;

/// Rounds over one store, at least one: half of what was asked for, and the other store has the
/// other half. In the first round of a world the bridge ends itself at the points: at all of them,
/// or in a short run at `points`, and the other store's run has the others.
async fn rounds_over(name: &str, postgres: bool, share: u64, points: Share) {
    let seed = number("DRAWBRIDGE_CRASH_SEED").unwrap_or_else(now_ns);
    eprintln!("{name}: DRAWBRIDGE_CRASH_SEED={seed} asks for the same again");
    let mut left = usize::try_from(share.max(1)).unwrap_or(usize::MAX);
    let points = if left >= MANY / 2 { Share::All } else { points };
    let (mut done, mut seed) = (0, seed);
    while left > 0 {
        let server = if postgres {
            let Some(server) = postgres::Server::start_own().await else {
                return;
            };
            Some(server)
        } else {
            None
        };
        let rounds = left.min(MANY);
        let drain = Duration::from_secs(90);
        if let Err(text) = run(rounds, seed, server, None, Some(points), drain).await {
            panic!("{name}, after {done} rounds: {text}");
        }
        left -= rounds;
        done += rounds;
        seed = seed.wrapping_add(1);
        eprintln!("{name}: {done} rounds kept the promises");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_repeated_over_sqlite_when_anything_fails_at_any_moment() {
    let rounds = number("DRAWBRIDGE_CRASH_ROUNDS").unwrap_or(2);
    rounds_over("sqlite", false, rounds.div_ceil(2), Share::Even).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_repeated_over_postgresql_when_anything_fails_at_any_moment() {
    let rounds = number("DRAWBRIDGE_CRASH_ROUNDS").unwrap_or(2);
    rounds_over("postgresql", true, rounds / 2, Share::Odd).await;
}

/// The faults of `src/faults.rs`: each has to be noticed, by the violation that it is.
#[cfg(feature = "faults")]
mod seeded {
    use super::{Duration, now_ns, number, run};

    /// One world at a time: the machine's load is part of the timing.
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    async fn noticed(fault: &str, drain: u64, by: &str) {
        let _one = ONE.lock().await;
        let seed = number("DRAWBRIDGE_CRASH_SEED").unwrap_or_else(now_ns);
        let found = run(6, seed, None, Some(fault), None, Duration::from_secs(drain)).await;
        let text = found.expect_err("the fault was not noticed in 6 rounds");
        eprintln!("{fault} noticed: {text}");
        assert!(
            text.contains(by),
            "{fault} was noticed, but not as {by}: {text}"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_acknowledging_before_the_commit_loses_messages() {
        noticed("ack_before_commit", 45, "OutLost").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_shuffled_keys_are_out_of_order() {
        noticed("shuffle_keys", 45, "OutOfOrder").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_missing_deduplication_repeats_events() {
        noticed("dedup_off", 45, "InRepeated").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_a_consumer_that_is_not_renewed_breaks_the_order() {
        noticed("stale_consumer", 60, "OutOfOrder").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_success_that_is_answered_too_early_loses_events() {
        noticed("answer_before_commit", 45, "InLost").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_a_rolled_back_broker_that_is_not_mended_loses_events() {
        noticed("no_repair", 45, "InLost").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_a_fetch_that_counts_at_once_loses_messages() {
        noticed("one_handout", 45, "OutLost").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_depth_that_stands_still_is_a_complaint() {
        noticed("flat_depth", 45, "has depth").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_polls_that_never_look_back_lose_events() {
        noticed("poll_forward", 45, "InLost").await;
    }
}
