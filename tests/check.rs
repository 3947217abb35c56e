//! `drawbridge check` and `drawbridge streams`: the binary against a real broker, with and without a
//! running bridge.

mod support {
    pub mod bridge;
    pub mod custom_broker;
    pub mod uam_client;
}

use std::path::Path;
use std::process::Command;

use async_nats::jetstream;
use serde_json::Value;
use support::bridge::{self, Bridge};
use support::custom_broker::CustomBroker;

/// Runs a command; answers its exit code and what it printed.
fn drawbridge(config: &Path, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .expect("the binary runs");
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().expect("an exit code");
    (code, String::from_utf8_lossy(&said).into_owned())
}

/// The lines of `check --json`.
fn check(config: &Path) -> (i32, Value) {
    let (code, said) = drawbridge(config, &["check", "--json"]);
    let report: Value = serde_json::from_str(said.trim()).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!(report["ok"], code == 0, "{said}");
    (code, report)
}

/// State and detail of one line.
fn line<'a>(report: &'a Value, area: &str, item: &str) -> (&'a str, &'a str) {
    let lines = report["lines"].as_array().expect("lines");
    let found = lines
        .iter()
        .find(|l| l["area"] == area && l["item"] == item);
    let found = found.unwrap_or_else(|| panic!("no line {area} {item} in {report:#}"));
    let text = |name: &str| found[name].as_str().expect("text");
    (text("state"), text("detail"))
}

/// Everything in a folder, with times: to see that nothing was changed.
fn contents(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("listed") {
        let entry = entry.expect("an entry");
        let meta = entry.metadata().expect("metadata");
        found.push(format!("{:?} {:?}", entry.path(), meta.modified()));
        if meta.is_dir() {
            found.extend(contents(&entry.path()));
        }
    }
    found.sort();
    found
}

struct World {
    dir: tempfile::TempDir,
    broker: CustomBroker,
    bridge: Bridge,
}

async fn world(tables: &str) -> World {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(&dir.path().join("broker"));
    let monitoring = bridge::free_port();
    let js = broker.jetstream("sync_interval: always");
    broker
        .start(&format!("{js}\nhttp: \"127.0.0.1:{monitoring}\""))
        .await;
    let folder = dir.path().join("bridge");
    let bridge = Bridge::new(&folder, "alpha.test", Some(&broker.url()), "", tables);
    private(&folder);
    // The monitoring port goes into [nats], behind the address.
    let text = std::fs::read_to_string(bridge.config()).expect("the configuration");
    let url = format!("url = \"{}\"", broker.url());
    let more = format!("{url}\nmonitoring_url = \"http://127.0.0.1:{monitoring}\"");
    std::fs::write(bridge.config(), text.replace(&url, &more)).expect("written");
    World {
        dir,
        broker,
        bridge,
    }
}

fn private(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).expect("its mode");
}

#[tokio::test]
async fn a_check_looks_at_everything_beside_a_running_bridge_and_changes_nothing() {
    let mut w = world("").await;
    w.bridge.start().await;
    let (code, report) = check(w.bridge.config());
    assert_eq!(code, 0, "{report:#}");
    for (area, item) in [
        ("config", "read"),
        ("bridge", "runs"),
        ("bridge", "ready"),
        ("files", "data_dir"),
        ("keys", "uam"),
        ("store", "open"),
        ("listeners", "public"),
        ("listeners", "admin"),
        ("nats", "connect"),
        ("streams", "FED_OUT"),
        ("streams", "FED_IN"),
        ("durability", "fsync"),
        ("clock", "broker"),
        ("public", "uam"),
    ] {
        let (state, detail) = line(&report, area, item);
        assert_eq!(state, "ok", "{area} {item}: {detail}");
    }
    let (_, public) = line(&report, "public", "uam");
    assert!(public.contains("/.well-known/uam-relay.json"), "{public}");

    // The same as a table.
    let (code, table) = drawbridge(w.bridge.config(), &["check"]);
    assert_eq!(code, 0, "{table}");
    assert!(table.contains("No fault found"), "{table}");
}

#[tokio::test]
async fn a_check_before_the_first_start_finds_no_fault_and_makes_nothing() {
    let w = world("").await;
    let before = contents(&w.dir.path().join("bridge"));
    let (code, report) = check(w.bridge.config());
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(line(&report, "bridge", "runs").0, "skipped");
    assert_eq!(line(&report, "store", "open").0, "skipped");
    assert_eq!(line(&report, "public", "uam").0, "skipped");
    let (state, detail) = line(&report, "streams", "FED_OUT");
    assert_eq!(state, "warn");
    assert!(detail.contains("makes it when it starts"), "{detail}");
    assert_eq!(before, contents(&w.dir.path().join("bridge")));
    let js = jetstream::new(
        async_nats::connect(w.broker.url())
            .await
            .expect("connected"),
    );
    assert!(js.get_stream("FED_OUT").await.is_err(), "a stream was made");
}

