//! `bench relay`: the bridge beside a relay that others wrote, over TLS, both ways. What a message
//! costs each of them in CPU time, of the same messages.
//!
//! As receiver the relay verifies and stores what the bridge takes from FED_OUT, signs and delivers.
//! As sender it takes its agents' messages by its own API, signs and delivers them, and the bridge
//! verifies, stores and publishes them on FED_IN. The broker's share of our side is told by itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::args::{RunArgs, WorldArgs, count};
use super::figures::{approximate, rounded};
use super::pipeline::{Bridge, Configured};
use super::relay_peer::{ALPHA, GAMMA, Relay, certificates};
use super::rig::{Broker, Rig, own_binary};
use super::{progress, report, usage};
use crate::bus::BusMessage;
use crate::cli::Outcome;
use crate::clock::Clock;
use crate::identity::SigningKey;
use crate::protocols::uam::address::Address;
use crate::protocols::uam::envelope::{self, Draft};
use crate::protocols::uam::time;

/// How it runs.
#[derive(Clone, Debug, Args)]
pub struct RelayArgs {
    /// A Python that has the relay (`pip install -r tests/interop/requirements.txt` in a venv).
    #[arg(long)]
    python: PathBuf,
    /// The folder of relay.py and agents.py.
    #[arg(long, default_value = "tests/interop")]
    scripts: PathBuf,
    /// Messages from us to the relay, after a warm-up of a tenth as many.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    messages: u32,
    /// Agents of the relay that write to us, at most ten messages each: so much it lets a new agent
    /// send in a minute.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(2..=250))]
    agents: u32,
    /// Messages of each of them.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10))]
    each: u32,
    /// Bytes of text in a message.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    text: u32,
    #[command(flatten)]
    run: RunArgs,
}

/// Agents of ours.
const OURS: usize = 16;
/// Without any progress for so long something is broken.
const STALLED: Duration = Duration::from_secs(60);

/// CPU time of the three processes, microseconds.
struct Used {
    bridge: f64,
    broker: f64,
    relay: f64,
}

/// One role of the relay.
struct Role {
    messages: usize,
    per_s: f64,
    used: Used,
}

struct World {
    relay: Relay,
    bridge: Bridge,
    broker: Broker,
    ours: Vec<(Address, SigningKey)>,
    theirs: Vec<Address>,
}

/// Runs it.
pub async fn relay(args: RelayArgs) -> Outcome {
    let rig = Rig::start(&WorldArgs::uam(1, 1, 1024, 1), args.run.sync.interval()).await?;
    let dir = rig.fresh_dir("relay")?;
    certificates(&dir).await?;
    let mut world = World::start(&rig, &args, &dir).await?;
    let warm = (count(args.messages) / 10).max(1);
    world.we_write(warm, &args).await?;
    let receiver = world.we_write(count(args.messages), &args).await?;
    progress(&format!(
        "the relay receives: {:.0} messages/s",
        receiver.per_s
    ));
    let sender = world.they_write(&args).await?;
    progress(&format!("the relay sends: {:.0} messages/s", sender.per_s));
    world.bridge.stop().await?;
    world.broker.stop().await;
    let said = |role: &Role| {
        json!({
            "messages": role.messages,
            "messages_per_s": rounded(role.per_s, 1),
            "bridge_cpu_us_per_message": rounded(role.used.bridge, 1),
            "broker_cpu_us_per_message": rounded(role.used.broker, 1),
            "relay_cpu_us_per_message": rounded(role.used.relay, 1),
            "ratio": rounded(role.used.bridge / role.used.relay, 4),
        })
    };
    report::print(
        &args.run,
        &json!({
            "scenario": format!("relay: beside a real UAM relay over TLS, {} bytes of text", args.text),
            "relay_receives": said(&receiver),
            "relay_sends": said(&sender),
        }),
    );
    Ok(ExitCode::SUCCESS)
}

