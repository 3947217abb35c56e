//! One round of `bench out`.
//!
//! The backlog is in the stream before the program under test starts, so that publishing costs the
//! measured time nothing. The clock runs from the end of the warm-up until every message has come
//! *and* the stream is empty: acknowledged, which for the bridge means durable in its ledger. Then,
//! idle again, messages are published at a steady rate, and each one's way to its peer is timed.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::far::{FarSide, now_ns};
use super::figures::{Round, approximate, percentile};
use super::pipeline::{Bridge, Configured, Pipeline};
use super::rig::{Broker, Process, Rig};
use super::speech::Draft;
use super::{BenchArgs, Turn, progress};
use crate::bus::subject::token;
use crate::bus::{BusError, BusMessage};
use crate::clock::Clock;

/// No arrival for this long: something is broken.
const STALLED: Duration = Duration::from_secs(30);
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How long latency is measured, seconds, at most.
const PACED_S: f64 = 3.0;
/// Smallest number of messages whose latency is measured.
const PACED_MIN: usize = 100;

/// Runs it.
pub async fn round(rig: &Rig, args: &BenchArgs, turn: Turn) -> Result<Round, String> {
    let measured = usize::try_from(args.messages).unwrap_or(usize::MAX);
    let warm = (measured / 5).max(1);
    let backlog = warm + measured;
    let drafts = write(rig, backlog)?;
    let broker = rig.broker().await?;
    let ready = prepare(rig, args, &broker, turn).await?;
    publish(rig, &broker, &drafts).await?;
    rig.far.expect(backlog).await?;
    let mut pipeline = start(rig, &broker, ready).await?;
    let pid = pipeline.id()?;

    let began = arrived(rig.far, &mut pipeline, warm).await?;
    let (begun_at, begun_cpu) = (Instant::now(), rig.cpu(&broker, pid));
    arrived(rig.far, &mut pipeline, backlog).await?;
    emptied(&broker, &mut pipeline).await?;
    let (took, ended_cpu) = (begun_at.elapsed(), rig.cpu(&broker, pid));
    let counted = backlog - began;
    let rate = approximate(counted as u64) / took.as_secs_f64();

    let paced = args.rate.map_or(rate / 2.0, f64::from);
    let (p50, p99) = latency(rig, &broker, &mut pipeline, paced, measured).await?;
    let peak_rss_bytes = pipeline.peak_rss();
    pipeline.stop().await?;
    broker.stop().await;
    Ok(Round {
        messages_per_s: rate,
        p50_ms: approximate(p50) / 1e6,
        p99_ms: approximate(p99) / 1e6,
        cpu_us: ended_cpu.since(&begun_cpu, counted),
        peak_rss_bytes,
    })
}

/// What is started once the backlog is in the stream.
enum Ready {
    Ours(Configured),
    Bare(PathBuf),
}

/// Configures it; where peers must be made known first, that is done before anything is sent to them.
async fn prepare(
    rig: &Rig,
    args: &BenchArgs,
    broker: &Broker,
    turn: Turn,
) -> Result<Ready, String> {
    let dir = rig.fresh_dir("pipeline")?;
    if turn == Turn::Bare {
        return Ok(Ready::Bare(dir));
    }
    let configured = Bridge::configure(&dir, &broker.url(), rig, true, &args.log)?;
    if rig.speech.needs_introduction() {
        let mut bridge = configured.spawn()?;
        bridge.ready().await?;
        rig.speech.introduce(&bridge, broker).await?;
        bridge.stop().await?;
    }
    Ok(Ready::Ours(configured))
}

async fn start(rig: &Rig, broker: &Broker, ready: Ready) -> Result<Pipeline, String> {
    match ready {
        Ready::Ours(configured) => Ok(Pipeline::Ours(configured.spawn()?)),
        Ready::Bare(dir) => {
            let far = rig.far.0.to_string();
            let more = ["--nats".to_owned(), broker.url(), "--far".to_owned(), far];
            let arguments = [rig.arguments.clone(), more.to_vec()].concat();
            let log = dir.join("bare.log");
            let process = Process::start(&["bench", "bare-out"], &arguments, &log).await?;
            Ok(Pipeline::Bare(process))
        }
    }
}

/// Messages 0 to `count`, made on two threads.
fn write(rig: &Rig, count: usize) -> Result<Vec<Draft>, String> {
    let now = Clock::system().now_ms();
    let half = count / 2;
    std::thread::scope(|scope| {
        let part = |range: std::ops::Range<usize>| {
            let speech = &rig.speech;
            scope.spawn(move || {
                range
                    .map(|n| speech.draft(n, now))
                    .collect::<Result<Vec<_>, _>>()
            })
        };
        let (first, second) = (part(0..half), part(half..count));
        let ended = || "a thread that signs ended abnormally".to_owned();
        let mut all = first.join().map_err(|_| ended())??;
        all.extend(second.join().map_err(|_| ended())??);
        Ok(all)
    })
}

