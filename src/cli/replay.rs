//! `drawbridge replay`: inbound events once more, from a time or sequence, for a backend that lost
//! them or was not there.
//!
//! The stream `FED_IN` still holds what came in the last days; nothing is published to it again, so
//! no other backend sees anything twice. A backend that reads by a durable consumer gets one that
//! begins where it is told (`--consumer`); any other gets the events on subjects of its own (`--to`);
//! without either they are printed.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;

use super::{ConfigArgs, Outcome, connect, tail};
use crate::bus::{Bus, StoredMessage, TailFrom, subject};
use crate::clock::{Clock, UnixMs};
use crate::config::parse_duration;

/// The stream of inbound events.
const STREAM: &str = "FED_IN";

/// What, from where, whereto.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where to begin: a time (RFC 3339), an age (`2h`), or a sequence of the stream.
    #[arg(long, value_name = "TIME|AGE|SEQUENCE")]
    from: String,
    /// Where to end, in the same forms, included; by default with what is there now.
    #[arg(long, value_name = "TIME|AGE|SEQUENCE", conflicts_with = "consumer")]
    until: Option<String>,
    /// Of this protocol only.
    #[arg(long)]
    protocol: Option<String>,
    /// From this peer only.
    #[arg(long)]
    peer: Option<String>,
    /// Of this type only.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Make a durable pull consumer of this name that begins there.
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Replace a consumer of that name.
    #[arg(long, requires = "consumer")]
    force: bool,
    /// Publish to `PREFIX.<protocol>.<peer>.<type>`, with the headers of the event and `Fed-Replayed`.
    #[arg(long, value_name = "PREFIX", conflicts_with = "consumer")]
    to: Option<String>,
    /// With --to: at most this many a second, so that plain subscribers keep up.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Printed events with headers, one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// A place in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Time(UnixMs),
    Sequence(u64),
}

impl Place {
    /// Reads a sequence, an age or a time.
    fn parse(text: &str, now: UnixMs) -> Result<Self, String> {
        if let Ok(sequence) = text.parse() {
            return Ok(Self::Sequence(sequence));
        }
        if let Some(age) = parse_duration(text) {
            let ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            return Ok(Self::Time(now.saturating_sub(ms)));
        }
        text.parse::<Timestamp>()
            .map(|at| Self::Time(at.as_millisecond()))
            .map_err(|_| {
                format!(
                    "{text:?} is no place to begin or end: give a time such as \
                     \"2026-11-20T10:00:00Z\", an age such as \"2h\", or a sequence of the stream"
                )
            })
    }
}

