//! `bench dead`: most peers are sick. A third of those refuses connections, a third takes requests and
//! never answers, a third answers after 8 seconds. What the healthy ones notice of it, against the
//! same run without the sick ones' messages, in turns.
//!
//! First the healthy peers get some messages, and every sick one, and the bridge has a minute to find
//! out about them. Then as much as goes is published at once, so many messages in a hundred for sick
//! peers; at last messages for healthy peers at half of what was reached without the sick, with as
//! many for sick peers among them.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::args::{RunArgs, WorldArgs, count};
use super::figures::{approximate, median, rounded};
use super::out::introduced;
use super::pipeline::{Pipeline, Setup, Sick};
use super::rig::Rig;
use super::stretch::Stretch;
use super::traffic::{self, Latency, UNCOUNTED, arrived, arriving, emptied};
use super::{progress, report};
use crate::cli::Outcome;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct DeadArgs {
    /// Messages for healthy peers measured in a round, after a warm-up of a fifth as many.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(10..=5_000_000))]
    messages: u32,
    /// Peers in all.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=20_000))]
    peers: u32,
    /// How many of them are healthy.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    healthy: u32,
    /// Messages that each sick peer is sent before anything is measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    each: u32,
    /// Of a hundred messages of the measured traffic, so many are for sick peers.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=95))]
    share: u32,
    /// How long the bridge has to find out who is sick, seconds: an attempt that hangs fails after 30.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
    rest: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    size: u32,
    /// Keys and contents follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Messages a second for healthy peers while latency is measured. Default: half of what was reached
    /// without the sick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    #[command(flatten)]
    run: RunArgs,
}

/// Messages that each healthy peer gets first.
const HELLO: usize = 4;

/// What one round gave.
struct Round {
    healthy_per_s: f64,
    /// Delivered or queued, from the first one published.
    all_per_s: f64,
    latency: Latency,
    peak_rss: Option<u64>,
}

/// Runs it.
pub async fn dead(args: DeadArgs) -> Outcome {
    if args.healthy >= args.peers {
        return Err("--healthy must be less than --peers".into());
    }
    let world = WorldArgs::uam(args.peers, args.healthy, args.size, args.seed);
    let rig = Rig::start(&world, args.run.sync.interval()).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let rounds = args.run.rounds(2);
    let mut rate = args.rate.map(f64::from);
    for n in 1..=rounds {
        for sick in [false, true] {
            let round = one(&rig, &args, sick, rate).await?;
            progress(&format!(
                "{} sick peers, round {n} of {rounds}: healthy {:.0} messages/s, p99 {:.2} ms; all {:.0} messages/s",
                if sick { "with" } else { "without" },
                round.healthy_per_s,
                round.latency.p99_ms,
                round.all_per_s
            ));
            // The same rate for all: half of what the first round reached.
            rate = rate.or(Some(round.healthy_per_s / 2.0));
            if sick { &mut with } else { &mut without }.push(round);
        }
    }
    let of = |list: &[Round], f: fn(&Round) -> f64| median(list.iter().map(f));
    let both = |f: fn(&Round) -> f64| (of(&with, f), of(&without, f));
    let (rate_with, rate_without) = both(|r| r.healthy_per_s);
    let (p99_with, p99_without) = both(|r| r.latency.p99_ms);
    report::print(
        &args.run,
        &json!({
            "scenario": format!(
                "dead: {} of {} peers refuse, hang or answer slowly, {} % of the messages are theirs; {} messages of {} bytes for the others, {}",
                args.peers - args.healthy, args.peers, args.share, args.messages, args.size,
                args.run.sync.words()
            ),
            "healthy_messages_per_s": rounded(rate_with, 1),
            "without_messages_per_s": rounded(rate_without, 1),
            "ratio": rounded(rate_with / rate_without, 3),
            "all_messages_per_s": rounded(of(&with, |r| r.all_per_s), 1),
            "paced_per_s": rate.map(|r| rounded(r, 1)),
            "p50_ms": rounded(of(&with, |r| r.latency.p50_ms), 3),
            "p99_ms": rounded(p99_with, 3),
            "without_p50_ms": rounded(of(&without, |r| r.latency.p50_ms), 3),
            "without_p99_ms": rounded(p99_without, 3),
            "p99_ratio": rounded(p99_with / p99_without, 3),
            "peak_rss_bytes": with.iter().filter_map(|r| r.peak_rss).max(),
            "without_peak_rss_bytes": without.iter().filter_map(|r| r.peak_rss).max(),
        }),
    );
    Ok(ExitCode::SUCCESS)
}

