//! `drawbridge bench`: how fast this machine carries messages, and how close that is to what it could.
//!
//! | command | what is measured |
//! | --- | --- |
//! | `bench out` | FED_OUT → bridge → peers: a backlog drained, then publish → arrival at half that rate |
//! | `bench hot` | the same with one peer and a window of 64 |
//! | `bench peers` | the same with 10,000 peers known and 1,000 active |
//! | `bench in` | peers → bridge → FED_IN: request → answer, over connections with one request in hand each |
//! | `bench forged` | the same with requests whose signature is wrong, every one |
//! | `bench drain` | the peers were down: the queue drained, against messages that never waited |
//! | `bench spill` | into the queue of peers that are down, against the store alone |
//! | `bench dead` | healthy peers while nine in ten refuse, hang or answer slowly, against without |
//! | `bench million` | a million queued: size, start, new messages |
//! | `bench idle` | size and CPU at rest, knowing nobody and knowing 10,000 peers |
//! | `bench flood` | peers → bridge beside bad requests from 1,000 addresses at full speed, against without |
//! | `bench soak` | both ways for 20 minutes with a restart every two: loss, memory, descriptors, rows |
//! | `bench relay` | beside a real UAM relay: CPU time a message of both |
//! | `bench two` | two instances on one PostgreSQL, against one |
//! | `bench start` | spawn → `/readyz`, and the size at rest |
//!
//! Over any of the protocols ([`speech`]) where one is named, else UAM. Nothing is pretended: the
//! bridge is `drawbridge run` as a process of its own with its ledger on disk, the broker a
//! nats-server of its own, the peers a third process ([`far`]), the signatures real. What is compared
//! runs in turns in the same call, because only figures of one sitting compare; medians are printed.
//! `--compare bare` stands beside the bridge the fastest program we can write without our rules
//! ([`bare_out`], [`bare_in`]).
//!
//! The processes of a bench are this binary again, with hidden subcommands; they end when the pipe
//! to them closes.

mod args;
mod ask;
mod bare_in;
mod bare_out;
mod bare_store;
mod dead;
mod drain;
mod far;
mod figures;
mod flood;
mod flooder;
mod idle;
mod inbound;
mod load;
mod million;
mod out;
mod pipeline;
mod plot;
mod relay;
mod relay_peer;
mod report;
mod rig;
mod soak;
mod speech;
mod spill;
mod start;
mod stretch;
mod traffic;
mod two;
mod usage;
mod watch;
mod world;

use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Subcommand;

use super::Outcome;
use args::{BenchArgs, Compare, Turn};
use figures::Figures;
use rig::Rig;
use speech::Spoken;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Outbound: a backlog of signed messages is delivered to peers.
    Out(BenchArgs),
    /// Outbound to one peer, with a window of 64.
    Hot(BenchArgs),
    /// Outbound with 10,000 peers known and 1,000 active.
    Peers(BenchArgs),
    /// Inbound: peers deliver signed messages.
    In(BenchArgs),
    /// Inbound: every request has a wrong signature. The limit on failures of one address is lifted.
    Forged(BenchArgs),
    /// Peers were down: the queue is drained, against messages that never waited.
    Drain(drain::DrainArgs),
    /// Messages for peers that are down go into the queue, against the store alone.
    Spill(spill::SpillArgs),
    /// Most peers refuse, hang or answer slowly: what the healthy ones notice of it.
    Dead(dead::DeadArgs),
    /// A million messages are queued: memory, start, new messages.
    Million(million::MillionArgs),
    /// Memory and CPU at rest, knowing nobody and knowing many peers.
    Idle(idle::IdleArgs),
    /// Bad requests from many addresses at full speed: what honest peers notice of it.
    Flood(flood::FloodArgs),
    /// Messages both ways for a long time, with restarts: nothing lost, everything flat.
    Soak(soak::SoakArgs),
    /// Beside a real UAM relay, over TLS, both ways: CPU time a message of each. Needs root and Python.
    Relay(relay::RelayArgs),
    /// Two instances on one PostgreSQL, against one.
    Two(two::TwoArgs),
    /// Time from start to ready with an external NATS server, and memory at rest.
    Start(start::StartArgs),
    /// The process that plays the peers.
    #[command(hide = true)]
    Far(far::FarArgs),
    #[command(hide = true)]
    BareOut(bare_out::BareOutArgs),
    #[command(hide = true)]
    BareIn(bare_in::BareInArgs),
    #[command(hide = true)]
    BareStore(bare_store::BareStoreArgs),
    #[command(hide = true)]
    Flooder(flooder::FlooderArgs),
}