impl World {
    async fn start(rig: &Rig, args: &RelayArgs, dir: &Path) -> Result<Self, String> {
        let broker = rig.broker().await?;
        let mut relay = Relay::start(&args.python, &args.scripts, dir).await?;
        let configured = configure(dir, &broker.url(), args)?;
        let mut bridge = configured.spawn()?;
        bridge.ready().await?;
        allow(&configured).await?;
        let mut ours = Vec::new();
        for n in 0..OURS {
            let address = format!("agent-{n}::gamma.test");
            let key = SigningKey::generate().map_err(|e| e.to_string())?;
            let put = json!({"address": address, "public_key": key.public().to_base64()});
            let told = broker
                .bus
                .call_bridge("uam", "agent.put", put.to_string().into());
            told.await.map_err(|e| e.to_string())?;
            ours.push((parse(&address)?, key));
        }
        let mut theirs = Vec::new();
        for n in 0..args.agents {
            // Five registrations a minute from each address.
            let ask = json!({"do": "register", "name": format!("agent-{n}"), "source": format!("127.0.1.{}", n + 1)});
            let said = relay.ask(ask).await?;
            theirs.push(parse(said["address"].as_str().unwrap_or_default())?);
        }
        Ok(Self {
            relay,
            bridge,
            broker,
            ours,
            theirs,
        })
    }

    fn used(&self) -> Result<Used, String> {
        let of = |pid| usage::precise_cpu_us(pid).map_or(0.0, approximate);
        Ok(Used {
            bridge: of(self.bridge.id()?),
            broker: of(self.broker.pid()),
            relay: of(self.relay.id()?),
        })
    }

    fn role(&self, messages: usize, begun: Instant, before: &Used) -> Result<Role, String> {
        let (took, after) = (begun.elapsed().as_secs_f64(), self.used()?);
        let each = approximate(messages.max(1) as u64);
        Ok(Role {
            messages,
            per_s: each / took,
            used: Used {
                bridge: (after.bridge - before.bridge) / each,
                broker: (after.broker - before.broker) / each,
                relay: (after.relay - before.relay) / each,
            },
        })
    }

