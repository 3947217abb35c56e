//! Deaths between two steps that follow at once, one at every arrow of both walks: the process is told
//! at its start where to end itself, and traffic brings it there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use drawbridge::faults::POINTS;

use crate::support::checker::{Fault, Who};
use crate::support::uam_client::now_ns;
use crate::world::World;

/// How long traffic may take to bring it there.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often each was tried, and reached.
#[derive(Default)]
pub struct Reached(BTreeMap<&'static str, (u32, u32)>);

impl Reached {
    fn note(&mut self, point: &'static str, reached: bool) {
        let counts = self.0.entry(point).or_default();
        counts.0 += 1;
        counts.1 += u32::from(reached);
    }

    /// Points that were tried and never reached: a name that is nowhere in the bridge, or traffic that
    /// does not pass there.
    pub fn never(&self) -> Vec<&'static str> {
        let never = self.0.iter().filter(|(_, counts)| counts.1 == 0);
        never.map(|(point, _)| *point).collect()
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let (tried, reached) = self
            .0
            .values()
            .fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
        format!(
            "ended at {reached} of {tried} named moments ({} different)",
            self.0.values().filter(|counts| counts.1 > 0).count()
        )
    }
}

impl World {
    /// Ends at all points in turn, or at every second one.
    pub async fn points(&mut self, share: Share) {
        let mut points: Vec<&'static str> = match share {
            Share::All => POINTS.to_vec(),
            Share::Even => POINTS.into_iter().step_by(2).collect(),
            Share::Odd => POINTS.into_iter().skip(1).step_by(2).collect(),
        };
        while !points.is_empty() {
            let at = self.rng.within(0, points.len() as u64);
            let point = points.swap_remove(usize::try_from(at).unwrap_or(0));
            let begun = now_ns();
            let mut reached = false;
            // Not reached: that moment had no traffic, the next one may.
            for _ in 0..3 {
                reached = self.end_at(point).await;
                if reached {
                    break;
                }
            }
            self.luck
                .push(format!("{point} {reached} {begun}..{}", now_ns()));
        }
        self.bridge.start().await;
    }

    /// Ends at a point that dice choose, and starts again.
    pub async fn some_point(&mut self) {
        let at = self.rng.within(0, POINTS.len() as u64);
        let point = POINTS[usize::try_from(at).unwrap_or(0)];
        let reached = self.end_at(point).await;
        self.luck.push(format!("{point} {reached}"));
        self.bridge.start().await;
    }

    /// Starts the bridge anew so that it ends itself there; whether it did. It is down afterwards.
    async fn end_at(&mut self, point: &'static str) -> bool {
        let most = match point {
            // Seldom passed: a fetch or a batch is one pass.
            "dead_told" | "mailbox_left" | "mailbox_noted" => 2,
            "in_marked" | "out_pulled" => 5,
            _ => 20,
        };
        let pass = self.rng.within(1, most);
        if self.bridge.pid().is_some() {
            self.kill(Who::Bridge);
        }
        let at = format!("{point}:{pass}");
        self.bridge.env("DRAWBRIDGE_CRASH_AT", &at);
        self.bridge.spawn();
        self.bridge.env("DRAWBRIDGE_CRASH_AT", "");
        let end = Instant::now() + PATIENCE;
        let mut from = now_ns();
        let reached = loop {
            if self.bridge.ended() {
                break true;
            }
            if Instant::now() > end {
                break false;
            }
            from = now_ns();
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        if reached {
            let (who, to) = (Who::Bridge, now_ns());
            self.history.faults.push(Fault { who, from, to });
            self.bridge.kill9();
        } else {
            self.kill(Who::Bridge);
        }
        self.reached.note(point, reached);
        reached
    }
}

/// Which points.
#[derive(Clone, Copy, Debug)]
pub enum Share {
    All,
    Even,
    Odd,
}
