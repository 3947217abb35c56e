//! What a bench stands on: a directory, the far side, and a fresh broker for every round.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::args::{WorldArgs, count};
use super::far::FarSide;
use super::speech::Speech;
use super::usage;
use crate::bus::launch::{self, Launched, Settings};
use crate::bus::{Bus, find};
use crate::config::{Config, NatsConfig};

/// nats-server takes messages of this size from us.
const MAX_PAYLOAD: usize = 16 * 1024 * 1024;

/// Everything but what is measured.
pub struct Rig {
    home: PathBuf,
    binary: PathBuf,
    sync: &'static str,
    pub speech: Arc<dyn Speech>,
    /// What is spoken, as in subjects.
    pub protocol: &'static str,
    /// How many peers there are.
    pub peers: usize,
    /// So many of them messages are exchanged with.
    pub active: usize,
    /// As the bench was told, with the peers' port.
    pub world: WorldArgs,
    pub arguments: Vec<String>,
    pub far: FarSide,
    far_process: Process,
}

impl Rig {
    /// Makes the directory and starts the far side.
    pub async fn start(args: &WorldArgs, sync: &'static str) -> Result<Self, String> {
        let told = |e: &dyn std::fmt::Display| e.to_string();
        let binary = find::server_binary(None, &find::default_cache_dir())
            .await
            .map_err(|e| told(&e))?;
        let home = std::env::temp_dir().join(format!("drawbridge-bench-{}", std::process::id()));
        std::fs::create_dir_all(&home).map_err(|e| format!("{}: {e}", home.display()))?;
        let arguments = args.arguments();
        let started = Process::start(&["bench", "far"], &arguments, &home.join("far.log")).await;
        let far_process = started.inspect_err(|_| drop(std::fs::remove_dir_all(&home)))?;
        let far = FarSide {
            peers: far_process.address("address")?,
            control: far_process.address("control")?,
        };
        let args = args.at(far.peers.port());
        Ok(Self {
            far,
            far_process,
            home,
            binary,
            sync,
            speech: args.speech()?,
            protocol: args.protocol.id(),
            peers: count(args.peers),
            active: count(args.active()),
            arguments: args.arguments(),
            world: args,
        })
    }

    /// An empty directory.
    pub fn fresh_dir(&self, name: &str) -> Result<PathBuf, String> {
        let dir = self.home.join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(dir)
    }

    /// A new nats-server with empty streams.
    pub async fn broker(&self) -> Result<Broker, String> {
        let settings = Settings {
            guard: own_binary()?,
            binary: self.binary.clone(),
            dir: self.fresh_dir("nats")?,
            sync_interval: self.sync.to_owned(),
            max_payload: MAX_PAYLOAD,
            password: None,
        };
        let server = launch::launch(&settings, None)
            .await
            .map_err(|e| e.to_string())?;
        let config = Config::from_text("").map_err(|e| e.to_string())?;
        let nats = NatsConfig {
            url: Some(server.url()),
            publish_window: 1024,
            // The machine is busy on purpose.
            request_timeout: std::time::Duration::from_secs(60),
            ..config.nats
        };
        let bus = Bus::connect(&nats).await.map_err(|e| e.to_string())?;
        bus.apply_streams().await.map_err(|e| e.to_string())?;
        Ok(Broker { server, bus })
    }

    /// CPU times of all processes at this moment.
    pub fn cpu(&self, broker: &Broker, pipeline: u32) -> Cpu {
        Cpu([
            ("bridge", usage::cpu_us(pipeline)),
            ("broker", usage::cpu_us(broker.server.pid())),
            ("sink", self.far_process.id().and_then(usage::cpu_us)),
        ])
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// CPU times by process, microseconds.
pub struct Cpu([(&'static str, Option<u64>); 3]);

impl Cpu {
    /// What was used since an earlier look, a message of `messages`.
    pub fn since(
        &self,
        earlier: &Self,
        messages: usize,
    ) -> std::collections::BTreeMap<&'static str, f64> {
        let pairs = self.0.iter().zip(&earlier.0);
        pairs
            .filter_map(|((name, now), (_, then))| {
                let used = super::figures::approximate((*now)?.saturating_sub((*then)?));
                Some((
                    *name,
                    used / super::figures::approximate(messages.max(1) as u64),
                ))
            })
            .collect()
    }
}

/// A nats-server of one round, with a connection as a backend has one.
pub struct Broker {
    server: Launched,
    pub bus: Bus,
}

impl Broker {
    /// `nats://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Messages in a stream, by its contract name.
    pub async fn messages(&self, stream: &str) -> Result<u64, String> {
        let facts = self
            .bus
            .stream_facts(stream)
            .await
            .map_err(|e| e.to_string())?;
        Ok(facts.map_or(0, |f| f.messages))
    }

    /// Removes all but the newest message of a stream, as age does.
    pub async fn forget(&self, stream: &str) -> Result<(), String> {
        let told = |e: &dyn std::fmt::Display| format!("{stream} cannot be purged: {e}");
        let client = async_nats::connect(self.url())
            .await
            .map_err(|e| told(&e))?;
        let stream = async_nats::jetstream::new(client).get_stream(stream).await;
        let purge = stream.map_err(|e| told(&e))?;
        purge.purge().keep(1).await.map_err(|e| told(&e))?;
        Ok(())
    }

    /// Stops it.
    pub async fn stop(self) {
        self.bus.close().await;
        self.server.stop().await;
    }
}

/// A process of the bench: this binary again. It ends when this value is dropped.
pub struct Process {
    child: Child,
    pipe: Option<ChildStdin>,
    output: Option<BufReader<ChildStdout>>,
    said: Value,
    log: PathBuf,
}

impl Process {
    /// Starts it and waits for its one line of JSON.
    pub async fn start(command: &[&str], arguments: &[String], log: &Path) -> Result<Self, String> {
        let told =
            |e: &dyn std::fmt::Display| format!("a process of the bench cannot be started: {e}");
        let mut child = Command::new(own_binary()?)
            .args(command)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log).map_err(|e| told(&e))?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| told(&e))?;
        let pipe = child.stdin.take();
        let mut line = String::new();
        let mut output = child.stdout.take().map(BufReader::new);
        if let Some(output) = &mut output {
            output.read_line(&mut line).await.map_err(|e| told(&e))?;
        }
        let said = serde_json::from_str(&line)
            .map_err(|_| format!("{}: {}", command.join(" "), last_words(log)))?;
        Ok(Self {
            child,
            pipe,
            output,
            said,
            log: log.to_owned(),
        })
    }

    /// Its process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// An address it said.
    pub fn address(&self, name: &str) -> Result<std::net::SocketAddr, String> {
        let text = self.said[name].as_str().unwrap_or_default();
        text.parse()
            .map_err(|_| format!("no {name}: {}", last_words(&self.log)))
    }

    /// What it said.
    pub fn said(&self) -> &Value {
        &self.said
    }

    /// Lets it end; answers its last line.
    pub async fn end(mut self) -> Result<Value, String> {
        drop(self.pipe.take());
        let mut line = String::new();
        if let Some(mut output) = self.output.take() {
            let read = output.read_line(&mut line).await;
            read.map_err(|e| format!("a process of the bench: {e}"))?;
        }
        serde_json::from_str(&line).map_err(|_| last_words(&self.log))
    }

    /// A sentence when it has ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("it ended with {status}: {}", last_words(&self.log)))
    }
}

/// The end of a log, for a sentence.
pub fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(5)..)
        .unwrap_or_default()
        .join("; ")
}

/// The program that runs.
pub fn own_binary() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|e| format!("our own program cannot be found: {e}"))
}