#[tokio::test]
async fn a_check_names_each_fault_and_its_exit_code_says_so() {
    let mut w = world("").await;
    let js = jetstream::new(
        async_nats::connect(w.broker.url())
            .await
            .expect("connected"),
    );
    js.create_stream(jetstream::stream::Config {
        name: "FED_OUT".to_owned(),
        subjects: vec!["fed.out.>".to_owned()],
        ..Default::default()
    })
    .await
    .expect("made");
    // Another program at our address, a key that others can read.
    let _other = std::net::TcpListener::bind(w.bridge.public).expect("bound");
    use std::os::unix::fs::PermissionsExt as _;
    let key = w.bridge.dir.join("relay_key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("its mode");
    let (code, report) = check(w.bridge.config());
    assert_eq!(code, 1);
    let (state, detail) = line(&report, "streams", "FED_OUT");
    assert!(state == "fault" && detail.contains("workqueue"), "{detail}");
    let (state, detail) = line(&report, "listeners", "public");
    assert!(
        state == "fault" && detail.contains("another program"),
        "{detail}"
    );
    let (state, detail) = line(&report, "keys", "uam");
    assert!(state == "fault" && detail.contains("chmod 600"), "{detail}");

    w.broker.stop();
    let (code, report) = check(w.bridge.config());
    assert_eq!(code, 1);
    assert_eq!(line(&report, "nats", "connect").0, "fault");
}

#[tokio::test]
async fn streams_are_listed_compared_and_made_and_none_is_changed() {
    let w = world("").await;
    let config = w.bridge.config();
    let js = jetstream::new(
        async_nats::connect(w.broker.url())
            .await
            .expect("connected"),
    );
    js.create_stream(jetstream::stream::Config {
        name: "FED_IN".to_owned(),
        subjects: vec!["fed.in.>".to_owned()],
        max_age: std::time::Duration::from_secs(60),
        ..Default::default()
    })
    .await
    .expect("made");
    let (code, said) = drawbridge(config, &["streams", "diff"]);
    assert_eq!(code, 1);
    assert!(said.contains("FED_OUT does not exist"), "{said}");
    assert!(said.contains("max_age is 60000000000"), "{said}");

    let (code, said) = drawbridge(config, &["streams", "apply"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("made FED_OUT") && !said.contains("made FED_IN"),
        "{said}"
    );
    let info = js.get_stream("FED_IN").await.expect("still there");
    assert_eq!(info.cached_info().config.max_age.as_secs(), 60);

    let (code, said) = drawbridge(config, &["streams", "list", "--json"]);
    assert_eq!(code, 0);
    let list: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(list["streams"].as_array().map(Vec::len), Some(5));
    let (_, said) = drawbridge(config, &["streams", "show", "FED_IN"]);
    assert!(said.contains("FED_IN: differs"), "{said}");
    let (_, said) = drawbridge(config, &["streams", "show", "FED_OUT", "--definition"]);
    let definition: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(definition["retention"], "workqueue");
    let (code, said) = drawbridge(config, &["streams", "show", "NOPE"]);
    assert!(
        code == 1 && said.contains("not one of our streams"),
        "{said}"
    );
}

#[tokio::test]
async fn the_managed_server_wants_its_password_and_commands_of_the_same_user_know_it() {
    let dir = tempfile::tempdir().expect("folder");
    let mut bridge = Bridge::new(&dir.path().join("bridge"), "alpha.test", None, "", "");
    bridge.start().await;
    let (code, url) = drawbridge(bridge.config(), &["streams", "url"]);
    let url = url.trim();
    assert_eq!(code, 0, "{url}");
    let (login, host) = url
        .strip_prefix("nats://")
        .and_then(|rest| rest.split_once('@'))
        .expect("a login in the address");
    let (user, password) = login.split_once(':').expect("user and password");
    assert!(password.len() >= 32);
    assert!(async_nats::connect(format!("nats://{host}")).await.is_err());
    async_nats::ConnectOptions::with_user_and_password(user.into(), password.into())
        .connect(format!("nats://{host}"))
        .await
        .expect("the password is right");
    for file in ["client.url", "nats-server.conf"] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = bridge.dir.join("nats").join(file);
        let mode = std::fs::metadata(path).expect(file).permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
    let (code, said) = drawbridge(bridge.config(), &["streams", "list"]);
    assert!(code == 0 && said.contains("as defined"), "{said}");
    assert!(
        !bridge.log().contains(password),
        "the log holds the password"
    );
    let (code, report) = check(bridge.config());
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(line(&report, "durability", "fsync").0, "ok");
    assert!(!report.to_string().contains(password));
    bridge.stop().await;
}

#[tokio::test]
async fn a_managed_server_that_is_to_be_open_has_no_password() {
    let dir = tempfile::tempdir().expect("folder");
    let mut bridge = Bridge::new(&dir.path().join("bridge"), "alpha.test", None, "", "");
    bridge.env("DRAWBRIDGE_NATS__MANAGED__OPEN", "true");
    bridge.start().await;
    let (code, url) = drawbridge(bridge.config(), &["streams", "url"]);
    assert!(code == 0 && !url.contains('@'), "{url}");
    async_nats::connect(url.trim()).await.expect("connected");
    bridge.stop().await;
}
