//! `[store]`: where the ledger is, by every way to say it, and what is kept how long.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use drawbridge::config::{Config, StorePlace};

fn load(text: &str) -> Result<Config, String> {
    Config::from_text(text).map_err(|e| e.to_string())
}

fn file(config: &Config) -> &Path {
    match &config.store.place {
        StorePlace::Sqlite(path) => path,
        StorePlace::Postgres(url) => panic!("{url:?}"),
    }
}

#[test]
fn the_ledger_is_a_file_in_the_data_directory_unless_said_otherwise() {
    let config = load("data_dir = \"/d\"").unwrap();
    assert_eq!(file(&config), Path::new("/d/drawbridge.db"));
    let config = load("data_dir = \"/d\"\n[store]\nurl = \"sqlite:other.db\"").unwrap();
    assert_eq!(file(&config), Path::new("/d/other.db"));
    let day = Duration::from_secs(24 * 60 * 60);
    let keep = config.store.retention;
    assert_eq!((keep.delivered, keep.failed), (day, 30 * day));
    assert_eq!((keep.bodies, keep.bodies_bytes), (day, 10 << 30));
    assert_eq!((keep.ids, keep.peers), (8 * day, 90 * day));
}

#[test]
fn an_address_with_a_password_comes_from_a_file_and_is_never_shown() {
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    let url = "postgres://bridge:hunter2@db.lan/fed?sslmode=verify-full";
    writeln!(secret, "{url}").unwrap();
    let text = format!("[store]\nurl_file = {:?}", secret.path());
    let config = load(&text).unwrap();
    assert_eq!(config.store.place.shown(), "postgres://db.lan/fed");
    assert!(!format!("{config:?}").contains("hunter2"));
    let StorePlace::Postgres(found) = &config.store.place else {
        panic!("a file")
    };
    assert_eq!(found.0.0.as_str(), url);
    let both = format!("{text}\nurl = \"sqlite:x\"");
    assert!(load(&both).unwrap_err().contains("url_file"));
}

#[test]
fn what_must_not_be_is_refused_with_the_key() {
    for (text, key) in [
        ("url = \"mysql://bridge:hunter2@h/d\"", "store.url"),
        ("keep_delivered = \"23h\"", "store.keep_delivered"),
        ("keep_bodies = \"9m\"", "store.keep_bodies"),
        ("keep_ids = \"7d\"", "store.keep_ids"),
        ("timeout = \"0s\"", "store.timeout"),
        ("path = \"x\"", "path"),
        ("shared = true", "store.shared"),
    ] {
        let error = load(&format!("[store]\n{text}")).unwrap_err();
        assert!(error.contains(key), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn only_a_database_server_is_shared() {
    let config = load("[store]\nurl = \"postgres://h/d\"\nshared = true").unwrap();
    assert!(config.store.shared);
    assert!(!load("").unwrap().store.shared);
    let refused = load("[store]\nshared = true").unwrap_err();
    assert!(refused.contains("PostgreSQL"), "{refused}");
}
