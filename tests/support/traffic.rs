//! Traffic both ways for the crash test, and the readers of what came of it. Everything here sees
//! only what a backend, a remote relay or an operator with a NATS client could see.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::RawMessageErrorKind;
use futures_util::StreamExt as _;

use super::checker::{Class, Dead, Input, Published};
use super::uam_client::{self, Posted};

/// splitmix64: the same numbers for the same seed.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..high`.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// Milliseconds in `low..high`.
    pub fn pause(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.within(low, high))
    }
}

/// A list that tasks append to.
pub type Shared<T> = Arc<Mutex<Vec<T>>>;

/// What is in a shared list.
pub fn snapshot<T: Clone>(list: &Shared<T>) -> Vec<T> {
    list.lock()
        .expect("no task panics while it appends")
        .clone()
}

/// Appends to a shared list.
pub fn push<T>(list: &Shared<T>, item: T) {
    list.lock()
        .expect("no task panics while it appends")
        .push(item);
}

/// Says when traffic ends.
pub type Stop = Arc<AtomicBool>;

/// Publishers hold it shared for each publish; whoever deletes `FED_OUT` holds it alone, so that it
/// knows everything the stream was acknowledged to hold.
pub type Gate = Arc<tokio::sync::RwLock<()>>;

/// How one publish ended.
enum Ack {
    Stored,
    /// Nobody listened: JetStream is not there, nothing was stored.
    Refused,
    Unknown,
}

async fn publish_once(js: &jetstream::Context, subject: &str, input: &Input, order: bool) -> Ack {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", input.id.as_str());
    if order {
        headers.insert("Fed-Order", input.key.as_str());
    }
    let publish = async {
        js.publish_with_headers(subject.to_owned(), headers, input.payload.clone().into())
            .await?
            .await
    };
    match tokio::time::timeout(Duration::from_secs(2), publish).await {
        Ok(Ok(_)) => Ack::Stored,
        Ok(Err(e)) if e.kind() == jetstream::context::PublishErrorKind::StreamNotFound => {
            Ack::Refused
        }
        Ok(Err(_)) | Err(_) => Ack::Unknown,
    }
}

/// Publishes one message until it is acknowledged or its backend gives up, and notes which.
pub async fn publish(
    js: &jetstream::Context,
    subject: &str,
    input: &mut Input,
    order: bool,
    rng: &mut Rng,
    stop: &Stop,
    gate: &Gate,
) {
    for _ in 0..20 {
        let outcome = {
            let _open = gate.read().await;
            publish_once(js, subject, input, order).await
        };
        match outcome {
            Ack::Stored => {
                input.class = Class::Ok;
                break;
            }
            Ack::Refused => {}
            Ack::Unknown => input.class = Class::Unknown,
        }
        // Some backends try again with the same id, some give up.
        if rng.chance(30) || stop.load(Ordering::Relaxed) {
            break;
        }
        tokio::time::sleep(rng.pause(50, 300)).await;
    }
}

/// Publishes for one set of keys, one message after the other, until told to stop. Half of the keys
/// are named by `Fed-Order`, the others are the protocol's own (sender and recipient). With `mixed`
/// some go to `_to` instead of the peer's name.
pub async fn publisher(
    js: jetstream::Context,
    name: String,
    mut rng: Rng,
    stop: Stop,
    gate: Gate,
    out: Shared<Input>,
    mixed: bool,
) {
    let mut index = 0;
    while !stop.load(Ordering::Relaxed) {
        index += 1;
        let lane = rng.within(0, 4);
        let order = lane < 2;
        let from = format!("{name}-{}::alpha.test", if order { 9 } else { lane });
        let (subject, text, doomed) = match rng.within(0, 40) {
            0 => ("fed.out.uam.nobody_test.message", "for nobody", true),
            1 => ("fed.out.uam.beta_test.message", "refuse me", true),
            2..8 if mixed => ("fed.out.uam._to.message", "hello", false),
            // Answered 418 twice: a head that is retried while its key goes on.
            8..11 => ("fed.out.uam.beta_test.message", "flaky", false),
            _ => ("fed.out.uam.beta_test.message", "hello", false),
        };
        let to = if subject.contains("nobody") {
            "bob::nobody.test"
        } else {
            "bob::beta.test"
        };
        let id = uam_client::message_id();
        let envelope = uam_client::envelope(&id, &from, to, &format!("{text} {index}"));
        let mut input = Input {
            id,
            key: if order {
                format!("{name} lane {lane}")
            } else {
                from
            },
            index,
            class: Class::Refused,
            payload: envelope.to_string(),
            doomed,
        };
        publish(&js, subject, &mut input, order, &mut rng, &stop, &gate).await;
        push(&out, input);
        tokio::time::sleep(rng.pause(5, 30)).await;
    }
}

