//! One peer in sentences: where each value came from, when, and what happens next. Pure.

use super::peers::Known;
use crate::clock::UnixMs;
use crate::outbound::{PeerOutlook, PeerState};
use crate::protocol::PeerRecord;
use crate::store::TrustRow;
use crate::trust::Standing;

/// What is to be explained.
pub(super) struct Told<'a> {
    pub known: &'a Known,
    pub ruling: Option<&'a (Standing, TrustRow)>,
    pub oldest_pending_ms: Option<UnixMs>,
    pub outlook: Option<&'a PeerOutlook>,
    /// Events of it that are held in quarantine.
    pub held: u64,
}

/// The sentences, in the order in which a person asks.
pub(super) fn peer(told: &Told<'_>, now: UnixMs) -> Vec<String> {
    let known = told.known;
    let mut lines = vec![endpoint(known, now), key(known), trust(told.ruling, now)];
    if told.held > 0 {
        lines.push(format!(
            "Quarantine: {} of its events are held; `drawbridge trust release` lets them in.",
            told.held
        ));
    }
    if let Some(pin) = &known.pin
        && !pin.accepted
    {
        lines.push("Messages for _all do not reach it: [[peers]] says accepted = false.".into());
    }
    lines.extend(told.outlook.map(|outlook| health(outlook, now)));
    lines.push(queue(known, told.oldest_pending_ms, now));
    lines.extend(told.outlook.and_then(|outlook| next(outlook, now)));
    lines
}

fn endpoint(known: &Known, now: UnixMs) -> String {
    let pin = known.pin.as_ref();
    let base = pin.and_then(|p| p.endpoint.as_deref());
    let record = known.record.as_deref().filter(|r| !r.endpoint.is_empty());
    match (record, base) {
        (Some(record), Some(base)) => format!(
            "Endpoint {}: from the pinned base {base} under [[peers]]; it never goes stale.",
            record.endpoint
        ),
        (Some(record), None) => found(record, now),
        (None, Some(base)) => format!(
            "Endpoint: the base {base} is pinned under [[peers]]; the protocol's path is added with \
             the first delivery."
        ),
        (None, None) => {
            "Endpoint: not known yet; it is looked up with the first delivery.".to_owned()
        }
    }
}

fn found(record: &PeerRecord, now: UnixMs) -> String {
    let way = match record.discovered_via.as_str() {
        "" => "an unnamed way",
        way => way,
    };
    let age = ago(now.saturating_sub(record.last_verified_ms));
    let next = match record.ttl_ms {
        None => "it never goes stale".to_owned(),
        Some(ttl) => match record
            .last_verified_ms
            .saturating_add(ttl)
            .saturating_sub(now)
        {
            left if left > 0 => format!("good for another {}", span(left)),
            over => format!(
                "stale since {}: looked up anew with the next delivery",
                span(over.saturating_neg())
            ),
        },
    };
    format!(
        "Endpoint {}: found by {way}, confirmed {age}; {next}.",
        record.endpoint
    )
}

fn key(known: &Known) -> String {
    let pinned = known.pin.as_ref().is_some_and(|p| p.public_key.is_some());
    let has = known
        .record
        .as_deref()
        .is_some_and(|r| r.public_key.is_some());
    match (pinned, has) {
        (true, _) => "Key: pinned under [[peers]]; no other is believed.".into(),
        (false, true) => {
            "Key: fetched from the endpoint; fetched again when a signature does not hold.".into()
        }
        (false, false) if known.record.is_some() => "Key: this server has none to show.".into(),
        (false, false) => "Key: not known yet; it is fetched when it is needed.".into(),
    }
}

fn trust(ruling: Option<&(Standing, TrustRow)>, now: UnixMs) -> String {
    let Some((standing, row)) = ruling else {
        return "Trust: no rule speaks of it.".into();
    };
    let what = match standing {
        Standing::Blocked => "blocked: it is refused, and nothing is sent to it",
        Standing::Quarantined => "quarantined: what it sends is held until it is released",
        Standing::Allowed => "allowed",
        Standing::Ordinary => "ordinary",
    };
    let because = row
        .reason
        .as_deref()
        .map(|r| format!(" ({r})"))
        .unwrap_or_default();
    let end = match row.ends_ms {
        Some(end) => format!("ends in {}", span(end.saturating_sub(now))),
        None => "has no end".to_owned(),
    };
    format!(
        "Trust: {what}, by the rule {:?} made {}{because}; it {end}.",
        row.pattern,
        ago(now.saturating_sub(row.created_ms)),
    )
}

