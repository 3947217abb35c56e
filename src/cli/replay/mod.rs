//! `drawbridge replay`: inbound events once more, from a time or sequence, for a backend that lost
//! them or was not there.
//!
//! The stream `FED_IN` still holds what came in the last days; nothing is published to it again, so
//! no other backend sees anything twice. A backend that reads by a durable consumer gets one that
//! begins where it is told (`--consumer`); any other gets the events on subjects of its own (`--to`);
//! without either they are printed. What the stream no longer has (purged, deleted) may still be in
//! the bridge's ledger for about a day: `--ledger` reads it there.

mod source;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;

use super::client::AdminClient;
use super::{ConfigArgs, Outcome, connect, tail};
use crate::bus::{Bus, StoredMessage};
use crate::clock::{Clock, UnixMs};
use crate::config::parse_duration;

use source::{Ledger, Source, stream};

/// What, from where, whereto.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where to begin: a time (RFC 3339), an age (`2h`), or a sequence of the stream (with --ledger:
    /// a ledger number).
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
    /// From the running bridge's ledger instead of the stream.
    #[arg(long, conflicts_with_all = ["consumer", "until"])]
    ledger: bool,
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
    if let Some(prefix) = &args.to {
        check_prefix(&config.nats.prefix, prefix)?;
    }
    let (bus, mut source) = if args.ledger {
        // The broker is needed for publishing only.
        let bus = match &args.to {
            Some(_) => Some(connect(&config).await?),
            None => None,
        };
        let admin = AdminClient::from_config(&config)?;
        (bus, Source::Ledger(Ledger::new(admin, from, &args)))
    } else {
        let bus = connect(&config).await?;
        let Some(stream) = stream(&bus, from, until, &args).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        (Some(bus), Source::Stream(Box::new(stream)))
    };
    let mut progress = Progress::new(args.to.is_some());
    let mut sent = 0;
    while let Some(event) = source.next().await? {
        sent += 1;
        match (&args.to, &bus) {
            (Some(prefix), Some(bus)) => {
                publish(bus, prefix, &event, args.ledger).await?;
                progress
                    .after(sent, source.part(event.seq), args.rate)
                    .await;
            }
            _ => println!("{}", tail::line(&event, args.json)),
        }
    }
    progress.end();
    if let Some(bus) = bus {
        bus.flush().await.map_err(|e| e.to_string())?;
        bus.close().await;
    }
    if args.to.is_some() {
        println!("{sent} events replayed");
    }
    Ok(ExitCode::SUCCESS)
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

async fn publish(
    bus: &Bus,
    prefix: &str,
    event: &StoredMessage,
    from_ledger: bool,
) -> Result<(), String> {
    let rest = event.subject.splitn(3, '.').nth(2).unwrap_or_default();
    let mut headers = event.headers.clone();
    // What the broker set when it stored the event is of another stream.
    headers.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("nats-expected-"));
    let place = if from_ledger {
        format!("ledger:{}", event.seq)
    } else {
        event.seq.to_string()
    };
    headers.push(("Fed-Replayed".to_owned(), place));
    bus.publish_plain(&format!("{prefix}.{rest}"), &headers, event.payload.clone())
        .await
        .map_err(|e| e.to_string())
}

/// How far it is, on a terminal, and not faster than asked.
struct Progress {
    shown: bool,
    began: Instant,
    told: Instant,
}

impl Progress {
    fn new(wanted: bool) -> Self {
        let now = Instant::now();
        Self {
            shown: wanted && std::io::stderr().is_terminal(),
            began: now,
            told: now,
        }
    }

    /// After the `sent`-th event.
    async fn after(&mut self, sent: u64, part: Option<u64>, rate: u32) {
        if self.shown && self.told.elapsed() > Duration::from_millis(200) {
            self.told = Instant::now();
            let part = part.map_or(String::new(), |part| format!(", {part} %"));
            eprint!("\r{sent} events{part}");
            let _ = std::io::stderr().flush();
        }
        let due = Duration::from_millis(sent.saturating_mul(1000) / u64::from(rate.max(1)));
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
