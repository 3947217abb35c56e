//! `bench idle`: what the bridge costs while nothing happens, knowing nobody and knowing many.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tokio::time::Instant;

use super::args::{RunArgs, WorldArgs};
use super::figures::{approximate, median, rounded};
use super::pipeline::{Bridge, Setup};
use super::rig::Rig;
use super::speech::Spoken;
use super::world::World;
use super::{progress, report, usage};
use crate::cli::Outcome;
use crate::clock::Clock;
use crate::protocol::{PeerName, PeerRecord};
use crate::store::Store;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct IdleArgs {
    /// Which protocol the bridge serves.
    #[arg(long, value_enum, default_value_t = Spoken::Uam)]
    protocol: Spoken,
    /// Peers that are known in the second half of each round.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    known: u32,
    /// How it knows them: found out earlier and kept in the store, or by [[peers]]. Other protocols
    /// than UAM know theirs by a peering, or by [[peers]].
    #[arg(long, value_enum, default_value_t = By::Store)]
    by: By,
    /// How long the bridge rests before it is looked at, and how long then, seconds each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3600))]
    rest: u64,
    /// Keys follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    run: RunArgs,
}

/// How peers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Store,
    Config,
}

/// A bridge at rest.
struct Idle {
    rss: f64,
    /// Share of one core.
    cpu: f64,
    ready_ms: f64,
}

/// Runs it.
pub async fn idle(args: IdleArgs) -> Outcome {
    let world = WorldArgs {
        protocol: args.protocol,
        ..WorldArgs::uam(args.known, 1, 1024, args.seed)
    };
    let rig = Rig::start(&world, args.run.sync.interval()).await?;
    let (mut alone, mut knowing) = (Vec::new(), Vec::new());
    let rounds = args.run.rounds.unwrap_or(1);
    for n in 1..=rounds {
        for (known, list) in [(0, &mut alone), (args.known, &mut knowing)] {
            let idle = rest(&rig, &args, known > 0).await?;
            progress(&format!(
                "idle, {known} peers known, round {n} of {rounds}: {:.1} MB, {:.2} % of a core, ready after {:.0} ms",
                idle.rss / 1e6,
                idle.cpu * 100.0,
                idle.ready_ms
            ));
            list.push(idle);
        }
    }
    let of = |list: &[Idle], f: fn(&Idle) -> f64| median(list.iter().map(f));
    let (rss, rss_known) = (of(&alone, |i| i.rss), of(&knowing, |i| i.rss));
    report::print(
        &args.run,
        &json!({
            "scenario": format!(
                "idle, and idle with {} known peers ({})",
                args.known,
                match args.by {
                    By::Store => "in the store",
                    By::Config => "in the configuration",
                }
            ),
            "rss_bytes": rss.round() as u64,
            "rss_known_bytes": rss_known.round() as u64,
            "known_cost_bytes": (rss_known - rss).round() as i64,
            "cpu_share": rounded(of(&alone, |i| i.cpu), 4),
            "cpu_share_known": rounded(of(&knowing, |i| i.cpu), 4),
            "start_to_ready_ms": rounded(of(&alone, |i| i.ready_ms), 1),
            "start_to_ready_known_ms": rounded(of(&knowing, |i| i.ready_ms), 1),
        }),
    );
    Ok(ExitCode::SUCCESS)
}

/// The second start is looked at: the first makes keys, database and streams.
async fn rest(rig: &Rig, args: &IdleArgs, knows_peers: bool) -> Result<Idle, String> {
    let broker = rig.broker().await?;
    let dir = rig.fresh_dir("pipeline")?;
    let found = knows_peers && args.by == By::Store && args.protocol == Spoken::Uam;
    let setup = Setup {
        knows_peers: knows_peers && !found,
        ..Setup::of(&args.run)
    };
    let configured = Bridge::configure(&dir, &broker.url(), rig, &setup)?;
    let mut first = configured.spawn()?;
    first.ready().await?;
    if knows_peers && rig.speech.needs_introduction() {
        rig.speech.introduce(&first, &broker).await?;
    }
    first.stop().await?;
    if found {
        remember(rig, &configured.database()).await?;
    }
    let begun = Instant::now();
    let mut bridge = configured.spawn()?;
    bridge.ready().await?;
    let ready_ms = begun.elapsed().as_secs_f64() * 1e3;
    let (pid, pause) = (bridge.id()?, Duration::from_secs(args.rest));
    tokio::time::sleep(pause).await;
    let (since, before) = (Instant::now(), usage::cpu_us(pid));
    tokio::time::sleep(pause).await;
    let used = usage::cpu_us(pid).zip(before).map(|(now, then)| now - then);
    let took = approximate(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
    let rss = usage::rss(pid).map_or(0.0, approximate);
    bridge.stop().await?;
    broker.stop().await;
    Ok(Idle {
        rss,
        cpu: used.map_or(0.0, approximate) / took.max(1.0),
        ready_ms,
    })
}

/// Writes every peer into the ledger as the bridge does when it has found one.
async fn remember(rig: &Rig, database: &Path) -> Result<(), String> {
    let told = |e: crate::store::StoreError| e.to_string();
    let clock = Clock::system();
    let store = Store::open(database, clock.clone()).await.map_err(told)?;
    let world = rig.world.world();
    let mut commits = FuturesUnordered::new();
    for n in 0..world.peers {
        let host = World::host_of(n);
        let record = PeerRecord {
            protocol: rig.protocol,
            name: PeerName::parse(&host).map_err(|e| e.to_string())?,
            endpoint: format!("https://{host}"),
            alternatives: Vec::new(),
            public_key: Some(world.key(&host).public().to_bytes()),
            discovered_via: "well-known".to_owned(),
            last_verified_ms: clock.now_ms(),
            ttl_ms: Some(3_600_000),
            facts: serde_json::Map::new(),
        };
        commits.push(store.put_peer(record).await.map_err(told)?);
    }
    while let Some(done) = commits.next().await {
        done.map_err(told)?;
    }
    store.close().await;
    Ok(())
}
