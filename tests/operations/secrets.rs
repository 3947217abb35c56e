//! Secrets: each can stand in a file, none is ever shown.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use drawbridge::config::{Config, DEFAULT_TOML};

use super::world::{Peer, World, within};
use crate::support::bridge;
use crate::support::uam_client::{self, key_file_of};

/// Stands in every secret of these tests.
const MARK: &str = "hunter2";

/// Every secret setting: its path, a value, what else it needs.
const SECRETS: [(&str, &str, &str); 8] = [
    ("nats.url", "nats://bridge:hunter2@127.0.0.1:4222", ""),
    (
        "nats.nkey",
        "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
        "url = \"nats://a:1\"",
    ),
    (
        "nats.password",
        "hunter2",
        "url = \"nats://a:1\"\nuser = \"bridge\"",
    ),
    ("nats.token", "hunter2", "url = \"nats://a:1\""),
    (
        "store.url",
        "postgres://bridge:hunter2@127.0.0.1/bridge",
        "",
    ),
    ("admin.token", "hunter2-0123456789abcdef", ""),
    ("uam.admin_api_key", "hunter2", ""),
    ("paracord.read_token", "hunter2-0123456789abcdef", ""),
];

fn defaults() -> BTreeSet<String> {
    fn walk(table: &toml::Table, prefix: &str, paths: &mut BTreeSet<String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => walk(inner, &format!("{prefix}{key}."), paths),
                _ => drop(paths.insert(format!("{prefix}{key}"))),
            }
        }
    }
    let mut paths = BTreeSet::new();
    walk(&DEFAULT_TOML.parse().unwrap(), "", &mut paths);
    paths
}

#[test]
fn every_secret_setting_has_a_file_form_and_every_file_form_is_listed_here() {
    let paths = defaults();
    let listed: BTreeSet<String> = SECRETS
        .iter()
        .map(|(path, ..)| (*path).to_owned())
        .collect();
    let two_forms: BTreeSet<String> = paths
        .iter()
        .filter_map(|path| path.strip_suffix("_file"))
        .filter(|stem| paths.contains(*stem))
        .map(ToOwned::to_owned)
        .collect();
    assert_eq!(two_forms, listed);
    let words = [
        "password",
        "token",
        "secret",
        "nkey",
        "api_key",
        "passphrase",
        "seed",
    ];
    for path in &paths {
        let key = path.rsplit('.').next().unwrap();
        let secret = words.iter().any(|word| key.contains(word));
        assert!(
            !secret || key.ends_with("_file") || listed.contains(path),
            "{path}"
        );
    }
}

#[test]
fn a_secret_is_read_from_text_or_from_a_closed_file_and_from_no_other_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let mode = |mode| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, value, beside) in SECRETS {
        let (section, key) = path.rsplit_once('.').unwrap();
        let load = |lines: String| Config::from_text(&format!("[{section}]\n{beside}\n{lines}"));
        let text = format!("{key} = \"{value}\"\n");
        let by_file = format!("{key}_file = {file:?}\n");
        std::fs::write(&file, format!("  {value}\n")).unwrap();
        mode(0o600);
        for lines in [&text, &by_file] {
            let config = load(lines.clone()).unwrap_or_else(|e| panic!("{path}: {e}"));
            let shown = format!("{config:?}");
            assert!(
                !shown.contains(MARK) && !shown.contains("SUACSSL3"),
                "{path}: {shown}"
            );
        }
        let both = load(format!("{text}{by_file}")).unwrap_err().to_string();
        assert!(
            both.contains(path) && both.contains("keep one"),
            "{path}: {both}"
        );
        mode(0o644);
        let open = load(by_file.clone()).unwrap_err().to_string();
        assert!(
            open.contains(&format!("{path}_file")) && open.contains("chmod"),
            "{open}"
        );
        mode(0o600);
        std::fs::write(&file, "\n").unwrap();
        let empty = load(by_file).unwrap_err().to_string();
        assert!(empty.contains("empty"), "{empty}");
        // A slip in the line that holds it does not bring it to light.
        for slip in [
            format!("{key} = \"{value}\n"),
            format!("{key} = [\"{value}\"]\n"),
        ] {
            let error = load(slip).unwrap_err().to_string();
            assert!(!error.contains(value), "{path}: {error}");
        }
    }
}

fn unseen(what: &str, text: &str) {
    let seed = key_file_of("alpha.test");
    for secret in [MARK, seed.trim()] {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{what} shows a secret: {line:?}");
    }
}