fn health(outlook: &PeerOutlook, now: UnixMs) -> String {
    let what = match outlook.state {
        PeerState::Closed => "well".to_owned(),
        PeerState::BackingOff => "failed lately; its messages wait for their retries".to_owned(),
        PeerState::Throttled => "asked for patience".to_owned(),
        PeerState::Open => {
            "failed so often that one attempt at a time finds out whether it is back".to_owned()
        }
        PeerState::Paused => match &outlook.paused {
            None => "paused".to_owned(),
            Some(pause) => {
                let because = pause.reason.as_deref().map(|r| format!(" ({r})"));
                let end = match pause.until_ms {
                    Some(end) => format!("for another {}", span(end.saturating_sub(now))),
                    None => "until it is resumed".to_owned(),
                };
                format!(
                    "paused by an operator {}{}, {end}",
                    ago(now.saturating_sub(pause.since_ms)),
                    because.unwrap_or_default()
                )
            }
        },
    };
    let mut parts = vec![format!("Health: {what}")];
    if outlook.failures > 0 {
        parts.push(format!(
            "{} failures in different windows of time since the last success",
            outlook.failures
        ));
    }
    if let Some(at) = outlook.last_failure_ms {
        let code = outlook.last_failure_code.as_deref().unwrap_or("unnamed");
        let words = outlook.last_failure.as_deref().unwrap_or_default();
        let words = if words.is_empty() {
            String::new()
        } else {
            format!(": {words}")
        };
        parts.push(format!(
            "last failure {} ({code}{words})",
            ago(now.saturating_sub(at))
        ));
    }
    parts.push(match outlook.last_success_ms {
        Some(at) => format!("it last took a message {}", ago(now.saturating_sub(at))),
        None => "no message was taken that is on record".to_owned(),
    });
    format!("{}.", parts.join("; "))
}

/// When the next attempt is, and why not earlier; `None`: nothing waits.
fn next(outlook: &PeerOutlook, now: UnixMs) -> Option<String> {
    let lane = &outlook.lane;
    if lane.in_memory == 0 && !lane.more_on_disk {
        return None;
    }
    let when = match lane.next_at_ms {
        Some(at) if at > now => format!("in {}", span((at - now).max(1_000))),
        None if outlook.state == PeerState::Paused => "when it is resumed".to_owned(),
        _ => "now".to_owned(),
    };
    let in_flight = match lane.in_flight {
        0 => String::new(),
        n => format!("; {n} in flight"),
    };
    Some(format!(
        "Next attempt: {when} ({}){in_flight}.",
        lane.next_why
    ))
}

fn queue(known: &Known, oldest_pending_ms: Option<UnixMs>, now: UnixMs) -> String {
    let Some(counts) = &known.counts else {
        return "Queue: nothing waits for it.".into();
    };
    let mut parts = vec![match oldest_pending_ms {
        Some(at) => format!(
            "{} pending, the oldest made {}",
            counts.pending,
            ago(now.saturating_sub(at))
        ),
        None => format!("{} pending", counts.pending),
    }];
    if counts.held > 0 {
        parts.push(format!("{} held for an operator", counts.held));
    }
    if counts.failed > 0 {
        parts.push(format!("{} dead", counts.failed));
    }
    format!("Queue: {}.", parts.join(", "))
}

fn ago(ms: i64) -> String {
    match ms {
        ..1_000 => "just now".to_owned(),
        _ => format!("{} ago", span(ms)),
    }
}

