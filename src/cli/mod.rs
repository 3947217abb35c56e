//! The command line: one file per command.

pub mod bench;
pub mod check;
pub mod client;
pub mod demo;
pub mod health;
pub mod invites;
mod kept;
pub mod keys;
pub mod peers;
pub mod probe;
pub mod queue;
pub mod replay;
pub mod rooms;
pub mod run;
pub mod send;
mod steps;
pub mod store;
pub mod streams;
pub mod table;
pub mod tail;
pub mod trust;
pub mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::bus::{Bus, ManagedServer};
use crate::config::Config;

/// What every command answers with: an exit code, or a sentence for the person at the terminal.
pub type Outcome = Result<ExitCode, String>;

/// A federation bridge: chat backends on NATS, the rest of the world on HTTP.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Two bridges on loopback exchange messages and become peers, one goes down and comes back.
    Demo(demo::DemoArgs),
    /// Run the bridge.
    Run(ConfigArgs),
    /// Ask a running bridge how it is; the exit code says.
    Health(health::HealthArgs),
    /// Look at everything the bridge needs, whether it runs or not; changes nothing.
    Check(check::CheckArgs),
    /// Publish an outbound event.
    Send(send::SendArgs),
    /// Show events as they arrive.
    Tail(tail::TailArgs),
    /// The outbound queue.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// The ledger: what it is, a copy of it, its move to PostgreSQL.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// What could not be delivered.
    #[command(subcommand)]
    Dead(queue::DeadCommand),
    /// The servers we know.
    #[command(subcommand)]
    Peers(peers::PeersCommand),
    /// Which servers are blocked, allowed or held in quarantine.
    #[command(subcommand)]
    Trust(trust::TrustCommand),
    /// Invites shared with other servers, ours and theirs (VoltChat).
    #[command(subcommand)]
    Invites(invites::InvitesCommand),
    /// Rooms of ours, rooms we follow, and who is in them (Paracord).
    #[command(subcommand)]
    Rooms(rooms::RoomsCommand),
    /// Inbound events once more, from a time or sequence.
    Replay(replay::ReplayArgs),
    /// Our own keys.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// The broker's streams.
    #[command(subcommand)]
    Streams(streams::StreamsCommand),
    /// Examine a remote server step by step: DNS, TLS, clock, key or peering, a signed request.
    #[command(subcommand)]
    Probe(probe::ProbeCommand),
    /// Explain step by step why a saved request is accepted or refused.
    #[command(subcommand)]
    Verify(verify::VerifyCommand),
    /// How fast this machine carries messages, and how close that is to what it could.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// The configuration in use.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file; the built-in defaults and the environment apply without one.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the commented defaults.
    Defaults,
    /// Read the configuration and say whether it is right.
    Check(ConfigArgs),
    /// Print a [voltchat] section made from a mainline's own config.json.
    ImportVoltchat {
        /// The mainline's config.json; `-` reads standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl ConfigArgs {
    /// Reads file and environment.
    pub fn load(&self) -> Result<Config, String> {
        // Not `vars`: it panics on a value that is no UTF-8, and none of ours may be that.
        let env: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        Config::load(self.config.as_deref(), &env).map_err(|e| e.to_string())
    }
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    crate::ops::defect::install();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return fail(&format!("the runtime could not be started: {e}")),
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Demo(args) => demo::demo(args).await,
            Command::Run(args) => run::run(&args).await,
            Command::Health(args) => health::health(args).await,
            Command::Check(args) => check::check(args).await,
            Command::Send(args) => send::send(args).await,
            Command::Tail(args) => tail::tail(args).await,
            Command::Queue(command) => queue::queue(command).await,
            Command::Store(command) => store::store(command).await,
            Command::Dead(command) => queue::dead(command).await,
            Command::Peers(command) => peers::peers(command).await,
            Command::Trust(command) => trust::trust(command).await,
            Command::Invites(command) => invites::invites(command).await,
            Command::Rooms(command) => rooms::rooms(command).await,
            Command::Replay(args) => replay::replay(args).await,
            Command::Keys(command) => keys::keys(command).await,
            Command::Streams(command) => streams::streams(command).await,
            Command::Probe(command) => probe::probe(command).await,
            Command::Verify(command) => verify::verify(command).await,
            Command::Bench(command) => bench::bench(command).await,
            Command::Config(ConfigCommand::Defaults) => {
                print!("{}", crate::config::DEFAULT_TOML);
                Ok(ExitCode::SUCCESS)
            }
            Command::Config(ConfigCommand::Check(args)) => args.load().map(|_| {
                println!("the configuration is right");
                ExitCode::SUCCESS
            }),
            Command::Config(ConfigCommand::ImportVoltchat { file }) => import_voltchat(&file),
        }
    });
    // What still runs does not hold the end up: `run` has waited for all that had to be.
    runtime.shutdown_background();
    crate::ops::log::flush();
    outcome.unwrap_or_else(|sentence| fail(&sentence))
}

fn import_voltchat(file: &std::path::Path) -> Outcome {
    let bytes = read(file)?;
    let about = |what: String| format!("{}: {what}", file.display());
    let text = std::str::from_utf8(&bytes).map_err(|e| about(format!("it is no text: {e}")))?;
    print!("{}", crate::config::mainline::section(text).map_err(about)?);
    Ok(ExitCode::SUCCESS)
}

fn fail(sentence: &str) -> ExitCode {
    eprintln!("drawbridge: {sentence}");
    ExitCode::FAILURE
}

/// Connects to the broker of a configuration: the named one, or the managed one of a running bridge.
pub async fn connect(config: &Config) -> Result<Bus, String> {
    let nats = match &config.nats.url {
        Some(_) => config.nats.clone(),
        None => {
            let url = ManagedServer::running_url(&config.nats.managed).await.ok_or(
                "no nats.url is configured and no bridge with a managed server runs in this data_dir: start `drawbridge run` first",
            )?;
            config.nats.with_managed(url)
        }
    };
    Bus::connect(&nats).await.map_err(|e| e.to_string())
}

/// A file's bytes; `-` is standard input.
pub fn read(path: &std::path::Path) -> Result<bytes::Bytes, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let outcome = if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(path).map(|b| bytes = b)
    };
    outcome.map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(bytes.into())
}
