//! The managed local nats-server: found or fetched, started, started again when it dies, stopped
//! with us.
//!
//! Promises: file storage with every message on disk before its PubAck (unless configured
//! otherwise), on loopback only, behind a password that only this user can read; one bridge per
//! directory; the URL stays the same over restarts;
//! the server never outlives this process (see [`super::guard`]), and one that an earlier guard's
//! death left behind is ended before a new one opens the same files.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::launch::{self, Launched, Settings};
use super::server_config::write_private;
use super::subject::hex;
use super::{BusError, BusErrorKind, find};
use crate::config::{ManagedConfig, NatsConfig, Secret, shown};

/// Names the program whose guard mode is used instead of the running one (for programs that embed
/// the library).
pub const GUARD_VARIABLE: &str = "DRAWBRIDGE_GUARD";

/// Delays between attempts to start a server that died, ...
const AGAIN: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
];
/// ... and from then on.
const AGAIN_LATER: Duration = Duration::from_secs(5);

/// A nats-server that we started.
pub struct ManagedServer {
    url: String,
    pid: watch::Receiver<Option<u32>>,
    stop: CancellationToken,
    supervisor: JoinHandle<()>,
}

impl Drop for ManagedServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ManagedServer {
    /// Finds or obtains the binary, starts it (loopback, free port unless configured), waits until
    /// it answers. It is supervised (started again when it dies, on the same port) and never
    /// outlives this process.
    pub async fn start(config: &NatsConfig) -> Result<Self, BusError> {
        let program = match std::env::var_os(GUARD_VARIABLE).filter(|v| !v.is_empty()) {
            Some(program) => PathBuf::from(program),
            None => std::env::current_exe().map_err(|e| {
                BusError::new(
                    BusErrorKind::NoServer,
                    format!("our own program cannot be found: {e}"),
                )
            })?,
        };
        Self::start_guarded_by(config, &program).await
    }

    /// The same with another program as the guard: one that calls [`super::guard::guard_main`]
    /// when its first argument is [`super::guard::GUARD_COMMAND`].
    pub async fn start_guarded_by(config: &NatsConfig, program: &Path) -> Result<Self, BusError> {
        let managed = &config.managed;
        let binary = find::server_binary(managed.binary.as_deref(), &managed.cache_dir).await?;
        make_dir(&managed.store_dir).await?;
        let dir = tokio::fs::canonicalize(&managed.store_dir)
            .await
            .map_err(|e| no_dir(&managed.store_dir, &e))?;
        let lock = lock(&dir).await?;
        let settings = Settings {
            guard: program.to_owned(),
            binary,
            sync_interval: managed.sync_interval.clone(),
            max_payload: managed.max_payload,
            password: if managed.open {
                None
            } else {
                Some(password(&dir).await?)
            },
            dir,
        };
        launch::end_leftover(&settings).await;
        let server = match (managed.port, last_port(&settings.dir).await) {
            // The port of the last run, so that other programs find the server where it was.
            (None, Some(port)) if is_free(port).await => {
                match launch::launch(&settings, Some(port)).await {
                    Ok(server) => server,
                    Err(_) => launch::launch(&settings, None).await?,
                }
            }
            (port, _) => launch::launch(&settings, port).await?,
        };
        let url = server.url();
        if let Err(e) = write_private(&url_file(&settings.dir), &url).await {
            tracing::warn!("{}: {e}", url_file(&settings.dir).display());
        }
        tracing::info!(
            pid = server.pid(),
            sync_interval = settings.sync_interval,
            "managed nats-server runs at {}, files in {}",
            shown(&url),
            settings.dir.display()
        );
        let (pid_in, pid) = watch::channel(Some(server.pid()));
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervise(server, settings, pid_in, stop.clone(), lock));
        Ok(Self {
            url,
            pid,
            stop,
            supervisor,
        })
    }

    /// The URL of the managed server that a running bridge has in this directory, for commands
    /// such as `send` and `tail`; `None`: none runs. It holds the password: a secret.
    pub async fn running_url(config: &ManagedConfig) -> Option<String> {
        let url = tokio::fs::read_to_string(url_file(&config.store_dir))
            .await
            .ok()?;
        let port = last_port(&config.store_dir).await?;
        launch::greets(port).await.then_some(url)
    }

    /// `nats://USER:PASSWORD@127.0.0.1:PORT`, without a login when it is open: a secret.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Process id of the server.
    pub fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// Follows the process id; `None` while the server is down.
    pub fn pid_changes(&self) -> watch::Receiver<Option<u32>> {
        self.pid.clone()
    }

    /// Stops it, waits.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Err(e) = (&mut self.supervisor).await {
            tracing::warn!("the supervisor of nats-server ended badly: {e}");
        }
    }
}

