//! `bench million`: very much waits for peers that are down. How large the bridge grows, how long it
//! then takes to start, and what new messages for healthy peers notice of it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::args::{RunArgs, WorldArgs, count};
use super::figures::{approximate, median, rounded};
use super::out::introduced;
use super::pipeline::{Configured, Pipeline, Setup, Sick};
use super::rig::{Broker, Rig};
use super::traffic::{self, Latency, UNCOUNTED, arrived, emptied};
use super::watch::Watch;
use super::{progress, report, usage};
use crate::cli::Outcome;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct MillionArgs {
    /// Messages queued for peers that are down.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(10..=10_000_000))]
    queued: u32,
    /// Peers that are down.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    dead: u32,
    /// Peers that are up.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    healthy: u32,
    /// New messages published at once to healthy peers, before and after.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    messages: u32,
    /// New messages a second while their latency is measured.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Starts measured, without and with the queue.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    starts: u32,
    /// How long the bridge is left alone before its size at rest is read, seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=3600))]
    rest: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    size: u32,
    /// Keys and contents follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    run: RunArgs,
}

/// Messages written and published at once while the queue is filled.
const LOT: usize = 50_000;
/// How often the bridge's size is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What new messages for healthy peers meet.
struct New {
    per_s: f64,
    latency: Latency,
}

/// Runs it.
pub async fn million(args: MillionArgs) -> Outcome {
    let rest = Duration::from_secs(args.rest);
    let world = WorldArgs::uam(args.healthy + args.dead, args.healthy, args.size, args.seed);
    let rig = Rig::start(&world, args.run.sync.interval()).await?;
    let broker = rig.broker().await?;
    let mut setup = Setup::of(&args.run);
    setup.sick = Sick::Refusing(rig.active);
    let configured = introduced(&rig, &setup, &broker).await?;
    // The first start makes keys, database and streams.
    starts(&configured, 1).await?;
    let start_empty = starts(&configured, args.starts).await?;

    let mut bridge = configured.spawn()?;
    bridge.ready().await?;
    let mut pipeline = Pipeline::Ours(bridge);
    let pid = pipeline.id()?;
    let before = fresh(&rig, &broker, &mut pipeline, &args).await?;
    tokio::time::sleep(rest).await;
    let rss_before = usage::rss(pid);
    progress(&format!(
        "nothing queued: {:.0} messages/s, p99 {:.2} ms",
        before.per_s, before.latency.p99_ms
    ));

    let watch = Watch::start(pid, LOOK);
    let (others, queued) = (rig.world.others()?, count(args.queued));
    let (mut done, mut half) = (0, None);
    let mut spilling = Duration::ZERO;
    while done < queued {
        let lot = LOT.min(queued - done);
        let first = UNCOUNTED + done;
        let drafts = traffic::write(&others, first..first + lot)?;
        let begun = Instant::now();
        traffic::publish(&rig, &broker, &drafts).await?;
        emptied(&broker, &mut pipeline).await?;
        spilling += begun.elapsed();
        done += lot;
        if done >= queued / 2 {
            half = half.or(usage::rss(pid));
        }
        let size = usage::rss(pid).map_or(0.0, approximate);
        progress(&format!(
            "{done} of {queued} are queued, {:.1} MB",
            size / 1e6
        ));
    }
    let full = usage::rss(pid);
    let during = fresh(&rig, &broker, &mut pipeline, &args).await?;
    tokio::time::sleep(rest).await;
    let rss_queued = usage::rss(pid);
    let max = watch.max();
    drop(watch);
    pipeline.stop().await?;
    progress(&format!(
        "all queued: {:.0} messages/s, p99 {:.2} ms",
        during.per_s, during.latency.p99_ms
    ));

    let start_queued = starts(&configured, args.starts).await?;
    let mut bridge = configured.spawn()?;
    bridge.ready().await?;
    let mut pipeline = Pipeline::Ours(bridge);
    let watch = Watch::start(pipeline.id()?, LOOK);
    let restarted = fresh(&rig, &broker, &mut pipeline, &args).await?;
    let max_restarted = watch.max();
    drop(watch);
    pipeline.stop().await?;
    broker.stop().await;
    let waiting = super::drain::pending(configured.database()).await?;
    if waiting != queued as u64 {
        return Err(format!(
            "{queued} messages were queued, {waiting} rows wait"
        ));
    }
    report::print(
        &args.run,
        &json!({
            "scenario": format!(
                "million: {queued} messages of {} bytes queued for {} dead peers, {}",
                args.size, args.dead, args.run.sync.words()
            ),
            "rss_max_bytes": max.max(max_restarted),
            "rss_before_bytes": rss_before,
            "rss_half_bytes": half,
            "rss_full_bytes": full,
            "rss_queued_bytes": rss_queued,
            "rss_max_restarted_bytes": max_restarted,
            "queued_per_s": rounded(approximate(queued as u64) / spilling.as_secs_f64(), 1),
            "start_to_ready_empty_ms": rounded(start_empty, 1),
            "start_to_ready_ms": rounded(start_queued, 1),
            "messages_per_s": rounded(during.per_s, 1),
            "restarted_messages_per_s": rounded(restarted.per_s, 1),
            "before_messages_per_s": rounded(before.per_s, 1),
            "ratio": rounded(during.per_s / before.per_s, 3),
            "p50_ms": rounded(during.latency.p50_ms, 3),
            "p99_ms": rounded(during.latency.p99_ms, 3),
            "restarted_p99_ms": rounded(restarted.latency.p99_ms, 3),
            "before_p50_ms": rounded(before.latency.p50_ms, 3),
            "before_p99_ms": rounded(before.latency.p99_ms, 3),
            "p99_ratio": rounded(during.latency.p99_ms / before.latency.p99_ms, 3),
        }),
    );
    Ok(ExitCode::SUCCESS)
}

/// Milliseconds from start to readiness, the median of some starts.
async fn starts(configured: &Configured, times: u32) -> Result<f64, String> {
    let mut took = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        let mut bridge = configured.spawn()?;
        bridge.ready().await?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        bridge.stop().await?;
    }
    Ok(median(took.into_iter()))
}

/// New messages for healthy peers: as fast as they go, then at a steady rate.
async fn fresh(
    rig: &Rig,
    broker: &Broker,
    pipeline: &mut Pipeline,
    args: &MillionArgs,
) -> Result<New, String> {
    let burst = count(args.messages);
    traffic::another_time().await;
    let drafts = traffic::write(&rig.speech, 0..burst)?;
    rig.far.expect(burst).await?;
    let begun = Instant::now();
    traffic::publish(rig, broker, &drafts).await?;
    arrived(rig.far, pipeline, burst).await?;
    let per_s = approximate(burst as u64) / begun.elapsed().as_secs_f64();
    traffic::in_order(rig.far).await?;
    traffic::another_time().await;
    let rate = f64::from(args.rate);
    let drafts = traffic::write(&rig.speech, 0..traffic::paced_count(rate, usize::MAX))?;
    let latency = traffic::paced(rig, broker, pipeline, rate, &drafts).await?;
    Ok(New { per_s, latency })
}
