//! docker-compose.yml and what it mounts, as far as they can be judged without a Docker engine: the
//! file itself, the scripts, and the two configurations at work with a real broker by its own file.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use drawbridge::config::{Config, DurabilityPolicy};
use futures_util::StreamExt as _;
use saphyr_parser::{Event, ScalarStyle};
use serde_json::{Map, Value, json};

use super::world::{PATIENCE, within};
use crate::support::bridge::{self, Bridge};
use crate::support::uam_client;

const BRIDGES: [&str; 2] = ["alpha", "beta"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// YAML as JSON, aliases and merge keys taken in; of the scalars only texts, numbers and booleans.
struct Reader<'a> {
    events: saphyr_parser::Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Value>,
}

impl<'a> Reader<'a> {
    fn event(&mut self) -> Event<'a> {
        let (event, _) = self.events.next().expect("more of it").expect("it is YAML");
        event
    }

    fn node(&mut self, event: Event<'a>) -> Value {
        let (anchor, value) = match event {
            Event::Alias(anchor) => return self.anchors[&anchor].clone(),
            Event::Scalar(text, style, anchor, _) => {
                let quoted = style != ScalarStyle::Plain;
                let read = serde_json::from_str(&text).ok().filter(|_| !quoted);
                (anchor, read.unwrap_or_else(|| Value::from(text.as_ref())))
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.event() {
                        Event::SequenceEnd => break (anchor, Value::from(items)),
                        item => items.push(self.node(item)),
                    }
                }
            }
            Event::MappingStart(anchor, _) => {
                let mut map = Map::new();
                loop {
                    let key = match self.event() {
                        Event::MappingEnd => break (anchor, Value::Object(map)),
                        key => self.node(key),
                    };
                    let event = self.event();
                    let value = self.node(event);
                    match (key.as_str().expect("keys are texts"), value) {
                        ("<<", Value::Object(base)) => {
                            for (key, value) in base {
                                map.entry(key).or_insert(value);
                            }
                        }
                        (key, value) => {
                            map.insert(key.to_owned(), value);
                        }
                    }
                }
            }
            other => panic!("not looked for in a compose file: {other:?}"),
        };
        self.anchors.insert(anchor, value.clone());
        value
    }
}

fn compose() -> Value {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let mut reader = Reader {
        events: saphyr_parser::Parser::new_from_str(&text),
        anchors: BTreeMap::new(),
    };
    assert_eq!(reader.event(), Event::StreamStart);
    assert!(matches!(reader.event(), Event::DocumentStart(_)));
    let first = reader.event();
    reader.node(first)
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .map(|v| v.as_str().expect("a text").to_owned())
        .collect()
}

/// Runs `config/compose/secrets.sh` into a folder of its own.
fn secrets(dir: &Path) -> PathBuf {
    let into = dir.join("secrets");
    let done = Command::new("sh")
        .arg(root().join("config/compose/secrets.sh"))
        .arg(&into)
        .status()
        .expect("sh");
    assert!(done.success());
    into
}

#[test]
fn the_compose_file_is_whole_and_gives_no_container_more_than_it_needs() {
    let file = compose();
    let services = file["services"].as_object().unwrap();
    let made = tempfile::tempdir().unwrap();
    let made = secrets(made.path().to_owned().as_path());
    assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    for (name, service) in services {
        let image = service["image"].as_str().unwrap();
        let (repository, tag) = image.split_once(':').expect("an image has a version");
        assert!(tag.starts_with(|c: char| c.is_ascii_digit()), "{image}");
        assert!(!repository.contains('/'), "{image}");
        assert!(service["healthcheck"]["test"].is_array(), "{name}");
        assert!(service["privileged"].is_null(), "{name}");
        for mount in texts(&service["volumes"]) {
            let from = mount.split(':').next().unwrap();
            if from.starts_with("./") {
                assert!(root().join(from).is_file(), "{name} mounts {from}");
                assert!(mount.ends_with(":ro"), "{name}: {mount}");
            } else {
                assert!(file["volumes"].get(from).is_some(), "volume {from}");
            }
        }
        for secret in texts(&service["secrets"]) {
            let path = file["secrets"][&secret]["file"].as_str().unwrap();
            assert_eq!(path, format!("./config/compose/secrets/{secret}"));
            let held = std::fs::read_to_string(made.join(&secret)).unwrap();
            assert!(held.trim().len() >= 32, "{secret}");
        }
        let needs = service["depends_on"].as_object().into_iter().flatten();
        for (other, how) in needs {
            assert!(
                services[other]["healthcheck"].is_object(),
                "{name} needs {other}"
            );
            assert_eq!(how["condition"], "service_healthy");
        }
        for port in texts(&service["ports"]) {
            assert!(
                port.starts_with("127.0.0.1:"),
                "{name} opens {port} to the network"
            );
        }
    }
    assert_eq!(
        std::fs::read_dir(&made).unwrap().count(),
        file["secrets"].as_object().unwrap().len()
    );
    // Made once: a second run changes nothing.
    let before = std::fs::read_to_string(made.join("postgres")).unwrap();
    secrets(made.parent().unwrap());
    assert_eq!(
        std::fs::read_to_string(made.join("postgres")).unwrap(),
        before
    );
    for bridge in BRIDGES {
        let service = &services[bridge];
        assert_eq!(service["read_only"], true);
        assert_eq!(texts(&service["cap_drop"]), ["ALL"]);
        let user = service["user"].as_str().unwrap();
        assert!(!user.starts_with('0') && user != "root", "{user}");
        assert!(texts(&service["volumes"]).contains(&format!("{bridge}-data:/data")));
        assert!(texts(&service["healthcheck"]["test"]).contains(&"health".to_owned()));
    }
    let image = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    assert!(image.contains("\nUSER 65532:65532\n") && image.contains("\nFROM scratch\n"));
    assert_eq!(services["alpha"]["user"], "65532:65532");
    for copied in image.lines().filter_map(|l| l.strip_prefix("COPY ")) {
        if !copied.starts_with("--") {
            for from in copied.split(' ').filter(|w| !w.starts_with("./")) {
                assert!(root().join(from).exists(), "the Dockerfile copies {from}");
            }
        }
    }
}

