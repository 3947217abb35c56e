//! One run of a local nats-server under the guard: its configuration, start, readiness, end.
//!
//! The managed server restarts such runs; the tests use them directly.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::time::Instant;

use super::guard::{GUARD_COMMAND, signal_server};
use super::server_config::{config_file, log_file, pid_file, write_config};
use super::{BusError, BusErrorKind};
use crate::config::Secret;

/// Recovering a large store comes before the first answer.
const READY_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(15);

/// What a local server is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program whose guard mode is used: the `drawbridge` binary.
    pub guard: PathBuf,
    /// The nats-server binary.
    pub binary: PathBuf,
    /// Configuration, log and JetStream files live here.
    pub dir: PathBuf,
    /// `always` or a duration as nats-server reads it.
    pub sync_interval: String,
    /// Largest message, bytes.
    pub max_payload: usize,
    /// What clients log in with, as [`USER`]; None: anybody may connect.
    pub password: Option<Secret>,
}

/// The one user of a local server.
pub const USER: &str = "drawbridge";

/// A running server. Dropping it closes the guard's pipe, which stops the server.
pub struct Launched {
    settings: Settings,
    guard: Child,
    /// Held open for as long as the server is to run.
    pipe: Option<ChildStdin>,
    pid: u32,
    port: u16,
}

