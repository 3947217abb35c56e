//! `bench drain`: the peers were down, and what was published meanwhile waits in the queue; then they
//! are back. How fast the rows go out, against the same messages that never had to wait, in turns. In
//! both, every message must come, each key's in order.
//!
//! The clock runs from the end of a warm-up to the last arrival on both sides: how soon a peer's
//! return is noticed is the breaker's business (here a second at most) and told by itself.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::args::{RunArgs, Turn, WorldArgs, count};
use super::figures::{approximate, median, rounded};
use super::out::{drained, introduced};
use super::pipeline::{Pipeline, Setup};
use super::rig::Rig;
use super::stretch::Stretch;
use super::traffic::{self, arriving, emptied};
use super::{progress, report};
use crate::cli::Outcome;
use crate::store::Store;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// Messages that wait in the queue.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..=5_000_000))]
    messages: u32,
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What one round gave.
struct Drained {
    per_s: f64,
    spilled_per_s: f64,
    /// From the peers' return to the first arrival.
    noticed_ms: f64,
    cpu_us: f64,
    peak_rss: Option<u64>,
}

/// Runs it.
pub async fn drain(args: DrainArgs) -> Outcome {
    let rig = Rig::start(&args.world, args.run.sync.interval()).await?;
    let setup = Setup::of(&args.run).with("OUTBOUND__BREAKER_MAX", "1s");
    let messages = count(args.messages);
    let warm = (messages / 10).max(1);
    let (mut direct, mut queued) = (Vec::new(), Vec::new());
    let rounds = args.run.rounds(2);
    for n in 1..=rounds {
        let broker = rig.broker().await?;
        let (pipeline, round) =
            drained(&rig, &broker, (Turn::Ours, &setup), warm, messages - warm).await?;
        pipeline.stop().await?;
        broker.stop().await;
        progress(&format!(
            "direct, round {n} of {rounds}: {:.0} messages/s",
            round.messages_per_s
        ));
        direct.push(round);
        let round = from_the_queue(&rig, &setup, warm, messages).await?;
        progress(&format!(
            "from the queue, round {n} of {rounds}: {:.0} messages/s, into it {:.0}/s, noticed after {:.0} ms",
            round.per_s, round.spilled_per_s, round.noticed_ms
        ));
        queued.push(round);
    }
    let of = |f: fn(&Drained) -> f64| median(queued.iter().map(f));
    let (rate, straight) = (
        of(|r| r.per_s),
        median(direct.iter().map(|r| r.messages_per_s)),
    );
    let direct_cpu = direct
        .iter()
        .filter_map(|r| r.cpu_us.get("bridge").copied());
    report::print(
        &args.run,
        &json!({
            "scenario": format!(
                "drain: {messages} queued messages of {} bytes for {} peers that were down, {}",
                args.world.size, args.world.active(), args.run.sync.words()
            ),
            "messages_per_s": rounded(rate, 1),
            "direct_messages_per_s": rounded(straight, 1),
            "ratio": rounded(rate / straight, 3),
            "cpu_us_per_message": rounded(of(|r| r.cpu_us), 1),
            "direct_cpu_us_per_message": rounded(median(direct_cpu), 1),
            "into_the_queue_per_s": rounded(of(|r| r.spilled_per_s), 1),
            "return_noticed_ms": rounded(of(|r| r.noticed_ms), 1),
            "peak_rss_bytes": queued.iter().filter_map(|r| r.peak_rss).max(),
        }),
    );
    Ok(ExitCode::SUCCESS)
}

async fn from_the_queue(
    rig: &Rig,
    setup: &Setup,
    warm: usize,
    messages: usize,
) -> Result<Drained, String> {
    let broker = rig.broker().await?;
    let drafts = traffic::write(&rig.speech, 0..messages)?;
    let configured = introduced(rig, setup, &broker).await?;
    rig.far.up(false).await?;
    traffic::publish(rig, &broker, &drafts).await?;
    drop(drafts);
    rig.far.expect(messages).await?;
    let mut bridge = configured.spawn()?;
    bridge.ready().await?;
    let mut pipeline = Pipeline::Ours(bridge);
    let pid = pipeline.id()?;
    let spilling = Instant::now();
    emptied(&broker, &mut pipeline).await?;
    let spilled_per_s = approximate(messages as u64) / spilling.elapsed().as_secs_f64();

    // The whole load is behind it: what it does now is the drain alone.
    tokio::time::sleep(Duration::from_millis(500)).await;
    rig.far.up(true).await?;
    let used = || rig.cpu(&broker, pid);
    let mut stretch = Stretch::new(warm, messages, used());
    let (back, mut noticed) = (Instant::now(), None);
    arriving(rig.far, &mut pipeline, messages, |n| {
        if n > 0 {
            noticed.get_or_insert_with(|| back.elapsed());
        }
        stretch.look(n, used);
    })
    .await?;
    let (seconds, ended_cpu) = (stretch.seconds(), used());
    let noticed = noticed.unwrap_or_default();
    traffic::in_order(rig.far).await?;
    let counted = stretch.counted();
    let peak_rss = pipeline.peak_rss();
    pipeline.stop().await?;
    broker.stop().await;
    let left = pending(configured.database()).await?;
    if left > 0 {
        return Err(format!("{left} rows still wait, though all messages came"));
    }
    Ok(Drained {
        per_s: approximate(counted as u64) / seconds,
        spilled_per_s,
        noticed_ms: noticed.as_secs_f64() * 1e3,
        cpu_us: ended_cpu
            .since(stretch.before(), counted)
            .get("bridge")
            .copied()
            .unwrap_or_default(),
        peak_rss,
    })
}

/// Rows that wait in a store nobody has open.
pub async fn pending(database: std::path::PathBuf) -> Result<u64, String> {
    let told = |e: crate::store::StoreError| e.to_string();
    let store = Store::open_read_only(&database).await.map_err(told)?;
    let counts = store.queue_counts().await.map_err(told)?;
    store.close().await;
    Ok(counts.iter().map(|c| c.pending).sum())
}