/// Posts signed deliveries of `beta.test` one after the other until told to stop: fresh ones, spoilt
/// ones, and again what was accepted long ago.
pub async fn poster(bridge: String, name: String, mut rng: Rng, stop: Stop, posted: Shared<Input>) {
    let client = super::bridge::client();
    let mut accepted: Vec<serde_json::Value> = Vec::new();
    let mut index = 0;
    while !stop.load(Ordering::Relaxed) {
        index += 1;
        if !accepted.is_empty() && rng.chance(15) {
            let old = &accepted[usize::try_from(rng.within(0, accepted.len() as u64)).unwrap_or(0)];
            let again = uam_client::delivery("beta.test", old, rng.chance(50));
            // Whatever is answered: the event was accepted, it must not appear again.
            uam_client::post(&client, &bridge, &again).await;
            continue;
        }
        let spoilt = rng.chance(8);
        let signer = if spoilt { "somebody else" } else { "beta.test" };
        let id = uam_client::message_id();
        let from = format!("{name}-{}::beta.test", rng.within(0, 3));
        let envelope =
            uam_client::envelope(&id, &from, "alice::alpha.test", &format!("in {index}"));
        let mut input = Input {
            id,
            key: from,
            index,
            class: Class::Refused,
            payload: envelope.to_string(),
            doomed: false,
        };
        for _ in 0..20 {
            let delivery =
                uam_client::delivery_signed_by("beta.test", signer, &envelope, rng.chance(50));
            match uam_client::post(&client, &bridge, &delivery).await {
                Posted::Ok { .. } => input.class = Class::Ok,
                Posted::Refused(..) => {}
                Posted::Unknown(_) => input.class = Class::Unknown,
            }
            if spoilt || input.class == Class::Ok || rng.chance(25) || stop.load(Ordering::Relaxed)
            {
                break;
            }
            tokio::time::sleep(rng.pause(50, 300)).await;
        }
        if spoilt {
            // No answer makes a forgery acceptable.
            input.class = Class::Refused;
        } else if input.class == Class::Ok {
            accepted.push(envelope);
        }
        push(&posted, input);
        tokio::time::sleep(rng.pause(10, 50)).await;
    }
}

fn header(headers: &async_nats::HeaderMap, name: &str) -> String {
    headers
        .iter()
        .find(|(k, _)| AsRef::<str>::as_ref(*k).eq_ignore_ascii_case(name))
        .and_then(|(_, v)| v.first())
        .map_or(String::new(), |v| v.as_str().to_owned())
}

fn published(stream: i64, seq: u64, headers: &async_nats::HeaderMap, payload: &[u8]) -> Published {
    Published {
        stream,
        seq,
        msg_id: header(headers, "Nats-Msg-Id"),
        id: header(headers, "Fed-Event-Id"),
        payload: String::from_utf8_lossy(payload).into_owned(),
    }
}

/// The lasting consumer of `FED_IN`: a durable name, explicit acknowledgements, through every crash.
pub async fn reader(js: jetstream::Context, read: Shared<Published>) {
    reader_of(js, read, 0).await;
}

