//! Judges a run by what the outside saw: what was published and answered, what the receiver wrote
//! down, what `fed.in` and `fed.dead` hold, and when something was killed. It knows nothing of the
//! bridge's own files.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// A bridge may die this long after an answer and still not have committed it: the commit is a
/// matter of milliseconds, the rest is allowance for a busy machine.
pub const COMMIT_GRACE_NS: u64 = 1_000_000_000;

/// The same after an outage of the database, which is noticed and then tried again at intervals.
pub const OUTAGE_GRACE_NS: u64 = 8_000_000_000;

/// An answer that was written this long ago has been read, if nothing was in its way.
const READ_GRACE_NS: u64 = 1_000_000_000;

/// Clocks of two processes on one machine agree, but reading and acting are two moments.
const SLACK_NS: u64 = 50_000_000;

/// What its publisher or poster knows of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Acknowledged at least once.
    Ok,
    /// Every try was answered by a refusal.
    Refused,
    /// No try was acknowledged, and at least one had no answer that says what happened.
    Unknown,
}

/// One message handed to the bridge.
#[derive(Clone, Debug)]
pub struct Input {
    pub id: String,
    /// Ordering key; inbound: unused.
    pub key: String,
    /// Place in the publishing order of its key.
    pub index: u64,
    pub class: Class,
    /// Inbound: the envelope's text as posted.
    pub payload: String,
    /// It cannot be delivered and has to end as a dead letter.
    pub doomed: bool,
}

/// One delivery attempt as the receiver saw it.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub id: String,
    /// When its sender signed it. A busy receiver reads what a killed sender left in the socket
    /// long after the kill.
    pub sent: u64,
    /// Written down before the answer.
    pub t: u64,
    /// When the answer had been written; `None`: never.
    pub answered: Option<u64>,
    pub status: u16,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub struct Dead {
    pub id: String,
    /// The reason in its headers, for people.
    pub reason: Option<String>,
    /// And for machines.
    pub code: String,
}

/// A message of `fed.in`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// When the stream that holds it was made: a deleted one begins again at 1.
    pub stream: i64,
    pub seq: u64,
    /// `Nats-Msg-Id`.
    pub msg_id: String,
    /// Id of the event (`Fed-Event-Id`).
    pub id: String,
    pub payload: String,
}

/// Who was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Bridge,
    Broker,
    Receiver,
    /// The bridge stood still (SIGSTOP): an answer that came meanwhile may be too late when it goes on.
    Frozen,
    /// A wire between the bridge and its peers lost, cut or delayed what it was to carry.
    Wire,
    /// The database took no writes all that time: what was answered then is committed later.
    Database,
}

/// A kill: it happened somewhere between two readings of the clock.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub who: Who,
    pub from: u64,
    pub to: u64,
}

/// Everything the outside saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub out: Vec<Input>,
    pub arrivals: Vec<Arrival>,
    /// Deliveries whose signature or envelope did not hold.
    pub forged: Vec<String>,
    pub dead: Vec<Dead>,
    pub posted: Vec<Input>,
    /// What was in `FED_OUT` when somebody deleted that stream: the bridge may never have seen it.
    pub deleted: HashSet<String>,
    /// `FED_IN` by sequence, as the stream stands at the end.
    pub scan: Vec<Published>,
    /// What a durable consumer that lived through everything was given.
    pub read: Vec<Published>,
    /// When the stream that `scan` read was made.
    pub stream: i64,
    pub faults: Vec<Fault>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Promise 1: acknowledged by the broker, neither arrived nor dead.
    OutLost(String),
    /// Dead without a reason.
    DeadWithoutReason(String),
    /// Dead although the receiver took it, with no fault to explain it.
    DeadAfterArrival(String),
    /// Doomed, and yet no dead letter.
    NotDead(String),
    /// It arrived although its publisher was told it was refused, or nobody published it.
    OutPhantom(String),
    /// Promise 3: repeated although the attempt before it had an answer that no fault hid.
    OutRepeated(String),
    /// Promise 4: `id` came after `before`, a later message of its key.
    OutOfOrder {
        key: String,
        id: String,
        before: String,
    },
    /// A delivery nobody should believe.
    Forged(String),
    /// Promise 2: answered 200, not on `fed.in`.
    InLost(String),
    /// Promise 3: on `fed.in` more than once.
    InRepeated(String),
    /// On `fed.in` although refused, or never posted.
    InPhantom(String),
    /// The text on `fed.in` is not the text that was posted.
    InChanged(String),
    /// The durable consumer and the scan do not agree on this event.
    ReaderDiffers(String),
}