/// Replays.
pub async fn replay(args: ReplayArgs) -> Outcome {
    let config = args.config.load()?;
    let now = Clock::system().now_ms();
    let from = Place::parse(&args.from, now)?;
    let until = args.until.as_deref().map(|text| Place::parse(text, now));
    let until = until.transpose()?;
    let bus = connect(&config).await?;
    if let Some(prefix) = &args.to {
        check_prefix(bus.prefix(), prefix)?;
    }
    let facts = bus.stream_facts(STREAM).await.map_err(|e| e.to_string())?;
    let facts =
        facts.ok_or("there is no stream of inbound events yet: start `drawbridge run` once")?;
    let first = match from {
        Place::Sequence(seq) => seq,
        Place::Time(at) => bus
            .sequence_at(STREAM, at)
            .await
            .map_err(|e| e.to_string())?,
    };
    if first < facts.first_seq && facts.messages > 0 {
        eprintln!(
            "the stream begins at sequence {}: what came before is no longer held",
            facts.first_seq
        );
    }
    let filter = filter(bus.prefix(), &args);
    if let Some(name) = &args.consumer {
        let made = bus
            .durable_from(STREAM, name, &filter, first, args.force)
            .await;
        let made = made.map_err(|e| e.to_string())?;
        println!(
            "consumer {} on {} begins at sequence {first}; {} events wait for it",
            made.name, made.stream, made.pending
        );
        return Ok(ExitCode::SUCCESS);
    }
    let last = match until {
        None => facts.last_seq,
        Some(Place::Sequence(seq)) => seq.min(facts.last_seq),
        Some(Place::Time(at)) => {
            let after = bus.sequence_at(STREAM, at.saturating_add(1)).await;
            (after.map_err(|e| e.to_string())? - 1).min(facts.last_seq)
        }
    };
    let sent = run(&bus, &filter, first.max(facts.first_seq), last, &args).await?;
    bus.close().await;
    if args.to.is_some() {
        println!("{sent} events replayed");
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(
    bus: &Bus,
    filter: &str,
    first: u64,
    last: u64,
    args: &ReplayArgs,
) -> Result<u64, String> {
    if first > last {
        return Ok(0);
    }
    // The last one that passes the filter, so that the end is known when it comes; one that came
    // after `last` ends it, too.
    let end = bus
        .last_of(STREAM, filter)
        .await
        .map_err(|e| e.to_string())?;
    let Some(end) = end.filter(|end| *end >= first) else {
        return Ok(0);
    };
    let mut events = bus
        .tail(filter, TailFrom::Seq(first))
        .await
        .map_err(|e| e.to_string())?;
    let mut progress = Progress::new(first, last, args.to.is_some());
    let mut sent = 0;
    loop {
        let event = events.next().await.map_err(|e| e.to_string())?;
        if event.seq > last {
            break;
        }
        match &args.to {
            Some(prefix) => publish(bus, prefix, &event).await?,
            None => println!("{}", tail::line(&event, args.json)),
        }
        sent += 1;
        if args.to.is_some() {
            progress.at(event.seq, sent, args.rate).await;
        }
        if event.seq >= end.min(last) {
            break;
        }
    }
    progress.end();
    bus.flush().await.map_err(|e| e.to_string())?;
    Ok(sent)
}

/// The subjects wanted.
fn filter(prefix: &str, args: &ReplayArgs) -> String {
    let token = |text: &Option<String>| text.as_deref().map_or("*".into(), subject::token);
    let head = format!(
        "{prefix}.in.{}.{}",
        token(&args.protocol),
        token(&args.peer)
    );
    match &args.kind {
        None => format!("{head}.>"),
        Some(kind) => {
            let kind: Vec<String> = kind.split('.').map(subject::token).collect();
            format!("{head}.{}", kind.join("."))
        }
    }
}

/// Our own subjects are not for replays, but for `fed.replay`.
fn check_prefix(own: &str, prefix: &str) -> Result<(), String> {
    let tokens = || prefix.split('.');
    let plain = |token: &str| {
        !token.is_empty()
            && token
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>')
    };
    if !tokens().all(plain) {
        return Err(format!("{prefix:?} is no subject to publish to"));
    }
    let mine = tokens().next() == Some(own) && tokens().nth(1) != Some("replay");
    if mine || prefix.starts_with('$') {
        return Err(format!(
            "{prefix:?} lies among the bridge's or the broker's own subjects, where others would take \
             the events for new ones; choose another, such as {own}.replay or backend.replay"
        ));
    }
    Ok(())
}

async fn publish(bus: &Bus, prefix: &str, event: &StoredMessage) -> Result<(), String> {
    let rest = event.subject.splitn(3, '.').nth(2).unwrap_or_default();
    let mut headers = event.headers.clone();
    // What the broker set when it stored the event is of another stream.
    headers.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("nats-expected-"));
    headers.push(("Fed-Replayed".to_owned(), event.seq.to_string()));
    bus.publish_plain(&format!("{prefix}.{rest}"), &headers, event.payload.clone())
        .await
        .map_err(|e| e.to_string())
}

/// How far it is, on a terminal, and not faster than asked.
struct Progress {
    first: u64,
    last: u64,
    shown: bool,
    began: Instant,
    told: Instant,
}

impl Progress {
    fn new(first: u64, last: u64, wanted: bool) -> Self {
        let now = Instant::now();
        Self {
            first,
            last,
            shown: wanted && std::io::stderr().is_terminal(),
            began: now,
            told: now,
        }
    }

    /// After the `sent`-th event, of this sequence.
    async fn at(&mut self, seq: u64, sent: u64, rate: u32) {
        if self.shown && self.told.elapsed() > Duration::from_millis(200) {
            self.told = Instant::now();
            let span = (self.last - self.first + 1).max(1);
            let part = (seq - self.first + 1) * 100 / span;
            eprint!("\r{sent} events, {part} %");
            let _ = std::io::stderr().flush();
        }
        let due = Duration::from_secs(1)
            .checked_mul(u32::try_from(sent).unwrap_or(u32::MAX))
            .map_or(Duration::MAX, |all| all / rate.max(1));
        if let Some(early) = due.checked_sub(self.began.elapsed()) {
            tokio::time::sleep(early).await;
        }
    }

    fn end(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_sequence_an_age_or_a_time() {
        assert_eq!(Place::parse("17", 0), Ok(Place::Sequence(17)));
        assert_eq!(Place::parse("2h", 7_200_001), Ok(Place::Time(1)));
        let at = Place::parse("2026-11-20T10:00:00Z", 0);
        assert_eq!(at, Ok(Place::Time(1_795_168_800_000)));
        for bad in ["", "yesterday", "-3", "2026-11-20"] {
            assert!(
                Place::parse(bad, 0).unwrap_err().contains("no place"),
                "{bad}"
            );
        }
    }

    #[test]
    fn events_are_not_replayed_among_our_own_subjects() {
        for good in ["backend.replay", "fed.replay", "x", "federal.in"] {
            assert_eq!(check_prefix("fed", good), Ok(()), "{good}");
        }
        for bad in [
            "fed",
            "fed.in",
            "fed.in.uam",
            "$JS.API",
            "a..b",
            "a.*",
            "",
            "a b",
        ] {
            assert!(check_prefix("fed", bad).is_err(), "{bad}");
        }
    }
}
