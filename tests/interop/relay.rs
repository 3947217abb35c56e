//! The real relay's process, and the process that plays its agents, in a Python of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};

use crate::support::bridge::tail;
use crate::world::{ALPHA, SOON, Setting};

/// The relay's process, and the process that plays its agents.
pub struct Relay {
    dir: PathBuf,
    /// What it wrote to its log, all starts.
    pub log: PathBuf,
    port: u16,
    url: String,
    python: PathBuf,
    running: Option<Child>,
    stdin: tokio::process::ChildStdin,
    stdout: Lines<BufReader<tokio::process::ChildStdout>>,
    _agents: tokio::process::Child,
}

/// The names that the Python processes know.
const PEER_HOSTS: &str = "alpha.test=127.0.0.11,relay.alpha.test=127.0.0.11,gamma.test=127.0.0.13";

impl Relay {
    /// Starts both; the relay's files are in `dir`, where its certificate is already.
    pub async fn start(dir: &Path, setting: &Setting) -> Self {
        let python = python();
        let url = match setting.relay_port {
            443 => format!("https://{}", setting.relay_host),
            port => format!("https://{}:{port}", setting.relay_host),
        };
        let mut agents = tokio::process::Command::new(&python)
            .arg(scripts().join("agents.py"))
            .env("PEER_HOSTS", PEER_HOSTS)
            .env("SSL_CERT_FILE", dir.join("ca.pem"))
            .env("RELAY_URL", &url)
            .env("RELAY_DB", dir.join("relay.db"))
            .env("PEER_URLS", r#"{"gamma.test": "https://gamma.test"}"#)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the agents start");
        let mut relay = Self {
            dir: dir.to_owned(),
            log: dir.join("relay.log"),
            port: setting.relay_port,
            url,
            python,
            running: None,
            stdin: agents.stdin.take().expect("piped"),
            stdout: BufReader::new(agents.stdout.take().expect("piped")).lines(),
            _agents: agents,
        };
        relay.up().await;
        relay
    }

    /// Starts the relay on its old database and waits until it listens.
    pub async fn up(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the relay's log");
        let child = Command::new(&self.python)
            .arg(scripts().join("relay.py"))
            .args([
                "--bind",
                &ALPHA.to_string(),
                "--port",
                &self.port.to_string(),
            ])
            .arg("--cert")
            .arg(self.dir.join("alpha.pem"))
            .arg("--key")
            .arg(self.dir.join("alpha.key"))
            .current_dir(&self.dir)
            .env_remove("DATABASE_URL")
            .env("UAM_RELAY_DOMAIN", "alpha.test")
            .env("UAM_RELAY_HTTP_URL", &self.url)
            .env("UAM_RELAY_WS_URL", "wss://alpha.test/ws")
            .env("UAM_DB_PATH", self.dir.join("relay.db"))
            .env("UAM_RELAY_KEY_PATH", self.key_file())
            .env("UAM_LOG_LEVEL", "INFO")
            .env("SSL_CERT_FILE", self.dir.join("ca.pem"))
            .env("PEER_HOSTS", PEER_HOSTS)
            .env("PEER_DNS", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        let mut child = child.expect("the relay starts");
        let end = Instant::now() + SOON * 2;
        while tokio::net::TcpStream::connect((ALPHA, self.port))
            .await
            .is_err()
        {
            let ended = child.try_wait().ok().flatten();
            assert!(
                ended.is_none() && Instant::now() < end,
                "the relay does not come up ({ended:?}):\n{}",
                tail(&std::fs::read_to_string(&self.log).unwrap_or_default())
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.running = Some(child);
    }

    /// SIGTERM, and SIGKILL when that does not end it.
    pub fn stop(&mut self) {
        let Some(mut child) = self.running.take() else {
            return;
        };
        let kill = format!("kill -TERM {}", child.id());
        let _ = Command::new("sh").args(["-c", &kill]).status();
        let end = Instant::now() + Duration::from_secs(5);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// The file with its identity.
    pub fn key_file(&self) -> PathBuf {
        self.dir.join("alpha_key.pem")
    }

    /// One command to the agents (`agents.py` says which there are).
    pub async fn ask(&mut self, command: Value) -> Value {
        let line = format!("{command}\n");
        self.stdin.write_all(line.as_bytes()).await.expect("heard");
        let answer = tokio::time::timeout(Duration::from_secs(120), self.stdout.next_line()).await;
        let answer = answer.expect("in time").expect("read");
        let answer: Value = serde_json::from_str(&answer.expect("an answer")).expect("JSON");
        let relay = || tail(&std::fs::read_to_string(&self.log).unwrap_or_default());
        assert!(
            answer["error"].is_null(),
            "{command}: {answer}\n{}",
            relay()
        );
        answer
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

/// The Python with `youam`, made once below `target/`.
fn python() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-venv");
    let python = home.join("bin/python");
    let check =
        "import importlib.metadata as m, uam.relay.app, dns; assert m.version('youam') == '0.2.5'";
    let there = || {
        let checked = Command::new(&python).args(["-c", check]).output();
        checked.is_ok_and(|o| o.status.success())
    };
    if !there() {
        let run = |command: &mut Command| {
            let status = command.status();
            assert!(status.is_ok_and(|s| s.success()), "{command:?} failed");
        };
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&home));
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(scripts().join("requirements.txt")));
        assert!(
            there(),
            "youam 0.2.5 cannot be imported from {}",
            home.display()
        );
    }
    python
}
