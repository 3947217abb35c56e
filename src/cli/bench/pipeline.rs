//! The program under test: the bridge as `drawbridge run`, or a bare one.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::ask::ask;
use super::far::FarSide;
use super::rig::{Process, Rig, last_words, own_binary};
use super::usage;
use super::world::World;

/// Longest wait for readiness; a debug build on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// Longest wait for an orderly end.
const END: Duration = Duration::from_secs(30);
/// How often readiness is asked for: it is one of the things measured.
const LOOK: Duration = Duration::from_millis(1);

/// A running bridge.
pub struct Bridge {
    child: Child,
    log: PathBuf,
    pub public: SocketAddr,
    admin: SocketAddr,
}

impl Bridge {
    /// Writes the configuration of a bridge that knows every peer of the rig, or none.
    pub fn configure(
        dir: &Path,
        nats: &str,
        rig: &Rig,
        knows_peers: bool,
        log: &str,
    ) -> Result<Configured, String> {
        let [public, admin] = [free_address()?, free_address()?];
        let mut text = format!(
            "data_dir = {dir}\n[nats]\nurl = {nats}\n[public]\naddress = \"{public}\"\n\
             [admin]\naddress = \"{admin}\"\n[log]\nlevel = {log}\n",
            dir = json!(dir),
            nats = json!(nats),
            log = json!(log),
        );
        let FarSide(far) = rig.far;
        text.push_str(
            &rig.speech
                .settings(dir, public, knows_peers.then_some(far))?,
        );
        if knows_peers {
            text.push_str("[http.hosts]\n");
            for n in 0..rig.peers {
                let _ = writeln!(text, "{:?} = [\"{}\"]", World::host_of(n), far.ip());
            }
        }
        let file = dir.join("bridge.toml");
        std::fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(Configured {
            file,
            log: dir.join("bridge.log"),
            public,
            admin,
        })
    }

    /// Its process id.
    pub fn id(&self) -> Result<u32, String> {
        self.child
            .id()
            .ok_or_else(|| format!("the bridge has ended: {}", last_words(&self.log)))
    }

    /// Waits until `/readyz` says so and the public listener is open.
    pub async fn ready(&mut self) -> Result<(), String> {
        let end = Instant::now() + READY;
        loop {
            if let Some(why) = self.ended() {
                return Err(why);
            }
            let asked = ask(self.admin, Method::GET, "/readyz", &[], Bytes::new()).await;
            match asked {
                // The public listener opens last, a moment later.
                Ok((200, _)) if TcpStream::connect(self.public).await.is_ok() => return Ok(()),
                _ if Instant::now() > end => {
                    return Err(format!(
                        "the bridge is not ready: {}",
                        last_words(&self.log)
                    ));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// A sentence when it has ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!(
            "the bridge ended with {status}: {}",
            last_words(&self.log)
        ))
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(mut self) -> Result<(), String> {
        let pid = self.id()?.to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status().await;
        asked.map_err(|e| format!("kill: {e}"))?;
        match tokio::time::timeout(END, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!(
                "the bridge ended with {status}: {}",
                last_words(&self.log)
            )),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("the bridge does not stop".into()),
        }
    }
}

/// A bridge that can be started, again and again.
pub struct Configured {
    file: PathBuf,
    log: PathBuf,
    public: SocketAddr,
    admin: SocketAddr,
}

impl Configured {
    /// Starts it and returns at once.
    pub fn spawn(&self) -> Result<Bridge, String> {
        let told = |e: &dyn std::fmt::Display| format!("the bridge cannot be started: {e}");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log);
        let child = Command::new(own_binary()?)
            .args(["run", "--config"])
            .arg(&self.file)
            // Settings of the person's own environment are not what is measured.
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "HOME"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.map_err(|e| told(&e))?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| told(&e))?;
        Ok(Bridge {
            child,
            log: self.log.clone(),
            public: self.public,
            admin: self.admin,
        })
    }
}

/// Either program.
pub enum Pipeline {
    Ours(Bridge),
    Bare(Process),
}

impl Pipeline {
    /// Its process id.
    pub fn id(&self) -> Result<u32, String> {
        match self {
            Self::Ours(bridge) => bridge.id(),
            Self::Bare(process) => process.id().ok_or_else(|| "bare has ended".into()),
        }
    }

    /// An error when it has ended by itself.
    pub fn alive(&mut self) -> Result<(), String> {
        let ended = match self {
            Self::Ours(bridge) => bridge.ended(),
            Self::Bare(process) => process.ended(),
        };
        ended.map_or(Ok(()), Err)
    }

    /// Largest resident size so far, bytes.
    pub fn peak_rss(&self) -> Option<u64> {
        usage::peak_rss(self.id().ok()?)
    }

    /// Ends it.
    pub async fn stop(self) -> Result<(), String> {
        match self {
            Self::Ours(bridge) => bridge.stop().await,
            Self::Bare(process) => {
                drop(process);
                Ok(())
            }
        }
    }
}

/// An address on loopback that was free a moment ago.
fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    listener.map_err(|e| format!("no free port on loopback: {e}"))
}
