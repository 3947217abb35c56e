//! Where replayed events come from: the stream, or the bridge's ledger.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::{Place, ReplayArgs};
use crate::admin::params::encode;
use crate::bus::{Bus, StoredMessage, Tail, TailFrom, subject};
use crate::cli::client::AdminClient;
use crate::clock::UnixMs;

/// The stream of inbound events.
const STREAM: &str = "FED_IN";

/// Where the events come from.
pub(super) enum Source {
    Stream(Box<Stream>),
    Ledger(Ledger),
}

impl Source {
    /// The next event; `None`: that was all.
    pub(super) async fn next(&mut self) -> Result<Option<StoredMessage>, String> {
        match self {
            Self::Stream(stream) => stream.next().await,
            Self::Ledger(ledger) => ledger.next().await,
        }
    }

    /// How much is done, in per cent, where that can be told.
    pub(super) fn part(&self, seq: u64) -> Option<u64> {
        match self {
            Self::Stream(stream) => {
                let span = (stream.last + 1).saturating_sub(stream.first).max(1);
                Some((seq + 1).saturating_sub(stream.first) * 100 / span)
            }
            Self::Ledger(_) => None,
        }
    }
}

/// Events of `FED_IN`.
pub(super) struct Stream {
    events: Tail,
    first: u64,
    /// Nothing after this one; it passes the filter, or one after it does.
    last: u64,
    over: bool,
}

impl Stream {
    async fn next(&mut self) -> Result<Option<StoredMessage>, String> {
        if self.over {
            return Ok(None);
        }
        let event = self.events.next().await.map_err(|e| e.to_string())?;
        self.over = event.seq >= self.last;
        Ok(Some(event).filter(|event| event.seq <= self.last))
    }
}

/// The events wanted; `None`: a consumer was made instead, or there are none.
pub(super) async fn stream(
    bus: &Bus,
    from: Place,
    until: Option<Place>,
    args: &ReplayArgs,
) -> Result<Option<Stream>, String> {
    let facts = bus.stream_facts(STREAM).await.map_err(|e| e.to_string())?;
    let facts =
        facts.ok_or("there is no stream of inbound events yet: start `drawbridge run` once")?;
    let first = match from {
        Place::Sequence(seq) => seq.max(1),
        Place::Time(at) => sequence_at(bus, at).await?,
    };
    if matches!(from, Place::Sequence(_)) && first < facts.first_seq {
        eprintln!(
            "the stream begins at sequence {}; what came before may still be in the bridge's ledger \
             (--ledger)",
            facts.first_seq
        );
    }
    let first = first.max(facts.first_seq);
    let filter = filter(bus.prefix(), args);
    if let Some(name) = &args.consumer {
        let made = bus.durable_from(STREAM, name, &filter, first, args.force);
        let made = made.await.map_err(|e| e.to_string())?;
        println!(
            "consumer {} on {} begins at sequence {first}; {} events wait for it",
            made.name, made.stream, made.pending
        );
        return Ok(None);
    }
    let until = match until {
        None => facts.last_seq,
        Some(Place::Sequence(seq)) => seq.min(facts.last_seq),
        Some(Place::Time(at)) => {
            let after = sequence_at(bus, at.saturating_add(1)).await?;
            after.saturating_sub(1).min(facts.last_seq)
        }
    };
    // The last one that passes the filter now: without it the end would never be seen to come.
    let end = bus
        .last_of(STREAM, &filter)
        .await
        .map_err(|e| e.to_string())?;
    let last = match end {
        Some(end) if end >= first && first <= until => end.min(until),
        _ => return none(args),
    };
    let events = bus.tail(&filter, TailFrom::Seq(first)).await;
    Ok(Some(Stream {
        events: events.map_err(|e| e.to_string())?,
        first,
        last,
        over: false,
    }))
}

fn none(args: &ReplayArgs) -> Result<Option<Stream>, String> {
    if args.to.is_some() {
        println!("0 events replayed");
    }
    Ok(None)
}

async fn sequence_at(bus: &Bus, time_ms: UnixMs) -> Result<u64, String> {
    bus.sequence_at(STREAM, time_ms)
        .await
        .map_err(|e| e.to_string())
}

/// Events of the bridge's ledger, page by page over the admin API.
pub(super) struct Ledger {
    admin: AdminClient,
    filters: String,
    /// `None`: there is no further page.
    after: Option<i64>,
    page: VecDeque<StoredMessage>,
}

impl Ledger {
    pub(super) fn new(admin: AdminClient, from: Place, args: &ReplayArgs) -> Self {
        let mut filters = String::new();
        for (name, value) in [
            ("protocol", &args.protocol),
            ("peer", &args.peer),
            ("type", &args.kind),
        ] {
            if let Some(value) = value {
                filters.push_str(&format!("&{name}={}", encode(value)));
            }
        }
        let after = match from {
            Place::Sequence(id) => i64::try_from(id).unwrap_or(i64::MAX).saturating_sub(1),
            Place::Time(at) => {
                filters.push_str(&format!("&from_ms={}", at.max(0)));
                0
            }
        };
        Self {
            admin,
            filters,
            after: Some(after.max(0)),
            page: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<StoredMessage>, String> {
        loop {
            if let Some(event) = self.page.pop_front() {
                return Ok(Some(event));
            }
            let Some(after) = self.after else {
                return Ok(None);
            };
            let path = format!("/api/v1/inbound?after={after}{}", self.filters);
            let body = self.admin.get(&path).await?;
            self.after = body["next"].as_i64();
            for event in body["events"].as_array().into_iter().flatten() {
                self.page.push_back(ledger_event(event)?);
            }
        }
    }
}

fn ledger_event(event: &Value) -> Result<StoredMessage, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let headers = event["headers"].as_array().into_iter().flatten();
    let payload = match event["payload_base64"].as_str() {
        Some(base64) => STANDARD
            .decode(base64)
            .map_err(|e| format!("the admin API gave a payload that is no base64: {e}"))?,
        None => text(&event["payload"]).into_bytes(),
    };
    let headers: Vec<(String, String)> = headers
        .map(|pair| (text(&pair[0]), text(&pair[1])))
        .collect();
    let received = headers.iter().find(|(name, _)| name == "Fed-Received-At");
    let received = received.and_then(|(_, at)| at.parse::<Timestamp>().ok());
    Ok(StoredMessage {
        subject: text(&event["subject"]),
        payload: payload.into(),
        seq: event["id"].as_u64().unwrap_or(0),
        time_ms: received.map_or(0, Timestamp::as_millisecond),
        headers,
    })
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