/// The same in a broker whose files were so often replaced by older ones: in each such `history`
/// sequences are given away a second time, and the reader begins anew.
pub async fn reader_of(js: jetstream::Context, read: Shared<Published>, history: i64) {
    loop {
        // Every error here is a broker that is away: try again.
        let mut made = 0;
        let consumer = match js.get_stream("FED_IN").await {
            Ok(stream) => {
                made = made_at(stream.cached_info()).saturating_add(history);
                let name = format!("lasting{history}");
                let config = jetstream::consumer::pull::Config {
                    durable_name: Some(name.clone()),
                    ack_wait: Duration::from_secs(5),
                    ..Default::default()
                };
                stream.get_or_create_consumer(&name, config).await.ok()
            }
            Err(_) => None,
        };
        if let Some(consumer) = consumer {
            while let Ok(mut batch) = consumer
                .fetch()
                .max_messages(100)
                .expires(Duration::from_millis(500))
                .messages()
                .await
            {
                let mut failed = false;
                while let Some(message) = batch.next().await {
                    let Ok(message) = message else {
                        failed = true;
                        break;
                    };
                    let Ok(info) = message.info() else { continue };
                    let headers = message.headers.clone().unwrap_or_default();
                    push(
                        &read,
                        published(made, info.stream_sequence, &headers, &message.payload),
                    );
                    failed |= message.ack().await.is_err();
                }
                if failed {
                    break;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// When a stream was made, nanoseconds.
fn made_at(info: &jetstream::stream::Info) -> i64 {
    i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(0)
}

/// A message of a stream: sequence, headers, payload.
pub type Raw = (u64, async_nats::HeaderMap, Vec<u8>);

/// A stream that only grows, read once from its beginning.
pub struct Tail {
    stream: &'static str,
    /// When the stream was made that it reads; 0: it has read nothing.
    made: i64,
    next: u64,
}

/// What a [`Tail`] found.
pub struct More {
    /// Made since the last time, or for the first time: nothing of what was read before counts.
    pub anew: bool,
    pub made: i64,
    pub messages: Vec<Raw>,
}

impl Tail {
    /// At the beginning.
    pub fn of(stream: &'static str) -> Self {
        let (made, next) = (0, 1);
        Self { stream, made, next }
    }

    /// What came since the last time. `None`: the stream is not there, or the broker is away.
    pub async fn more(&mut self, js: &jetstream::Context) -> Option<More> {
        let stream = js.get_stream(self.stream).await.ok()?;
        let info = stream.cached_info();
        let made = made_at(info);
        let anew = made != self.made;
        if anew {
            (self.made, self.next) = (made, 1);
        }
        let mut messages = Vec::new();
        for seq in self.next.max(info.state.first_sequence)..=info.state.last_sequence {
            match stream.get_raw_message(seq).await {
                Ok(message) => messages.push((seq, message.headers, message.payload.to_vec())),
                Err(e) if e.kind() == RawMessageErrorKind::NoMessageFound => {}
                Err(_) => break,
            }
            self.next = seq + 1;
        }
        Some(More {
            anew,
            made,
            messages,
        })
    }
}

/// Messages of `FED_IN` as its readers see them.
pub fn events(made: i64, messages: &[Raw]) -> impl Iterator<Item = Published> + '_ {
    let event = move |(seq, headers, payload): &Raw| published(made, *seq, headers, payload);
    messages.iter().map(event)
}

/// `FED_IN` as it stands, from a sequence on, and when the stream was made.
pub async fn scan(js: &jetstream::Context, from: u64) -> (i64, Vec<Published>) {
    let mut tail = Tail::of("FED_IN");
    let Some(more) = tail.more(js).await else {
        return (0, Vec::new());
    };
    let all = events(more.made, &more.messages);
    (more.made, all.filter(|e| e.seq >= from).collect())
}

/// `FED_DEAD` as it stands.
pub async fn dead(js: &jetstream::Context) -> Vec<Dead> {
    let more = Tail::of("FED_DEAD").more(js).await;
    more.map_or_else(Vec::new, |more| dead_letters(&more.messages).collect())
}

/// Messages of `FED_DEAD`: ids and reasons.
pub fn dead_letters(messages: &[Raw]) -> impl Iterator<Item = Dead> + '_ {
    messages.iter().map(|(_, headers, _)| Dead {
        id: header(headers, "Fed-Msg-Id"),
        reason: Some(header(headers, "Fed-Reason")).filter(|r| !r.is_empty()),
        code: header(headers, "Fed-Reason-Code"),
    })
}

/// Ids of what `FED_OUT` holds.
pub async fn waiting(js: &jetstream::Context) -> Vec<String> {
    let Some(more) = Tail::of("FED_OUT").more(js).await else {
        return Vec::new();
    };
    let ids = more.messages.iter();
    ids.map(|(_, headers, _)| header(headers, "Nats-Msg-Id"))
        .collect()
}
