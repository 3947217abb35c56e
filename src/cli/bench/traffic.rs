//! Messages of our backend: made, published, and followed until they have come and are acknowledged.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::far::{FarSide, now_ns};
use super::figures::percentile;
use super::pipeline::Pipeline;
use super::progress;
use super::rig::{Broker, Rig};
use super::speech::{Draft, Speech};
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
/// Messages for sick peers are numbered from here on: the far side counts none of them.
pub const UNCOUNTED: usize = 1 << 32;

/// Messages of a range, made on two threads.
pub fn write(
    speech: &Arc<dyn Speech>,
    range: std::ops::Range<usize>,
) -> Result<Vec<Draft>, String> {
    let now = Clock::system().now_ms();
    let half = range.start + range.len() / 2;
    std::thread::scope(|scope| {
        let part = |range: std::ops::Range<usize>| {
            scope.spawn(move || {
                range
                    .map(|n| speech.draft(n, now))
                    .collect::<Result<Vec<_>, _>>()
            })
        };
        let (first, second) = (part(range.start..half), part(half..range.end));
        let ended = || "a thread that signs ended abnormally".to_owned();
        let mut all = first.join().map_err(|_| ended())??;
        all.extend(second.join().map_err(|_| ended())??);
        Ok(all)
    })
}

