//! The program under test: the bridge as `drawbridge run`, or a bare one.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::args::RunArgs;
use super::ask::ask;
use super::far::{Ill, ill};
use super::rig::{Process, Rig, last_words, own_binary};
use super::usage;
use super::world::World;

/// Longest wait for readiness; a debug build on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// Longest wait for an orderly end.
const END: Duration = Duration::from_secs(30);
/// How often readiness is asked for: it is one of the things measured.
const LOOK: Duration = Duration::from_millis(1);

/// Nobody listens there.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A running bridge.
pub struct Bridge {
    child: Child,
    log: PathBuf,
    pub public: SocketAddr,
    admin: SocketAddr,
}

/// Which peers nobody listens for.
#[derive(Clone, Copy, Debug, Default)]
pub enum Sick {
    #[default]
    Nobody,
    /// Of those from this number on, the ones that refuse connections ([`ill`]).
    Mixed(usize),
    /// All from this number on.
    Refusing(usize),
}

impl Sick {
    fn refuses(self, n: usize) -> bool {
        match self {
            Self::Nobody => false,
            Self::Mixed(from) => n >= from && ill(n) == Ill::Refuses,
            Self::Refusing(from) => n >= from,
        }
    }
}

/// How a bridge is set up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// It knows every peer of the rig; else none.
    pub knows_peers: bool,
    /// Who is reached at an address where nobody listens.
    pub sick: Sick,
    pub log: String,
    /// Further settings as the environment has them: `OUTBOUND__SHARDS`, `1`.
    pub set: Vec<(String, String)>,
}

impl Setup {
    /// A bridge that knows every peer, and whatever a person set.
    pub fn of(run: &RunArgs) -> Self {
        Self {
            knows_peers: true,
            sick: Sick::Nobody,
            log: run.log.clone(),
            set: run.set.clone(),
        }
    }

    /// With one more setting; those that a person set win.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.set.insert(0, (name.to_owned(), value.to_string()));
        self
    }
}

impl Bridge {
    /// Writes the configuration of a bridge.
    pub fn configure(
        dir: &Path,
        nats: &str,
        rig: &Rig,
        setup: &Setup,
    ) -> Result<Configured, String> {
        let [public, admin] = [free_address()?, free_address()?];
        let mut text = format!(
            "data_dir = {dir}\n[nats]\nurl = {nats}\n[public]\naddress = \"{public}\"\n\
             [admin]\naddress = \"{admin}\"\n[log]\nlevel = {log}\n",
            dir = json!(dir),
            nats = json!(nats),
            log = json!(setup.log),
        );
        let far = rig.far.peers;
        text.push_str(
            &rig.speech
                .settings(dir, public, setup.knows_peers.then_some(far))?,
        );
        if setup.knows_peers {
            text.push_str("[http.hosts]\n");
            // Nobody asks for those that are only known.
            let reached = match setup.sick {
                Sick::Nobody => rig.active,
                Sick::Mixed(_) | Sick::Refusing(_) => rig.peers,
            };
            for n in 0..reached {
                let ip = if setup.sick.refuses(n) {
                    NOBODY
                } else {
                    far.ip()
                };
                let _ = writeln!(text, "{:?} = [\"{ip}\"]", World::host_of(n));
            }
        }
        let file = dir.join("bridge.toml");
        std::fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(Configured::of(file, public, admin, &setup.set))
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

    /// A number of its metrics page: the sum over all labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let asked = ask(self.admin, Method::GET, "/metrics", &[], Bytes::new()).await;
        let (_, page) = asked.ok()?;
        let page = String::from_utf8_lossy(&page);
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' '])
                .then(|| rest.rsplit_once(' ')?.1.parse::<f64>().ok())?
        };
        Some(page.lines().filter_map(of).sum())
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(mut self) -> Result<(), String> {
        self.child.kill().await.map_err(|e| e.to_string())
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
    set: Vec<(String, String)>,
    file: PathBuf,
    log: PathBuf,
    public: SocketAddr,
    admin: SocketAddr,
}

impl Configured {
    /// One whose configuration is written; its ledger and log are beside it.
    pub fn of(
        file: PathBuf,
        public: SocketAddr,
        admin: SocketAddr,
        set: &[(String, String)],
    ) -> Self {
        let named =
            |(name, value): &(String, String)| (format!("DRAWBRIDGE_{name}"), value.clone());
        Self {
            set: set.iter().map(named).collect(),
            log: file.with_file_name("bridge.log"),
            file,
            public,
            admin,
        }
    }

    /// The configuration.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Its ledger.
    pub fn database(&self) -> PathBuf {
        self.file.with_file_name("drawbridge.db")
    }

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
            .envs(self.set.iter().map(|(name, value)| (name, value)))
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

/// The program that is measured.
pub enum Pipeline {
    Ours(Bridge),
    /// Instances of one bridge, at least one.
    Several(Vec<Bridge>),
    Bare(Process),
}

impl Pipeline {
    /// Its process id; of several, the first one's.
    pub fn id(&self) -> Result<u32, String> {
        match self {
            Self::Ours(bridge) => bridge.id(),
            Self::Several(all) => match all.first() {
                Some(bridge) => bridge.id(),
                None => Err("no instance runs".into()),
            },
            Self::Bare(process) => process.id().ok_or_else(|| "bare has ended".into()),
        }
    }

    /// An error when it has ended by itself.
    pub fn alive(&mut self) -> Result<(), String> {
        let ended = match self {
            Self::Ours(bridge) => bridge.ended(),
            Self::Several(all) => all.iter_mut().find_map(Bridge::ended),
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
            Self::Several(all) => {
                for bridge in all {
                    bridge.stop().await?;
                }
                Ok(())
            }
            Self::Bare(process) => {
                drop(process);
                Ok(())
            }
        }
    }
}

/// An address on loopback that was free a moment ago.
pub fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    listener.map_err(|e| format!("no free port on loopback: {e}"))
}
