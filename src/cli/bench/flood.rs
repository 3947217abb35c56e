//! `bench flood`: while strangers send bad requests from many addresses as fast as they are answered,
//! peers deliver. What the peers notice, against the same without the flood, in turns.
//!
//! Twice in each round: as fast as the answers come, over as many connections as were named; and at
//! half of the rate that was reached without the flood, where it is asked whether that rate holds.
//! The flood runs on the same cores, so what it costs the machine to make is in the figures.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::args::{RunArgs, WorldArgs, count};
use super::figures::{approximate, median, rounded};
use super::inbound::answered;
use super::load::{Done, Load, Prepare};
use super::pipeline::{Bridge, Setup};
use super::rig::{Process, Rig};
use super::watch::Watch;
use super::{progress, report, usage};
use crate::cli::Outcome;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct FloodArgs {
    /// Honest messages measured in each half of a round, after a warm-up of a fifth as many.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    messages: u32,
    #[command(flatten)]
    world: WorldArgs,
    /// Honest connections, each with one request in hand.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections: u32,
    /// Addresses that bad requests come from, each with one connection.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    addresses: u32,
    /// Honest messages a second in the second half. Default: half of what was reached without flood.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// How long the flood lasts before anything is measured, seconds: the limits of its addresses are in
    /// force then.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=3600))]
    rising: u64,
    #[command(flatten)]
    run: RunArgs,
}

/// How often the bridge's size is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What one round gave.
struct Round {
    full_per_s: f64,
    full_p99_ms: f64,
    paced_per_s: f64,
    paced_p99_ms: f64,
    rss_first: Option<u64>,
    rss_max: Option<u64>,
    rss_last: Option<u64>,
    flood: Option<Flood>,
}

struct Flood {
    per_s: f64,
    answers: Value,
}

/// Runs it.
pub async fn flood(args: FloodArgs) -> Outcome {
    let rig = Rig::start(&args.world, args.run.sync.interval()).await?;
    let (mut calm, mut flooded) = (Vec::new(), Vec::new());
    let rounds = args.run.rounds(2);
    let mut rate = args.rate.map(f64::from);
    for n in 1..=rounds {
        for with in [false, true] {
            let round = one(&rig, &args, with, rate).await?;
            progress(&format!(
                "{} flood, round {n} of {rounds}: {:.0} messages/s, paced {:.0} with p99 {:.2} ms; flood {:.0} requests/s",
                if with { "with" } else { "without" },
                round.full_per_s,
                round.paced_per_s,
                round.paced_p99_ms,
                round.flood.as_ref().map_or(0.0, |f| f.per_s)
            ));
            rate = rate.or(Some(round.full_per_s / 2.0));
            if with { &mut flooded } else { &mut calm }.push(round);
        }
    }
    let of = |list: &[Round], f: fn(&Round) -> f64| median(list.iter().map(f));
    let both = |f: fn(&Round) -> f64| (of(&flooded, f), of(&calm, f));
    let (full, full_calm) = both(|r| r.full_per_s);
    let (paced, paced_calm) = both(|r| r.paced_per_s);
    let floods = || flooded.iter().filter_map(|r| r.flood.as_ref());
    report::print(
        &args.run,
        &json!({
            "scenario": format!(
                "flood: bad requests from {} addresses at full speed; {} honest messages of {} bytes over {} connections, {}",
                args.addresses, args.messages, args.world.size, args.connections, args.run.sync.words()
            ),
            "flood_requests_per_s": rounded(median(floods().map(|f| f.per_s)), 1),
            "flood_answers": floods().next_back().map(|f| f.answers.clone()),
            "paced_per_s": rate.map(|r| rounded(r, 1)),
            "messages_per_s": rounded(paced, 1),
            "calm_messages_per_s": rounded(paced_calm, 1),
            "ratio": rounded(paced / paced_calm, 3),
            "p99_ms": rounded(of(&flooded, |r| r.paced_p99_ms), 3),
            "calm_p99_ms": rounded(of(&calm, |r| r.paced_p99_ms), 3),
            "full_messages_per_s": rounded(full, 1),
            "calm_full_messages_per_s": rounded(full_calm, 1),
            "full_ratio": rounded(full / full_calm, 3),
            "full_p99_ms": rounded(of(&flooded, |r| r.full_p99_ms), 3),
            "calm_full_p99_ms": rounded(of(&calm, |r| r.full_p99_ms), 3),
            "rss_first_bytes": flooded.iter().filter_map(|r| r.rss_first).max(),
            "rss_max_bytes": flooded.iter().filter_map(|r| r.rss_max).max(),
            "rss_last_bytes": flooded.iter().filter_map(|r| r.rss_last).max(),
            "calm_rss_max_bytes": calm.iter().filter_map(|r| r.rss_max).max(),
        }),
    );
    Ok(ExitCode::SUCCESS)
}

