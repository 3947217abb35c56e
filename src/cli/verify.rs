//! `drawbridge verify`: why a saved request is accepted or refused, step by step.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigArgs, Outcome, steps};
use crate::clock::Clock;
use crate::identity::PublicKey;
use crate::protocols::uam::{explain, time};

/// Which protocol.
#[derive(Debug, Subcommand)]
pub enum VerifyCommand {
    /// A UAM delivery: a whole saved request, its body, or an envelope.
    Uam(UamArgs),
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

/// Explains; exit code 0 only if every step that was checked held.
pub fn verify(command: VerifyCommand) -> Outcome {
    let VerifyCommand::Uam(args) = command;
    let config = args.config.load()?;
    let input = super::read(&args.request)?;
    let now_ms = match args.at.as_deref() {
        None => None,
        Some("now") => Some(Clock::system().now_ms()),
        Some(text) => Some(time::parse_ms(text).map_err(|e| format!("--at: {e}"))?),
    };
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
    let steps = explain::explain(&input, &context);
    steps.iter().for_each(|step| steps::print(step, args.json));
    let failed = steps.iter().any(|s| s.ok == Some(false));
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
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