/// Runs a bench.
pub async fn bench(command: BenchCommand) -> Outcome {
    let measured = async {
        match command {
            BenchCommand::Out(args) => rounds(Way::Out, args).await,
            BenchCommand::Hot(args) => rounds(Way::Hot, args).await,
            BenchCommand::Peers(args) => rounds(Way::Peers, args).await,
            BenchCommand::In(args) => rounds(Way::In, args).await,
            BenchCommand::Forged(args) => rounds(Way::Forged, args).await,
            BenchCommand::Drain(args) => drain::drain(args).await,
            BenchCommand::Spill(args) => spill::spill(args).await,
            BenchCommand::Dead(args) => dead::dead(args).await,
            BenchCommand::Million(args) => million::million(args).await,
            BenchCommand::Flood(args) => flood::flood(args).await,
            BenchCommand::Flooder(args) => flooder::flooder(args).await,
            BenchCommand::Soak(args) => soak::soak(args).await,
            BenchCommand::Relay(args) => relay::relay(args).await,
            BenchCommand::Two(args) => two::two(args).await,
            BenchCommand::Idle(args) => idle::idle(args).await,
            BenchCommand::Start(args) => start::start(args).await,
            BenchCommand::Far(args) => far::far(args).await,
            BenchCommand::BareOut(args) => bare_out::bare_out(args).await,
            BenchCommand::BareIn(args) => bare_in::bare_in(args).await,
            BenchCommand::BareStore(args) => bare_store::bare_store(args).await,
        }
    };
    tokio::select! {
        outcome = measured => outcome,
        _ = tokio::signal::ctrl_c() => Err("stopped".into()),
    }
}

/// A scenario that may have a bare program beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Out,
    Hot,
    Peers,
    In,
    Forged,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Hot => "hot",
            Self::Peers => "peers",
            Self::In => "in",
            Self::Forged => "forged",
        }
    }

    /// What the person did not say and the scenario means.
    fn preset(self, mut args: BenchArgs) -> BenchArgs {
        match self {
            Self::Hot => {
                args.world.peers = 1;
                args.window = args.window.or(Some(64));
            }
            Self::Peers if args.world.active.is_none() => {
                args.world.peers = 10_000;
                args.world.active = Some(1_000);
            }
            Self::Peers | Self::Out | Self::In | Self::Forged => {}
        }
        args
    }
}

/// The two programs in turns.
async fn rounds(way: Way, args: BenchArgs) -> Outcome {
    let args = way.preset(args);
    let rig = Rig::start(&args.world, args.run.sync.interval()).await?;
    let turns: &[Turn] = match args.compare {
        None => &[Turn::Ours],
        Some(Compare::Bare) => &[Turn::Bare, Turn::Ours],
    };
    let mut figures = Figures {
        scenario: scenario(way, &args),
        ..Figures::default()
    };
    let count = args.run.rounds(turns.len());
    for n in 1..=count {
        for turn in turns {
            progress(&format!(
                "{}, round {n} of {count}: {turn:?} ...",
                way.word()
            ));
            let round = match way {
                Way::Out | Way::Hot | Way::Peers => out::round(&rig, &args, *turn).await?,
                Way::In => inbound::round(&rig, &args, false, *turn).await?,
                Way::Forged => inbound::round(&rig, &args, true, *turn).await?,
            };
            progress(&figures::line(&round));
            match turn {
                Turn::Ours => figures.ours.push(round),
                Turn::Bare => figures.bare.push(round),
            }
        }
    }
    if args.run.json {
        println!("{}", figures.json());
    } else {
        println!("{}", figures.text());
    }
    Ok(ExitCode::SUCCESS)
}

fn scenario(way: Way, args: &BenchArgs) -> String {
    let world = &args.world;
    let over = match world.protocol {
        Spoken::Uam => String::new(),
        other => format!(" over {}", other.id()),
    };
    let known = match world.active() {
        active if active == world.peers => String::new(),
        active => format!(", {active} of them active"),
    };
    let window = args.window.map(|n| format!(", window {n}"));
    let connections = match way {
        Way::In | Way::Forged => format!(", {} connections", args.connections),
        Way::Out | Way::Hot | Way::Peers => window.unwrap_or_default(),
    };
    format!(
        "{}{over}: {} messages of {} bytes, {} peers{known}{connections}, {}",
        way.word(),
        args.messages,
        world.size,
        world.peers,
        args.run.sync.words()
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
    let socket = bound(address)?;
    let listening = socket.listen(1024);
    listening.map_err(|e| format!("cannot listen on {address}: {e}"))?;
    Ok(socket.into())
}

/// A socket that has an address with others and does not listen.
fn bound(address: SocketAddr) -> Result<socket2::Socket, String> {
    use socket2::{Domain, Protocol, Socket, Type};
    let open = || {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok::<_, std::io::Error>(socket)
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
