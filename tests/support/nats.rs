//! A real nats-server for one test: its own directory, its own port, restartable, killable, and
//! ended with the test process however that ends (it runs under the bridge's own guard).

use std::path::{Path, PathBuf};
use std::time::Duration;

use drawbridge::bus::launch::{self, Launched, Settings};
use drawbridge::bus::{Bus, find};
use drawbridge::config::{Config, NatsConfig};
use tempfile::TempDir;

/// A nats-server with JetStream on files.
pub struct NatsServer {
    settings: Settings,
    port: u16,
    running: Option<Launched>,
    _dir: TempDir,
}

impl NatsServer {
    /// Starts one on a free port.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let binary = find::server_binary(None, &find::default_cache_dir())
            .await
            .expect("a nats-server binary");
        let settings = Settings {
            guard: drawbridge_binary(),
            binary,
            dir: dir.path().join("nats"),
            sync_interval: "2m".to_owned(),
            max_payload: 16 * 1024 * 1024,
            password: None,
        };
        let running = launch::launch(&settings, None)
            .await
            .expect("nats-server starts");
        Self {
            port: running.port(),
            settings,
            running: Some(running),
            _dir: dir,
        }
    }

    /// `nats://127.0.0.1:PORT`, the same over restarts.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Launched::pid)
    }

    /// Stops it in good order.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill().await;
        }
    }

    /// Starts it again on the same port with the same files (stops it first if it runs).
    pub async fn restart(&mut self) {
        self.stop().await;
        self.running = Some(
            launch::launch(&self.settings, Some(self.port))
                .await
                .expect("nats-server starts again"),
        );
    }

    /// Forgets what it stored; it must be stopped.
    pub fn wipe(&mut self) {
        assert!(self.running.is_none(), "stop it first");
        std::fs::remove_dir_all(self.settings.dir.join("data")).expect("its data");
    }

    /// Copies what it stored to a folder; it must be stopped.
    pub fn save(&self, to: &Path) {
        assert!(self.running.is_none(), "stop it first");
        copy(&self.settings.dir.join("data"), to);
    }

    /// Puts an earlier copy in the place of what it stored; it must be stopped.
    pub fn put_back(&mut self, from: &Path) {
        self.wipe();
        copy(from, &self.settings.dir.join("data"));
    }

    /// Settings for a [`Bus`] on this server.
    pub fn config(&self) -> NatsConfig {
        config(Some(self.url()), self.settings.dir.join("unused"))
    }

    /// A connected bus with its streams made.
    pub async fn bus(&self) -> Bus {
        let bus = Bus::connect(&self.config()).await.expect("connected");
        bus.apply_streams().await.expect("streams");
        bus
    }

    /// A plain client, as a backend has one.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("connected")
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

/// Returns when the broker has handled what this client sent so far, a subscription for example
/// (`Client::flush` only empties the client's own buffer).
pub async fn round_trip(client: &async_nats::Client) {
    let answer = client.request(client.new_inbox(), "".into()).await;
    assert!(answer.is_err(), "nobody listens at a new inbox");
}

/// The bridge's own binary.
pub fn drawbridge_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_drawbridge"))
}

/// Settings for the bus with short patience.
pub fn config(url: Option<String>, store_dir: PathBuf) -> NatsConfig {
    let mut nats = Config::from_text("").expect("the defaults").nats;
    nats.url = url;
    nats.connect_timeout = Duration::from_secs(20);
    nats.managed.store_dir = store_dir;
    nats
}

/// Whether a process is there (and is no zombie).
pub fn alive(pid: u32) -> bool {
    let status = Path::new("/proc").join(pid.to_string()).join("stat");
    std::fs::read_to_string(status).is_ok_and(|text| {
        text.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    })
}

/// Waits until a process is gone.
pub async fn gone(pid: u32) {
    let wait = async {
        while alive(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), wait)
        .await
        .unwrap_or_else(|_| panic!("process {pid} is still there"));
}
