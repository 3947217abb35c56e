//! `[store]`: where the ledger is, and how long what is done with is kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::read::Section;
use super::{ConfigError, Secret};

/// File name of the SQLite database in the data directory when no address is given.
const FILE: &str = "drawbridge.db";

/// `[store]`
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub place: StorePlace,
    /// PostgreSQL: several instances work on this database together.
    pub shared: bool,
    /// PostgreSQL: the longest that one transaction, or connecting, may take.
    pub timeout: Duration,
    /// How long the start tries to reach the database.
    pub connect_timeout: Duration,
    pub retention: Retention,
}

/// Which database.
#[derive(Clone, Debug)]
pub enum StorePlace {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(PostgresUrl),
}

/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`; may hold a password.
#[derive(Clone)]
pub struct PostgresUrl(pub Secret);

/// How long what is done with is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Delivered rows: a repeat of the message within it meets its row.
    pub delivered: Duration,
    /// Rows given up, with their attempts.
    pub failed: Duration,
    /// Bodies of inbound events JetStream has acknowledged, from which a loss is mended.
    pub bodies: Duration,
    /// Bytes of those bodies at most (while older than ten minutes).
    pub bodies_bytes: u64,
    /// Ids of inbound events, by which a repeat is known.
    pub ids: Duration,
    /// What was found out about a peer, since it was last verified; a pinned one is kept.
    pub peers: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Retention {
    fn default() -> Self {
        Self {
            delivered: DAY,
            failed: 30 * DAY,
            bodies: DAY,
            bodies_bytes: 10 << 30,
            ids: 8 * DAY,
            peers: 90 * DAY,
        }
    }
}

impl StoreConfig {
    /// A place with everything else by default.
    pub fn at(place: StorePlace) -> Self {
        Self {
            place,
            shared: false,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(30),
            retention: Retention::default(),
        }
    }

    /// Reads an address as `store.url` takes it: `postgres://…`, or `sqlite:PATH` with a relative
    /// path joined to `base`.
    pub fn parse(url: &str, base: &Path) -> Result<Self, ConfigError> {
        place(url, base).map(Self::at).ok_or_else(|| {
            // The value may hold a password: it is not repeated.
            ConfigError("a store's address is sqlite:PATH or postgres://USER@HOST/DATABASE".into())
        })
    }
}

impl StorePlace {
    /// The place for logs and errors, without user and password.
    pub fn shown(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(url) => url.shown(),
        }
    }
}

impl From<&Path> for StoreConfig {
    fn from(path: &Path) -> Self {
        Self::at(StorePlace::Sqlite(path.into()))
    }
}

impl From<&PathBuf> for StoreConfig {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

impl From<&StoreConfig> for StoreConfig {
    fn from(config: &StoreConfig) -> Self {
        config.clone()
    }
}

impl PostgresUrl {
    /// Host and database: without user, password and options.
    pub fn shown(&self) -> String {
        let rest = self.0.0.split_once("://").map_or("", |(_, rest)| rest);
        let rest = rest.split(['?', '#']).next().unwrap_or(rest);
        let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        format!("postgres://{rest}")
    }
}

impl std::fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

fn place(url: &str, base: &Path) -> Option<StorePlace> {
    match url.split_once(':')? {
        ("postgres" | "postgresql", rest) => {
            rest.strip_prefix("//").filter(|rest| !rest.is_empty())?;
            let secret = Secret(url.to_owned().into());
            Some(StorePlace::Postgres(PostgresUrl(secret)))
        }
        ("sqlite", path) => {
            // `sqlite:///var/lib/x.db` is written as often as `sqlite:/var/lib/x.db`.
            let path = path.strip_prefix("//").unwrap_or(path);
            Some(path)
                .filter(|path| !path.is_empty())
                .map(|path| StorePlace::Sqlite(base.join(path)))
        }
        _ => None,
    }
}

/// Reads the section.
pub(super) fn read(s: &Section<'_>, data_dir: &Path) -> Result<StoreConfig, ConfigError> {
    let place = match s.secret("url")? {
        None => StorePlace::Sqlite(data_dir.join(FILE)),
        Some(url) => place(&url.0, data_dir).ok_or_else(|| {
            // The value may hold a password: it is not repeated.
            s.wrong(
                "url",
                "must be sqlite:PATH or postgres://USER@HOST/DATABASE",
            )
        })?,
    };
    let shared = s.flag("shared")?;
    if shared && matches!(place, StorePlace::Sqlite(_)) {
        return Err(s.wrong(
            "shared",
            "wants PostgreSQL: an SQLite file is for one instance; set store.url to a \
             postgres:// address that all instances share, or leave store.shared out",
        ));
    }
    Ok(StoreConfig {
        place,
        shared,
        timeout: s.duration("timeout", "100ms", "5m")?,
        connect_timeout: s.duration("connect_timeout", "100ms", "1h")?,
        retention: Retention {
            delivered: s.duration("keep_delivered", "1d", "365d")?,
            failed: s.duration("keep_failed", "1d", "3650d")?,
            bodies: s.duration("keep_bodies", "10m", "365d")?,
            bodies_bytes: s.size("keep_bodies_bytes", "1MiB", "1048576GiB")? as u64,
            ids: s.duration("keep_ids", "8d", "3650d")?,
            peers: s.duration("keep_peers", "1d", "3650d")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let url = "postgres://bridge:p%40ss@db.lan:5433/fed?sslmode=verify-full&password=x";
        let config = StoreConfig::parse(url, Path::new("")).unwrap();
        assert_eq!(config.place.shown(), "postgres://db.lan:5433/fed");
        assert!(!format!("{config:?}").contains("p%40ss"), "{config:?}");
    }

    #[test]
    fn addresses_are_files_or_servers_and_nothing_else() {
        let path = |url| match StoreConfig::parse(url, Path::new("/d")).map(|c| c.place) {
            Ok(StorePlace::Sqlite(path)) => Some(path),
            _ => None,
        };
        assert_eq!(path("sqlite:x.db"), Some("/d/x.db".into()));
        assert_eq!(path("sqlite:///var/x.db"), Some("/var/x.db".into()));
        for bad in ["", "sqlite:", "postgres://", "mysql://h/d", "x.db"] {
            assert!(StoreConfig::parse(bad, Path::new("/d")).is_err(), "{bad}");
        }
    }
}
