//! `bench two`: two instances on one PostgreSQL and one broker, which share the peers between them,
//! against one; and against one that could share, which tells what sharing costs alone. In turns, each
//! in a schema of its own.
//!
//! The instances run and have shared the work out before the first message is published; the clock
//! runs from the end of a warm-up until every message has come and is acknowledged.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::args::{RunArgs, WorldArgs, count};
use super::figures::{approximate, median, rounded};
use super::pipeline::{Bridge, Pipeline, Setup};
use super::rig::Rig;
use super::stretch::Stretch;
use super::traffic::{self, arriving, emptied};
use super::{progress, report, usage};
use crate::cli::Outcome;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct TwoArgs {
    /// A PostgreSQL database in which schemas may be made: `postgres://USER:PASSWORD@HOST/DATABASE`.
    #[arg(long)]
    postgres: String,
    /// Messages measured in a round, after a warm-up of a fifth as many.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(10..=5_000_000))]
    messages: u32,
    /// How many instances are compared with one.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=8))]
    instances: u32,
    /// How long they have to share the work out, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    rest: u64,
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Who runs.
#[derive(Clone, Copy, Debug)]
struct Side {
    name: &'static str,
    instances: u32,
    shared: bool,
}

/// What one round gave.
struct Round {
    per_s: f64,
    /// Of all instances together, microseconds a message.
    cpu_us: f64,
    /// The smallest part that one instance had in the work, of its CPU time.
    least: f64,
}

/// Runs it.
pub async fn two(args: TwoArgs) -> Outcome {
    let rig = Rig::start(&args.world, args.run.sync.interval()).await?;
    let sides = [
        ("alone", 1, false),
        ("one that could share", 1, true),
        ("several", args.instances, true),
    ]
    .map(|(name, instances, shared)| Side {
        name,
        instances,
        shared,
    });
    let mut all: [Vec<Round>; 3] = Default::default();
    let rounds = args.run.rounds(2);
    for n in 1..=rounds {
        for (side, list) in sides.iter().zip(&mut all) {
            let round = one(&rig, &args, *side).await?;
            progress(&format!(
                "{}, round {n} of {rounds}: {:.0} messages/s, CPU us a message {:.1}",
                side.name, round.per_s, round.cpu_us
            ));
            list.push(round);
        }
    }
    let [alone, sharing, several] = &all;
    let of = |list: &[Round], f: fn(&Round) -> f64| median(list.iter().map(f));
    let (rate, rate_alone) = (of(several, |r| r.per_s), of(alone, |r| r.per_s));
    report::print(
        &args.run,
        &json!({
            "scenario": format!(
                "two: {} instances on one PostgreSQL against one, {} messages of {} bytes, {} peers, {}",
                args.instances, args.messages, args.world.size, args.world.active(), args.run.sync.words()
            ),
            "messages_per_s": rounded(rate, 1),
            "alone_messages_per_s": rounded(rate_alone, 1),
            "ratio": rounded(rate / rate_alone, 3),
            "sharing_alone_messages_per_s": rounded(of(sharing, |r| r.per_s), 1),
            "sharing_alone_ratio": rounded(of(sharing, |r| r.per_s) / rate_alone, 3),
            "cpu_us_per_message": rounded(of(several, |r| r.cpu_us), 1),
            "alone_cpu_us_per_message": rounded(of(alone, |r| r.cpu_us), 1),
            "smallest_share": rounded(of(several, |r| r.least), 3),
        }),
    );
    Ok(ExitCode::SUCCESS)
}

async fn one(rig: &Rig, args: &TwoArgs, side: Side) -> Result<Round, String> {
    let schema = Schema::make(&args.postgres).await?;
    let round = in_schema(rig, args, side, &schema.url).await;
    schema.drop().await?;
    round
}

async fn in_schema(rig: &Rig, args: &TwoArgs, side: Side, url: &str) -> Result<Round, String> {
    let broker = rig.broker().await?;
    let setup = Setup::of(&args.run)
        .with("STORE__URL", url)
        .with("STORE__SHARED", side.shared);
    let (mut bridges, mut pids) = (Vec::new(), Vec::new());
    for n in 0..side.instances {
        let dir = rig.fresh_dir(&format!("instance-{n}"))?;
        let mut bridge = Bridge::configure(&dir, &broker.url(), rig, &setup)?.spawn()?;
        bridge.ready().await?;
        if n == 0 && rig.speech.needs_introduction() {
            rig.speech.introduce(&bridge, &broker).await?;
        }
        pids.push(bridge.id()?);
        bridges.push(bridge);
    }
    let mut pipeline = Pipeline::Several(bridges);
    tokio::time::sleep(Duration::from_secs(args.rest)).await;

    let measured = count(args.messages);
    let warm = (measured / 5).max(1);
    let backlog = warm + measured;
    let drafts = traffic::write(&rig.speech, 0..backlog)?;
    rig.far.expect(backlog).await?;
    let used = || -> Vec<f64> {
        let of = |pid: &u32| usage::precise_cpu_us(*pid).map_or(0.0, approximate);
        pids.iter().map(of).collect()
    };
    traffic::publish(rig, &broker, &drafts).await?;
    let mut stretch = Stretch::new(warm, backlog, used());
    arriving(rig.far, &mut pipeline, backlog, |n| stretch.look(n, used)).await?;
    emptied(&broker, &mut pipeline).await?;
    let (seconds, after) = (stretch.seconds(), used());
    traffic::in_order(rig.far).await?;
    pipeline.stop().await?;
    broker.stop().await;
    let each: Vec<f64> = after
        .iter()
        .zip(stretch.before())
        .map(|(a, b)| a - b)
        .collect();
    let sum: f64 = each.iter().sum();
    let counted = approximate(stretch.counted() as u64);
    Ok(Round {
        per_s: counted / seconds,
        cpu_us: sum / counted,
        least: each.iter().copied().fold(f64::MAX, f64::min) / sum.max(1.0),
    })
}

/// An empty schema, for one round.
struct Schema {
    base: String,
    name: String,
    /// The address under which the bridge finds it.
    url: String,
}

impl Schema {
    async fn make(base: &str) -> Result<Self, String> {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|e| e.to_string())?;
        let name = format!("drawbridge_bench_{}", crate::identity::hex(&random));
        let joined = if base.contains('?') { '&' } else { '?' };
        let schema = Self {
            url: format!("{base}{joined}options[search_path]={name}"),
            base: base.to_owned(),
            name,
        };
        schema.sql("CREATE SCHEMA", "").await?;
        Ok(schema)
    }

    async fn drop(self) -> Result<(), String> {
        self.sql("DROP SCHEMA", "CASCADE").await
    }

    /// The address holds a password: it stands in no error.
    async fn sql(&self, before: &str, after: &str) -> Result<(), String> {
        let told = |e: sqlx::Error| format!("PostgreSQL: {before}: {e}");
        let mut connection = PgConnection::connect(&self.base).await.map_err(told)?;
        let text = AssertSqlSafe(format!("{before} {} {after}", self.name));
        connection.execute(text).await.map_err(told)?;
        connection.close().await.map_err(told)
    }
}
