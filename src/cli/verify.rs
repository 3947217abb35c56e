//! `drawbridge verify`: why a saved request is accepted or refused, step by step.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigArgs, Outcome};
use crate::clock::Clock;
use crate::protocol::Step;
use crate::protocols::uam::explain;

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
    /// Judge times as of then (RFC 3339) instead of now.
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
    let now_ms = match &args.at {
        Some(text) => {
            crate::protocols::uam::time::parse_ms(text).map_err(|e| format!("--at: {e}"))?
        }
        None => Clock::system().now_ms(),
    };
    let context = explain::Context {
        own_domain: config.uam.domain.clone(),
        now_ms,
        max_age: config.uam.timestamp_max_age,
        max_hops: config.uam.max_hops,
        relay_key: args.relay_key,
        agent_key: args.agent_key,
    };
    let steps = explain::explain(&input, &context);
    steps.iter().for_each(|step| print(step, args.json));
    let failed = steps.iter().any(|s| s.ok == Some(false));
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print(step: &Step, as_json: bool) {
    if as_json {
        println!("{}", serde_json::json!(step));
        return;
    }
    let mark = match step.ok {
        Some(true) => "ok  ",
        Some(false) => "FAIL",
        None => "    ",
    };
    println!("{mark} {:<24} {}", step.name, step.detail);
}
