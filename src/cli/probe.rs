//! `drawbridge probe`: would a delivery reach a remote server, and would it be believed?
//!
//! Each step is shown as it is done, then the fault in one sentence; the exit code is 0 only without
//! one. No bridge needs to run: configuration and key file (and the ledger, for what is kept of a peer)
//! are enough, and nothing is written.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{ConfigArgs, Outcome, kept, steps};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::client::Client;
use crate::identity::SigningKey;
use crate::peers::Peers;
use crate::protocol::{PeerName, Refusal};
use crate::protocols::uam::discover::Pin;
use crate::protocols::uam::probe::{Own, Probe};
use crate::protocols::{paracord, uam, voltchat};
use crate::store::Store;
use crate::trust::Standing;

/// Which protocol.
#[derive(Debug, Subcommand)]
pub enum ProbeCommand {
    /// A UAM relay, by its domain.
    Uam(UamArgs),
    /// A VoltChat server, by its host.
    Voltchat(VoltchatArgs),
    /// A Paracord server, by its name.
    Paracord(ParacordArgs),
}

/// Whom to examine.
#[derive(Debug, Args)]
pub struct UamArgs {
    /// The domain behind `::` in its agents' addresses.
    #[arg(value_name = "DOMAIN")]
    name: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// Prove our signature even to a relay of 0.2 or 0.3, where that costs 5 points of reputation.
    #[arg(long)]
    spend: bool,
    /// One JSON object a step, then one with the fault.
    #[arg(long)]
    json: bool,
}

/// Whom to examine.
#[derive(Debug, Args)]
pub struct VoltchatArgs {
    /// The server's host, optionally with a port.
    #[arg(value_name = "HOST")]
    name: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object a step, then one with the fault.
    #[arg(long)]
    json: bool,
}

/// Whom to examine.
#[derive(Debug, Args)]
pub struct ParacordArgs {
    /// The server's name, optionally with a port.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object a step, then one with the fault.
    #[arg(long)]
    json: bool,
}

/// Examines; exit code 0 only without a fault.
pub async fn probe(command: ProbeCommand) -> Outcome {
    match command {
        ProbeCommand::Uam(args) => {
            let (config, name) = (args.config.load()?, name(&args.name)?);
            let probe = uam_probe(&config, &name, args.spend).await?;
            let found = probe
                .run(&name, &mut |step| steps::print(&step, args.json))
                .await;
            Ok(told(&name, args.json, found))
        }
        ProbeCommand::Voltchat(args) => {
            let config = args.config.load()?;
            let name = voltchat::host::strict(&args.name).unwrap_or_else(|| args.name.clone());
            let name = PeerName::parse(&name).map_err(|e| e.to_string())?;
            let probe = voltchat_probe(&config, &name).await?;
            let found = probe
                .run(&name, &mut |step| steps::print(&step, args.json))
                .await;
            Ok(told(&name, args.json, found))
        }
        ProbeCommand::Paracord(args) => {
            let (config, name) = (args.config.load()?, name(&args.name)?);
            let probe = paracord_probe(&config, &name).await?;
            let found = probe
                .run(&name, &mut |step| steps::print(&step, args.json))
                .await;
            Ok(told(&name, args.json, found))
        }
    }
}

async fn paracord_probe(
    config: &Config,
    name: &PeerName,
) -> Result<paracord::probe::Probe, String> {
    let clock = Clock::system();
    let pins = Peers::in_memory(&config.peers, clock.clone());
    let servers = kept::servers(config).await?.unwrap_or_default();
    let kept = servers.into_iter().find(|known| known.peer.name == *name);
    let standing = kept
        .as_ref()
        .map_or(Standing::Ordinary, |known| known.standing);
    let own = match config.paracord.running() {
        Some(_) => {
            let own = paracord::Own::of(&config.paracord).map_err(|e| e.to_string())?;
            let remembered = kept::paracord_keys(config).await?;
            let active = paracord::own_keys::active_of(&config.paracord, remembered)
                .map_err(|e| e.to_string())?;
            active.map(|active| (own, Arc::new(active)))
        }
        None => None,
    };
    Ok(paracord::probe::Probe {
        client: Client::new(&config.http)?,
        own,
        base: pins
            .pin(paracord::ID, name)
            .and_then(|pin| pin.endpoint.clone()),
        peer: kept.map(|known| Arc::new(known.peer)),
        standing,
        clock,
    })
}

fn name(text: &str) -> Result<PeerName, String> {
    PeerName::parse(&text.trim().to_ascii_lowercase()).map_err(|e| e.to_string())
}

/// Says how it ended.
fn told(name: &PeerName, as_json: bool, found: Result<(), Refusal>) -> ExitCode {
    let fault = found.as_ref().err();
    if as_json {
        let fault = fault.map(|f| json!({"code": f.code, "detail": f.detail}));
        let ok = fault.is_none();
        println!("{}", json!({"peer": name, "ok": ok, "fault": fault}));
    } else {
        match fault {
            None => println!("\nNo fault found: messages can pass."),
            Some(fault) => println!("\nFault: {} ({})", fault.detail, fault.code),
        }
    }
    match fault {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    }
}

async fn voltchat_probe(
    config: &Config,
    name: &PeerName,
) -> Result<voltchat::probe::Probe, String> {
    let own = match config.voltchat.running() {
        Some(_) => Some(voltchat::Own::of(&config.voltchat).map_err(|e| e.to_string())?),
        None => None,
    };
    Ok(voltchat::probe::Probe {
        client: Client::new(&config.http)?,
        clock: Clock::system(),
        own,
        allow: voltchat::allow::AllowList::new(&config.voltchat.allowed_servers),
        peer: kept::peer(config, name).await?,
    })
}

async fn uam_probe(config: &Config, name: &PeerName, spend: bool) -> Result<Probe, String> {
    let clock = Clock::system();
    let peers = Peers::in_memory(&config.peers, clock.clone());
    let pin = Pin {
        base: peers
            .pin(uam::ID, name)
            .and_then(|pin| pin.endpoint.clone())
            .map(|url| url.trim_end_matches('/').to_owned()),
        public_key: peers.pinned_key(uam::ID, name),
    };
    let key = SigningKey::load(&config.uam.key_path).map_err(|e| e.to_string())?;
    let own = match (&config.uam.domain, key) {
        (Some(domain), Some(key)) => Some(Own {
            domain: PeerName::parse(domain).map_err(|e| format!("uam.domain: {e}"))?,
            key,
        }),
        _ => None,
    };
    Ok(Probe {
        client: Client::new(&config.http)?,
        clock,
        own,
        pin,
        known_key: known_key(config, name).await,
        max_skew_s: i64::try_from(config.uam.timestamp_max_age.as_secs()).unwrap_or(i64::MAX),
        spend,
    })
}

/// The key in the bridge's own ledger, if that can be read beside a running bridge; a probe without
/// it says less, so nothing about it is an error.
async fn known_key(config: &Config, name: &PeerName) -> Option<[u8; 32]> {
    let store = Store::open_read_only(&config.store).await.ok()?;
    let known = store.peers().await.ok();
    store.close().await;
    known?
        .into_iter()
        .find(|record| record.protocol == uam::ID && record.name == *name)?
        .public_key
}