async fn one(rig: &Rig, args: &DeadArgs, sick: bool, rate: Option<f64>) -> Result<Round, String> {
    let broker = rig.broker().await?;
    let mut setup = Setup::of(&args.run).with("PUBLIC__DRAIN_TIMEOUT", "2s");
    setup.sick = Sick::Mixed(rig.active);
    let configured = introduced(rig, &setup, &broker).await?;
    let others = rig.world.others()?;
    let mut used = UNCOUNTED;
    let mut for_sick = |n: usize| {
        let first = used;
        used += n;
        traffic::write(&others, first..used)
    };
    let mut pipeline = Pipeline::Ours(configured.spawn()?);
    // Every healthy peer has answered before: whoever has not is thought slow.
    let hello = rig.active * HELLO;
    let drafts = traffic::write(&rig.speech, 0..hello)?;
    rig.far.expect(hello).await?;
    traffic::publish(rig, &broker, &drafts).await?;
    arrived(rig.far, &mut pipeline, hello).await?;
    if sick {
        rig.far.sick(Some(rig.active)).await?;
        let drafts = for_sick((rig.peers - rig.active) * count(args.each))?;
        traffic::publish(rig, &broker, &drafts).await?;
        emptied(&broker, &mut pipeline).await?;
        tokio::time::sleep(Duration::from_secs(args.rest)).await;
    }
    // So many messages of sick peers go with this many of healthy ones.
    let theirs = |healthy: usize| match sick {
        true => healthy * count(args.share) / (100 - count(args.share)),
        false => 0,
    };
    let measured = count(args.messages);
    let warm = (measured / 5).max(1);
    let backlog = warm + measured;
    traffic::another_time().await;
    let drafts = traffic::mixed(
        traffic::write(&rig.speech, 0..backlog)?,
        for_sick(theirs(backlog))?,
    );
    rig.far.expect(backlog).await?;
    let published = Instant::now();
    traffic::publish(rig, &broker, &drafts).await?;
    let mut stretch = Stretch::new(warm, backlog, ());
    arriving(rig.far, &mut pipeline, backlog, |n| stretch.look(n, || ())).await?;
    let seconds = stretch.seconds();
    emptied(&broker, &mut pipeline).await?;
    let all_per_s = approximate(drafts.len() as u64) / published.elapsed().as_secs_f64();
    traffic::in_order(rig.far).await?;
    let healthy_per_s = approximate(stretch.counted() as u64) / seconds;

    let rate = rate.unwrap_or(healthy_per_s / 2.0);
    traffic::another_time().await;
    let healthy = traffic::paced_count(rate, measured);
    let drafts = traffic::mixed(
        traffic::write(&rig.speech, 0..healthy)?,
        for_sick(theirs(healthy))?,
    );
    let all = rate * approximate(drafts.len() as u64) / approximate(healthy as u64);
    let latency = traffic::paced(rig, &broker, &mut pipeline, all, &drafts).await?;
    let peak_rss = pipeline.peak_rss();
    pipeline.stop().await?;
    rig.far.sick(None).await?;
    broker.stop().await;
    Ok(Round {
        healthy_per_s,
        all_per_s,
        latency,
        peak_rss,
    })
}
