//! A nats-server with a configuration of the test's own: accounts, TLS, domains, clusters.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server on a fixed port; killed with the test.
pub struct CustomBroker {
    pub dir: PathBuf,
    pub port: u16,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl CustomBroker {
    /// A server with its files in `dir`, not yet running.
    pub fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the broker's folder");
        Self {
            dir: dir.to_owned(),
            port: super::bridge::free_port(),
            environment: Vec::new(),
            child: None,
        }
    }

    /// An environment variable for every start from now on.
    pub fn env(&mut self, key: &str, value: &str) {
        self.environment.push((key.into(), value.into()));
    }

    /// Starts with this configuration besides `listen` and waits until it takes connections.
    pub async fn start(&mut self, configuration: &str) {
        self.stop();
        let file = self.dir.join("nats.conf");
        let text = format!("listen: \"127.0.0.1:{}\"\n{configuration}\n", self.port);
        std::fs::write(&file, text).expect("the broker's configuration");
        let cache = drawbridge::bus::find::default_cache_dir();
        let binary = drawbridge::bus::find::server_binary(None, &cache)
            .await
            .expect("a nats-server");
        let log = std::fs::File::create(self.dir.join("nats.log")).expect("its log");
        let child = Command::new(binary)
            .arg("-c")
            .arg(&file)
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server starts");
        self.child = Some(child);
        let end = Instant::now() + Duration::from_secs(30);
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .is_err()
        {
            let ended = self.child.as_mut().map(Child::try_wait);
            let ended = matches!(ended, Some(Ok(Some(_))));
            assert!(!ended && Instant::now() < end, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    /// Gives it another configuration while it runs (SIGHUP).
    pub fn reload(&self, configuration: &str) {
        let text = format!("listen: \"127.0.0.1:{}\"\n{configuration}\n", self.port);
        std::fs::write(self.dir.join("nats.conf"), text).expect("the broker's configuration");
        self.signal("HUP");
    }

    /// Sends a signal (`HUP`, `STOP`, `CONT`) and returns at once.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().map(Child::id).expect("it runs");
        let status = Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Whether it was started and not stopped since.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// `jetstream { … }` with its store in this folder.
    pub fn jetstream(&self, more: &str) -> String {
        format!(
            "jetstream {{ store_dir: {:?}, {more} }}",
            self.dir.join("store")
        )
    }

    /// `nats://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// What it said.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.join("nats.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// SIGKILL, at once.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for CustomBroker {
    fn drop(&mut self) {
        self.stop();
    }
}