/// One bridge's file with what the containers see put to where it is here.
struct Mapped {
    config: PathBuf,
    public: std::net::SocketAddr,
    admin: std::net::SocketAddr,
}

fn configuration(name: &str, changes: &[(String, String)]) -> String {
    let path = root().join(format!("config/compose/{name}.toml"));
    let mut text = std::fs::read_to_string(path).unwrap();
    for (from, to) in changes {
        assert!(
            text.contains(from.as_str()),
            "{name}.toml says nothing of {from}"
        );
        text = text.replace(from.as_str(), to);
    }
    text
}

/// The secrets as the containers see them; outside of /run/secrets nobody else may read them.
fn closed(made: &Path) {
    for entry in std::fs::read_dir(made).unwrap() {
        let closed = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(entry.unwrap().path(), closed).unwrap();
    }
}

#[test]
fn each_bridges_configuration_is_right_and_names_the_other() {
    let file = compose();
    let dir = tempfile::tempdir().unwrap();
    let made = secrets(dir.path());
    closed(&made);
    for (name, other) in [("alpha", "beta"), ("beta", "alpha")] {
        let service = &file["services"][name];
        let text = configuration(name, &[("/run/secrets".into(), made.display().to_string())]);
        let path = dir.path().join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        let environment: Vec<(String, String)> = service["environment"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect();
        let config =
            Config::load(Some(&path), &environment).unwrap_or_else(|e| panic!("{name}: {e}"));
        let own = format!("{name}.test");
        assert_eq!(config.uam.running(), Some(own.as_str()));
        assert_eq!(config.data_dir, Path::new("/data"));
        let aliases = texts(&service["networks"]["default"]["aliases"]);
        assert_eq!(aliases.join(" "), own);
        assert_eq!(
            config.uam.http_url.as_deref(),
            Some(format!("http://{own}:8000").as_str())
        );
        assert_eq!(config.public.address.port(), 8000);
        assert!(texts(&service["ports"])[0].ends_with(":8000"));
        assert_eq!(config.nats.durability, DurabilityPolicy::Require);
        let pins: Vec<_> = config
            .peers
            .iter()
            .map(|p| (p.name.clone(), p.endpoint.clone()))
            .collect();
        let endpoint = format!("http://{other}.test:8000");
        assert_eq!(pins, [(format!("{other}.test"), Some(endpoint))]);
        // Hosts are services of the same file, and every secret that is read is mounted.
        assert_eq!(config.nats.url.as_deref(), Some("nats://nats:4222"));
        let store = std::fs::read_to_string(made.join(format!("store_{name}"))).unwrap();
        assert!(
            store.starts_with(&format!("postgres://{name}:")) && store.contains("@postgres:5432/")
        );
        let mounted = texts(&service["secrets"]);
        for key in ["nats", "store"] {
            assert!(mounted.contains(&format!("{key}_{name}")), "{mounted:?}");
        }
    }
}

/// The broker by the compose file's own configuration, on free ports.
struct Broker(std::process::Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn broker(dir: &Path, made: &Path, port: u16, monitoring: u16) -> Broker {
    let text = std::fs::read_to_string(root().join("config/compose/nats.conf")).unwrap();
    let text = text
        .replace("0.0.0.0:4222", &format!("127.0.0.1:{port}"))
        .replace("0.0.0.0:8222", &format!("127.0.0.1:{monitoring}"))
        .replace("\"/data\"", &format!("{:?}", dir.join("nats")));
    let path = dir.join("nats.conf");
    std::fs::write(&path, text).unwrap();
    // The command of the service, with the paths of here.
    let script = texts(&compose()["services"]["nats"]["command"]).remove(0);
    let cache = drawbridge::bus::find::default_cache_dir();
    let binary = drawbridge::bus::find::server_binary(None, &cache)
        .await
        .unwrap();
    let script = script
        .replace("$$", "$")
        .replace("/run/secrets", &made.display().to_string())
        .replace("/etc/nats/nats.conf", &path.display().to_string())
        .replace("exec nats-server", &format!("exec {}", binary.display()));
    let log = std::fs::File::create(dir.join("nats.log")).unwrap();
    let child = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let health = format!("http://127.0.0.1:{monitoring}/healthz");
    let what = format!("the broker is healthy; see {}/nats.log", dir.display());
    within(&what, async || {
        let answer = bridge::client().get(&health).send().await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    Broker(child)
}

fn health(config: &Path, arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .arg("health")
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap()
}

async fn login(made: &Path, name: &str, port: u16) -> async_nats::Client {
    let password = std::fs::read_to_string(made.join(format!("nats_{name}"))).unwrap();
    async_nats::ConnectOptions::with_user_and_password(name.into(), password.trim().into())
        .connect(format!("nats://127.0.0.1:{port}"))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_bridges_by_these_files_are_healthy_and_hear_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let made = secrets(dir.path());
    closed(&made);
    let (port, monitoring) = (bridge::free_port(), bridge::free_port());
    let _broker = broker(dir.path(), &made, port, monitoring).await;
    let mapped: BTreeMap<&str, Mapped> = BRIDGES
        .into_iter()
        .map(|name| {
            let config = dir.path().join(format!("{name}.toml"));
            let (public, admin) = (bridge::free_address(), bridge::free_address());
            (
                name,
                Mapped {
                    config,
                    public,
                    admin,
                },
            )
        })
        .collect();
    let mut bridges = Vec::new();
    for (name, other) in [("alpha", "beta"), ("beta", "alpha")] {
        let (mine, theirs) = (&mapped[name], &mapped[other]);
        let changes = [
            ("/run/secrets".into(), made.display().to_string()),
            (
                "\"/data\"".into(),
                format!("{:?}", dir.path().join(format!("{name}-data"))),
            ),
            (
                "nats://nats:4222".into(),
                format!("nats://127.0.0.1:{port}"),
            ),
            (
                "http://nats:8222".into(),
                format!("http://127.0.0.1:{monitoring}"),
            ),
            ("0.0.0.0:8000".into(), mine.public.to_string()),
            ("127.0.0.1:8001".into(), mine.admin.to_string()),
            (
                format!("{name}.test:8000"),
                format!("{name}.test:{}", mine.public.port()),
            ),
            (
                format!("{other}.test:8000"),
                format!("{other}.test:{}", theirs.public.port()),
            ),
            // PostgreSQL has tests of its own.
            (
                format!("url_file = \"{}/store_{name}\"", made.display()),
                String::new(),
            ),
        ];
        let text = configuration(name, &changes);
        let hosts = BRIDGES
            .map(|b| format!("\"{b}.test\" = [\"127.0.0.1\"]\n"))
            .concat();
        std::fs::write(&mine.config, format!("{text}\n[http.hosts]\n{hosts}")).unwrap();
        let folder = dir.path().join(format!("{name}-log"));
        std::fs::create_dir_all(&folder).unwrap();
        let domain = format!("{name}.test");
        bridges.push(Bridge::existing(
            &folder,
            &domain,
            mine.public,
            mine.admin,
            &mine.config,
        ));
    }
    let down = health(&mapped["alpha"].config, &[]);
    assert_eq!(down.status.code(), Some(1), "nobody is there yet");
    for bridge in &mut bridges {
        bridge.start().await;
        for arguments in [&[][..], &["--ready"]] {
            let well = health(bridge.config(), arguments);
            assert!(
                well.status.success(),
                "{}",
                String::from_utf8_lossy(&well.stderr)
            );
        }
    }

    let (alpha, beta) = (
        login(&made, "alpha", port).await,
        login(&made, "beta", port).await,
    );
    let mut arrivals = beta.subscribe("fed.in.>").await.unwrap();
    beta.flush().await.unwrap();
    let key = uam_client::public_of("alice::alpha.test");
    let agent = json!({"address": "alice::alpha.test", "public_key": key});
    alpha
        .request("fed.do.uam.agent.put", agent.to_string().into())
        .await
        .unwrap();
    let id = uam_client::message_id();
    let envelope = uam_client::envelope(&id, "alice::alpha.test", "bob::beta.test", "hello");
    async_nats::jetstream::new(alpha)
        .publish("fed.out.uam._to.message", envelope.to_string().into())
        .await
        .unwrap()
        .await
        .unwrap();
    let arrived = tokio::time::timeout(PATIENCE, arrivals.next())
        .await
        .unwrap_or_else(|_| {
            panic!(
                "{}\n{}",
                bridge::tail(&bridges[0].log()),
                bridge::tail(&bridges[1].log())
            )
        })
        .unwrap();
    assert_eq!(arrived.subject.as_str(), "fed.in.uam.alpha_test.message");
    assert_eq!(
        arrived
            .headers
            .unwrap()
            .get("Fed-Event-Id")
            .unwrap()
            .as_str(),
        id
    );
}
