//! One real relay for `alpha.test`, one bridge for `gamma.test`, a broker, and a throw-away
//! certificate authority that both trust. All of it ends with the value.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use drawbridge::bus::{Bus, Tail, TailFrom};
use drawbridge::clock::Clock;
use drawbridge::identity::{PublicKey, SigningKey};
use drawbridge::protocols::uam::address::Address;
use drawbridge::protocols::uam::envelope::{self, Draft, Envelope};
use drawbridge::protocols::uam::{payload, time, verify};
use serde_json::{Value, json};

use crate::relay::Relay;
use crate::support::bridge::{Bridge, tail};
use crate::support::nats::NatsServer;

/// The relay's address on loopback.
pub const ALPHA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The bridge's.
pub const GAMMA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 13);
/// What must happen soon, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

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
        let client = crate::support::bridge::client();
        let asked = client.get(url).bearer_auth(self.bridge.admin_token());
        let answer = asked.send().await;
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
