//! `bench in` and `bench forged`: requests are posted over connections that have one in hand each,
//! first as a warm-up, then measured from request to answer. All proven, and every event must be on
//! FED_IN; or all forged, and every one must be refused for its proof.

use super::args::{BenchArgs, Turn, count};
use super::figures::{Round, approximate};
use super::load::{Done, Load, Prepare};
use super::pipeline::{Bridge, Pipeline, Setup};
use super::rig::{Broker, Process, Rig};

/// Runs a round.
pub async fn round(rig: &Rig, args: &BenchArgs, forged: bool, turn: Turn) -> Result<Round, String> {
    let measured = count(args.messages);
    let warm = (measured / 5).max(1);
    let broker = rig.broker().await?;
    let (mut pipeline, to) = start(rig, args, &broker, turn).await?;
    let all = warm + measured;
    rig.far
        .prepare(Prepare {
            first: 0,
            count: all,
            forged,
        })
        .await?;
    let load = |first, count| Load {
        to,
        first,
        count,
        connections: super::args::count(args.connections),
        rate: None,
        stubborn: false,
    };
    answered(&rig.far.load(&load(0, warm)).await?, warm, forged)?;
    let pid = pipeline.id()?;
    let begun = rig.cpu(&broker, pid);
    let done = rig.far.load(&load(warm, measured)).await?;
    let ended = rig.cpu(&broker, pid);
    answered(&done, measured, forged)?;
    pipeline.alive()?;
    let stored = broker.messages("FED_IN").await?;
    let wanted = if forged { 0 } else { all as u64 };
    if stored != wanted {
        return Err(format!(
            "{wanted} events were accepted, {stored} are on FED_IN"
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

/// Fails unless every request was answered as it must be.
pub fn answered(done: &Done, wanted: usize, forged: bool) -> Result<(), String> {
    let (right, word) = match forged {
        false => (done.delivered, "delivered"),
        true => (done.unproven, "refused for their proof"),
    };
    if right == wanted {
        return Ok(());
    }
    Err(format!(
        "{right} of {wanted} were {word}, {} were duplicates; first refusal: {}",
        done.duplicates,
        done.refused.as_deref().unwrap_or("none")
    ))
}

/// A bridge that takes as much from one address and one peer as it can: the limits are not what is
/// measured.
pub fn setup(args: &super::args::RunArgs) -> Setup {
    ["UAM", "VOLTCHAT", "PARACORD"]
        .iter()
        .fold(Setup::of(args), |setup, protocol| {
            setup.with(&format!("{protocol}__UNPROVEN_PER_MINUTE"), 1_000_000)
        })
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
            let setup = setup(&args.run);
            let configured = Bridge::configure(&dir, &broker.url(), rig, &setup)?;
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
            let to = process.address("address")?;
            Ok((Pipeline::Bare(process), to))
        }
    }
}