fn message(rig: &Rig, draft: &Draft) -> BusMessage {
    let (peer, protocol) = (rig.speech.peer(draft.peer), rig.protocol);
    BusMessage {
        subject: format!("fed.out.{protocol}.{}.{}", token(&peer), token(draft.kind)),
        headers: vec![("Nats-Msg-Id".to_owned(), draft.id.clone())],
        payload: draft.payload.clone(),
        stream: "FED_OUT",
    }
}

type Ack = BoxFuture<'static, Result<(u64, bool), BusError>>;

/// Publishes all, with a window in flight.
async fn publish(rig: &Rig, broker: &Broker, drafts: &[Draft]) -> Result<(), String> {
    let mut acks: FuturesUnordered<Ack> = FuturesUnordered::new();
    for draft in drafts {
        let mut handing = std::pin::pin!(broker.bus.publish_windowed(message(rig, draft)));
        let ack = loop {
            tokio::select! {
                biased;
                handed = &mut handing => break handed,
                Some(done) = acks.next(), if !acks.is_empty() => { done.map_err(|e| e.to_string())?; }
            }
        };
        acks.push(ack.map_err(|e| e.to_string())?);
    }
    while let Some(done) = acks.next().await {
        done.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Waits until `wanted` messages have come to the peers; answers how many have.
async fn arrived(far: FarSide, pipeline: &mut Pipeline, wanted: usize) -> Result<usize, String> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let seen = far.seen().await?;
        if seen.wrong > 0 {
            return Err(format!("{} deliveries were wrong", seen.wrong));
        }
        if seen.seen >= wanted {
            if seen.again > 0 {
                // Legal (at least once), but it costs, so it should be known.
                progress(&format!("{} deliveries were repeated", seen.again));
            }
            return Ok(seen.seen);
        }
        if seen.seen > last {
            (last, moved) = (seen.seen, Instant::now());
        }
        if moved.elapsed() > STALLED {
            return Err(format!(
                "nothing came for {} s; {last} of {wanted} are there",
                STALLED.as_secs()
            ));
        }
        pipeline.alive()?;
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until every message is acknowledged.
async fn emptied(broker: &Broker, pipeline: &mut Pipeline) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let left = broker.messages("FED_OUT").await?;
        if left == 0 {
            return Ok(());
        }
        if begun.elapsed() > STALLED {
            return Err(format!(
                "{left} messages are delivered but not acknowledged"
            ));
        }
        pipeline.alive()?;
        tokio::time::sleep(LOOK).await;
    }
}

/// Publishes at a steady rate; answers the median and the 99th percentile from publish to arrival,
/// nanoseconds.
async fn latency(
    rig: &Rig,
    broker: &Broker,
    pipeline: &mut Pipeline,
    rate: f64,
    at_most: usize,
) -> Result<(u64, u64), String> {
    let wanted = (rate * PACED_S).round();
    // A float above every integer saturates; none is negative.
    let count = (wanted as usize).clamp(PACED_MIN.min(at_most), at_most.max(1));
    // Other ids than the backlog's: the time in them is later.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let drafts = write(rig, count)?;
    rig.far.expect(count).await?;
    let mut sent = Vec::with_capacity(count);
    let mut acks: FuturesUnordered<Ack> = FuturesUnordered::new();
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    while sent.len() < count {
        tokio::select! {
            Some(done) = acks.next(), if !acks.is_empty() => { done.map_err(|e| e.to_string())?; }
            _ = tick.tick() => {
                let due = ((begun.elapsed().as_secs_f64() * rate) as usize).min(count);
                for draft in drafts.get(sent.len()..due).unwrap_or_default() {
                    let message = message(rig, draft);
                    sent.push(now_ns());
                    acks.push(broker.bus.publish_windowed(message).await.map_err(|e| e.to_string())?);
                }
            }
        }
    }
    while let Some(done) = acks.next().await {
        done.map_err(|e| e.to_string())?;
    }
    arrived(rig.far, pipeline, count).await?;
    let came = rig.far.arrivals().await?;
    let mut times: Vec<u64> = came
        .iter()
        .zip(&sent)
        .map(|(came, sent)| came.saturating_sub(*sent))
        .collect();
    Ok((percentile(&mut times, 0.50), percentile(&mut times, 0.99)))
}