/// The output of a command of ours.
fn said(arguments: &[&str], config: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    [output.stdout, output.stderr]
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_a_bridge_writes_holds_a_secret_whatever_goes_wrong() {
    let uam = "discovery = false\nretry_delays = [\"10ms\"]\nadmin_api_key = \"hunter2-api-key\"";
    let tables = "[log]\nlevel = \"trace\"\njson = true\n";
    let mut world = World::new(uam, tables).await;
    let failing = Peer::start(world.dir.path(), "beta.test", "status 500").await;
    world.rewrite(|text| {
        let text = text.replace("nats://", "nats://bridge:hunter2-nats@");
        let text = text.replace("[admin]", "[admin]\ntoken = \"hunter2-admin-0123456789\"");
        format!("{text}\n{}", failing.pin)
    });
    world.bridge.start().await;
    let config = world.bridge.config().to_owned();

    // Deliveries that fail, requests that are refused, keys that are wrong.
    let id = world.publish("beta.test", &[]).await;
    failing.gets(&id).await;
    world.publish("nowhere.test", &[]).await;
    let client = bridge::client();
    let envelope = uam_client::envelope(&id, "bob::beta.test", "alice::alpha.test", "hello");
    let forged = uam_client::delivery_signed_by("beta.test", "forged", &envelope, false);
    uam_client::post(&client, &world.bridge.public_url(), &forged).await;
    let url = format!("{}/api/v1/federation/deliver", world.bridge.public_url());
    client.post(url).body("no JSON").send().await.unwrap();
    for key in ["hunter2-api-key", "hunter2-guess"] {
        let url = format!("{}/api/v1/admin/relay-blocklist", world.bridge.public_url());
        let answer = client
            .get(url)
            .header("x-admin-key", key)
            .send()
            .await
            .unwrap();
        unseen("the blocklist", &answer.text().await.unwrap());
    }
    for token in ["hunter2-admin-0123456789", "hunter2-guess-0123456789"] {
        for path in [
            "/api/v1/queue",
            "/api/v1/peers",
            "/api/v1/keys",
            "/readyz",
            "/metrics",
        ] {
            let url = format!("{}{path}", world.bridge.admin_url());
            let answer = client.get(url).bearer_auth(token).send().await.unwrap();
            unseen(path, &answer.text().await.unwrap());
        }
    }
    // The commands, and a configuration that is broken in the lines that hold secrets.
    for command in [
        &["peers", "list"][..],
        &["queue", "list"],
        &["config", "check"],
        &["health"],
    ] {
        unseen(&command.join(" "), &said(command, &config));
    }
    let whole = std::fs::read_to_string(&config).unwrap();
    for (from, to) in [
        ("nats://bridge", "smtp://bridge"),
        (
            "token = \"hunter2-admin-0123456789\"",
            "token = \"hunter2\"",
        ),
        (
            "admin_api_key = \"hunter2-api-key\"",
            "admin_api_key = \"hunter2-api-key",
        ),
    ] {
        world.rewrite(|text| text.replace(from, to));
        let complaint = said(&["config", "check"], &config);
        assert!(complaint.contains("drawbridge:"), "{complaint}");
        unseen("config check", &complaint);
        let before = world
            .bridge
            .log()
            .matches("the old one stays in force")
            .count();
        world.bridge.signal("HUP");
        within("the broken configuration is refused", async || {
            let now = world
                .bridge
                .log()
                .matches("the old one stays in force")
                .count();
            (now > before).then_some(())
        })
        .await;
        world.rewrite(|_| whole.clone());
    }
    // The broker goes, for this bridge and for one that starts without it.
    world.broker.kill9();
    within("the loss of the broker is noticed", async || {
        let (status, _) = world.readiness().await?;
        (status == 503).then_some(())
    })
    .await;
    world.bridge.stop().await;
    world.rewrite(|text| text.replace("[nats]", "[nats]\nconnect_timeout = \"300ms\""));
    world.bridge.spawn();
    assert!(!world.bridge.exit(super::world::PATIENCE).await.success());

    let log = world.bridge.log();
    unseen("the log", &log);
    assert!(
        log.contains("\"level\":\"DEBUG\""),
        "it was asked for more than it says usually"
    );
    for line in log.lines().filter(|line| !line.starts_with("drawbridge: ")) {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(
            parsed.is_ok_and(|l| l["message"].is_string()),
            "no JSON: {line}"
        );
    }
}