/// Starts a server on loopback, on this port or a free one, and waits until it answers.
pub async fn launch(settings: &Settings, port: Option<u16>) -> Result<Launched, BusError> {
    let config = write_config(settings, port).await?;
    let mut command = Command::new(&settings.guard);
    command
        .args([
            OsString::from(GUARD_COMMAND),
            settings.binary.clone().into_os_string(),
            config.into_os_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Ctrl-C in a terminal goes to the bridge, which stops the server last.
    #[cfg(unix)]
    command.process_group(0);
    let mut guard = command.spawn().map_err(|e| {
        broken(format!(
            "the guard of nats-server ({}) cannot be started: {e}",
            settings.guard.display()
        ))
    })?;
    let pipe = guard.stdin.take();
    let output = guard.stdout.take();
    let last_words = Arc::new(Mutex::new(String::new()));
    if let Some(errors) = guard.stderr.take() {
        tokio::spawn(listen(errors, Arc::clone(&last_words)));
    }
    let ready = async {
        let mut line = String::new();
        if let Some(output) = output {
            let mut reader = BufReader::new(output.take(64));
            reader
                .read_line(&mut line)
                .await
                .map_err(|e| broken(e.to_string()))?;
        }
        let pid = line
            .strip_prefix("pid ")
            .and_then(|rest| rest.trim().parse::<u32>().ok())
            .ok_or_else(|| broken("nats-server did not start"))?;
        let port = match port {
            Some(port) => port,
            None => read_port(&settings.dir, pid).await,
        };
        answers(port).await;
        Ok::<_, BusError>((pid, port))
    };
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(READY_PATIENCE, ready) => {
            outcome.unwrap_or_else(|_| Err(broken("nats-server did not answer within 60 s")))
        }
        ended = guard.wait() => {
            Err(broken(match ended {
                Ok(_) => "nats-server ended at once".to_owned(),
                Err(e) => e.to_string(),
            }))
        }
    };
    match outcome {
        Ok((pid, port)) => Ok(Launched {
            settings: settings.clone(),
            guard,
            pipe,
            pid,
            port,
        }),
        Err(e) => {
            drop(pipe);
            // The guard stops what it started, then ends.
            let _ = tokio::time::timeout(STOP_PATIENCE, guard.wait()).await;
            let said = last_words
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .trim()
                .to_owned();
            Err(broken(format!(
                "{}{}{said}; its log is {}",
                e.detail,
                if said.is_empty() { "" } else { ": " },
                log_file(&settings.dir).display()
            )))
        }
    }
}

impl Launched {
    /// `nats://127.0.0.1:PORT`, with user and password if there is one: a secret.
    pub fn url(&self) -> String {
        match &self.settings.password {
            Some(password) => format!("nats://{USER}:{}@127.0.0.1:{}", *password.0, self.port),
            None => format!("nats://127.0.0.1:{}", self.port),
        }
    }

    /// Port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Process id of its guard.
    pub fn guard_pid(&self) -> Option<u32> {
        self.guard.id()
    }

    /// Returns when the server has ended. When only the guard was killed, the server is stopped
    /// first.
    pub async fn ended(&mut self) {
        let code = self
            .guard
            .wait()
            .await
            .ok()
            .and_then(|status| status.code());
        if code.is_none() {
            end_process(&self.settings, self.pid).await;
        }
    }

    /// Stops the server in good order, waits.
    pub async fn stop(mut self) {
        drop(self.pipe.take());
        if tokio::time::timeout(STOP_PATIENCE, self.guard.wait())
            .await
            .is_err()
        {
            // Whatever holds it up: the server goes, then the guard.
            signal_server(&self.settings.binary, "stop", self.pid).await;
            let _ = self.guard.kill().await;
        }
    }

    /// Kills the server as a crash would (SIGKILL), waits.
    pub async fn kill(mut self) {
        signal_server(&self.settings.binary, "stop", self.pid).await;
        let _ = tokio::time::timeout(STOP_PATIENCE, self.guard.wait()).await;
    }
}

/// Stops a server that an earlier run left behind in this directory, if there is one.
pub(super) async fn end_leftover(settings: &Settings) {
    let Ok(text) = tokio::fs::read_to_string(pid_file(&settings.dir)).await else {
        return;
    };
    if let Ok(pid) = text.trim().parse::<u32>() {
        end_process(settings, pid).await;
    }
}

/// Ends a process if it is the server of this directory: asks first, kills after a while.
async fn end_process(settings: &Settings, pid: u32) {
    let config = config_file(&settings.dir);
    let begun = Instant::now();
    let mut asked = None;
    while runs_with(pid, &config).await {
        let want = if begun.elapsed() > STOP_PATIENCE {
            "stop"
        } else {
            "quit"
        };
        if asked != Some(want) {
            tracing::warn!("nats-server {pid} was left behind; ending it");
            signal_server(&settings.binary, want, pid).await;
            asked = Some(want);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a process runs with this configuration file: process ids are used again.
async fn runs_with(pid: u32, config: &Path) -> bool {
    let config = config.to_string_lossy();
    if Path::new("/proc/self/cmdline").exists() {
        return match tokio::fs::read(format!("/proc/{pid}/cmdline")).await {
            Ok(line) => String::from_utf8_lossy(&line).contains(&*config),
            Err(_) => false,
        };
    }
    let listed = Command::new("ps")
        .args(["-o", "command=", "-p", &pid.to_string()])
        .stdin(Stdio::null())
        .output()
        .await;
    listed.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(&*config))
}

fn broken(detail: impl Into<String>) -> BusError {
    BusError::new(BusErrorKind::NoServer, detail)
}

/// Waits for the file in which the server says its port.
async fn read_port(dir: &Path, pid: u32) -> u16 {
    let suffix = format!("_{pid}.ports");
    loop {
        if let Ok(mut entries) = tokio::fs::read_dir(dir).await {
            while let Ok(Some(entry)) = entries.next_entry().await {
                if entry.file_name().to_string_lossy().ends_with(&suffix)
                    && let Ok(text) = tokio::fs::read_to_string(entry.path()).await
                    && let Some(port) = port_of(&text)
                {
                    return port;
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn port_of(text: &str) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_str(text).ok()?;
    let url = ports.get("nats")?.get(0)?.as_str()?;
    url.rsplit_once(':')?.1.parse().ok()
}

/// Returns when a NATS server greets on this port.
async fn answers(port: u16) {
    loop {
        if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)).await {
            let mut greeting = [0u8; 5];
            let read =
                tokio::time::timeout(Duration::from_secs(2), socket.read_exact(&mut greeting));
            if matches!(read.await, Ok(Ok(_))) && &greeting == b"INFO " {
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a NATS server greets on this port now.
pub(super) async fn greets(port: u16) -> bool {
    tokio::time::timeout(Duration::from_secs(1), answers(port))
        .await
        .is_ok()
}

/// Passes what the server says to our log, keeping the end of it for an error's sentence.
async fn listen(errors: ChildStderr, last_words: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(errors).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::debug!("nats-server: {line}");
        let mut kept = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clear();
        kept.extend(line.chars().take(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_the_servers_file() {
        let text = r#"{"nats":["nats://127.0.0.1:4333"],"monitoring":[]}"#;
        assert_eq!(port_of(text), Some(4333));
        assert_eq!(port_of("{"), None);
    }
}
