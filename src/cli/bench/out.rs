//! `bench out`, and its relatives `hot` (one peer, a window of 64) and `peers` (10,000 known, 1,000 of
//! them active).
//!
//! The backlog is in the stream before the program under test starts, so that publishing costs the
//! measured time nothing. The clock runs from the end of the warm-up until every message has come
//! *and* the stream is empty: acknowledged, which for the bridge means durable in its ledger. Then,
//! idle again, messages are published at a steady rate, and each one's way to its peer is timed.

use std::path::PathBuf;

use super::args::{BenchArgs, Turn, count};
use super::figures::{Round, approximate};
use super::pipeline::{Bridge, Configured, Pipeline, Setup};
use super::rig::{Broker, Process, Rig};
use super::stretch::Stretch;
use super::traffic::{self, arriving, emptied};

/// Runs a round.
pub async fn round(rig: &Rig, args: &BenchArgs, turn: Turn) -> Result<Round, String> {
    let mut setup = Setup::of(&args.run);
    if let Some(window) = args.window {
        setup = setup.with("OUTBOUND__PEER_WINDOW", window);
    }
    let measured = count(args.messages);
    let warm = (measured / 5).max(1);
    let broker = rig.broker().await?;
    let (mut pipeline, mut round) = drained(rig, &broker, (turn, &setup), warm, measured).await?;

    let paced = args.rate.map_or(round.messages_per_s / 2.0, f64::from);
    // Other ids than the backlog's: the time in them is later.
    traffic::another_time().await;
    let drafts = traffic::write(&rig.speech, 0..traffic::paced_count(paced, measured))?;
    let latency = traffic::paced(rig, &broker, &mut pipeline, paced, &drafts).await?;
    if turn == Turn::Ours {
        traffic::in_order(rig.far).await?;
    }
    (round.p50_ms, round.p99_ms) = (latency.p50_ms, latency.p99_ms);
    round.peak_rss_bytes = pipeline.peak_rss();
    pipeline.stop().await?;
    broker.stop().await;
    Ok(round)
}

/// Starts the program on a backlog of `warm` and `measured` messages and waits until all have come;
/// answers it, still running, with its rate and CPU time.
pub async fn drained(
    rig: &Rig,
    broker: &Broker,
    (turn, setup): (Turn, &Setup),
    warm: usize,
    measured: usize,
) -> Result<(Pipeline, Round), String> {
    let backlog = warm + measured;
    let drafts = traffic::write(&rig.speech, 0..backlog)?;
    let ready = prepare(rig, setup, broker, turn).await?;
    traffic::publish(rig, broker, &drafts).await?;
    drop(drafts);
    rig.far.expect(backlog).await?;
    let mut pipeline = start(rig, broker, ready).await?;
    let pid = pipeline.id()?;

    let used = || rig.cpu(broker, pid);
    let mut stretch = Stretch::new(warm, backlog, used());
    arriving(rig.far, &mut pipeline, backlog, |n| stretch.look(n, used)).await?;
    emptied(broker, &mut pipeline).await?;
    let (seconds, ended_cpu) = (stretch.seconds(), used());
    if turn == Turn::Ours {
        traffic::in_order(rig.far).await?;
    }
    let counted = stretch.counted();
    let round = Round {
        messages_per_s: approximate(counted as u64) / seconds,
        cpu_us: ended_cpu.since(stretch.before(), counted),
        ..Round::default()
    };
    Ok((pipeline, round))
}

/// What is started once the backlog is in the stream.
enum Ready {
    Ours(Configured),
    Bare(PathBuf),
}

/// Configures it; where peers must be made known first, that is done before anything is sent to them.
async fn prepare(rig: &Rig, setup: &Setup, broker: &Broker, turn: Turn) -> Result<Ready, String> {
    if turn == Turn::Bare {
        return Ok(Ready::Bare(rig.fresh_dir("pipeline")?));
    }
    Ok(Ready::Ours(introduced(rig, setup, broker).await?))
}

/// A bridge in an empty directory that knows its peers.
pub async fn introduced(rig: &Rig, setup: &Setup, broker: &Broker) -> Result<Configured, String> {
    let dir = rig.fresh_dir("pipeline")?;
    let configured = Bridge::configure(&dir, &broker.url(), rig, setup)?;
    if rig.speech.needs_introduction() {
        let mut bridge = configured.spawn()?;
        bridge.ready().await?;
        rig.speech.introduce(&bridge, broker).await?;
        bridge.stop().await?;
    }
    Ok(configured)
}

async fn start(rig: &Rig, broker: &Broker, ready: Ready) -> Result<Pipeline, String> {
    match ready {
        Ready::Ours(configured) => Ok(Pipeline::Ours(configured.spawn()?)),
        Ready::Bare(dir) => {
            let far = rig.far.peers.to_string();
            let more = ["--nats".to_owned(), broker.url(), "--far".to_owned(), far];
            let arguments = [rig.arguments.clone(), more.to_vec()].concat();
            let log = dir.join("bare.log");
            let process = Process::start(&["bench", "bare-out"], &arguments, &log).await?;
            Ok(Pipeline::Bare(process))
        }
    }
}
