//! Lanes: the state of their peers, attempts before their time, rows that no lane takes.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::METRICS;
use super::labels::{ByProtocol, ByProtocolId, Registry, added, gauge_value};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

pub(super) struct Lanes {
    states: [Gauge; 4],
    probes: Family<ByProtocolId, Counter>,
    stranded: Family<ByProtocol, Gauge>,
}

impl Lanes {
    pub fn new(r: &mut Registry) -> Self {
        let states: Family<ByState, Gauge> = added(
            r,
            "lanes_by_state",
            "Lanes in memory, by the state of their peer",
            Family::default(),
        );
        Self {
            states: ["healthy", "backing_off", "open", "paused"]
                .map(|state| states.get_or_create(&ByState { state }).clone()),
            probes: added(
                r,
                "probes",
                "Attempts before a message's own time, to find out whether its peer is back",
                Family::default(),
            ),
            stranded: added(
                r,
                "queue_stranded",
                "Rows found at start that no lane attempts: protocol off, or no name of a peer",
                Family::default(),
            ),
        }
    }
}

/// The state of a lane's peer, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    Healthy,
    BackingOff,
    Open,
    Paused,
}

/// A lane came (`from` is `None`), changed its state, or went (`to` is `None`).
pub fn lane_state(from: Option<LaneState>, to: Option<LaneState>) {
    let [healthy, backing_off, open, paused] = &METRICS.lanes.states;
    let add = |state: LaneState, n: i64| {
        let gauge = match state {
            LaneState::Healthy => healthy,
            LaneState::BackingOff => backing_off,
            LaneState::Open => open,
            LaneState::Paused => paused,
        };
        gauge.inc_by(n);
    };
    if let Some(from) = from {
        add(from, -1);
    }
    if let Some(to) = to {
        add(to, 1);
    }
}

/// A row was tried before its own time.
pub fn probe(protocol: &'static str) {
    let label = ByProtocolId { protocol };
    METRICS.lanes.probes.get_or_create(&label).inc();
}

/// Sets how many rows of a protocol no lane attempts.
pub fn queue_stranded(protocol: &str, rows: u64) {
    let label = ByProtocol {
        protocol: protocol.to_owned(),
    };
    let gauge = METRICS.lanes.stranded.get_or_create(&label);
    gauge.set(gauge_value(rows));
}
