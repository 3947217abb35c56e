//! The bridge's own binary and a nats-server as processes, to be started, killed and started again
//! on the same ports and files.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::uam_client::key_file_of;

/// How long a start may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A loopback port that is free now and below the range the system gives to outgoing connections,
/// so that it is still free when its owner comes back from a kill.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 12_000 + u16::try_from(std::process::id() % 180).unwrap_or(0) * 100;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// `127.0.0.1` with a free port.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

/// What happens to a process that a test owns: always ended with it.
struct Running(Child);

impl Running {
    fn kill9(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    fn exited(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// SIGTERM by the shell's own `kill`: the standard library only knows SIGKILL.
    fn terminate(&self) {
        self.signal("TERM");
    }

    fn signal(&self, name: &str) {
        let _ = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.0.id())])
            .status();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn log_file(path: &Path) -> Stdio {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_or_else(|_| Stdio::null(), Stdio::from)
}

// ----------------------------------------------------------------------------------------- broker

/// An external nats-server that flushes every write before it answers.
pub struct Broker {
    binary: PathBuf,
    dir: PathBuf,
    pub port: u16,
    running: Option<Running>,
}

impl Broker {
    /// A server with its store in `dir`, not yet running. `binary` as the bridge finds it.
    pub fn new(binary: PathBuf, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the broker's folder");
        Self {
            binary,
            dir: dir.to_owned(),
            port: free_port(),
            running: None,
        }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Starts it and waits until it accepts connections.
    pub async fn start(&mut self) {
        let config = self.dir.join("nats.conf");
        let text = format!(
            "listen: \"127.0.0.1:{}\"\nmax_payload: 16MB\njetstream {{ store_dir: {:?}, sync_interval: always }}\n",
            self.port,
            self.dir.join("store")
        );
        std::fs::write(&config, text).expect("the broker's configuration");
        let log = self.dir.join("nats.log");
        let child = Command::new(&self.binary)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log_file(&log))
            .stderr(log_file(&log))
            .spawn()
            .expect("nats-server starts");
        self.running = Some(Running(child));
        let end = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
            .await
            .is_err()
        {
            assert!(Instant::now() < end, "nats-server: see {}", log.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL, at once.
    pub fn kill9(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill9();
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        running.terminate();
        let end = Instant::now() + PATIENCE;
        while running.exited().is_none() {
            assert!(Instant::now() < end, "SIGTERM does not end nats-server");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal (`STOP`, `CONT`).
    pub fn signal(&self, name: &str) {
        if let Some(running) = &self.running {
            running.signal(name);
        }
    }

    /// Copies what it stored to a folder, in the place of what that held; it must be stopped.
    pub fn save(&self, to: &Path) {
        assert!(self.running.is_none(), "stop it first");
        let _ = std::fs::remove_dir_all(to);
        copy(&self.dir.join("store"), to);
    }

    /// Puts an earlier copy in the place of what it stored; it must be stopped.
    pub fn put_back(&self, from: &Path) {
        assert!(self.running.is_none(), "stop it first");
        let store = self.dir.join("store");
        std::fs::remove_dir_all(&store).expect("its files");
        copy(from, &store);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

// ----------------------------------------------------------------------------------------- bridge

/// A bridge: its folder, its configuration, its process.
pub struct Bridge {
    pub dir: PathBuf,
    pub domain: String,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    config: PathBuf,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    running: Option<Running>,
    client: reqwest::Client,
}

/// A peer at a fixed plain-HTTP address on loopback.
pub fn pin(name: &str, address: SocketAddr) -> String {
    format!(
        "[[peers]]\nprotocol = \"uam\"\nname = \"{name}\"\nendpoint = \"http://{address}\"\n\
         public_key = \"{}\"\n",
        super::uam_client::public_of(name)
    )
}

impl Bridge {
    /// Writes the folder, a key that [`super::uam_client::key_of`] the domain derives, and the
    /// configuration; `nats` is the broker's URL (`None`: the managed server); `extra` is appended:
    /// further keys of `[uam]` first, then whole tables.
    pub fn new(dir: &Path, domain: &str, nats: Option<&str>, uam: &str, tables: &str) -> Self {
        std::fs::create_dir_all(dir).expect("the bridge's folder");
        let (public, admin) = (free_address(), free_address());
        let key = dir.join("relay_key.pem");
        std::fs::write(&key, key_file_of(domain)).expect("the key file");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))
                .expect("the key file's mode");
        }
        let nats = nats.map_or(String::new(), |url| format!("[nats]\nurl = \"{url}\"\n"));
        let text = format!(
            "data_dir = {dir:?}\n{nats}\
             [http]\nallow_cidrs = [\"127.0.0.0/8\"]\nplain_hosts = [\"127.0.0.1\"]\nsrv = false\n\
             [public]\naddress = \"{public}\"\n[admin]\naddress = \"{admin}\"\n\
             [uam]\ndomain = \"{domain}\"\nhttp_url = \"http://{public}\"\nkey_path = {key:?}\n{uam}\n{tables}"
        );
        let config = dir.join("bridge.toml");
        std::fs::write(&config, text).expect("the configuration");
        Self {
            dir: dir.to_owned(),
            domain: domain.to_owned(),
            public,
            admin,
            config,
            environment: Vec::new(),
            wrapper: Vec::new(),
            running: None,
            client: client(),
        }
    }

    /// A bridge by a configuration that is there already.
    pub fn existing(
        dir: &Path,
        domain: &str,
        public: SocketAddr,
        admin: SocketAddr,
        config: &Path,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            domain: domain.to_owned(),
            public,
            admin,
            config: config.to_owned(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            running: None,
            client: client(),
        }
    }

    /// An environment variable for every start from now on.
    pub fn env(&mut self, key: &str, value: &str) {
        self.environment.retain(|(name, _)| name != key);
        self.environment.push((key.into(), value.into()));
    }

    /// Runs the binary under another program (`strace …`).
    pub fn under(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(|&w| w.to_owned()).collect();
    }

    /// Base URL of the public listener.
    pub fn public_url(&self) -> String {
        format!("http://{}", self.public)
    }

    /// Base URL of the admin listener.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// The admin API's token, which the bridge makes at its first start.
    pub fn admin_token(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("admin.token")).unwrap_or_default();
        text.trim().to_owned()
    }

    /// One request of the admin API: status and body. `path` begins with `/api/v1`.
    pub async fn admin_api(&self, method: &str, path: &str) -> (u16, serde_json::Value) {
        let url = format!("{}{path}", self.admin_url());
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let request = self.client.request(method, url);
        let answer = request.bearer_auth(self.admin_token()).send().await;
        let answer = answer.expect("the admin listener answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap_or_default();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Everything it wrote to its log, all starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("bridge.log")).unwrap_or_default()
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|r| r.0.id())
    }

    /// Starts the process and returns at once.
    pub fn spawn(&mut self) {
        // A long run goes on with the binary it began with, whatever is built meanwhile.
        let other = std::env::var("DRAWBRIDGE_TEST_BINARY");
        let binary = other.as_deref().unwrap_or(env!("CARGO_BIN_EXE_drawbridge"));
        let mut command = match self.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        let log = self.dir.join("bridge.log");
        let child = command
            .args(["run", "--config"])
            .arg(&self.config)
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log_file(&log))
            .stderr(log_file(&log))
            .spawn()
            .expect("the bridge's binary starts");
        self.running = Some(Running(child));
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&mut self) {
        let end = Instant::now() + PATIENCE;
        let mut said = String::from("no answer");
        while Instant::now() < end {
            if let Some(status) = self.running.as_mut().and_then(Running::exited) {
                panic!("the bridge ended with {status}:\n{}", tail(&self.log()));
            }
            if let Ok(answer) = self
                .client
                .get(format!("{}/readyz", self.admin_url()))
                .send()
                .await
            {
                if answer.status() == 200 {
                    return;
                }
                said = answer.text().await.unwrap_or_default();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the bridge is not ready: {said}\n{}", tail(&self.log()));
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Whether its process has ended by itself.
    pub fn ended(&mut self) -> bool {
        self.running.as_mut().is_some_and(|r| r.exited().is_some())
    }

    /// SIGKILL, at once.
    pub fn kill9(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill9();
        }
    }

    /// Sends a signal (`HUP`, `TERM`) and returns at once.
    pub fn signal(&self, name: &str) {
        if let Some(running) = &self.running {
            running.signal(name);
        }
    }

    /// Waits until the process ends by itself.
    pub async fn exit(&mut self, patience: Duration) -> std::process::ExitStatus {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.running.as_mut().and_then(Running::exited) {
                self.running = None;
                return status;
            }
            assert!(
                Instant::now() < end,
                "the bridge did not end within {patience:?}:\n{}",
                tail(&self.log())
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        running.terminate();
        let end = Instant::now() + PATIENCE;
        while running.exited().is_none() {
            assert!(
                Instant::now() < end,
                "SIGTERM does not end the bridge:\n{}",
                tail(&self.log())
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Files may grow to this many bytes and no further; `None`: as they like. Linux only, by
    /// util-linux' `prlimit`.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let Some(pid) = self.pid() else { return };
        let limit = bytes.map_or("unlimited".to_owned(), |n| n.to_string());
        let status = Command::new("prlimit")
            .args(["--pid", &pid.to_string(), &format!("--fsize={limit}:")])
            .status()
            .expect("prlimit of util-linux");
        assert!(status.success(), "prlimit: {status}");
    }

    /// `/metrics` as text.
    pub async fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.admin_url());
        match self.client.get(url).send().await {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}

/// The end of a log, for messages.
pub fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// An HTTP client that gives up after 5 s and follows nothing.
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("an HTTP client")
}

/// A connection to a broker, or to any server of a cluster (addresses with commas between), that
/// keeps trying.
pub async fn connect(url: &str) -> async_nats::Client {
    let servers: Vec<async_nats::ServerAddr> = url
        .split(',')
        .map(|one| one.parse().expect("the broker's address is right"))
        .collect();
    async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(|_| Duration::from_millis(100))
        // A server that stands still is left for another one.
        .ping_interval(Duration::from_secs(2))
        .connect(servers)
        .await
        .expect("it waits until there is a broker")
}