impl Violation {
    /// The messages or events it is about.
    #[must_use]
    pub fn ids(&self) -> Vec<&str> {
        match self {
            Self::OutOfOrder { id, before, .. } => vec![before, id],
            Self::Forged(_) => Vec::new(),
            Self::OutLost(id)
            | Self::DeadWithoutReason(id)
            | Self::DeadAfterArrival(id)
            | Self::NotDead(id)
            | Self::OutPhantom(id)
            | Self::OutRepeated(id)
            | Self::InLost(id)
            | Self::InRepeated(id)
            | Self::InPhantom(id)
            | Self::InChanged(id)
            | Self::ReaderDiffers(id) => vec![id],
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Whether a fault may have hidden the outcome of this attempt from the bridge, or kept the bridge
/// from making it durable.
fn ambiguous(arrival: &Arrival, faults: &[Fault]) -> bool {
    faults.iter().any(|fault| {
        let until = match fault.who {
            Who::Broker | Who::Database => return false,
            // The answer may still lie in a socket that dies with its process.
            Who::Receiver => arrival.answered.map_or(u64::MAX, |a| a + SLACK_NS),
            // It may have been written and not been read.
            Who::Frozen | Who::Wire => arrival.answered.map_or(u64::MAX, |a| a + READ_GRACE_NS),
            Who::Bridge => committed_by(arrival.answered.unwrap_or(arrival.t), faults),
        };
        let begun = if fault.who == Who::Bridge {
            arrival.sent
        } else {
            arrival.t
        };
        fault.to + SLACK_NS >= begun && fault.from <= until
    })
}

/// When the outcome of an attempt answered at `t` must be durable: a database that takes no writes
/// moves that to the moment it is back, one outage after the other.
fn committed_by(t: u64, faults: &[Fault]) -> u64 {
    let mut until = t + COMMIT_GRACE_NS;
    let mut outages: Vec<_> = faults.iter().filter(|f| f.who == Who::Database).collect();
    outages.sort_by_key(|f| f.from);
    for outage in outages {
        if outage.from <= until && t <= outage.to + COMMIT_GRACE_NS {
            until = until.max(outage.to + OUTAGE_GRACE_NS);
        }
    }
    until
}

/// Whether an answered attempt asks for another one by the protocol (418 stands for any status that
/// is none of the protocol).
fn asks_for_retry(arrival: &Arrival) -> bool {
    arrival.answered.is_some() && (matches!(arrival.status, 418 | 429) || arrival.status >= 500)
}

fn outbound(h: &History, found: &mut Vec<Violation>) {
    let inputs: HashMap<&str, &Input> = h.out.iter().map(|i| (i.id.as_str(), i)).collect();
    let dead: HashMap<&str, &Dead> = h.dead.iter().map(|d| (d.id.as_str(), d)).collect();
    let mut arrivals: BTreeMap<&str, Vec<&Arrival>> = BTreeMap::new();
    let mut ordered: Vec<&Arrival> = h.arrivals.iter().collect();
    ordered.sort_by_key(|a| a.t);
    for arrival in &ordered {
        arrivals.entry(&arrival.id).or_default().push(arrival);
    }
    found.extend(h.forged.iter().cloned().map(Violation::Forged));

    for (id, all) in &arrivals {
        match inputs.get(id) {
            None => found.push(Violation::OutPhantom((*id).into())),
            Some(i) if i.class == Class::Refused => found.push(Violation::OutPhantom((*id).into())),
            Some(_) => {}
        }
        let repeated = all
            .windows(2)
            .any(|pair| !asks_for_retry(pair[0]) && !ambiguous(pair[0], &h.faults));
        if repeated {
            found.push(Violation::OutRepeated((*id).into()));
        }
    }
    for input in &h.out {
        let id = input.id.as_str();
        let seen = arrivals.get(id).map_or(&[][..], Vec::as_slice);
        let taken = seen.iter().any(|a| a.status == 200);
        match dead.get(id) {
            Some(d) if d.reason.as_deref().unwrap_or("").is_empty() => {
                found.push(Violation::DeadWithoutReason(id.into()));
            }
            Some(_) if taken && !seen.iter().any(|a| ambiguous(a, &h.faults)) => {
                found.push(Violation::DeadAfterArrival(id.into()));
            }
            Some(_) => {}
            None if h.deleted.contains(id) => {}
            None if input.class == Class::Ok && input.doomed => {
                found.push(Violation::NotDead(id.into()));
            }
            None if input.class == Class::Ok && !taken => found.push(Violation::OutLost(id.into())),
            None => {}
        }
    }
    let mut last: HashMap<&str, &Input> = HashMap::new();
    let mut first = HashSet::new();
    for arrival in &ordered {
        let Some(input) = inputs.get(arrival.id.as_str()) else {
            continue;
        };
        if !first.insert(input.id.as_str()) {
            continue;
        }
        let newest = last.entry(&input.key).or_insert(input);
        if input.index < newest.index {
            found.push(Violation::OutOfOrder {
                key: input.key.clone(),
                id: input.id.clone(),
                before: newest.id.clone(),
            });
        } else {
            *newest = input;
        }
    }
}

fn inbound(h: &History, found: &mut Vec<Violation>) {
    let posted: HashMap<&str, &Input> = h.posted.iter().map(|i| (i.id.as_str(), i)).collect();
    let mut ids = HashSet::new();
    let mut msg_ids = HashSet::new();
    for event in &h.scan {
        let id = event.id.clone();
        let once = ids.insert(event.id.as_str());
        if !msg_ids.insert(event.msg_id.as_str()) || !once {
            found.push(Violation::InRepeated(id.clone()));
        }
        match posted.get(event.id.as_str()) {
            None => found.push(Violation::InPhantom(id)),
            Some(i) if i.class == Class::Refused => found.push(Violation::InPhantom(id)),
            Some(i) if i.payload != event.payload => found.push(Violation::InChanged(id)),
            Some(_) => {}
        }
    }
    for input in &h.posted {
        if input.class == Class::Ok && !ids.contains(input.id.as_str()) {
            found.push(Violation::InLost(input.id.clone()));
        }
    }
    // JetStream may hand a message out again (same sequence) when an acknowledgement was lost; the
    // same id under another sequence is ours to prevent.
    let scan: HashMap<u64, &Published> = h.scan.iter().map(|p| (p.seq, p)).collect();
    let mut given = HashSet::new();
    // What a deleted stream held was given then, and is given again from the one made after it.
    for event in h.read.iter().filter(|e| e.stream == h.stream) {
        given.insert(event.seq);
        if scan.get(&event.seq) != Some(&event) {
            found.push(Violation::ReaderDiffers(event.id.clone()));
        }
    }
    for event in h.scan.iter().filter(|p| !given.contains(&p.seq)) {
        found.push(Violation::ReaderDiffers(event.id.clone()));
    }
}

/// Every promise that this history breaks.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    outbound(history, &mut found);
    inbound(history, &mut found);
    found
}

/// How often something arrived more than once (all excused when [`check`] finds nothing).
#[must_use]
pub fn repeats(history: &History) -> usize {
    let ids: HashSet<_> = history.arrivals.iter().map(|a| &a.id).collect();
    history.arrivals.len() - ids.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn input(id: &str, index: u64, class: Class) -> Input {
        Input {
            id: id.into(),
            key: "k".into(),
            index,
            class,
            payload: format!("text {id}"),
            doomed: false,
        }
    }

    fn arrival(id: &str, t: u64) -> Arrival {
        Arrival {
            id: id.into(),
            sent: t * S,
            t: t * S,
            answered: Some(t * S + 1_000_000),
            status: 200,
        }
    }

    fn event(seq: u64, id: &str) -> Published {
        Published {
            stream: 0,
            seq,
            msg_id: format!("uam:{id}"),
            id: id.into(),
            payload: format!("text {id}"),
        }
    }

    fn kill(who: Who, t: u64) -> Fault {
        Fault {
            who,
            from: t * S,
            to: t * S + 2_000_000,
        }
    }

    fn good() -> History {
        History {
            out: vec![
                input("a", 0, Class::Ok),
                input("b", 1, Class::Unknown),
                input("c", 2, Class::Ok),
                input("r", 3, Class::Refused),
            ],
            arrivals: vec![arrival("a", 10), arrival("c", 12)],
            posted: vec![
                input("x", 0, Class::Ok),
                input("y", 0, Class::Unknown),
                input("z", 0, Class::Refused),
            ],
            scan: vec![event(1, "x")],
            read: vec![event(1, "x"), event(1, "x")],
            ..History::default()
        }
    }

    fn one(change: impl FnOnce(&mut History)) -> Vec<Violation> {
        let mut history = good();
        change(&mut history);
        check(&history)
    }

    #[test]
    fn a_history_that_keeps_the_promises_passes() {
        assert_eq!(check(&good()), []);
    }

    #[test]
    fn an_acknowledged_message_that_is_nowhere_is_lost() {
        let found = one(|h| h.arrivals.retain(|a| a.id != "c"));
        assert_eq!(found, [Violation::OutLost("c".into())]);
    }

    #[test]
    fn an_attempt_that_was_answered_503_is_no_arrival() {
        let found = one(|h| h.arrivals[1].status = 503);
        assert_eq!(found, [Violation::OutLost("c".into())]);
    }

    #[test]
    fn a_dead_letter_counts_only_with_its_reason() {
        let dead = |reason: Option<&str>| {
            let reason = reason.map(str::to_owned);
            one(move |h| {
                h.arrivals.retain(|a| a.id != "c");
                h.dead.push(Dead {
                    id: "c".into(),
                    reason,
                    code: String::new(),
                });
            })
        };
        assert_eq!(dead(Some("refused")), []);
        assert_eq!(dead(None), [Violation::DeadWithoutReason("c".into())]);
    }

    #[test]
    fn what_arrived_is_not_dead() {
        let found = one(|h| {
            h.dead.push(Dead {
                id: "a".into(),
                reason: Some("timeout".into()),
                code: String::new(),
            })
        });
        assert_eq!(found, [Violation::DeadAfterArrival("a".into())]);
    }

    #[test]
    fn what_cannot_be_delivered_must_end_as_a_dead_letter() {
        let found = one(|h| h.out[2].doomed = true);
        assert_eq!(found, [Violation::NotDead("c".into())]);
    }

    #[test]
    fn a_refused_or_foreign_message_must_not_arrive() {
        assert_eq!(
            one(|h| h.arrivals.push(arrival("r", 13))),
            [Violation::OutPhantom("r".into())]
        );
        assert_eq!(
            one(|h| h.arrivals.push(arrival("q", 13))),
            [Violation::OutPhantom("q".into())]
        );
    }

    #[test]
    fn a_repeat_needs_a_fault_that_hid_the_attempt_before_it() {
        let repeat = |faults: Vec<Fault>| {
            one(|h| {
                h.arrivals.push(arrival("a", 20));
                h.faults = faults;
            })
        };
        let repeated = [Violation::OutRepeated("a".into())];
        assert_eq!(repeat(vec![]), repeated);
        assert_eq!(repeat(vec![kill(Who::Bridge, 10)]), []);
        assert_eq!(repeat(vec![kill(Who::Receiver, 10)]), []);
        // Neither the broker's death nor a kill at another time hides an answer.
        assert_eq!(repeat(vec![kill(Who::Broker, 10)]), repeated);
        assert_eq!(repeat(vec![kill(Who::Bridge, 9)]), repeated);
        assert_eq!(repeat(vec![kill(Who::Bridge, 15)]), repeated);
    }

    #[test]
    fn a_wire_or_a_bridge_that_stood_still_hides_only_what_was_in_flight() {
        for who in [Who::Wire, Who::Frozen] {
            let repeat = |t: u64| {
                one(|h| {
                    h.arrivals.push(arrival("a", 20));
                    h.faults = vec![kill(who, t)];
                })
            };
            let repeated = [Violation::OutRepeated("a".into())];
            assert_eq!(repeat(10), []);
            assert_eq!(repeat(9), repeated, "over before it arrived");
            assert_eq!(repeat(12), repeated, "long after its answer");
        }
    }

    #[test]
    fn what_a_dead_sender_left_in_the_socket_was_in_flight_when_it_died() {
        let late = |sent: u64| {
            one(|h| {
                h.arrivals[0].sent = sent * S;
                h.arrivals.push(arrival("a", 20));
                h.faults = vec![kill(Who::Bridge, 8)];
            })
        };
        assert_eq!(late(7), []);
        assert_eq!(late(9), [Violation::OutRepeated("a".into())]);
    }

    #[test]
    fn a_database_that_was_away_hides_what_a_kill_then_took() {
        let repeat = |away: u64, back: u64, killed: u64| {
            one(|h| {
                h.arrivals.push(arrival("a", 40));
                h.faults = vec![
                    Fault {
                        who: Who::Database,
                        from: away * S,
                        to: back * S,
                    },
                    kill(Who::Bridge, killed),
                ];
            })
        };
        let repeated = [Violation::OutRepeated("a".into())];
        // Arrived at 10, the database away from 9 to 14: a kill at 12 took the outcome with it.
        assert_eq!(repeat(9, 14, 12), []);
        assert_eq!(repeat(9, 14, 30), repeated);
        // Gone only after the outcome was due.
        assert_eq!(repeat(12, 14, 13), repeated);
        // An outage alone takes nothing.
        assert_eq!(repeat(9, 14, 5), repeated);
    }

    #[test]
    fn what_somebody_deleted_with_the_stream_is_not_lost_by_the_bridge() {
        let found = one(|h| {
            h.arrivals.retain(|a| a.id != "c");
            h.deleted.insert("c".into());
        });
        assert_eq!(found, []);
    }

    #[test]
    fn a_stream_made_anew_is_judged_by_what_it_holds() {
        let again = |h: &mut History| {
            h.stream = 1;
            h.scan = vec![Published {
                stream: 1,
                ..event(1, "x")
            }];
            h.read.extend(h.scan.clone());
        };
        assert_eq!(one(again), []);
        let empty = one(|h| {
            again(h);
            h.scan.clear();
            h.read.retain(|e| e.stream == 0);
        });
        assert_eq!(empty, [Violation::InLost("x".into())]);
    }

    #[test]
    fn each_repeat_needs_an_ambiguous_attempt_of_its_own() {
        let found = one(|h| {
            h.arrivals.push(arrival("a", 20));
            h.arrivals.push(arrival("a", 30));
            h.faults = vec![kill(Who::Bridge, 10)];
        });
        assert_eq!(found, [Violation::OutRepeated("a".into())]);
    }

    #[test]
    fn a_retry_after_503_is_no_repeat_but_one_after_400_is() {
        let retry = |status| {
            one(|h| {
                h.arrivals[0].status = status;
                h.arrivals.push(arrival("a", 20));
            })
        };
        assert_eq!(retry(503), []);
        assert_eq!(retry(400), [Violation::OutRepeated("a".into())]);
    }

    #[test]
    fn an_unknown_message_may_arrive_once_and_not_twice() {
        assert_eq!(one(|h| h.arrivals.push(arrival("b", 11))), []);
        let found = one(|h| {
            h.arrivals.push(arrival("b", 11));
            h.arrivals.push(arrival("b", 14));
        });
        assert_eq!(found, [Violation::OutRepeated("b".into())]);
    }

    #[test]
    fn first_arrivals_of_a_key_come_in_publishing_order() {
        let found = one(|h| h.arrivals[0].t = 15 * S);
        assert_eq!(
            found,
            [Violation::OutOfOrder {
                key: "k".into(),
                id: "a".into(),
                before: "c".into()
            }]
        );
        let other_key = one(|h| {
            h.arrivals[0].t = 15 * S;
            h.out[0].key = "other".into();
        });
        assert_eq!(other_key, []);
    }

    #[test]
    fn a_forged_delivery_is_reported() {
        assert_eq!(
            one(|h| h.forged.push("bad".into())),
            [Violation::Forged("bad".into())]
        );
    }

    #[test]
    fn an_event_answered_200_must_be_on_fed_in_once_and_unchanged() {
        let lost = one(|h| {
            h.scan.clear();
            h.read.clear();
        });
        assert_eq!(lost, [Violation::InLost("x".into())]);
        let repeated = one(|h| {
            h.scan.push(event(2, "x"));
            h.read.push(event(2, "x"));
        });
        assert_eq!(repeated, [Violation::InRepeated("x".into())]);
        let changed = one(|h| h.posted[0].payload = "other".into());
        assert_eq!(changed, [Violation::InChanged("x".into())]);
    }

    #[test]
    fn what_was_refused_or_never_posted_must_not_be_on_fed_in() {
        for id in ["z", "q"] {
            let found = one(|h| {
                h.scan.push(event(2, id));
                h.read.push(event(2, id));
            });
            assert_eq!(found, [Violation::InPhantom(id.into())]);
        }
    }

    #[test]
    fn the_lasting_reader_must_be_given_what_the_scan_finds() {
        assert_eq!(
            one(|h| h.read.clear()),
            [Violation::ReaderDiffers("x".into())]
        );
        assert_eq!(
            one(|h| h.read.push(event(7, "x"))),
            [Violation::ReaderDiffers("x".into())]
        );
    }
}
