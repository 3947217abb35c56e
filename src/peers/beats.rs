//! Beats: what a protocol does with each of its peers now and then (heartbeats, polling).
//!
//! One task for each protocol that beats. A peer has its own time, spread over the interval; its beats
//! never overlap, and no more peers are in hand at once than the protocol allows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::random_share;
use crate::ops::defect;
use crate::protocol::{Beats, PeerName, Protocol};

/// How often it is looked who is due; shorter where the interval is.
const LOOK: Duration = Duration::from_millis(500);
/// A beat that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(60);
/// Share of the interval by which a beat comes earlier or later, at most.
const JITTER: f64 = 0.2;

/// Beats for a protocol until `stop`; at once over for one that does not beat.
pub async fn run(protocol: Arc<dyn Protocol>, stop: CancellationToken) {
    let Some(beats) = protocol.beats().filter(|_| protocol.enabled()) else {
        return;
    };
    let mut rota = Rota::default();
    let mut running: JoinSet<PeerName> = JoinSet::new();
    let mut look = tokio::time::interval(LOOK.min(beats.every / 4).max(Duration::from_millis(10)));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = running.join_next(), if !running.is_empty() => {
                // Its place goes to the next one at once.
                if let Ok(peer) = ended {
                    rota.ended(&peer, Instant::now(), &beats, random_share());
                }
            }
            _ = look.tick() => rota.follow(protocol.beating(), Instant::now(), &beats),
        }
        let room = beats.at_once.saturating_sub(running.len());
        for peer in rota.due(Instant::now(), room) {
            let protocol = protocol.clone();
            running.spawn(async move {
                let beat = defect::contained(protocol.beat(&peer));
                match tokio::time::timeout(LIMIT, beat).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => {
                        tracing::error!(protocol = protocol.id(), peer = %peer, "a beat ended in a defect of the bridge");
                    }
                    Err(_) => {
                        tracing::warn!(protocol = protocol.id(), peer = %peer, "a beat took too long and was given up");
                    }
                }
                peer
            });
        }
    }
    running.shutdown().await;
}

/// Who is due when: plain state, told the time.
#[derive(Default)]
struct Rota(HashMap<PeerName, Turn>);

struct Turn {
    due: Instant,
    running: bool,
    /// The protocol still names it.
    kept: bool,
}

impl Rota {
    /// Takes up new peers, spread over a quarter of the interval, and lets go of those that are no
    /// longer named.
    fn follow(&mut self, peers: Vec<PeerName>, now: Instant, beats: &Beats) {
        for turn in self.0.values_mut() {
            turn.kept = false;
        }
        for peer in peers {
            let turn = self.0.entry(peer).or_insert_with(|| Turn {
                due: now + beats.every.mul_f64(0.25 * random_share()),
                running: false,
                kept: true,
            });
            turn.kept = true;
        }
        self.0.retain(|_, turn| turn.kept || turn.running);
    }

    /// Those whose turn it is, the longest due first, at most `room`; they count as running.
    fn due(&mut self, now: Instant, room: usize) -> Vec<PeerName> {
        let is_due = |turn: &Turn| turn.kept && !turn.running && turn.due <= now;
        let mut due: Vec<(Instant, PeerName)> = self
            .0
            .iter()
            .filter(|(_, turn)| is_due(turn))
            .map(|(peer, turn)| (turn.due, peer.clone()))
            .collect();
        due.sort_unstable();
        due.truncate(room);
        for (_, peer) in &due {
            if let Some(turn) = self.0.get_mut(peer) {
                turn.running = true;
            }
        }
        due.into_iter().map(|(_, peer)| peer).collect()
    }

    /// A beat is over; `share` from 0 to 1 places the next one.
    fn ended(&mut self, peer: &PeerName, now: Instant, beats: &Beats, share: f64) {
        if let Some(turn) = self.0.get_mut(peer) {
            turn.running = false;
            turn.due = now + beats.every.mul_f64(1.0 - JITTER + 2.0 * JITTER * share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEATS: Beats = Beats {
        every: Duration::from_secs(15),
        at_once: 2,
    };

    fn names(range: std::ops::Range<u32>) -> Vec<PeerName> {
        range
            .map(|n| PeerName::parse(&format!("p{n}.example")).unwrap())
            .collect()
    }

    #[test]
    fn a_peer_is_never_beaten_for_twice_at_once_and_again_an_interval_later() {
        let (mut rota, start) = (Rota::default(), Instant::now());
        rota.follow(names(0..1), start, &BEATS);
        let soon = start + BEATS.every / 4;
        assert_eq!(rota.due(soon, 9).len(), 1);
        assert!(rota.due(soon, 9).is_empty(), "it is in hand");
        rota.ended(&names(0..1)[0], soon, &BEATS, 0.0);
        assert!(rota.due(soon + BEATS.every.mul_f64(0.79), 9).is_empty());
        assert_eq!(rota.due(soon + BEATS.every.mul_f64(0.81), 9).len(), 1);
    }

    #[test]
    fn no_more_are_taken_than_there_is_room_for_and_nobody_is_passed_over_for_ever() {
        let (mut rota, start) = (Rota::default(), Instant::now());
        rota.follow(names(0..5), start, &BEATS);
        let now = start + BEATS.every;
        let mut met = std::collections::HashSet::new();
        for _ in 0..3 {
            let due = rota.due(now, 2);
            assert!(due.len() <= 2);
            for peer in due {
                rota.ended(&peer, now, &BEATS, 0.5);
                met.insert(peer);
            }
        }
        assert_eq!(met.len(), 5);
    }

    #[test]
    fn a_peer_that_is_gone_gets_no_beat() {
        let (mut rota, start) = (Rota::default(), Instant::now());
        rota.follow(names(0..2), start, &BEATS);
        rota.follow(names(1..2), start, &BEATS);
        assert_eq!(rota.due(start + BEATS.every, 9), names(1..2));
    }
}
