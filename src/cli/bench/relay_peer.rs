//! The real UAM relay of `bench relay`: the `youam` package in a Python that the person names,
//! unmodified, and a second Python that plays its agents. The scripts that start both are those of
//! `tests/interop`.
//!
//! The relay is `alpha.test` on 127.0.0.11:443, the bridge `gamma.test` on 127.0.0.13:443; the Python
//! processes know these names and no others, so nothing outside of loopback is contacted. Port 443
//! is where relays look for one another, so this needs root.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

use super::rig::last_words;

/// The relay's address.
pub const ALPHA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The bridge's.
pub const GAMMA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 13);
/// The names that the Python processes know.
const HOSTS: &str = "alpha.test=127.0.0.11,gamma.test=127.0.0.13";
/// The relay imports much.
const PATIENCE: Duration = Duration::from_secs(120);

/// Both Python processes.
pub struct Relay {
    relay: Child,
    _agents: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Relay {
    /// Starts both; certificates are in `dir` already.
    pub async fn start(python: &Path, scripts: &Path, dir: &Path) -> Result<Self, String> {
        let told = |e: std::io::Error| format!("{}: {e}", python.display());
        // Not canonical: a venv's python is a link, and must be called by its own name.
        let python = &std::path::absolute(python).map_err(told)?;
        let (log, database) = (dir.join("relay.log"), dir.join("relay.db"));
        let file = std::fs::File::create(&log).map_err(told)?;
        let listen = [("--bind", ALPHA.to_string()), ("--port", "443".to_owned())];
        let relay = Command::new(python)
            .arg(absolute(&scripts.join("relay.py"))?)
            .args(listen.iter().flat_map(|(k, v)| [*k, v.as_str()]))
            .arg("--cert")
            .arg(dir.join("alpha.pem"))
            .arg("--key")
            .arg(dir.join("alpha.key"))
            .current_dir(dir)
            .env_remove("DATABASE_URL")
            .env("UAM_RELAY_DOMAIN", "alpha.test")
            .env("UAM_RELAY_HTTP_URL", "https://alpha.test")
            .env("UAM_RELAY_WS_URL", "wss://alpha.test/ws")
            .env("UAM_DB_PATH", &database)
            .env("UAM_RELAY_KEY_PATH", dir.join("alpha_key.pem"))
            // Its limit of requests is not what is measured, nor is what it writes to its log.
            .env("UAM_FEDERATION_RELAY_RATE_LIMIT", "1000000000")
            .env("UAM_LOG_LEVEL", "WARNING")
            .env("SSL_CERT_FILE", dir.join("ca.pem"))
            .env("PEER_HOSTS", HOSTS)
            .env("PEER_DNS", "none")
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(told)?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(told)?;
        let mut agents = Command::new(python)
            .arg(absolute(&scripts.join("agents.py"))?)
            .env("PEER_HOSTS", HOSTS)
            .env("SSL_CERT_FILE", dir.join("ca.pem"))
            .env("RELAY_URL", "https://alpha.test")
            .env("RELAY_DB", &database)
            .env("PEER_URLS", r#"{"gamma.test": "https://gamma.test"}"#)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(told)?;
        let missing = || "the agents' process cannot be spoken to".to_owned();
        let mut started = Self {
            stdin: agents.stdin.take().ok_or_else(missing)?,
            stdout: BufReader::new(agents.stdout.take().ok_or_else(missing)?).lines(),
            _agents: agents,
            relay,
            log,
        };
        started.listens().await?;
        Ok(started)
    }

    async fn listens(&mut self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        let at = SocketAddr::from((ALPHA, 443));
        while tokio::net::TcpStream::connect(at).await.is_err() {
            let ended = self.relay.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > end {
                return Err(format!(
                    "the relay does not come up: {}",
                    last_words(&self.log)
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The relay's process.
    pub fn id(&self) -> Result<u32, String> {
        let ended = || format!("the relay has ended: {}", last_words(&self.log));
        self.relay.id().ok_or_else(ended)
    }

    /// One command to its agents (`agents.py` says which there are).
    pub async fn ask(&mut self, command: Value) -> Result<Value, String> {
        let told = |e: &dyn std::fmt::Display| format!("the relay's agents: {e}");
        let line = format!("{command}\n");
        let written = self.stdin.write_all(line.as_bytes()).await;
        written.map_err(|e| told(&e))?;
        let answer = tokio::time::timeout(PATIENCE, self.stdout.next_line()).await;
        let answer = answer.map_err(|e| told(&e))?.map_err(|e| told(&e))?;
        let answer: Value = serde_json::from_str(&answer.ok_or_else(|| told(&"they have ended"))?)
            .map_err(|e| told(&e))?;
        match answer["error"].as_str() {
            None => Ok(answer),
            Some(why) => Err(format!("{}; {}", told(&why), last_words(&self.log))),
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::fs::canonicalize(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// A throw-away authority (`ca.pem`) and a certificate for each side, by the `openssl` program.
pub async fn certificates(dir: &Path) -> Result<(), String> {
    let ca = "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=bench \
              -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign";
    openssl(dir, ca).await?;
    for name in ["alpha", "gamma"] {
        let extensions = format!(
            "subjectAltName=DNS:{name}.test\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n"
        );
        let file = dir.join(format!("{name}.ext"));
        std::fs::write(&file, extensions).map_err(|e| format!("{}: {e}", file.display()))?;
        let request = format!(
            "req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}.test"
        );
        openssl(dir, &request).await?;
        let sign = format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem \
             -days 2 -extfile {name}.ext"
        );
        openssl(dir, &sign).await?;
    }
    Ok(())
}

async fn openssl(dir: &Path, arguments: &str) -> Result<(), String> {
    let output = Command::new("openssl")
        .args(arguments.split_ascii_whitespace())
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|e| format!("openssl: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("openssl {arguments}: {said}"))
}
