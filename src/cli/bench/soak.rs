//! `bench soak`: messages both ways for a long time at a part of what the machine can, the bridge
//! restarted again and again. Nothing may be lost, nothing come before its turn, nothing be on FED_IN
//! twice; memory, descriptors and waiting rows are looked at all along.
//!
//! First the peak of each way is found; each then gets a quarter of its own, which together is about
//! half of what the machine can. Peers send what was not answered again, as real ones do. What was
//! read from FED_IN is purged, as a backend's stream would age.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::args::{BenchArgs, RunArgs, Turn, WorldArgs, count};
use super::figures::{approximate, median, rounded};
use super::load::{Load, Prepare};
use super::pipeline::{Bridge, Configured, Pipeline, Setup};
use super::plot::{columns, plot};
use super::rig::{Broker, Rig};
use super::traffic;
use super::{inbound, out, progress, report, usage};
use crate::cli::Outcome;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct SoakArgs {
    /// How long, minutes.
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// The bridge is restarted so often, seconds.
    #[arg(long, default_value_t = 120.0)]
    restart: f64,
    /// Restart by SIGKILL in place of SIGTERM: attempts in flight are then repeated.
    #[arg(long)]
    kill: bool,
    /// Messages a second outbound. Default: a quarter of the peak.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    out_rate: Option<u32>,
    /// Messages a second inbound. Default: a quarter of the peak.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    in_rate: Option<u32>,
    /// Messages by which each peak is found.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    probe: u32,
    /// Seconds between two samples.
    #[arg(long, default_value_t = 2.0)]
    sample: f64,
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Connections of the peers, each with one request in hand.
const CONNECTIONS: u32 = 32;
/// Messages are made for so long at a time.
const SLICE: Duration = Duration::from_secs(2);
/// What was read from FED_IN is purged so often.
const PURGE: Duration = Duration::from_secs(30);

/// The bridge at one moment.
struct Sample {
    rss: f64,
    descriptors: f64,
    /// Rows that wait.
    rows: f64,
    /// Bytes of the ledger.
    database: f64,
}

/// One number of a sample.
type Of = fn(&Sample) -> f64;

/// What the peers' posts came to.
#[derive(Default)]
struct Posted {
    /// Taken, for the first time or again.
    taken: usize,
    again: usize,
    worst_p99_ms: f64,
}

/// What was seen of the bridge.
#[derive(Default)]
struct Kept {
    samples: Vec<Sample>,
    /// Milliseconds from spawn to readiness.
    starts: Vec<f64>,
}

/// Runs it.
pub async fn soak(args: SoakArgs) -> Outcome {
    let positive = |n: f64| n.is_finite() && n > 0.0;
    if !positive(args.minutes) || !positive(args.restart) || !positive(args.sample) {
        return Err("--minutes, --restart and --sample must be above 0".into());
    }
    let rig = Rig::start(&args.world, args.run.sync.interval()).await?;
    let (out_rate, in_rate) = rates(&rig, &args).await?;
    progress(&format!(
        "{out_rate:.0} messages/s out, {in_rate:.0} in, for {} minutes",
        args.minutes
    ));
    let broker = rig.broker().await?;
    let setup = inbound::setup(&args.run).with("STORE__KEEP_BODIES", "10m");
    let configured = out::introduced(&rig, &setup, &broker).await?;
    let mut bridge = configured.spawn()?;
    bridge.ready().await?;
    if !rig.speech.needs_introduction() {
        rig.speech.introduce(&bridge, &broker).await?;
    }
    let long = Duration::from_secs_f64(args.minutes * 60.0);
    // The last slice may end after the time is over.
    let most = (long + 2 * SLICE).as_secs_f64() * out_rate;
    rig.far.expect(most.ceil() as usize).await?;
    let (to, end) = (bridge.public, Instant::now() + long);
    let begun = Instant::now();
    let (sent, posted, (bridge, kept)) = tokio::try_join!(
        publishing(&rig, &broker, out_rate, end),
        posting(&rig, to, in_rate, end),
        keeping(&args, &broker, &configured, bridge, end),
    )?;
    let took = begun.elapsed().as_secs_f64();
    let mut pipeline = Pipeline::Ours(bridge);
    traffic::arrived(rig.far, &mut pipeline, sent).await?;
    traffic::emptied(&broker, &mut pipeline).await?;
    traffic::in_order(rig.far).await?;
    let seen = rig.far.seen().await?;
    pipeline.stop().await?;
    let facts = broker.bus.stream_facts("FED_IN").await;
    let facts = facts.map_err(|e| e.to_string())?.ok_or("FED_IN is gone")?;
    broker.stop().await;
    let rows = super::drain::pending(configured.database()).await?;
    if facts.last_seq != posted.taken as u64 {
        return Err(format!(
            "{} events were accepted, {} came to FED_IN",
            posted.taken, facts.last_seq
        ));
    }
    if rows > 0 {
        return Err(format!("{rows} rows still wait, though all messages came"));
    }
    let figures = Figures {
        out_per_s: approximate(sent as u64) / took,
        in_per_s: approximate(posted.taken as u64) / took,
        sent,
        again: seen.again,
        posted,
        kept,
    };
    figures.print(&args);
    Ok(ExitCode::SUCCESS)
}

/// Rates out and in: as told, else a quarter of each peak.
async fn rates(rig: &Rig, args: &SoakArgs) -> Result<(f64, f64), String> {
    let out_rate = match args.out_rate {
        Some(rate) => f64::from(rate),
        None => {
            let broker = rig.broker().await?;
            let (setup, probe) = (Setup::of(&args.run), count(args.probe));
            let warm = (probe / 5).max(1);
            let (pipeline, round) =
                out::drained(rig, &broker, (Turn::Ours, &setup), warm, probe).await?;
            pipeline.stop().await?;
            broker.stop().await;
            round.messages_per_s / 4.0
        }
    };
    let in_rate = match args.in_rate {
        Some(rate) => f64::from(rate),
        None => {
            let args = BenchArgs {
                messages: args.probe,
                world: args.world.clone(),
                compare: None,
                run: args.run.clone(),
                connections: CONNECTIONS,
                rate: None,
                window: None,
            };
            let round = inbound::round(rig, &args, false, Turn::Ours).await?;
            round.messages_per_s / 4.0
        }
    };
    Ok((out_rate.max(1.0), in_rate.max(1.0)))
}

/// Publishes until the end; answers how many.
async fn publishing(rig: &Rig, broker: &Broker, rate: f64, end: Instant) -> Result<usize, String> {
    let each = ((rate * SLICE.as_secs_f64()) as usize).max(1);
    let mut sent = 0;
    while Instant::now() < end {
        let drafts = traffic::write(&rig.speech, sent..sent + each)?;
        traffic::publish_paced(rig, broker, rate, &drafts, |_| {}).await?;
        sent += each;
    }
    Ok(sent)
}

/// Posts until the end; all must be taken.
async fn posting(rig: &Rig, to: SocketAddr, rate: f64, end: Instant) -> Result<Posted, String> {
    let each = ((rate * SLICE.as_secs_f64()) as usize).max(1);
    let (mut posted, mut first) = (Posted::default(), 0);
    while Instant::now() < end {
        let what = Prepare {
            first,
            count: each,
            forged: false,
        };
        rig.far.prepare(what).await?;
        let load = Load {
            to,
            first: 0,
            count: each,
            connections: count(CONNECTIONS),
            rate: Some(rate),
            stubborn: true,
        };
        let done = rig.far.load(&load).await?;
        let taken = done.delivered + done.duplicates;
        if taken != each {
            let refused = done.refused.unwrap_or_default();
            return Err(format!("{taken} of {each} were taken: {refused}"));
        }
        posted.taken += taken;
        posted.again += done.again;
        posted.worst_p99_ms = posted.worst_p99_ms.max(approximate(done.p99_ns) / 1e6);
        first += each;
    }
    Ok(posted)
}

/// Restarts the bridge again and again, and looks at it; answers the one that runs at the end.
async fn keeping(
    args: &SoakArgs,
    broker: &Broker,
    configured: &Configured,
    mut bridge: Bridge,
    end: Instant,
) -> Result<(Bridge, Kept), String> {
    let mut kept = Kept::default();
    let mut look = tokio::time::interval(Duration::from_secs_f64(args.sample));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let restart = Duration::from_secs_f64(args.restart);
    let (mut again, mut purge) = (Instant::now() + restart, Instant::now() + PURGE);
    while Instant::now() < end {
        if let Some(why) = bridge.ended() {
            return Err(why);
        }
        tokio::select! {
            _ = look.tick() => {
                kept.samples.extend(sample(&bridge, configured).await);
            }
            () = tokio::time::sleep_until(purge) => {
                broker.forget("FED_IN").await?;
                purge = Instant::now() + PURGE;
            }
            () = tokio::time::sleep_until(again) => {
                match args.kill {
                    true => bridge.kill().await?,
                    false => bridge.stop().await?,
                }
                let begun = Instant::now();
                bridge = configured.spawn()?;
                bridge.ready().await?;
                kept.starts.push(begun.elapsed().as_secs_f64() * 1e3);
                progress(&format!("restarted, ready after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3));
                again = Instant::now() + restart;
            }
        }
    }
    Ok((bridge, kept))
}

async fn sample(bridge: &Bridge, configured: &Configured) -> Option<Sample> {
    let pid = bridge.id().ok()?;
    let file = configured.database();
    let log = file.with_file_name("drawbridge.db-wal");
    let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |m| m.len());
    Some(Sample {
        rss: approximate(usage::rss(pid)?),
        descriptors: approximate(usage::descriptors(pid)?),
        rows: bridge.metric("drawbridge_queue_pending").await?,
        database: approximate(size(&file) + size(&log)),
    })
}

/// All that is told.
struct Figures {
    out_per_s: f64,
    in_per_s: f64,
    sent: usize,
    again: usize,
    posted: Posted,
    kept: Kept,
}

impl Figures {
    fn series(&self, of: Of) -> Vec<f64> {
        self.kept.samples.iter().map(of).collect()
    }

    fn print(&self, args: &SoakArgs) {
        let series: [(&str, Of); 4] = [
            ("resident memory, MB", |s| s.rss / 1e6),
            ("descriptors", |s| s.descriptors),
            ("rows that wait", |s| s.rows),
            ("ledger, MB", |s| s.database / 1e6),
        ];
        if !args.run.json {
            for (name, of) in series {
                println!("{}\n", plot(name, &self.series(of)));
            }
        }
        let (rss, descriptors) = (self.series(|s| s.rss), self.series(|s| s.descriptors));
        let max = |list: &[f64]| list.iter().copied().fold(0.0, f64::max);
        report::print(
            &args.run,
            &json!({
                "scenario": format!(
                    "soak: {} minutes, a {} every {} s, {} messages of {} bytes each way, {}",
                    args.minutes,
                    if args.kill { "kill and start" } else { "restart" },
                    args.restart,
                    self.sent,
                    args.world.size,
                    args.run.sync.words()
                ),
                "out_messages_per_s": rounded(self.out_per_s, 1),
                "in_messages_per_s": rounded(self.in_per_s, 1),
                "out_messages": self.sent,
                "in_messages": self.posted.taken,
                "lost": 0,
                "out_repeated": self.again,
                "in_sent_again": self.posted.again,
                "in_worst_p99_ms": rounded(self.posted.worst_p99_ms, 1),
                "restarts": self.kept.starts.len(),
                "start_to_ready_ms": rounded(median(self.kept.starts.iter().copied()), 1),
                "rss_max_bytes": max(&rss) as u64,
                "rss_growth_bytes": growth(&rss).round() as i64,
                "descriptors_max": max(&descriptors) as u64,
                "descriptors_growth": growth(&descriptors).round() as i64,
                "rows_max": max(&self.series(|s| s.rows)) as u64,
                "rss_mb_series": columns(&self.series(|s| s.rss / 1e6)),
                "descriptors_series": columns(&descriptors),
                "rows_series": columns(&self.series(|s| s.rows)),
            }),
        );
    }
}

/// Median of the last quarter less that of the second: what grew once all was warm.
fn growth(series: &[f64]) -> f64 {
    let quarter = series.len() / 4;
    let of = |n: usize| {
        let part = series.get(n * quarter..(n + 1) * quarter);
        median(part.unwrap_or_default().iter().copied())
    };
    of(3) - of(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_came_after_the_first_half() {
        let flat: Vec<f64> = (0..100).map(|n| if n < 20 { 1.0 } else { 5.0 }).collect();
        assert!(growth(&flat[..]).abs() < f64::EPSILON);
        let risen: Vec<f64> = (0..100).map(f64::from).collect();
        assert!((growth(&risen) - 50.0).abs() < 1e-9);
        assert!(growth(&[]).abs() < f64::EPSILON);
    }
}
