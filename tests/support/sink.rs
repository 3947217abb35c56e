//! A receiving UAM relay whose log can be believed: every delivery is written down *before* it is
//! answered, with its time, and once more after the answer went out.
//!
//! HTTP is spoken by hand over plain sockets, so that the answer can be late, wrong, endless or
//! cut off, and so that "the answer was written" is a moment this file sees. It runs inside a test,
//! or as a process of its own that can be killed ([`SinkProcess`]: the test executable runs itself
//! again with one test, [`main_if_asked`]).
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::uam_client::{key_of, now_ns, payload_text, public_of, verify_delivery};

/// Who the sink is and whom it believes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SinkOptions {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its relay name; its agents live there.
    pub domain: String,
    /// The key name of the only relay whose deliveries it takes.
    pub trusts: String,
    /// Holds `arrivals.jsonl` and `mode`.
    pub dir: PathBuf,
}

/// One line of the sink's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Nanoseconds since 1970.
    pub t: u64,
    /// `arrival`, `answered`, `forged`.
    pub what: String,
    /// Message id of the envelope.
    #[serde(default)]
    pub id: String,
    /// Pairs `arrival` and `answered`.
    pub token: String,
    /// The status that is going to be answered (`arrival`).
    #[serde(default)]
    pub status: u16,
    /// Clear text of the payload, or why it was not believed.
    #[serde(default)]
    pub note: String,
    /// Relay form of the request: `legacy` or `nonce`.
    #[serde(default)]
    pub form: String,
    /// When the sender signed the request, nanoseconds since 1970 (of an `arrival`).
    #[serde(default)]
    pub sent: u64,
}

/// Writes the control file: how deliveries are answered from now on.
///
/// `ok` · `status N [Retry-After]` · `slow MS` · `html` · `endless` · `flood` · `cut` · `redirect URL`.
/// Look-ups are always answered as they should be. A payload that begins with `refuse` is always
/// answered 400, one that begins with `flaky` 418 twice.
pub fn set_mode(dir: &Path, mode: &str) {
    let next = dir.join("mode.next");
    std::fs::write(&next, mode).expect("the sink's folder is writable");
    std::fs::rename(next, dir.join("mode")).expect("the sink's folder is writable");
}

