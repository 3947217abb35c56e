//! `bench start`: how long from the start of the process to readiness, with a NATS server that runs
//! already, and how large the bridge is at rest. The first start also makes keys, database and
//! streams, and is shown by itself.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::args::WorldArgs;
use super::figures::{approximate, median};
use super::pipeline::{Bridge, Setup};
use super::rig::Rig;
use super::speech::Spoken;
use super::{progress, usage};
use crate::cli::Outcome;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct StartArgs {
    /// Which protocol the bridge serves.
    #[arg(long, value_enum, default_value_t = Spoken::Uam)]
    protocol: Spoken,
    /// Starts measured after the first one.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long the bridge rests before its size is read, seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=3600))]
    rest: u64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub async fn start(args: StartArgs) -> Outcome {
    let world = WorldArgs {
        protocol: args.protocol,
        ..WorldArgs::uam(1, 1, 1024, 1)
    };
    let rig = Rig::start(&world, "2m").await?;
    let broker = rig.broker().await?;
    let dir = rig.fresh_dir("pipeline")?;
    let setup = Setup {
        log: "info".to_owned(),
        ..Setup::default()
    };
    let configured = Bridge::configure(&dir, &broker.url(), &rig, &setup)?;
    let (mut times, mut sizes) = (Vec::new(), Vec::new());
    for n in 0..=args.rounds {
        let begun = Instant::now();
        let mut bridge = configured.spawn()?;
        bridge.ready().await?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        progress(&format!("start {n}: ready after {took:.1} ms"));
        times.push(took);
        if n == args.rounds {
            tokio::time::sleep(Duration::from_secs(args.rest)).await;
        }
        sizes.extend(usage::rss(bridge.id()?));
        bridge.stop().await?;
    }
    broker.stop().await;
    let first = times.first().copied().unwrap_or_default();
    let ready = median(times.into_iter().skip(1));
    let idle = sizes.last().copied();
    if args.json {
        let rounded = |ms: f64| (ms * 10.0).round() / 10.0;
        println!(
            "{}",
            json!({
                "scenario": "start with an external NATS server",
                "first_start_to_ready_ms": rounded(first),
                "start_to_ready_ms": rounded(ready),
                "idle_rss_bytes": idle,
            })
        );
    } else {
        println!(
            "start to ready, external NATS: {ready:.1} ms (the first time, with database and streams to make: {first:.1} ms)"
        );
        match idle {
            Some(bytes) => println!("at rest: {:.1} MB", approximate(bytes) / 1e6),
            None => println!("at rest: this system does not tell"),
        }
    }
    Ok(ExitCode::SUCCESS)
}