/// The drafts of `some` spread evenly among those of `most`.
pub fn mixed(most: Vec<Draft>, some: Vec<Draft>) -> Vec<Draft> {
    let (many, few) = (most.len().max(1), some.len());
    let mut all = Vec::with_capacity(many + few);
    let mut some = some.into_iter();
    let mut given = 0;
    for (n, draft) in most.into_iter().enumerate() {
        all.push(draft);
        let due = (n + 1) * few / many;
        all.extend(some.by_ref().take(due - given));
        given = due;
    }
    all.extend(some);
    all
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

/// Publishes one in the window; acknowledgements are taken meanwhile, for they make room in it.
async fn hand_over(
    broker: &Broker,
    message: BusMessage,
    acks: &mut FuturesUnordered<Ack>,
) -> Result<(), String> {
    let mut handing = std::pin::pin!(broker.bus.publish_windowed(message));
    let ack = loop {
        tokio::select! {
            biased;
            handed = &mut handing => break handed,
            Some(done) = acks.next(), if !acks.is_empty() => { done.map_err(|e| e.to_string())?; }
        }
    };
    acks.push(ack.map_err(|e| e.to_string())?);
    Ok(())
}

/// Publishes all, with a window in flight.
pub async fn publish(rig: &Rig, broker: &Broker, drafts: &[Draft]) -> Result<(), String> {
    let mut acks: FuturesUnordered<Ack> = FuturesUnordered::new();
    for draft in drafts {
        hand_over(broker, message(rig, draft), &mut acks).await?;
    }
    while let Some(done) = acks.next().await {
        done.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Waits until `wanted` messages have come to the peers.
pub async fn arrived(far: FarSide, pipeline: &mut Pipeline, wanted: usize) -> Result<(), String> {
    arriving(far, pipeline, wanted, |_| ()).await
}

/// The same; tells at each look how many have come.
pub async fn arriving(
    far: FarSide,
    pipeline: &mut Pipeline,
    wanted: usize,
    mut look: impl FnMut(usize),
) -> Result<(), String> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let seen = far.seen().await?;
        look(seen.seen);
        if seen.wrong > 0 {
            return Err(format!("{} deliveries were wrong", seen.wrong));
        }
        if seen.seen >= wanted {
            if seen.again > 0 {
                // Legal (at least once), but it costs, so it should be known.
                progress(&format!("{} deliveries were repeated", seen.again));
            }
            return Ok(());
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

/// Fails when a message came before the one ahead of it under its ordering key.
pub async fn in_order(far: FarSide) -> Result<(), String> {
    match far.seen().await?.early {
        0 => Ok(()),
        n => Err(format!("{n} messages came before their turn")),
    }
}

/// Waits until every message is acknowledged.
pub async fn emptied(broker: &Broker, pipeline: &mut Pipeline) -> Result<(), String> {
    emptying(broker, pipeline, |_| ()).await
}

/// The same; tells at each look how many are left.
pub async fn emptying(
    broker: &Broker,
    pipeline: &mut Pipeline,
    mut look: impl FnMut(u64),
) -> Result<(), String> {
    let (mut last, mut moved) = (u64::MAX, Instant::now());
    loop {
        let now = broker.messages("FED_OUT").await?;
        look(now);
        if now == 0 {
            return Ok(());
        }
        if now < last {
            (last, moved) = (now, Instant::now());
        }
        if moved.elapsed() > STALLED {
            return Err(format!("{now} messages are not acknowledged"));
        }
        pipeline.alive()?;
        tokio::time::sleep(LOOK).await;
    }
}

/// How many messages are published at that rate to measure latency.
pub fn paced_count(rate: f64, at_most: usize) -> usize {
    // A float above every integer saturates; none is negative.
    let wanted = (rate * PACED_S).round() as usize;
    wanted.clamp(PACED_MIN.min(at_most), at_most.max(1))
}

/// Median and 99th percentile from publish to arrival, milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Publishes these at so many a second in all; answers the latency of those that are counted, which
/// are numbered from 0.
pub async fn paced(
    rig: &Rig,
    broker: &Broker,
    pipeline: &mut Pipeline,
    rate: f64,
    drafts: &[Draft],
) -> Result<Latency, String> {
    let counted = drafts.iter().filter(|d| d.index < UNCOUNTED).count();
    rig.far.expect(counted).await?;
    let mut sent = vec![0u64; counted];
    publish_paced(rig, broker, rate, drafts, |index| {
        if let Some(at) = sent.get_mut(index) {
            *at = now_ns();
        }
    })
    .await?;
    arrived(rig.far, pipeline, counted).await?;
    let came = rig.far.arrivals().await?;
    let times = came
        .iter()
        .zip(&sent)
        .map(|(came, sent)| came.saturating_sub(*sent));
    let mut times: Vec<u64> = times.collect();
    Ok(Latency {
        p50_ms: super::figures::approximate(percentile(&mut times, 0.50)) / 1e6,
        p99_ms: super::figures::approximate(percentile(&mut times, 0.99)) / 1e6,
    })
}

/// Publishes these at so many a second; tells each one's number just before.
pub async fn publish_paced(
    rig: &Rig,
    broker: &Broker,
    rate: f64,
    drafts: &[Draft],
    mut sending: impl FnMut(usize),
) -> Result<(), String> {
    let mut done = 0;
    let mut acks: FuturesUnordered<Ack> = FuturesUnordered::new();
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    while done < drafts.len() {
        tokio::select! {
            Some(done) = acks.next(), if !acks.is_empty() => { done.map_err(|e| e.to_string())?; }
            _ = tick.tick() => {
                let due = ((begun.elapsed().as_secs_f64() * rate) as usize).min(drafts.len());
                for draft in drafts.get(done..due).unwrap_or_default() {
                    let message = message(rig, draft);
                    sending(draft.index);
                    hand_over(broker, message, &mut acks).await?;
                }
                done = due.max(done);
            }
        }
    }
    while let Some(done) = acks.next().await {
        done.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Ids hold the time in milliseconds: two lots of messages with the same numbers need two times.
pub async fn another_time() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_holds_all_and_spreads_the_few_among_the_many() {
        let drafts = |range: std::ops::Range<usize>| {
            range
                .map(|index| Draft {
                    index,
                    peer: 0,
                    kind: "message",
                    id: String::new(),
                    payload: bytes::Bytes::new(),
                })
                .collect::<Vec<_>>()
        };
        let order = |most: usize, some: usize| -> Vec<usize> {
            let all = mixed(drafts(0..most), drafts(100..100 + some));
            all.iter().map(|d| d.index).collect()
        };
        assert_eq!(order(4, 2), [0, 1, 100, 2, 3, 101]);
        assert_eq!(order(2, 4), [0, 100, 101, 1, 102, 103]);
        assert_eq!(order(3, 0), [0, 1, 2]);
        assert_eq!(order(0, 2), [100, 101]);
    }
}
