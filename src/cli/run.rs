//! `drawbridge run`: the bridge until it is told to stop.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{ConfigArgs, Outcome};
use crate::{app, ops};

/// The signals we answer to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on none of them ends the process by itself.
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one; false: stop, true: read the configuration again.
    async fn hangup(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => false,
            _ = self.hangup.recv() => true,
        }
    }

    /// SIGTERM or SIGINT.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs until SIGTERM or SIGINT, which drain; a second one ends at once. SIGHUP reads the
/// configuration again.
pub async fn run(args: &ConfigArgs) -> Outcome {
    let config = args.load()?;
    ops::log::init(&config.log).map_err(|e| e.to_string())?;
    let mut signals = Signals::listen().map_err(|e| e.to_string())?;
    let mut running = tokio::select! {
        started = app::start(config) => started.map_err(|e| e.to_string())?,
        () = signals.stop() => return Ok(ExitCode::SUCCESS),
    };
    while signals.hangup().await {
        // Both outcomes are in the log already.
        drop(running.reload(args.load()).await);
    }
    let limit = running.stop_limit();
    tokio::select! {
        stopped = tokio::time::timeout(limit, running.stop()) => match stopped {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(_) => Err(format!(
                "stopped after {} s without having closed everything; unfinished attempts will be repeated",
                limit.as_secs()
            )),
        },
        () = signals.stop() => Err(
            "stopped at once by a second signal; unfinished attempts will be repeated".to_owned()
        ),
    }
}
