//! `drawbridge verify`: why a saved request is accepted or refused, step by step.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigArgs, Outcome, kept, steps};
use crate::clock::{Clock, UnixMs};
use crate::config::read_secret;
use crate::identity::PublicKey;
use crate::identity::hmac::SharedSecret;
use crate::protocol::{PeerName, Step};
use crate::protocols::paracord;
use crate::protocols::uam::{explain, time};
use crate::protocols::voltchat;

/// Which protocol.
#[derive(Debug, Subcommand)]
pub enum VerifyCommand {
    /// A UAM delivery: a whole saved request, its body, or an envelope.
    Uam(UamArgs),
    /// What a VoltChat peer sent: a whole saved request, its body, or a token alone.
    Voltchat(VoltchatArgs),
    /// What a Paracord server sent: a whole saved request, or an event alone.
    Paracord(ParacordArgs),
}

/// What to look at.
#[derive(Debug, Args)]
pub struct UamArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The saved request (with its head), body or envelope; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// The sending relay's public key, base64.
    #[arg(long, value_name = "KEY")]
    relay_key: Option<String>,
    /// The sending agent's public key, base64.
    #[arg(long, value_name = "KEY")]
    agent_key: Option<String>,
    /// The value of its X-UAM-Relay-Signature header, where only the body was saved.
    #[arg(long, value_name = "BASE64")]
    signature: Option<String>,
    /// Judge its age as of then: RFC 3339, or `now`. Without it the age is not judged.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// One JSON object a step.
    #[arg(long)]
    json: bool,
}

/// What to look at.
#[derive(Debug, Args)]
pub struct VoltchatArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The saved request (with its head), its body, or a token; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// The host it claims to come from, where the file does not say.
    #[arg(long)]
    host: Option<String>,
    /// A file with the secret we share with that host. Without it the one in the ledger is used.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Judge its age as of then: RFC 3339, or `now`. Without it the age is not judged.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// One JSON object a step.
    #[arg(long)]
    json: bool,
}

/// What to look at.
#[derive(Debug, Args)]
pub struct ParacordArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The saved request (with its head), or an event's envelope; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Public key of the server that sent the request, 64 hex digits. Without it those in the ledger
    /// are used.
    #[arg(long, value_name = "HEX")]
    key: Option<String>,
    /// Public key of the server that made the event, where another brought it.
    #[arg(long, value_name = "HEX")]
    event_key: Option<String>,
    /// Judge its age as of then: RFC 3339, or `now`. Without it the age is not judged.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// One JSON object a step.
    #[arg(long)]
    json: bool,
}

/// Explains; exit code 0 only if every step that was checked held.
pub async fn verify(command: VerifyCommand) -> Outcome {
    match command {
        VerifyCommand::Uam(args) => uam(args),
        VerifyCommand::Voltchat(args) => voltchat(args).await,
        VerifyCommand::Paracord(args) => paracord(args).await,
    }
}

fn uam(args: UamArgs) -> Outcome {
    let config = args.config.load()?;
    let input = super::read(&args.request)?;
    let now_ms = at(args.at.as_deref())?;
    let context = explain::Context {
        now_ms,
        own_domain: config.uam.domain.clone(),
        public_host: config.uam.http_url.as_deref().and_then(host_of),
        max_age_s: i64::try_from(config.uam.timestamp_max_age.as_secs()).unwrap_or(i64::MAX),
        max_hops: config.uam.max_hops,
        forms: config.uam.wire_forms,
        relay_key: key("--relay-key", args.relay_key.as_deref())?,
        agent_key: key("--agent-key", args.agent_key.as_deref())?,
        signature: args.signature,
    };
    Ok(told(&explain::explain(&input, &context), args.json))
}

async fn voltchat(args: VoltchatArgs) -> Outcome {
    let config = args.config.load()?;
    let input = super::read(&args.request)?;
    let host = match args.host {
        Some(host) => Some(voltchat::host::normal(&host)),
        None => voltchat::explain::claimed_host(&input),
    };
    let kept = match host.as_deref().map(PeerName::parse) {
        Some(Ok(host)) => kept::peer(&config, &host).await?,
        _ => None,
    };
    let secret = match &args.secret_file {
        Some(path) => {
            let secret = read_secret(path).map_err(|what| format!("--secret-file names {what}"))?;
            let usable = SharedSecret::new(&secret.0);
            Some(usable.ok_or("--secret-file: a shared secret has at least 16 characters")?)
        }
        None => kept.as_ref().map(|peer| peer.secret.clone()),
    };
    let context = voltchat::explain::Context {
        now_ms: at(args.at.as_deref())?,
        host,
        secret,
        accepted: kept.as_ref().map(|peer| peer.status.is_accepted()),
        allow: voltchat::allow::AllowList::new(&config.voltchat.allowed_servers),
        plain_hosts: config.http.plain_hosts,
        enabled: config.voltchat.enabled,
    };
    let steps = voltchat::explain::explain(&input, &context);
    Ok(told(&steps, args.json))
}

async fn paracord(args: ParacordArgs) -> Outcome {
    let config = args.config.load()?;
    let input = super::read(&args.request)?;
    let hex_key = |option: &str, text: Option<&str>| {
        let key = text.map(|text| paracord::record::public(text).ok_or(text));
        key.transpose()
            .map_err(|text| format!("{option}: {text:?} is no Ed25519 public key in 64 hex digits"))
    };
    let context = paracord::explain::Context {
        now_ms: at(args.at.as_deref())?,
        own: paracord::Own::of(&config.paracord).ok(),
        enabled: config.paracord.enabled,
        servers: kept::servers(&config).await?,
        key: hex_key("--key", args.key.as_deref())?,
        event_key: hex_key("--event-key", args.event_key.as_deref())?,
    };
    let steps = paracord::explain::explain(&input, &context);
    Ok(told(&steps, args.json))
}

/// The time that `--at` names.
fn at(text: Option<&str>) -> Result<Option<UnixMs>, String> {
    Ok(match text {
        None => None,
        Some("now") => Some(Clock::system().now_ms()),
        Some(text) => Some(time::parse_ms(text).map_err(|e| format!("--at: {e}"))?),
    })
}

/// Shows the steps; success only if none failed.
fn told(steps: &[Step], as_json: bool) -> ExitCode {
    steps.iter().for_each(|step| steps::print(step, as_json));
    match steps.iter().any(|s| s.ok == Some(false)) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// Host and port of a URL.
fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    Some(uri.authority()?.to_string())
}

fn key(option: &str, text: Option<&str>) -> Result<Option<PublicKey>, String> {
    text.map(PublicKey::from_base64)
        .transpose()
        .map_err(|e| format!("{option}: {e}; expected base64 of its 32 bytes"))
}
