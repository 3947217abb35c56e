//! `drawbridge keys`: our keys, and changing them.
//!
//! A running bridge does it itself and goes on signing; without one the files are changed, and the
//! next start takes them up.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{AdminClient, AdminError};
use super::table::{show, text};
use super::{ConfigArgs, Outcome, kept};
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::ring::Keyring;
use crate::peers::Peers;
use crate::protocol::{OwnKey, Rotation};
use crate::protocols::{paracord, uam};
use crate::store::Store;

/// `drawbridge keys …`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Our public keys with state and fingerprint.
    #[command(alias = "show")]
    List(ListArgs),
    /// Change our key. By itself it only says which peers will notice, and when.
    Rotate(RotateArgs),
}

/// Options of a list.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// How to change it.
#[derive(Debug, Args)]
pub struct RotateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Whose key; may be left out where there is one protocol only.
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// Do it: publish and sign with the next key from now on. The present one serves peers that refuse
    /// the new one until the overlap ends.
    #[arg(long)]
    yes: bool,
    /// Only make the next key, to be told to operators who pin ours.
    #[arg(long, conflicts_with = "yes")]
    prepare: bool,
    /// With --yes: the present key is no longer ours alone; never use it again.
    #[arg(long, requires = "yes")]
    revoke: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl RotateArgs {
    fn wanted(&self) -> (Rotation, &'static str) {
        match (self.yes, self.revoke, self.prepare) {
            (true, true, _) => (Rotation::Replace, "replace"),
            (true, false, _) => (Rotation::Switch, "switch"),
            (false, _, true) => (Rotation::Prepare, "prepare"),
            (false, _, false) => (Rotation::Plan, "plan"),
        }
    }
}

/// Runs one of them.
pub async fn keys(command: KeysCommand) -> Outcome {
    match command {
        KeysCommand::List(args) => {
            let config = args.config.load()?;
            list(&config, args.json).await
        }
        KeysCommand::Rotate(args) => {
            let config = args.config.load()?;
            rotate(&config, &args).await
        }
    }
}

async fn list(config: &Config, as_json: bool) -> Outcome {
    let answer = match AdminClient::from_config(config) {
        Ok(client) => match client.get("/api/v1/keys").await {
            Err(AdminError::Nobody(_)) => None,
            other => Some(other?),
        },
        Err(_) => None,
    };
    let rows = match answer {
        Some(answer) => answer["keys"].as_array().cloned().unwrap_or_default(),
        None => {
            let of_files = [Kind::Uam, Kind::Paracord].into_iter();
            let mut keys = Vec::new();
            for kind in of_files.filter(|kind| kind.is_configured(config)) {
                keys.extend(kind.list(config, &kind.ring(config)?));
            }
            keys.iter().map(|key| json!(key)).collect()
        }
    };
    show_keys(&rows, as_json);
    Ok(ExitCode::SUCCESS)
}

fn show_keys(rows: &[Value], as_json: bool) {
    show(
        rows,
        as_json,
        &[
            "protocol",
            "name",
            "state",
            "since",
            "until",
            "fingerprint",
            "public_key",
        ],
        |row, column| match column {
            "since" => at(&row["since_ms"]),
            "until" => at(&row["until_ms"]),
            other => text(&row[other]),
        },
    );
}

async fn rotate(config: &Config, args: &RotateArgs) -> Outcome {
    let (wanted, mode) = args.wanted();
    let answer = match AdminClient::from_config(config) {
        Ok(client) => {
            let body = json!({"protocol": args.protocol, "mode": mode});
            match client.post("/api/v1/keys/rotate", Some(&body)).await {
                Err(AdminError::Nobody(_)) => None,
                other => Some(other?),
            }
        }
        Err(_) => None,
    };
    let report = match answer {
        Some(answer) => answer,
        None => {
            let report = offline(config, kind(config, args.protocol.as_deref())?, wanted).await?;
            if !args.json && wanted != Rotation::Plan {
                println!(
                    "No bridge answers, so the files were changed; one that runs all the same takes \
                     them up at SIGHUP."
                );
            }
            report
        }
    };
    if args.json {
        println!("{report}");
    } else {
        tell(&report, wanted);
    }
    Ok(ExitCode::SUCCESS)
}

/// Protocols with a key file that can be changed without a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uam,
    Paracord,
}

/// Whose key is meant.
fn kind(config: &Config, said: Option<&str>) -> Result<Kind, String> {
    let both = [Kind::Uam, Kind::Paracord];
    let mut configured = both.into_iter().filter(|kind| kind.is_configured(config));
    match (said, configured.next(), configured.next()) {
        (Some(uam::ID), ..) => Ok(Kind::Uam),
        (Some(paracord::ID), ..) => Ok(Kind::Paracord),
        (Some(other), ..) => Err(format!(
            "without a running bridge only the keys of uam and paracord can be changed, not {other:?}"
        )),
        (None, Some(_), Some(_)) => Err(
            "several protocols have a key: say --protocol uam or --protocol paracord".to_owned(),
        ),
        (None, Some(kind), None) => Ok(kind),
        (None, None, _) => Ok(Kind::Uam),
    }
}