/// Keeps a server running until asked to stop. Holds the directory's lock to its end.
async fn supervise(
    first: Launched,
    settings: Settings,
    pid: watch::Sender<Option<u32>>,
    stop: CancellationToken,
    lock: File,
) {
    let port = first.port();
    let mut server = first;
    loop {
        tokio::select! {
            () = server.ended() => {}
            () = stop.cancelled() => {
                server.stop().await;
                break;
            }
        }
        pid.send_replace(None);
        tracing::error!("nats-server died; starting it again at port {port}");
        let mut tries = 0;
        let again = loop {
            let delay = AGAIN.get(tries).copied().unwrap_or(AGAIN_LATER);
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = stop.cancelled() => break None,
            }
            tries += 1;
            match launch::launch(&settings, Some(port)).await {
                Ok(server) => break Some(server),
                Err(e) => tracing::error!("nats-server cannot be started again: {}", e.detail),
            }
        };
        match again {
            Some(again) => {
                pid.send_replace(Some(again.pid()));
                server = again;
            }
            None => break,
        }
    }
    pid.send_replace(None);
    drop(lock);
}

async fn make_dir(dir: &Path) -> Result<(), BusError> {
    let mut builder = tokio::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    builder.mode(0o700);
    builder.create(dir).await.map_err(|e| no_dir(dir, &e))
}

fn no_dir(dir: &Path, e: &std::io::Error) -> BusError {
    BusError::new(
        BusErrorKind::Config,
        format!("nats.managed.store_dir {}: {e}", dir.display()),
    )
}

/// Two servers on the same files would destroy them. The lock ends with our process, however that
/// ends.
async fn lock(dir: &Path) -> Result<File, BusError> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| no_dir(&path, &e))?;
    // A process that was just killed may not be gone to the last.
    for _ in 0..20 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(TryLockError::Error(e)) => return Err(no_dir(&path, &e)),
        }
    }
    Err(BusError::new(
        BusErrorKind::Config,
        format!(
            "another bridge runs a nats-server in {}; give this one its own data directory",
            dir.display()
        ),
    ))
}

fn url_file(dir: &Path) -> PathBuf {
    dir.join("client.url")
}

/// The password of this directory's server: the one of the last run, so that backends can keep it
/// in their settings, else a new one.
async fn password(dir: &Path) -> Result<Secret, BusError> {
    let kept = tokio::fs::read_to_string(url_file(dir)).await.ok();
    let kept = kept.as_deref().and_then(|url| {
        let (login, _) = url.trim().strip_prefix("nats://")?.split_once('@')?;
        login.strip_prefix(launch::USER)?.strip_prefix(':')
    });
    if let Some(kept) = kept
        && kept.len() >= 32
        && kept.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return Ok(Secret(kept.to_owned().into()));
    }
    let mut dice = [0u8; 16];
    getrandom::fill(&mut dice).map_err(|e| {
        BusError::new(
            BusErrorKind::NoServer,
            format!("no randomness for the managed server's password: {e}"),
        )
    })?;
    Ok(Secret(hex(&dice).into()))
}

async fn last_port(dir: &Path) -> Option<u16> {
    let url = tokio::fs::read_to_string(url_file(dir)).await.ok()?;
    url.trim().rsplit_once(':')?.1.parse().ok()
}

async fn is_free(port: u16) -> bool {
    tokio::net::TcpListener::bind(("127.0.0.1", port))
        .await
        .is_ok()
}
