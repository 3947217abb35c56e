//! The guard: a helper mode of our own binary that stands between the bridge and its nats-server.
//!
//! Promise: the server never outlives the bridge. The guard's standard input is a pipe that only
//! the bridge holds open; when the bridge ends in any way, SIGKILL included, the kernel closes the
//! pipe and the guard stops the server. The guard says `pid <number>` on its standard output when
//! the server runs, and ends when the server ends.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// First argument that makes our binary a guard.
pub const GUARD_COMMAND: &str = "__nats-guard";

/// A server that has not ended this long after it was asked to is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the guard; `args` are the server's binary and its configuration file. Answers the exit
/// code: 0 when the server was stopped as asked, 1 when it ended by itself, 2 when it could not be
/// started.
pub fn guard_main(args: &[OsString]) -> i32 {
    let [binary, config] = args else {
        eprintln!(
            "{GUARD_COMMAND} is for Drawbridge's own use: <nats-server> <configuration file>"
        );
        return 2;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("the guard cannot start: {e}");
            return 2;
        }
    };
    let code = runtime.block_on(watch_over(PathBuf::from(binary), PathBuf::from(config)));
    runtime.shutdown_background();
    code
}

async fn watch_over(binary: PathBuf, config: PathBuf) -> i32 {
    let started = Command::new(&binary)
        .arg("-c")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    let mut server = match started {
        Ok(server) => server,
        Err(e) => {
            eprintln!("{}: {e}", binary.display());
            return 2;
        }
    };
    if let Some(pid) = server.id() {
        // A bridge that is gone already shows as the end of the input.
        println!("pid {pid}");
    }
    tokio::select! {
        () = bridge_gone() => {}
        () = asked_to_stop() => {}
        ended = server.wait() => {
            if let Ok(status) = ended {
                eprintln!("nats-server ended by itself ({status})");
            }
            return 1;
        }
    }
    stop(&binary, &mut server).await;
    0
}

/// Returns at the end of the standard input. The read blocks, so it has a thread of its own.
async fn bridge_gone() {
    let (gone, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut scrap = [0u8; 64];
        loop {
            match input.read(&mut scrap) {
                Ok(0) => break,
                Err(e) if e.kind() != std::io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        // The guard may be on its way out already.
        let _ = gone.send(());
    });
    // An error means that the thread is gone: as good as the end of the input.
    let _ = wait.await;
}

#[cfg(unix)]
async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

#[cfg(not(unix))]
async fn asked_to_stop() {
    std::future::pending().await
}

/// Asks, waits, kills.
async fn stop(binary: &Path, server: &mut Child) {
    if let Some(pid) = server.id() {
        signal_server(binary, "quit", pid).await;
    }
    if tokio::time::timeout(STOP_PATIENCE, server.wait())
        .await
        .is_err()
        && let Err(e) = server.kill().await
    {
        eprintln!("nats-server could not be killed: {e}");
    }
}

/// Has the server's own binary send a signal: `quit` ends it in good order, `stop` kills it.
/// Whether that worked shows in the process, not here.
pub(super) async fn signal_server(binary: &Path, what: &str, pid: u32) -> Option<ExitStatus> {
    Command::new(binary)
        .args(["--signal", &format!("{what}={pid}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .ok()
}
