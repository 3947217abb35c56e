//! `bench spill`: what is published for peers that are down goes into the queue. How fast, against
//! the store's own group commit: the same rows handed straight to it by a program that does nothing
//! else ([`super::bare_store`]).

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::args::{RunArgs, WorldArgs, count};
use super::figures::{approximate, median, rounded};
use super::out::introduced;
use super::pipeline::{Pipeline, Setup};
use super::rig::{Process, Rig};
use super::stretch::Stretch;
use super::traffic::{self, emptying};
use super::{progress, report};
use crate::cli::Outcome;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct SpillArgs {
    /// Messages measured in a round, after a warm-up of a fifth as many.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..=5_000_000))]
    messages: u32,
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs it.
pub async fn spill(args: SpillArgs) -> Outcome {
    let rig = Rig::start(&args.world, args.run.sync.interval()).await?;
    let setup = Setup::of(&args.run);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let rounds = args.run.rounds(2);
    for n in 1..=rounds {
        let rate = store_alone(&rig, args.messages).await?;
        progress(&format!(
            "the store alone, round {n} of {rounds}: {rate:.0} rows/s"
        ));
        bare.push(rate);
        let round = into_the_queue(&rig, &setup, count(args.messages)).await?;
        progress(&format!(
            "into the queue, round {n} of {rounds}: {:.0} messages/s, CPU us a message: bridge {:.1}",
            round.0, round.1
        ));
        ours.push(round);
    }
    let rate = median(ours.iter().map(|r| r.0));
    let store = median(bare.into_iter());
    report::print(
        &args.run,
        &json!({
            "scenario": format!(
                "spill: {} messages of {} bytes for {} peers that are down, {}",
                args.messages, args.world.size, args.world.active(), args.run.sync.words()
            ),
            "messages_per_s": rounded(rate, 1),
            "store_rows_per_s": rounded(store, 1),
            "ratio": rounded(rate / store, 3),
            "cpu_us_per_message": rounded(median(ours.iter().map(|r| r.1)), 1),
            "peak_rss_bytes": ours.iter().filter_map(|r| r.2).max(),
        }),
    );
    Ok(ExitCode::SUCCESS)
}

/// Messages a second, the bridge's CPU time for each, its largest size.
async fn into_the_queue(
    rig: &Rig,
    setup: &Setup,
    measured: usize,
) -> Result<(f64, f64, Option<u64>), String> {
    let warm = (measured / 5).max(1);
    let broker = rig.broker().await?;
    let drafts = traffic::write(&rig.speech, 0..warm + measured)?;
    let configured = introduced(rig, setup, &broker).await?;
    rig.far.up(false).await?;
    traffic::publish(rig, &broker, &drafts).await?;
    drop(drafts);
    let mut pipeline = Pipeline::Ours(configured.spawn()?);
    let pid = pipeline.id()?;
    let (all, used) = (warm + measured, || rig.cpu(&broker, pid));
    let mut stretch = Stretch::new(warm, all, used());
    emptying(&broker, &mut pipeline, |left| {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        stretch.look(all.saturating_sub(left), used);
    })
    .await?;
    let (seconds, after) = (stretch.seconds(), used());
    let counted = stretch.counted();
    let peak = pipeline.peak_rss();
    pipeline.stop().await?;
    broker.stop().await;
    rig.far.up(true).await?;
    let waiting = super::drain::pending(configured.database()).await?;
    if waiting != all as u64 {
        return Err(format!(
            "{all} messages were published, {waiting} rows wait"
        ));
    }
    let cpu = after.since(stretch.before(), counted);
    let cpu = cpu.get("bridge").copied().unwrap_or_default();
    Ok((approximate(counted as u64) / seconds, cpu, peak))
}

/// Rows a second.
async fn store_alone(rig: &Rig, rows: u32) -> Result<f64, String> {
    let dir = rig.fresh_dir("store")?;
    let more = [
        "--dir".to_owned(),
        dir.to_string_lossy().into_owned(),
        "--rows".to_owned(),
        rows.to_string(),
    ];
    let arguments = [rig.arguments.clone(), more.to_vec()].concat();
    let process = Process::start(&["bench", "bare-store"], &arguments, &dir.join("log")).await?;
    process.said()["rows_per_s"]
        .as_f64()
        .ok_or_else(|| "the store's own rate is not known".into())
}