/// A length of time in the two largest units that say something: `1 d 3 h`, `12 min 5 s`.
pub fn span(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, length) in units {
        let n = rest / length;
        rest %= length;
        if n > 0 {
            parts.push(format!("{n} {unit}"));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() {
        "0 s".into()
    } else {
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PeerPin;
    use crate::outbound::lane::Outlook;
    use crate::protocol::PeerName;
    use crate::store::PeerCounts;
    use std::sync::Arc;

    const NOW: UnixMs = 10_000_000;

    fn record(ttl_ms: Option<i64>) -> PeerRecord {
        PeerRecord {
            protocol: "uam",
            name: PeerName::parse("b.test").unwrap(),
            endpoint: "https://b.test/deliver".into(),
            alternatives: Vec::new(),
            public_key: Some([1; 32]),
            discovered_via: "dns-srv".into(),
            last_verified_ms: NOW - 600_000,
            ttl_ms,
            facts: serde_json::Map::new(),
        }
    }

    fn told(known: &Known) -> Told<'_> {
        Told {
            known,
            ruling: None,
            oldest_pending_ms: None,
            outlook: None,
            held: 0,
        }
    }

    #[test]
    fn a_length_of_time_is_said_in_two_units() {
        for (ms, text) in [
            (-5, "0 s"),
            (999, "0 s"),
            (61_000, "1 min 1 s"),
            (3_600_000, "1 h"),
            (3_605_000, "1 h"),
            (97_200_000, "1 d 3 h"),
        ] {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn what_was_found_says_how_when_and_for_how_long() {
        let mut known = Known {
            record: Some(Arc::new(record(Some(3_600_000)))),
            ..Known::default()
        };
        let said = peer(&told(&known), NOW).join("\n");
        assert!(said.contains("found by dns-srv, confirmed 10 min ago; good for another 50 min."));
        assert!(said.contains("no rule speaks of it") && said.contains("nothing waits for it"));
        known.record = Some(Arc::new(record(Some(60_000))));
        let said = peer(&told(&known), NOW).join("\n");
        assert!(said.contains("stale since 9 min"), "{said}");
    }

    #[test]
    fn a_failing_lane_says_what_happened_and_what_comes() {
        let mut outlook = PeerOutlook {
            protocol: "uam",
            peer: "b.test".into(),
            state: PeerState::BackingOff,
            paused: None,
            failures: 2,
            last_failure_ms: Some(NOW - 5_000),
            last_failure_code: Some("timeout".into()),
            last_failure: Some("no answer in 30 s".into()),
            last_success_ms: Some(NOW - 3_600_000),
            average_ms: None,
            lane: Outlook {
                in_flight: 1,
                window: 4,
                in_memory: 3,
                waiting: 2,
                more_on_disk: false,
                next_at_ms: Some(NOW + 10_000),
                next_why: "it failed".into(),
            },
        };
        let said = health(&outlook, NOW);
        assert!(said.contains("last failure 5 s ago (timeout: no answer in 30 s)"));
        assert!(said.contains("it last took a message 1 h ago"), "{said}");
        let said = next(&outlook, NOW);
        assert_eq!(
            said.as_deref(),
            Some("Next attempt: in 10 s (it failed); 1 in flight.")
        );
        outlook.state = PeerState::Paused;
        outlook.lane.next_at_ms = None;
        let said = next(&outlook, NOW).unwrap();
        assert!(said.contains("when it is resumed"), "{said}");
        (outlook.lane.in_memory, outlook.lane.in_flight) = (0, 0);
        assert_eq!(next(&outlook, NOW), None);
    }

    #[test]
    fn a_pinned_peer_never_met_is_explained_too() {
        let known = Known {
            pin: Some(Arc::new(PeerPin {
                protocol: "uam".into(),
                name: "b.test".into(),
                endpoint: Some("https://b.test".into()),
                public_key: Some("key".into()),
                key_id: None,
                domain: None,
                accepted: false,
            })),
            counts: Some(PeerCounts {
                pending: 3,
                failed: 1,
                ..PeerCounts::default()
            }),
            ..Known::default()
        };
        let rule = TrustRow {
            id: 1,
            protocol: "uam".into(),
            pattern: "*.test".into(),
            rule: "quarantine".into(),
            reason: Some("spam".into()),
            created_ms: NOW - 120_000,
            ends_ms: Some(NOW + 3_600_000),
        };
        let ruling = (Standing::Quarantined, rule);
        let told = Told {
            ruling: Some(&ruling),
            oldest_pending_ms: Some(NOW - 90_000),
            held: 4,
            ..told(&known)
        };
        let said = peer(&told, NOW).join("\n");
        for part in [
            "the base https://b.test is pinned",
            "no other is believed",
            "by the rule \"*.test\" made 2 min ago (spam); it ends in 1 h",
            "4 of its events are held",
            "accepted = false",
            "3 pending, the oldest made 1 min 30 s ago, 1 dead",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
