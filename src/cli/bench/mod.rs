//! `drawbridge bench`: how fast this machine carries messages, and how close that is to what it could.
//!
//! Over any of the protocols ([`speech`]):
//!
//! | command | what is measured |
//! | --- | --- |
//! | `bench out` | FED_OUT → bridge → peers: a backlog drained, then publish → arrival at half that rate |
//! | `bench in` | peers → bridge → FED_IN: request → answer, over connections with one request in hand each |
//! | `bench start` | spawn → `/readyz`, and the size at rest |
//!
//! Nothing is pretended: the bridge is `drawbridge run` as a process of its own with its ledger on
//! disk, the broker a nats-server of its own, the peers a third process ([`far`]), the signatures
//! real. `--compare bare` runs [`bare_out`] or [`bare_in`] in turns with it in the same call, because
//! only figures of one sitting compare.
//!
//! The processes of a bench are this binary again, with hidden subcommands; they end when the pipe
//! to them closes.

mod ask;
mod bare_in;
mod bare_out;
mod far;
mod figures;
mod inbound;
mod load;
mod out;
mod pipeline;
mod rig;
mod speech;
mod start;
mod usage;
mod world;

use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};

use super::Outcome;
use figures::Figures;
use rig::Rig;
use speech::{Speech, Spoken};
use world::World;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Outbound: a backlog of signed messages is delivered to peers.
    Out(BenchArgs),
    /// Inbound: peers deliver signed messages.
    In(BenchArgs),
    /// Time from start to ready with an external NATS server, and memory at rest.
    Start(start::StartArgs),
    /// The process that plays the peers.
    #[command(hide = true)]
    Far(far::FarArgs),
    #[command(hide = true)]
    BareOut(bare_out::BareOutArgs),
    #[command(hide = true)]
    BareIn(bare_in::BareInArgs),
}

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
    /// Rounds of each; the medians are printed. Default: 3 with --compare, else 1.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// When the broker writes to disk: `default` is nats-server's own (every 2 minutes), `always`
    /// before each acknowledgement.
    #[arg(long, value_enum, default_value_t = Sync::Default)]
    pub sync: Sync,
    /// `in`: connections, each with one request in hand.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub connections: u32,
    /// `out`: messages a second while latency is measured. Default: half of what was reached.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// The bridge's log level, written to a file.
    #[arg(long, default_value = "info")]
    pub log: String,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
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
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub peers: u32,
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
    fn interval(self) -> &'static str {
        match self {
            Self::Default => "2m",
            Self::Always => "always",
        }
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Ours,
    Bare,
}

impl WorldArgs {
    /// With peers that listen there.
    fn at(&self, port: u16) -> Self {
        Self {
            port,
            ..self.clone()
        }
    }

    fn speech(&self) -> Result<Arc<dyn Speech>, String> {
        let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let world = World::new(self.seed, size(self.peers), size(self.size), self.port);
        self.protocol.speech(world)
    }

    /// The same as arguments for a process of the bench.
    fn arguments(&self) -> Vec<String> {
        let pairs = [
            ("--protocol", self.protocol.id().to_owned()),
            ("--size", self.size.to_string()),
            ("--peers", self.peers.to_string()),
            ("--seed", self.seed.to_string()),
            ("--port", self.port.to_string()),
        ];
        pairs
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }
}

/// Runs a bench.
pub async fn bench(command: BenchCommand) -> Outcome {
    let measured = async {
        match command {
            BenchCommand::Out(args) => rounds("out", args).await,
            BenchCommand::In(args) => rounds("in", args).await,
            BenchCommand::Start(args) => start::start(args).await,
            BenchCommand::Far(args) => far::far(args).await,
            BenchCommand::BareOut(args) => bare_out::bare_out(args).await,
            BenchCommand::BareIn(args) => bare_in::bare_in(args).await,
        }
    };
    tokio::select! {
        outcome = measured => outcome,
        _ = tokio::signal::ctrl_c() => Err("stopped".into()),
    }
}

/// The two programs in turns.
async fn rounds(way: &'static str, args: BenchArgs) -> Outcome {
    let rig = Rig::start(&args.world, args.sync.interval()).await?;
    let turns: &[Turn] = match args.compare {
        None => &[Turn::Ours],
        Some(Compare::Bare) => &[Turn::Bare, Turn::Ours],
    };
    let mut figures = Figures {
        scenario: scenario(way, &args),
        ..Figures::default()
    };
    let count = args.rounds.unwrap_or(if turns.len() > 1 { 3 } else { 1 });
    for n in 1..=count {
        for turn in turns {
            progress(&format!("{way}, round {n} of {count}: {turn:?} ..."));
            let round = match way {
                "out" => out::round(&rig, &args, *turn).await?,
                _ => inbound::round(&rig, &args, *turn).await?,
            };
            progress(&figures::line(&round));
            match turn {
                Turn::Ours => figures.ours.push(round),
                Turn::Bare => figures.bare.push(round),
            }
        }
    }
    if args.json {
        println!("{}", figures.json());
    } else {
        println!("{}", figures.text());
    }
    Ok(ExitCode::SUCCESS)
}

fn scenario(way: &str, args: &BenchArgs) -> String {
    let sync = match args.sync {
        Sync::Default => "broker's default sync",
        Sync::Always => "broker syncs always",
    };
    let WorldArgs { size, peers, .. } = args.world;
    let over = match args.world.protocol {
        Spoken::Uam => String::new(),
        other => format!(" over {}", other.id()),
    };
    let connections = match way {
        "in" => format!(", {} connections", args.connections),
        _ => String::new(),
    };
    format!(
        "{way}{over}: {} messages of {size} bytes, {peers} peers{connections}, {sync}",
        args.messages
    )
}

/// A line for the person who waits.
fn progress(line: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{line}");
    }
}

/// Threads of the programs we compare with: one a core, as many as the bridge takes by itself.
fn shards() -> usize {
    crate::outbound::shard_count(0)
}

/// Runs a future on a plain thread with a runtime of its own; what `make` makes need not be `Send`.
fn shard_thread<F: Future<Output = ()>>(
    make: impl FnOnce() -> F + Send + 'static,
) -> Result<(), String> {
    let told = |e: std::io::Error| format!("a thread of the bench cannot be started: {e}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(told)?;
    std::thread::Builder::new()
        .spawn(move || runtime.block_on(make()))
        .map(drop)
        .map_err(told)
}

/// A listening socket that several threads may have on one address.
fn reuse_port(address: SocketAddr) -> Result<std::net::TcpListener, String> {
    use socket2::{Domain, Protocol, Socket, Type};
    let open = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok::<_, std::io::Error>(socket.into())
    };
    open().map_err(|e| format!("cannot listen on {address}: {e}"))
}

/// Returns when the pipe from the process that started us is closed.
async fn wait_for_the_end() {
    let closed = tokio::task::spawn_blocking(|| {
        use std::io::Read;
        let mut byte = [0u8; 1];
        while matches!(std::io::stdin().read(&mut byte), Ok(n) if n > 0) {}
    });
    let _ = closed.await;
}
