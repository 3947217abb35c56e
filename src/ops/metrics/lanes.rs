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
    states: Family<ByState, Gauge>,
    probes: Family<ByProtocolId, Counter>,
    stranded: Family<ByProtocol, Gauge>,
}

impl Lanes {
    pub fn new(r: &mut Registry) -> Self {
        Self {
            states: added(
                r,
                "lanes_by_state",
                "Lanes in memory, by the state of their peer",
                Family::default(),
            ),
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

impl LaneState {
    fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::BackingOff => "backing_off",
            Self::Open => "open",
            Self::Paused => "paused",
        }
    }
}

/// A lane came (`from` is `None`), changed its state, or went (`to` is `None`).
pub fn lane_state(from: Option<LaneState>, to: Option<LaneState>) {
    let add = |state: Option<LaneState>, n: i64| {
        if let Some(state) = state.map(LaneState::name) {
            let label = ByState { state };
            METRICS.lanes.states.get_or_create(&label).inc_by(n);
        }
    };
    add(from, -1);
    add(to, 1);
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
