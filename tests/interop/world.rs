//! One real relay for `alpha.test`, one bridge for `gamma.test`, a broker, and a throw-away
//! certificate authority that both trust. All of it ends with the value.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drawbridge::bus::{Bus, Tail, TailFrom};
use drawbridge::clock::Clock;
use drawbridge::identity::{PublicKey, SigningKey};
use drawbridge::protocols::uam::address::Address;
use drawbridge::protocols::uam::envelope::{self, Draft, Envelope};
use drawbridge::protocols::uam::{payload, time, verify};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};

use crate::support::bridge::{Bridge, tail};
use crate::support::nats::NatsServer;

/// The relay's address on loopback.
pub const ALPHA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The bridge's.
pub const GAMMA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 13);
/// What must happen soon, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Where things are, and how one finds them.
pub struct Setting {
    /// Port of the relay.
    pub relay_port: u16,
    /// Name under which it says that it is reached.
    pub relay_host: &'static str,
    /// The bridge looks SRV records up here.
    pub dns: Option<SocketAddr>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            relay_port: 443,
            relay_host: "alpha.test",
            dns: None,
        }
    }
}

/// Everything of one test.
pub struct World {
    pub relay: Relay,
    pub bridge: Bridge,
    pub bus: Bus,
    /// `fed.in` from its beginning.
    pub arrivals: Tail,
    ours: HashMap<String, SigningKey>,
    theirs: HashMap<String, PublicKey>,
    _nats: NatsServer,
    _dir: tempfile::TempDir,
}

/// A message that reached an agent: who sent it, its id, its decrypted text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    pub from: String,
    pub id: String,
    pub text: String,
}