    /// Our agents write to the relay's.
    async fn we_write(&mut self, messages: usize, args: &RelayArgs) -> Result<Role, String> {
        let drafts = (0..messages).map(|n| self.envelope(n, count(args.text)));
        let drafts = drafts.collect::<Result<Vec<_>, _>>()?;
        let delivered = "drawbridge_deliveries_total";
        let first = self.bridge.metric(delivered).await.unwrap_or_default();
        let (begun, before) = (Instant::now(), self.used()?);
        let mut acks = FuturesUnordered::new();
        for (id, body) in drafts {
            let message = BusMessage {
                subject: "fed.out.uam._to.message".to_owned(),
                headers: vec![("Nats-Msg-Id".to_owned(), id)],
                payload: body,
                stream: "FED_OUT",
            };
            let handed = self.broker.bus.publish(message);
            acks.push(handed);
        }
        while let Some(done) = acks.next().await {
            done.map_err(|e| e.to_string())?;
        }
        let wanted = approximate(messages as u64);
        let (mut last, mut moved) = (0.0, Instant::now());
        loop {
            let now = self.bridge.metric(delivered).await.unwrap_or_default() - first;
            if now >= wanted {
                return self.role(messages, begun, &before);
            }
            if now > last {
                (last, moved) = (now, Instant::now());
            }
            if let Some(why) = self.bridge.ended() {
                return Err(why);
            }
            if moved.elapsed() > STALLED {
                return Err(format!("the relay took {now} of {messages} and no more"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn envelope(&self, n: usize, text: usize) -> Result<(String, bytes::Bytes), String> {
        let missing = || "nobody is there to write".to_owned();
        let (from, key) = self
            .ours
            .get(n % self.ours.len().max(1))
            .ok_or_else(missing)?;
        let to = self.theirs.get(n % self.theirs.len().max(1));
        let mut random = [0u8; 34];
        getrandom::fill(&mut random).map_err(|e| e.to_string())?;
        let [id, nonce] = [random.get(..10), random.get(10..)];
        let id: [u8; 10] = id.and_then(|b| b.try_into().ok()).ok_or_else(missing)?;
        let nonce: [u8; 24] = nonce.and_then(|b| b.try_into().ok()).ok_or_else(missing)?;
        let now = Clock::system().now_ms();
        let id = envelope::message_id(now, &id);
        let draft = Draft {
            from,
            to: to.ok_or_else(missing)?,
            kind: "message",
            payload: &crate::identity::b64::encode(vec![7; text]),
            message_id: &id,
            timestamp: &time::format_ms(now),
            nonce: &nonce,
            thread_id: None,
            reply_to: None,
            expires: None,
            media_type: None,
        };
        Ok((id.clone(), envelope::build(&draft, key).into()))
    }

    /// The relay's agents write to ours.
    async fn they_write(&mut self, args: &RelayArgs) -> Result<Role, String> {
        let texts: Vec<String> = (0..args.each)
            .map(|_| "x".repeat(count(args.text)))
            .collect();
        let stored = self.broker.messages("FED_IN").await?;
        // The first agent's messages are the warm-up: keys are fetched, connections made.
        let mut measured: Option<(Instant, Used)> = None;
        let mut sent = 0;
        for n in 0..self.theirs.len() {
            let (from, to) = (
                self.theirs.get(n),
                self.ours.get(n % self.ours.len().max(1)),
            );
            let (Some(from), Some((to, _))) = (from, to) else {
                continue;
            };
            let ask =
                json!({"do": "send", "from": from.as_str(), "to": to.as_str(), "texts": texts});
            let said = self.relay.ask(ask).await?;
            let list = said["sent"].as_array().map_or(&[][..], Vec::as_slice);
            let late = list
                .iter()
                .filter(|m| m["delivered"] != Value::Bool(true))
                .count();
            if late > 0 {
                return Err(format!(
                    "{late} messages of the relay were not taken at once"
                ));
            }
            match &measured {
                None => measured = Some((Instant::now(), self.used()?)),
                Some(_) => sent += list.len(),
            }
        }
        let (begun, before) = measured.ok_or("the relay has no agents")?;
        let role = self.role(sent, begun, &before)?;
        let came = self.broker.messages("FED_IN").await? - stored;
        let wanted = (sent + texts.len()) as u64;
        if came != wanted {
            return Err(format!(
                "{wanted} messages were taken, {came} are on FED_IN"
            ));
        }
        Ok(role)
    }
}

fn parse(address: &str) -> Result<Address, String> {
    Address::parse(address).map_err(|e| e.to_string())
}

/// The bridge as `gamma.test`, with a certificate; it finds the relay as relays find one another.
fn configure(dir: &Path, nats: &str, args: &RelayArgs) -> Result<Configured, String> {
    let file = dir.join("bridge.toml");
    let (public, admin) = ((GAMMA, 443).into(), super::pipeline::free_address()?);
    let text = format!(
        "data_dir = {dir}\n[nats]\nurl = {nats}\n[log]\nlevel = {log}\n\
         [http]\nextra_roots = [{ca}]\nallow_cidrs = [\"127.0.0.0/8\"]\nsrv = false\n\
         [http.hosts]\n\"alpha.test\" = [\"{ALPHA}\"]\n\
         [public]\naddress = \"{public}\"\ntls_certificate = {pem}\ntls_key = {key}\n\
         [admin]\naddress = \"{admin}\"\n[uam]\ndomain = \"gamma.test\"\n",
        dir = json!(dir.join("data")),
        nats = json!(nats),
        log = json!(args.run.log),
        ca = json!(dir.join("ca.pem")),
        pem = json!(dir.join("gamma.pem")),
        key = json!(dir.join("gamma.key")),
    );
    std::fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(Configured::of(file, public, admin, &args.run.set))
}

/// Puts the relay on the bridge's allow list: no rate limit then.
async fn allow(configured: &Configured) -> Result<(), String> {
    let output = tokio::process::Command::new(own_binary()?)
        .args(["trust", "allow", "alpha.test", "--config"])
        .arg(configured.file())
        .output()
        .await
        .map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