async fn one(rig: &Rig, args: &FloodArgs, with: bool, rate: Option<f64>) -> Result<Round, String> {
    let measured = count(args.messages);
    let warm = (measured / 5).max(1);
    let broker = rig.broker().await?;
    let dir = rig.fresh_dir("pipeline")?;
    let setup = Setup::of(&args.run);
    let mut bridge = Bridge::configure(&dir, &broker.url(), rig, &setup)?.spawn()?;
    bridge.ready().await?;
    rig.speech.introduce(&bridge, &broker).await?;
    let (to, pid) = (bridge.public, bridge.id()?);
    rig.far
        .prepare(Prepare {
            first: 0,
            count: warm + 2 * measured,
            forged: false,
        })
        .await?;
    let load = |first, count, rate| Load {
        to,
        first,
        count,
        connections: super::args::count(args.connections),
        rate,
        stubborn: false,
    };
    answered(&rig.far.load(&load(0, warm, None)).await?, warm, false)?;

    let mut flooder = None;
    if with {
        let more = [
            "--to".to_owned(),
            to.to_string(),
            "--addresses".to_owned(),
            args.addresses.to_string(),
        ];
        let arguments = [rig.arguments.clone(), more.to_vec()].concat();
        let log = dir.join("flood.log");
        let process = Process::start(&["bench", "flooder"], &arguments, &log).await?;
        flooder = Some((process, tokio::time::Instant::now()));
        tokio::time::sleep(Duration::from_secs(args.rising)).await;
    }
    let rss_first = usage::rss(pid);
    let watch = Watch::start(pid, LOOK);
    let full = rig.far.load(&load(warm, measured, None)).await?;
    answered(&full, measured, false)?;
    let rate = rate.unwrap_or_else(|| per_s(&full, measured) / 2.0);
    let paced = load(warm + measured, measured, Some(rate));
    let paced = rig.far.load(&paced).await?;
    answered(&paced, measured, false)?;
    let (rss_last, rss_max) = (usage::rss(pid), watch.max());
    drop(watch);
    let flood = match flooder {
        None => None,
        Some((process, since)) => Some(ended(process, since).await?),
    };
    bridge.stop().await?;
    let (stored, wanted) = (broker.messages("FED_IN").await?, warm + 2 * measured);
    broker.stop().await;
    if stored != wanted as u64 {
        return Err(format!(
            "{wanted} events were accepted, {stored} are on FED_IN"
        ));
    }
    Ok(Round {
        full_per_s: per_s(&full, measured),
        full_p99_ms: approximate(full.p99_ns) / 1e6,
        paced_per_s: per_s(&paced, measured),
        paced_p99_ms: approximate(paced.p99_ns) / 1e6,
        rss_first,
        rss_max,
        rss_last,
        flood,
    })
}

async fn ended(process: Process, since: tokio::time::Instant) -> Result<Flood, String> {
    let seconds = since.elapsed().as_secs_f64();
    let answers = process.end().await?;
    let all = answers.as_object().into_iter().flatten();
    let all = all
        .filter(|(status, _)| *status != "none")
        .filter_map(|(_, n)| n.as_f64());
    Ok(Flood {
        per_s: all.sum::<f64>() / seconds,
        answers,
    })
}

fn per_s(done: &Done, measured: usize) -> f64 {
    let seconds = approximate(done.elapsed_ns) / 1e9;
    approximate(measured as u64) / seconds.max(f64::MIN_POSITIVE)
}