/// Reads the log; a last line torn by a kill is left out.
pub fn read_log(dir: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(dir.join("arrivals.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// The log as it grows: every line is read once.
#[derive(Default)]
pub struct LogTail {
    /// What was read so far.
    pub lines: Vec<Line>,
    read: u64,
}

impl LogTail {
    /// Reads what came since the last time.
    pub fn more(&mut self, dir: &Path) -> &[Line] {
        let mut text = String::new();
        let new = File::open(dir.join("arrivals.jsonl")).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_string(&mut text)
        });
        // An error: nothing has arrived yet.
        if new.is_ok() {
            let whole = text.rfind('\n').map_or(0, |at| at + 1);
            self.read += whole as u64;
            let lines = text[..whole].lines();
            self.lines
                .extend(lines.filter_map(|line| serde_json::from_str::<Line>(line).ok()));
        }
        &self.lines
    }
}

struct Sink {
    options: SinkOptions,
    log: Mutex<File>,
    seen: Mutex<HashSet<String>>,
    /// Arrivals so far of each message, taken or not.
    counts: Mutex<HashMap<String, usize>>,
    count: std::sync::atomic::AtomicU64,
}

impl Sink {
    fn open(options: SinkOptions) -> std::io::Result<Self> {
        std::fs::create_dir_all(&options.dir)?;
        let mut seen = HashSet::new();
        let mut counts = HashMap::<_, usize>::new();
        for line in read_log(&options.dir) {
            if line.what == "arrival" {
                *counts.entry(line.id.clone()).or_default() += 1;
                // Only what was taken is a duplicate later; what was answered 503 or 400 was not.
                if line.status == 200 {
                    seen.insert(line.id);
                }
            }
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(options.dir.join("arrivals.jsonl"))?;
        Ok(Self {
            options,
            log: Mutex::new(log),
            seen: Mutex::new(seen),
            counts: Mutex::new(counts),
            count: std::sync::atomic::AtomicU64::new(0),
        })
    }

    fn write(&self, line: &Line) {
        let mut text = serde_json::to_string(line).expect("a line is JSON");
        text.push('\n');
        // One write call a line: a SIGKILL cannot tear it, and what is in the page cache stays.
        self.log
            .lock()
            .expect("no writer panics")
            .write_all(text.as_bytes())
            .expect("the sink's log is writable");
    }

    /// Counts one arrival of a message; how often it came before.
    fn arrived(&self, id: &str) -> usize {
        let mut counts = self.counts.lock().expect("no reader panics");
        let count = counts.entry(id.to_owned()).or_default();
        *count += 1;
        *count - 1
    }

    fn token(&self) -> String {
        let n = self
            .count
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        format!("{}-{n}", std::process::id())
    }

    fn mode(&self) -> String {
        std::fs::read_to_string(self.options.dir.join("mode")).unwrap_or_default()
    }

    fn lookup(&self, path: &str) -> (u16, Value) {
        let base = format!("http://{}", self.options.address);
        let domain = &self.options.domain;
        if path == "/.well-known/uam-relay.json" {
            return (
                200,
                json!({"relay_domain": domain, "federation_endpoint": format!("{base}/api/v1/federation/deliver"),
                       "public_key": public_of(domain), "version": "0.1"}),
            );
        }
        if let Some(address) = path
            .strip_prefix("/api/v1/agents/")
            .and_then(|p| p.strip_suffix("/public-key"))
        {
            let address = address.replace("%3A", ":").replace("%3a", ":");
            if address.ends_with(&format!("::{domain}")) {
                return (
                    200,
                    json!({"address": address, "public_key": public_of(&address), "tier": 1, "verified_domain": null}),
                );
            }
            return (
                404,
                json!({"error": "not_found", "detail": format!("Agent not found: {address}")}),
            );
        }
        // `/api/v1/versions` too: this relay speaks the legacy form.
        (404, json!({"detail": "Not Found"}))
    }

    async fn delivery(&self, request: &Incoming, socket: &mut TcpStream) -> std::io::Result<bool> {
        let token = self.token();
        let signature = request
            .headers
            .get("x-uam-relay-signature")
            .map_or("", String::as_str);
        let trusted = key_of(&self.options.trusts).verifying_key();
        let envelope = match verify_delivery(&request.body, signature, &trusted) {
            Ok(envelope) => envelope,
            Err(why) => {
                self.write(&Line {
                    t: now_ns(),
                    what: "forged".into(),
                    token,
                    note: why,
                    ..Line::default()
                });
                return answer(
                    socket,
                    401,
                    "",
                    &json!({"error": "unauthorized", "detail": "Invalid relay signature"})
                        .to_string(),
                )
                .await;
            }
        };
        let id = envelope["message_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let text = payload_text(&envelope);
        let mode = self.mode();
        let mut words = mode.split_whitespace();
        let (word, argument) = (words.next().unwrap_or("ok"), words.next().unwrap_or(""));
        let extra = words
            .next()
            .map_or(String::new(), |s| format!("Retry-After: {s}\r\n"));
        let before = self.arrived(&id);
        let status = match word {
            "status" => argument.parse().unwrap_or(503),
            "redirect" => 302,
            _ if text.starts_with("refuse") => 400,
            // No status of the protocol: the fault of this message alone, until it came twice.
            _ if text.starts_with("flaky") && before < 2 => 418,
            _ => 200,
        };
        self.write(&Line {
            t: now_ns(),
            what: "arrival".into(),
            id: id.clone(),
            token: token.clone(),
            status,
            note: text.chars().take(200).collect(),
            form: if request.body_has_nonce() {
                "nonce"
            } else {
                "legacy"
            }
            .into(),
            sent: request.signed_at(),
        });
        let known = status == 200
            && !self
                .seen
                .lock()
                .expect("no reader panics")
                .insert(id.clone());
        if word == "slow" {
            tokio::time::sleep(Duration::from_millis(argument.parse().unwrap_or(1000))).await;
        }
        let body = match status {
            200 if known => json!({"status": "duplicate", "detail": "Message already delivered"}),
            200 => json!({"status": "delivered", "detail": null}),
            status => json!({"error": "error", "detail": format!("told to answer {status}")}),
        };
        let keep = match word {
            "html" => {
                answer_as(
                    socket,
                    200,
                    "text/html",
                    "",
                    "<html><body>It works!</body></html>",
                )
                .await?
            }
            "endless" => {
                socket
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await?;
                loop {
                    socket.write_all(b"1\r\n \r\n").await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            "flood" => {
                socket
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n")
                    .await?;
                loop {
                    socket.write_all(&[b' '; 65536]).await?;
                }
            }
            "cut" => {
                socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await?;
                false
            }
            "redirect" => answer(socket, 302, &format!("Location: {argument}\r\n"), "{}").await?,
            _ => answer(socket, status, &extra, &body.to_string()).await?,
        };
        self.write(&Line {
            t: now_ns(),
            what: "answered".into(),
            id,
            token,
            status,
            ..Line::default()
        });
        Ok(keep)
    }

    async fn connection(self: Arc<Self>, mut socket: TcpStream) -> std::io::Result<()> {
        let _ = socket.set_nodelay(true);
        let mut buffer = Vec::new();
        while let Some(request) = Incoming::read(&mut socket, &mut buffer).await? {
            let keep = if request.method == "POST" && request.path == "/api/v1/federation/deliver" {
                self.delivery(&request, &mut socket).await?
            } else {
                let (status, body) = self.lookup(&request.path);
                answer(&mut socket, status, "", &body.to_string()).await?
            };
            if !keep {
                break;
            }
        }
        Ok(())
    }
}

/// Serves until dropped; connections end with it.
///
/// # Errors
/// When the log cannot be opened or the listener fails.
pub async fn serve(listener: TcpListener, options: SinkOptions) -> std::io::Result<()> {
    let sink = Arc::new(Sink::open(options)?);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted?;
                connections.spawn(sink.clone().connection(socket));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(
    socket: &mut TcpStream,
    status: u16,
    extra: &str,
    body: &str,
) -> std::io::Result<bool> {
    answer_as(socket, status, "application/json", extra, body).await
}

async fn answer_as(
    socket: &mut TcpStream,
    status: u16,
    kind: &str,
    extra: &str,
    body: &str,
) -> std::io::Result<bool> {
    let head = format!(
        "HTTP/1.1 {status} Told\r\nContent-Type: {kind}\r\n{extra}Content-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await?;
    Ok(true)
}

struct Incoming {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Incoming {
    /// The next request of a connection; `None` at its end. `buffer` keeps what was read too far.
    async fn read(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Self>> {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if socket.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (
            first.next().unwrap_or_default(),
            first.next().unwrap_or_default(),
        );
        let headers: HashMap<_, _> = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(k, v)| (k.trim().to_ascii_lowercase(), v.trim().to_owned()))
            .collect();
        let length = headers
            .get("content-length")
            .and_then(|l| l.parse().ok())
            .unwrap_or(0);
        let end = head_end + 4 + length;
        while buffer.len() < end {
            if socket.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
        let body = buffer[head_end + 4..end].to_vec();
        let request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body,
        };
        buffer.drain(..end);
        Ok(Some(request))
    }

    /// When the relay signed it, nanoseconds since 1970; 0 when it does not say.
    fn signed_at(&self) -> u64 {
        serde_json::from_slice::<Value>(&self.body)
            .ok()
            .and_then(|body| body["timestamp"].as_str()?.parse::<jiff::Timestamp>().ok())
            .and_then(|at| u64::try_from(at.as_nanosecond()).ok())
            .unwrap_or(0)
    }

    fn body_has_nonce(&self) -> bool {
        serde_json::from_slice::<Value>(&self.body).is_ok_and(|b| b.get("nonce").is_some())
    }
}

// ------------------------------------------------------------------------- as a process of its own

/// Where the options of a sink process travel.
const ENV: &str = "DRAWBRIDGE_TEST_SINK";

/// The body of the helper test `sink_main`: serves when this process was started as a sink, until
/// it is killed or its parent is gone.
pub fn main_if_asked() {
    let Ok(options) = std::env::var(ENV) else {
        return;
    };
    let options: SinkOptions = serde_json::from_str(&options).expect("options of a sink");
    // The pipe at standard input ends with the parent, however it ends.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = listen(options.address).await.expect("the sink's address");
        serve(listener, options).await.expect("the sink serves");
    });
}

/// Binds, waiting out a predecessor that is being torn down.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let mut last = None;
    for _ in 0..100 {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(e) => last = Some(e),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("not tried")))
}

/// A sink in a process of its own; killed when dropped.
pub struct SinkProcess {
    pub options: SinkOptions,
    child: Option<Child>,
}

impl SinkProcess {
    /// Not yet running.
    pub fn new(options: SinkOptions) -> Self {
        std::fs::create_dir_all(&options.dir).expect("the sink's folder");
        Self {
            options,
            child: None,
        }
    }

    /// Starts it and waits until it listens.
    pub async fn start(&mut self) {
        let child = Command::new(std::env::current_exe().expect("the test executable"))
            .args([
                "sink_main",
                "--exact",
                "--ignored",
                "--nocapture",
                "--quiet",
            ])
            .env(ENV, serde_json::to_string(&self.options).expect("JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the test executable starts again");
        self.child = Some(child);
        for _ in 0..200 {
            if TcpStream::connect(self.options.address).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the sink does not listen at {}", self.options.address);
    }

    /// SIGKILL, at once.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for SinkProcess {
    fn drop(&mut self) {
        self.kill9();
    }
}
