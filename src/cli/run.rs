//! `drawbridge run`: the bridge until it is told to stop.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigArgs, Outcome};
use crate::{app, ops};

/// Runs until SIGTERM or SIGINT; a second signal ends at once.
pub async fn run(args: &ConfigArgs) -> Outcome {
    let config = args.load()?;
    ops::log::init(&config.log).map_err(|e| e.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let starting = app::start(config);
    let running = tokio::select! {
        started = starting => started.map_err(|e| e.to_string())?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::select! {
        () = running.stop() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Err("stopped at once by a second signal; unfinished attempts will be repeated".into()),
        _ = interrupt.recv() => Err("stopped at once by a second signal; unfinished attempts will be repeated".into()),
    }
}
