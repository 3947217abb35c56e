//! One round of `bench in`: signed requests are posted over connections that have one in hand each,
//! first as a warm-up, then measured from request to answer.

use super::figures::{Round, approximate};
use super::load::{Done, Load};
use super::pipeline::{Bridge, Pipeline};
use super::rig::{Broker, Process, Rig};
use super::{BenchArgs, Turn};

/// Runs it.
pub async fn round(rig: &Rig, args: &BenchArgs, turn: Turn) -> Result<Round, String> {
    let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let measured = size(args.messages);
    let warm = (measured / 5).max(1);
    let broker = rig.broker().await?;
    let (mut pipeline, to) = start(rig, args, &broker, turn).await?;
    rig.far.prepare(warm + measured).await?;
    let load = |first, count| Load {
        to,
        first,
        count,
        connections: size(args.connections),
    };
    taken(&rig.far.load(&load(0, warm)).await?, warm)?;
    let pid = pipeline.id()?;
    let begun = rig.cpu(&broker, pid);
    let done = rig.far.load(&load(warm, measured)).await?;
    let ended = rig.cpu(&broker, pid);
    taken(&done, measured)?;
    pipeline.alive()?;
    let stored = broker.messages("FED_IN").await?;
    if stored != (warm + measured) as u64 {
        return Err(format!(
            "{} events were accepted, {stored} are on FED_IN",
            warm + measured
        ));
    }
    let peak_rss_bytes = pipeline.peak_rss();
    pipeline.stop().await?;
    broker.stop().await;
    let seconds = approximate(done.elapsed_ns) / 1e9;
    Ok(Round {
        messages_per_s: approximate(measured as u64) / seconds.max(f64::MIN_POSITIVE),
        p50_ms: approximate(done.p50_ns) / 1e6,
        p99_ms: approximate(done.p99_ns) / 1e6,
        cpu_us: ended.since(&begun, measured),
        peak_rss_bytes,
    })
}

fn taken(done: &Done, wanted: usize) -> Result<(), String> {
    if done.delivered == wanted {
        return Ok(());
    }
    Err(format!(
        "{} of {wanted} were delivered, {} were duplicates; first refusal: {}",
        done.delivered,
        done.duplicates,
        done.refused.as_deref().unwrap_or("none")
    ))
}

async fn start(
    rig: &Rig,
    args: &BenchArgs,
    broker: &Broker,
    turn: Turn,
) -> Result<(Pipeline, std::net::SocketAddr), String> {
    let dir = rig.fresh_dir("pipeline")?;
    match turn {
        Turn::Ours => {
            let configured = Bridge::configure(&dir, &broker.url(), rig, true, &args.log)?;
            let mut bridge = configured.spawn()?;
            bridge.ready().await?;
            rig.speech.introduce(&bridge, broker).await?;
            let to = bridge.public;
            Ok((Pipeline::Ours(bridge), to))
        }
        Turn::Bare => {
            let more = ["--nats".to_owned(), broker.url()];
            let arguments = [rig.arguments.clone(), more.to_vec()].concat();
            let process =
                Process::start(&["bench", "bare-in"], &arguments, &dir.join("bare.log")).await?;
            let to = process.address()?;
            Ok((Pipeline::Bare(process), to))
        }
    }
}
