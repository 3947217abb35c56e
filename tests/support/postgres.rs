//! A real PostgreSQL for tests: the system's own binaries, a private server in a folder of its own,
//! on a socket in that folder, ended with the test process however that ends.
//!
//! One server serves all tests of a process ([`fresh`]: a schema of its own for each); a test that
//! stops and kills the server has one for itself ([`Server::start_own`]). Root may not run PostgreSQL, so
//! for root it runs as `postgres` or `nobody`. Where there are no binaries the tests say so, past the
//! test runner's capture, and pass.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::sync::OnceCell;

/// How long initdb, a start or a recovery may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the server and waits for the end of its input, which only the test process holds open. A
/// line of input says that the folder stays.
const GUARD: &str = r#"
trap '' INT TERM HUP
dir=$1; shift
"$@" </dev/null >>"$dir/log" 2>&1 &
server=$!
read -r word
kill -QUIT "$server" 2>/dev/null
wait "$server" 2>/dev/null
[ "$word" = keep ] || rm -rf "$dir"
"#;

/// The address of a new, empty schema on the shared server. `None`: no PostgreSQL on this machine.
pub async fn fresh() -> Option<String> {
    static SHARED: OnceCell<Option<Server>> = OnceCell::const_new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = SHARED.get_or_init(Server::start_own).await.as_ref()?;
    let schema = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
    server
        .sql(&format!("CREATE SCHEMA {schema}"))
        .await
        .expect("a schema");
    Some(format!("{}&options[search_path]={schema}", server.url()))
}

/// A server of its own.
pub struct Server {
    dir: PathBuf,
    bin: PathBuf,
    /// Whom it runs as, when we are root.
    user: Option<User>,
    guard: Option<Child>,
    port: u16,
}

#[derive(Clone)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl Server {
    /// Makes a cluster and starts its server. `None`, said loudly: there are no binaries.
    pub async fn start_own() -> Option<Self> {
        let Some(bin) = binaries() else {
            // Not `eprintln`: the test runner would keep it to itself.
            let _ = std::io::stderr().write_all(
                b"\n!!! SKIPPED: no PostgreSQL (initdb, postgres) on this machine; its tests did not run\n\n",
            );
            return None;
        };
        let user = other_user();
        let dir = tempfile::Builder::new()
            .prefix("drawbridge-pg-")
            .tempdir()
            .expect("a temporary directory")
            .keep();
        if let Some(user) = &user {
            std::os::unix::fs::chown(&dir, Some(user.uid), Some(user.gid)).expect("chown");
        }
        let mut server = Self {
            dir,
            bin,
            user,
            guard: None,
            port: 5432,
        };
        server.make_data();
        server.configure("listen_addresses = ''\n");
        server.start().await;
        Some(server)
    }

    /// Files of a new database: a copy of what `initdb` made once, which takes a second, for the tests
    /// of this build.
    fn make_data(&self) {
        let version = self.command("postgres").arg("--version").output();
        let version = version.expect("postgres runs").stdout;
        let name: String = String::from_utf8_lossy(&version)
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let data = self.dir.join("data");
        if kept.join("PG_VERSION").is_file() && copied(&kept, &data) {
            return;
        }
        let done = self
            .command("initdb")
            .args(["-U", "bridge", "-A", "trust", "-E", "UTF8", "--locale=C"])
            .args(["--no-sync", "-D"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(
            done.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        // Whole or not at all: several tests may make it at once, and one may die over it.
        let own = self.dir.file_name().unwrap_or_default();
        let made = kept.with_file_name(own);
        if !(copied(&data, &made) && std::fs::rename(&made, &kept).is_ok()) {
            let _ = std::fs::remove_dir_all(&made);
        }
    }

    /// `postgres://…` of its one database.
    pub fn url(&self) -> String {
        format!(
            "postgres://bridge@localhost:{}/postgres?host={}",
            self.port,
            self.dir.display()
        )
    }

    /// Gives it a certificate and a TCP port on loopback, from its next start on.
    pub fn with_tls(&mut self, port: u16, certificate: &str, key: &str) {
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let file = self.dir.join("data").join(name);
            std::fs::write(&file, text).expect("the server's certificate");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&file, mode).expect("its mode");
            if let Some(user) = &self.user {
                std::os::unix::fs::chown(&file, Some(user.uid), Some(user.gid)).expect("chown");
            }
        }
        self.port = port;
        self.configure(&format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nssl = on\n"
        ));
    }

    /// Adds lines to its settings.
    fn configure(&self, lines: &str) {
        let file = self.dir.join("data/postgresql.conf");
        let mut settings = std::fs::OpenOptions::new()
            .append(true)
            .open(file)
            .expect("postgresql.conf");
        settings.write_all(lines.as_bytes()).expect("a setting");
    }

    /// The folder with the programs (`pg_dump`, …).
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Starts it (again) and waits until it takes connections.
    pub async fn start(&mut self) {
        assert!(self.guard.is_none(), "it runs");
        let end = Instant::now() + PATIENCE;
        loop {
            let mut server = self.command("postgres");
            server.arg("-D").arg(self.dir.join("data"));
            for setting in [
                "fsync=off",
                "full_page_writes=off",
                // A server may be set so; our session must not be.
                "synchronous_commit=off",
                "max_connections=200",
                "shared_buffers=32MB",
            ] {
                server.args(["-c", setting]);
            }
            let sockets = format!("unix_socket_directories={}", self.dir.display());
            server.args(["-c", &sockets]);
            let guard = Command::new("sh")
                .args(["-c", GUARD, "guard"])
                .arg(&self.dir)
                .arg(server.get_program())
                .args(server.get_args())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("a shell");
            self.guard = Some(guard);
            // A server killed a moment ago may still be in the way of the new one.
            let soon = Instant::now() + Duration::from_secs(5);
            while Instant::now() < soon {
                if self.answers() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(Instant::now() < end, "postgres: {}", self.log());
            self.stop();
        }
    }

    /// Ends it as a crash does: its clients see the connection break, it recovers at the next start.
    pub fn stop(&mut self) {
        let Some(mut guard) = self.guard.take() else {
            return;
        };
        if let Some(mut input) = guard.stdin.take() {
            let _ = input.write_all(b"keep\n");
        }
        let _ = guard.wait();
    }

    /// SIGKILL to the whole server.
    pub async fn kill9(&mut self) {
        let pid = std::fs::read_to_string(self.dir.join("data/postmaster.pid"));
        if let Some(pid) = pid.ok().as_deref().and_then(|text| text.lines().next()) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
        }
        self.stop();
    }

    /// Stops its processes where they are (SIGSTOP), or lets them go on: a server that hangs.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let pid = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).expect("its pid");
        let pid = pid.lines().next().expect("its pid").trim().to_owned();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let all = format!("{pid} {}", children.unwrap_or_default());
        let _ = Command::new("kill")
            .arg(signal)
            .args(all.split_whitespace())
            .status();
    }

    /// Runs SQL on it as any other program would.
    pub async fn sql(&self, sql: &str) -> Result<(), sqlx::Error> {
        run(&self.url(), sql).await
    }

    fn answers(&self) -> bool {
        self.command("pg_isready")
            .args(["-q", "-t", "1", "-p", &self.port.to_string(), "-h"])
            .arg(&self.dir)
            .status()
            .is_ok_and(|s| s.success())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// A program of the server's, as the user it runs as.
    fn command(&self, program: &str) -> Command {
        let path = self.bin.join(program);
        let Some(user) = &self.user else {
            return Command::new(path);
        };
        let mut command;
        if in_path("setpriv").is_some() {
            command = Command::new("setpriv");
            command
                .arg(format!("--reuid={}", user.uid))
                .arg(format!("--regid={}", user.gid))
                .arg("--clear-groups")
                .arg(path);
        } else if in_path("runuser").is_some() {
            command = Command::new("runuser");
            command.args(["-u", &user.name, "--"]).arg(path);
        } else {
            // `su` takes one text; the program and its arguments follow as the shell's own.
            command = Command::new("su");
            command
                .args([
                    "-s",
                    "/bin/sh",
                    &user.name,
                    "-c",
                    "exec \"$0\" \"$@\"",
                    "--",
                ])
                .arg(path);
        }
        command.current_dir("/");
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Runs SQL at an address.
pub async fn run(url: &str, sql: &str) -> Result<(), sqlx::Error> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    let mut conn = options.disable_statement_logging().connect().await?;
    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
        .await?;
    conn.close().await
}

/// The one number that a statement answers.
pub async fn number(url: &str, sql: &str) -> i64 {
    let mut conn = sqlx::PgConnection::connect(url).await.expect("connected");
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(&mut conn)
        .await
        .expect("a number")
}

/// Copies a folder with owners and modes; `false`: it could not be done, and nothing is left of it.
fn copied(from: &Path, to: &Path) -> bool {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).output();
    let whole = done.is_ok_and(|done| done.status.success());
    if !whole {
        let _ = std::fs::remove_dir_all(to);
    }
    whole
}

