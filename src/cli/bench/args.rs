//! Arguments that the scenarios of the bench share.

use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::speech::{Speech, Spoken};
use super::world::World;

/// How a bench runs.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Messages measured in a round, after a warm-up of a fifth as many.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(10..=10_000_000))]
    pub messages: u32,
    #[command(flatten)]
    pub world: WorldArgs,
    /// Run another program in turns with the bridge and print the ratio.
    #[arg(long, value_enum)]
    pub compare: Option<Compare>,
    #[command(flatten)]
    pub run: RunArgs,
    /// `in`, `forged`: connections, each with one request in hand.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub connections: u32,
    /// `out`, `hot`, `peers`: messages a second while latency is measured. Default: half of what was
    /// reached.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// `out`, `hot`, `peers`: attempts in flight to one peer, at most. Default: the bridge's own; `hot`: 64.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: Option<u32>,
}

/// How often, under which broker, and how the figures are printed.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Rounds of each side, taken in turns; the medians are printed. Default: 3 where two sides are
    /// compared, else 1.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// When the broker writes to disk: `default` is nats-server's own (every 2 minutes), `always`
    /// before each acknowledgement.
    #[arg(long, value_enum, default_value_t = Sync::Default)]
    pub sync: Sync,
    /// The bridge's log level, written to a file.
    #[arg(long, default_value = "info")]
    pub log: String,
    /// A setting of the bridge as its environment has it (`OUTBOUND__SHARDS=1`); repeat it for more.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if name.contains("__") => Ok((name.to_owned(), value.to_owned())),
        _ => Err("as in OUTBOUND__SHARDS=1: SECTION__KEY=VALUE".to_owned()),
    }
}

/// What the messages are.
#[derive(Clone, Debug, Args)]
pub struct WorldArgs {
    /// Over which protocol.
    #[arg(long, value_enum, default_value_t = Spoken::Uam)]
    pub protocol: Spoken,
    /// Bytes of a message (its other fields need about 500).
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub size: u32,
    /// Peers, each with its own key or secret, and 32 people.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub peers: u32,
    /// Peers that messages are exchanged with; the others are only known. Default: all.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub active: Option<u32>,
    /// Keys and contents follow from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the peers listen: the bench tells its processes.
    #[arg(long, default_value_t = 0, hide = true)]
    pub port: u16,
}

/// What to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compare {
    /// The fastest pipeline without our rules.
    Bare,
}

/// When the broker writes to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sync {
    Default,
    Always,
}

impl Sync {
    /// nats-server's `sync_interval`.
    pub fn interval(self) -> &'static str {
        match self {
            Self::Default => "2m",
            Self::Always => "always",
        }
    }

    /// For a scenario's line.
    pub fn words(self) -> &'static str {
        match self {
            Self::Default => "broker's default sync",
            Self::Always => "broker syncs always",
        }
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Ours,
    Bare,
}

impl RunArgs {
    /// Rounds of a scenario with this many sides.
    pub fn rounds(&self, sides: usize) -> u32 {
        self.rounds.unwrap_or(if sides > 1 { 3 } else { 1 })
    }
}

impl WorldArgs {
    /// Peers of a scenario that speaks UAM to so many, with messages to the first `active`.
    pub fn uam(peers: u32, active: u32, size: u32, seed: u64) -> Self {
        Self {
            protocol: Spoken::Uam,
            size,
            peers,
            active: Some(active),
            seed,
            port: 0,
        }
    }

    /// With peers that listen there.
    pub fn at(&self, port: u16) -> Self {
        Self {
            port,
            ..self.clone()
        }
    }

    /// Peers that messages are exchanged with.
    pub fn active(&self) -> u32 {
        self.active.unwrap_or(self.peers).min(self.peers)
    }

    /// Its messages, to and from the active peers.
    pub fn speech(&self) -> Result<Arc<dyn Speech>, String> {
        self.protocol.speech(self.world())
    }

    /// The same world, with messages for the peers that are not active.
    pub fn others(&self) -> Result<Arc<dyn Speech>, String> {
        let world = self.world();
        let first = world.active;
        let rest = world.peers.saturating_sub(first);
        self.protocol.speech(world.among(first, rest))
    }

    /// The world as its messages are made: to and from the active peers.
    pub fn world(&self) -> World {
        let (peers, size) = (count(self.peers), count(self.size));
        let world = World::new(self.seed, peers, size, self.port);
        world.among(0, count(self.active()))
    }

    /// The same as arguments for a process of the bench.
    pub fn arguments(&self) -> Vec<String> {
        let pairs = [
            ("--protocol", self.protocol.id().to_owned()),
            ("--size", self.size.to_string()),
            ("--peers", self.peers.to_string()),
            ("--active", self.active().to_string()),
            ("--seed", self.seed.to_string()),
            ("--port", self.port.to_string()),
        ];
        pairs
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }
}

/// A number of an argument as a count.
pub fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