impl World {
    /// Starts all of it. No agent is known yet.
    pub async fn start(setting: Setting) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        certificates(dir.path());
        let relay = Relay::start(dir.path(), &setting).await;
        let nats = NatsServer::start().await;
        let mut bridge = Bridge::new(&dir.path().join("bridge"), "gamma.test", None, "", "");
        let text = bridge_config(dir.path(), &bridge, &nats.url(), &setting);
        std::fs::write(bridge.config(), text).expect("the configuration");
        bridge.start().await;
        let bus = Bus::connect(&nats.config()).await.expect("connected");
        let arrivals = bus
            .tail("fed.in.>", TailFrom::All)
            .await
            .expect("the stream");
        Self {
            relay,
            bridge,
            bus,
            arrivals,
            ours: HashMap::new(),
            theirs: HashMap::new(),
            _nats: nats,
            _dir: dir,
        }
    }

    /// Makes an agent of ours and tells the bridge its public key, as a backend does.
    pub async fn our_agent(&mut self, name: &str) -> String {
        let address = format!("{name}::gamma.test");
        let key = SigningKey::generate().expect("random bytes");
        let put = json!({"address": address, "public_key": key.public().to_base64()});
        let put = put.to_string().into();
        let told = self.bus.call_bridge("uam", "agent.put", put).await;
        told.expect("the bridge takes the agent");
        self.ours.insert(address.clone(), key);
        address
    }

    /// Registers an agent at the relay, from a client address of its own (five a minute each).
    pub async fn their_agent(&mut self, name: &str) -> String {
        let source = format!("127.0.1.{}", self.theirs.len() + 1);
        let said = self
            .relay
            .ask(json!({"do": "register", "name": name, "source": source}))
            .await;
        let address = text(&said["address"]);
        let key = PublicKey::from_base64(&text(&said["public_key"])).expect("a key");
        self.theirs.insert(address.clone(), key);
        address
    }

    /// Publishes on `fed.out` what our agent signed and encrypted; answers the message's id.
    pub async fn we_send(&self, from: &str, to: &str, words: &str) -> String {
        let key = &self.ours[from];
        let now = Clock::system().now_ms();
        let sealed = payload::seal_box(words.as_bytes(), key, &self.theirs[to], &random());
        let id = envelope::message_id(now, &random());
        let draft = Draft {
            from: &Address::parse(from).expect("an address"),
            to: &Address::parse(to).expect("an address"),
            kind: "message",
            payload: &sealed.expect("encrypted"),
            message_id: &id,
            timestamp: &time::format_ms(now),
            nonce: &random::<24>(),
            thread_id: None,
            reply_to: None,
            expires: None,
            media_type: None,
        };
        let body = envelope::build(&draft, key).into();
        let headers = vec![("Nats-Msg-Id".to_owned(), id.clone())];
        let published = self.bus.publish_out("uam", "_to", "message", headers, body);
        published.await.expect("published");
        id
    }

    /// Lets an agent of the relay send; answers ids, and whether the bridge took it at once.
    pub async fn they_send(
        &mut self,
        from: &str,
        to: &str,
        words: &[String],
    ) -> Vec<(String, bool)> {
        let command = json!({"do": "send", "from": from, "to": to, "texts": words});
        let said = self.relay.ask(command).await;
        let sent = said["sent"].as_array().expect("a list").iter();
        sent.map(|s| (text(&s["message_id"]), s["delivered"] == true))
            .collect()
    }

    /// The next `n` events of `fed.in`, each verified with its sender's key and decrypted.
    pub async fn we_get(&mut self, n: usize, patience: Duration) -> Vec<Got> {
        let mut all = Vec::new();
        let end = tokio::time::Instant::now() + patience;
        while all.len() < n {
            let message = tokio::time::timeout_at(end, self.arrivals.next())
                .await
                .unwrap_or_else(|_| {
                    panic!("{} of {n} arrived: {all:?}\n{}", all.len(), self.logs())
                })
                .expect("the stream");
            assert_eq!(message.subject, "fed.in.uam.alpha_test.message");
            assert_eq!(message.header("Fed-Peer"), Some("alpha.test"));
            let envelope = Envelope::parse(message.payload.clone()).expect("an envelope");
            let from = envelope.from().expect("from").to_owned();
            let key = &self.theirs[&from];
            verify::check_agent_signature(&envelope, key).expect("the agent's signature holds");
            let ours = &self.ours[envelope.to().expect("to")];
            let sealed = envelope.text_of("payload").expect("a payload");
            let clear = payload::open_box(sealed, ours, key).expect("it can be decrypted");
            all.push(Got {
                from,
                id: envelope.message_id().expect("an id").to_owned(),
                text: String::from_utf8(clear).expect("text"),
            });
        }
        all
    }

    /// What the relay's agents were given; the relay's own library verified and decrypted it.
    pub async fn they_get(&mut self, agents: &[String], n: usize) -> Vec<Got> {
        let mut all = Vec::new();
        let end = Instant::now() + SOON;
        while all.len() < n {
            for agent in agents {
                let said = self
                    .relay
                    .ask(json!({"do": "inbox", "address": agent}))
                    .await;
                for m in said["messages"].as_array().expect("a list") {
                    all.push(Got {
                        from: text(&m["from"]),
                        id: text(&m["message_id"]),
                        text: text(&m["text"]),
                    });
                }
            }
            assert!(
                Instant::now() < end,
                "{} of {n}: {all:?}\n{}",
                all.len(),
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        all
    }

    /// Waits until what waits in the bridge's queue is as wanted.
    pub async fn queue(&self, what: &str, wanted: impl Fn(&[Value]) -> bool) {
        let end = Instant::now() + SOON;
        loop {
            let queue = self.admin("queue?state=pending").await;
            let rows = queue["rows"].as_array().cloned().unwrap_or_default();
            if queue["rows"].is_array() && wanted(&rows) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {queue}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// One of the admin listener's lists.
    pub async fn admin(&self, list: &str) -> Value {
        let url = format!("{}/api/v1/{list}", self.bridge.admin_url());
        let answer = crate::support::bridge::client().get(url).send().await;
        let text = answer.expect("an answer").text().await.expect("a body");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Messages that a stream holds.
    pub async fn held(&self, stream: &str) -> u64 {
        let facts = self.bus.stream_facts(stream).await.expect("facts");
        facts.expect("the stream").messages
    }

    /// The last lines of both logs, for failures.
    pub fn logs(&self) -> String {
        let relay = std::fs::read_to_string(&self.relay.log).unwrap_or_default();
        format!(
            "--- bridge\n{}\n--- relay\n{}",
            tail(&self.bridge.log()),
            tail(&relay)
        )
    }

    /// Ends all of it in good order.
    pub async fn end(mut self) {
        self.bus.close().await;
        self.bridge.stop().await;
        self.relay.stop();
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("random bytes");
    bytes
}

fn bridge_config(dir: &Path, bridge: &Bridge, nats: &str, setting: &Setting) -> String {
    let srv = setting.dns.map_or("srv = false".to_owned(), |dns| {
        format!("srv = true\ndns_servers = [\"{dns}\"]")
    });
    format!(
        "data_dir = {data:?}\n\
         [nats]\nurl = \"{nats}\"\n\
         [http]\nextra_roots = [{ca:?}]\nallow_cidrs = [\"127.0.0.0/8\"]\n{srv}\n\
         [http.hosts]\n\"alpha.test\" = [\"{ALPHA}\"]\n\"relay.alpha.test\" = [\"{ALPHA}\"]\n\
         [public]\naddress = \"{GAMMA}:443\"\ntls_certificate = {pem:?}\ntls_key = {key:?}\n\
         drain_timeout = \"2s\"\n\
         [admin]\naddress = \"{admin}\"\n\
         [outbound]\nbreaker_initial = \"500ms\"\nbreaker_max = \"1s\"\n\
         [uam]\ndomain = \"gamma.test\"\n\
         retry_delays = [\"1s\", \"2s\", \"2s\", \"2s\", \"5s\", \"5s\", \"10s\"]\n",
        data = bridge.dir,
        ca = dir.join("ca.pem"),
        pem = dir.join("gamma.pem"),
        key = dir.join("gamma.key"),
        admin = bridge.admin,
    )
}

/// A certificate authority and a certificate for each side.
fn certificates(dir: &Path) {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    };
    let key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, "interop test authority");
    let pem = ca.self_signed(&key).expect("an authority").pem();
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).expect("written");
    write("ca.pem", pem);
    let issuer = Issuer::new(ca, key);
    for name in ["alpha", "gamma"] {
        let key = KeyPair::generate().expect("a key");
        let names = vec![format!("{name}.test"), format!("relay.{name}.test")];
        let mut leaf = CertificateParams::new(names).expect("names");
        leaf.use_authority_key_identifier_extension = true;
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        write(&format!("{name}.pem"), leaf.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

/// The relay's process, and the process that plays its agents.
pub struct Relay {
    dir: PathBuf,
    log: PathBuf,
    port: u16,
    url: String,
    python: PathBuf,
    running: Option<Child>,
    stdin: tokio::process::ChildStdin,
    stdout: Lines<BufReader<tokio::process::ChildStdout>>,
    _agents: tokio::process::Child,
}

/// The names that the Python processes know.
const PEER_HOSTS: &str = "alpha.test=127.0.0.11,relay.alpha.test=127.0.0.11,gamma.test=127.0.0.13";

impl Relay {
    async fn start(dir: &Path, setting: &Setting) -> Self {
        let python = python();
        let url = match setting.relay_port {
            443 => format!("https://{}", setting.relay_host),
            port => format!("https://{}:{port}", setting.relay_host),
        };
        let mut agents = tokio::process::Command::new(&python)
            .arg(scripts().join("agents.py"))
            .env("PEER_HOSTS", PEER_HOSTS)
            .env("SSL_CERT_FILE", dir.join("ca.pem"))
            .env("RELAY_URL", &url)
            .env("RELAY_DB", dir.join("relay.db"))
            .env("PEER_URLS", r#"{"gamma.test": "https://gamma.test"}"#)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the agents start");
        let mut relay = Self {
            dir: dir.to_owned(),
            log: dir.join("relay.log"),
            port: setting.relay_port,
            url,
            python,
            running: None,
            stdin: agents.stdin.take().expect("piped"),
            stdout: BufReader::new(agents.stdout.take().expect("piped")).lines(),
            _agents: agents,
        };
        relay.up().await;
        relay
    }

    /// Starts the relay on its old database and waits until it listens.
    pub async fn up(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the relay's log");
        let child = Command::new(&self.python)
            .arg(scripts().join("relay.py"))
            .args([
                "--bind",
                &ALPHA.to_string(),
                "--port",
                &self.port.to_string(),
            ])
            .arg("--cert")
            .arg(self.dir.join("alpha.pem"))
            .arg("--key")
            .arg(self.dir.join("alpha.key"))
            .current_dir(&self.dir)
            .env_remove("DATABASE_URL")
            .env("UAM_RELAY_DOMAIN", "alpha.test")
            .env("UAM_RELAY_HTTP_URL", &self.url)
            .env("UAM_RELAY_WS_URL", "wss://alpha.test/ws")
            .env("UAM_DB_PATH", self.dir.join("relay.db"))
            .env("UAM_RELAY_KEY_PATH", self.key_file())
            .env("UAM_LOG_LEVEL", "INFO")
            .env("SSL_CERT_FILE", self.dir.join("ca.pem"))
            .env("PEER_HOSTS", PEER_HOSTS)
            .env("PEER_DNS", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        let mut child = child.expect("the relay starts");
        let end = Instant::now() + SOON * 2;
        while tokio::net::TcpStream::connect((ALPHA, self.port))
            .await
            .is_err()
        {
            let ended = child.try_wait().ok().flatten();
            assert!(
                ended.is_none() && Instant::now() < end,
                "the relay does not come up ({ended:?}):\n{}",
                tail(&std::fs::read_to_string(&self.log).unwrap_or_default())
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.running = Some(child);
    }

    /// SIGTERM, and SIGKILL when that does not end it.
    pub fn stop(&mut self) {
        let Some(mut child) = self.running.take() else {
            return;
        };
        let kill = format!("kill -TERM {}", child.id());
        let _ = Command::new("sh").args(["-c", &kill]).status();
        let end = Instant::now() + Duration::from_secs(5);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// The file with its identity.
    pub fn key_file(&self) -> PathBuf {
        self.dir.join("alpha_key.pem")
    }

    /// One command to the agents (`agents.py` says which there are).
    pub async fn ask(&mut self, command: Value) -> Value {
        let line = format!("{command}\n");
        self.stdin.write_all(line.as_bytes()).await.expect("heard");
        let answer = tokio::time::timeout(Duration::from_secs(120), self.stdout.next_line()).await;
        let answer = answer.expect("in time").expect("read");
        let answer: Value = serde_json::from_str(&answer.expect("an answer")).expect("JSON");
        let relay = || tail(&std::fs::read_to_string(&self.log).unwrap_or_default());
        assert!(
            answer["error"].is_null(),
            "{command}: {answer}\n{}",
            relay()
        );
        answer
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

/// The Python with `youam`, made once below `target/`.
fn python() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-venv");
    let python = home.join("bin/python");
    let check =
        "import importlib.metadata as m, uam.relay.app, dns; assert m.version('youam') == '0.2.5'";
    let there = || {
        let checked = Command::new(&python).args(["-c", check]).output();
        checked.is_ok_and(|o| o.status.success())
    };
    if !there() {
        let run = |command: &mut Command| {
            let status = command.status();
            assert!(status.is_ok_and(|s| s.success()), "{command:?} failed");
        };
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&home));
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(scripts().join("requirements.txt")));
        assert!(
            there(),
            "youam 0.2.5 cannot be imported from {}",
            home.display()
        );
    }
    python
}