impl Kind {
    fn is_configured(self, config: &Config) -> bool {
        match self {
            Self::Uam => config.uam.domain.is_some(),
            Self::Paracord => config.paracord.running().is_some(),
        }
    }

    /// The key as the files have it.
    fn ring(self, config: &Config) -> Result<Keyring, String> {
        let (path, overlap) = match self {
            Self::Uam => (&config.uam.key_path, config.uam.key_overlap),
            Self::Paracord => (&config.paracord.key_path, config.paracord.key_overlap),
        };
        Keyring::read(path, overlap, Clock::system().now_ms())
            .map_err(|e| e.to_string())?
            .ok_or_else(|| {
                format!(
                    "{} does not exist yet: the first `drawbridge run` makes it",
                    path.display()
                )
            })
    }

    fn list(self, config: &Config, ring: &Keyring) -> Vec<OwnKey> {
        match self {
            Self::Uam => uam::keys::list(ring, config.uam.domain.as_deref().unwrap_or_default()),
            Self::Paracord => {
                paracord::own_keys::list(ring, config.paracord.running().unwrap_or_default())
            }
        }
    }
}

/// On the files alone.
async fn offline(config: &Config, kind: Kind, wanted: Rotation) -> Result<Value, String> {
    // It must exist: a first key is made by the first start, not by a rotation.
    let before = kind.ring(config)?;
    match kind {
        Kind::Uam => offline_uam(config, wanted).await,
        Kind::Paracord => offline_paracord(config, &before, wanted).await,
    }
}

async fn offline_paracord(
    config: &Config,
    before: &Keyring,
    wanted: Rotation,
) -> Result<Value, String> {
    let now = Clock::system().now_ms();
    paracord::own_keys::turn(&config.paracord.key_path, wanted, now).map_err(|e| e.to_string())?;
    let ring = Kind::Paracord.ring(config)?;
    let servers = kept::servers(config).await?.unwrap_or_default();
    let peers: Vec<_> = servers
        .into_iter()
        .map(|known| std::sync::Arc::new(known.peer))
        .filter(|peer| peer.is_trusted())
        .collect();
    let own = paracord::Own::of(&config.paracord).map_err(|e| e.to_string())?;
    let facts = paracord::rotation::Facts {
        name: own.name.as_str(),
        url: &own.url,
        made_ms: paracord::rotation::made(before, &ring, now),
        ring: &ring,
        overlap: config.paracord.key_overlap,
        peers: &peers,
        own_page: None,
        now,
    };
    Ok(paracord::rotation::report(&facts, wanted))
}

async fn offline_uam(config: &Config, wanted: Rotation) -> Result<Value, String> {
    let clock = Clock::system();
    let now = clock.now_ms();
    uam::keys::turn(&config.uam.key_path, wanted, now).map_err(|e| e.to_string())?;
    let ring = Kind::Uam.ring(config)?;
    let pins = Peers::in_memory(&config.peers, clock);
    // Without a store there was no peer yet.
    let known = match Store::open_read_only(&config.store).await {
        Ok(store) => store.peers().await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let peers: Vec<_> = known
        .into_iter()
        .filter(|peer| peer.protocol == uam::ID)
        .map(|peer| {
            let pinned = pins.pinned_key(uam::ID, &peer.name).is_some();
            (std::sync::Arc::new(peer), pinned)
        })
        .collect();
    Ok(uam::rotation::report(
        &uam::rotation::Facts {
            domain: config.uam.domain.as_deref().unwrap_or_default(),
            ring: &ring,
            overlap: config.uam.key_overlap,
            peers: &peers,
            own_page: None,
            now,
        },
        wanted,
    ))
}

fn tell(report: &Value, wanted: Rotation) {
    let keys = report["keys"].as_array().cloned().unwrap_or_default();
    show_keys(&keys, false);
    println!();
    println!(
        "{}",
        match wanted {
            Rotation::Plan => "Nothing was changed; --yes does it. What it would mean:",
            Rotation::Prepare => "The next key is made; nothing is signed with it yet.",
            Rotation::Switch => "The key is switched: published and signed with from now on.",
            Rotation::Replace =>
                "The key is replaced; nothing is signed with the old one any more.",
        }
    );
    if let Some(until) = report["overlap_until_ms"].as_i64() {
        println!(
            "Peers that refuse the new key are served with the old one until {}.",
            at(&json!(until))
        );
    }
    if let Some(page) = report["own_page"].as_str() {
        println!("{page}.");
    }
    let peers = report["peers"].as_array().map_or(&[][..], Vec::as_slice);
    if peers.is_empty() {
        println!("No peer is known yet.");
        return;
    }
    println!();
    show(
        peers,
        false,
        &["peer", "how", "by", "detail"],
        |row, column| match column {
            "by" => at(&row["by_ms"]),
            other => text(&row[other]),
        },
    );
}

fn at(ms: &Value) -> String {
    ms.as_i64()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or("-".into(), |at| format!("{at:.0}"))
}