/// The folder with initdb and postgres, wherever the distribution puts them; the newest of several.
fn binaries() -> Option<PathBuf> {
    let complete = |dir: &PathBuf| {
        ["initdb", "postgres", "pg_isready"]
            .iter()
            .all(|program| dir.join(program).is_file())
    };
    let mut found = Vec::new();
    if let Some(path) = std::env::var_os("PATH") {
        found.extend(std::env::split_paths(&path));
    }
    let asked = Command::new("pg_config").arg("--bindir").output();
    if let Ok(asked) = asked {
        found.push(String::from_utf8_lossy(&asked.stdout).trim().into());
    }
    for (folder, prefix, below) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr/lib64/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/usr/local", "pgsql", "bin"),
        ("/usr/libexec", "postgresql", ""),
        ("/opt/homebrew/opt", "postgresql", "bin"),
        ("/usr/local/opt", "postgresql", "bin"),
    ] {
        let mut versions: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path().join(below))
            .collect();
        versions.sort_by_key(|dir| std::cmp::Reverse(number_in(dir)));
        found.extend(versions);
    }
    found.into_iter().find(complete)
}

/// The first number in a path: its version.
fn number_in(path: &Path) -> u32 {
    let text = path.to_string_lossy();
    let digits = text
        .split(|c: char| !c.is_ascii_digit())
        .find(|part| !part.is_empty());
    digits.and_then(|d| d.parse().ok()).unwrap_or(0)
}

fn in_path(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program.as_ref()))
        .find(|file| file.is_file())
}

/// For root: whom the server runs as.
fn other_user() -> Option<User> {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    ["postgres", "nobody"].iter().find_map(|name| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next() == Some(name);
            let (uid, gid) = (fields.nth(1)?, fields.next()?);
            found.then_some(User {
                name: (*name).to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            })
        })
    })
}
