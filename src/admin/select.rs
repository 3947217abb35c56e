//! Which rows of the outbound queue a request means.
//!
//! `protocol`, `peer`, `type`, `reason`, `msg_id`, `older_than` and `newer_than` (durations since the
//! row was made), `id` (row numbers with commas), `state` (`pending`, `delivered`, `failed` or `dead`,
//! `held`; several with commas; not where the path says the state), `after` (a row number) and
//! `limit`.

use std::time::Duration;

use super::Fail;
use super::params::Params;
use crate::clock::UnixMs;
use crate::store::{RowFilter, RowState};

/// Rows of one answer when `limit` is not given.
const DEFAULT_LIMIT: i64 = 100;
/// And at most.
pub const MAX_LIMIT: i64 = 1000;
/// Row numbers in one request.
const MAX_IDS: usize = 1000;

/// The filters of a list; `states`: those the path stands for, empty where the request may choose.
pub fn list(params: &mut Params, states: &[RowState], now: UnixMs) -> Result<RowFilter, Fail> {
    let mut filter = which(params, now)?;
    let limit = params
        .number("limit", 1, MAX_LIMIT)?
        .unwrap_or(DEFAULT_LIMIT);
    filter.limit = usize::try_from(limit).unwrap_or(1);
    filter.states = states.iter().copied().collect();
    if states.is_empty() {
        for word in params.words("state") {
            filter.states.insert(state(&word)?);
        }
    }
    Ok(filter)
}

/// The filters that say which rows, without `limit` and `state`.
pub fn which(params: &mut Params, now: UnixMs) -> Result<RowFilter, Fail> {
    let ids = params.words("id");
    let ids: Vec<i64> = ids
        .iter()
        .map(|id| {
            id.parse().map_err(|_| {
                Fail::bad_request("bad_filter", format!("id must be row numbers, not {id:?}"))
            })
        })
        .collect::<Result<_, _>>()?;
    if ids.len() > MAX_IDS {
        let detail = format!("at most {MAX_IDS} row numbers fit one request");
        return Err(Fail::bad_request("bad_filter", detail));
    }
    let ago = |age: Option<Duration>| {
        age.map(|age| now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
    };
    Ok(RowFilter {
        protocol: params.text("protocol"),
        peer: params.text("peer").map(|name| name.to_ascii_lowercase()),
        event_type: params.text("type"),
        reason_code: params.text("reason"),
        msg_id: params.text("msg_id"),
        created_to_ms: ago(params.duration("older_than")?),
        created_from_ms: ago(params.duration("newer_than")?),
        ids,
        after: params.number("after", 0, i64::MAX)?.unwrap_or(0),
        ..RowFilter::default()
    })
}

/// Whether the filter leaves any row out.
pub fn is_narrow(filter: &RowFilter) -> bool {
    filter.protocol.is_some()
        || filter.peer.is_some()
        || filter.event_type.is_some()
        || filter.reason_code.is_some()
        || filter.msg_id.is_some()
        || filter.created_to_ms.is_some()
        || filter.created_from_ms.is_some()
        || !filter.ids.is_empty()
}

fn state(word: &str) -> Result<RowState, Fail> {
    match word {
        "pending" => Ok(RowState::Pending),
        "delivered" => Ok(RowState::Delivered),
        "failed" | "dead" => Ok(RowState::Failed),
        "held" => Ok(RowState::Held),
        other => Err(Fail::bad_request(
            "bad_filter",
            format!("state must be pending, delivered, failed or held, not {other:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = 1_000_000;

    #[test]
    fn every_filter_is_read() {
        let query = "protocol=uam&peer=Beta.com%3A8443&type=message&state=pending,dead&reason=timeout\
                     &msg_id=a+b&after=7&limit=5&older_than=10s&newer_than=15m&id=3,4";
        let mut params = Params::read(Some(query)).unwrap();
        let f = list(&mut params, &[], NOW).unwrap();
        params.end().unwrap();
        assert_eq!(f.protocol.as_deref(), Some("uam"));
        assert_eq!(f.peer.as_deref(), Some("beta.com:8443"));
        assert_eq!(f.event_type.as_deref(), Some("message"));
        assert!(f.states.contains(&RowState::Pending) && f.states.contains(&RowState::Failed));
        assert_eq!(f.states.len(), 2);
        assert_eq!(f.reason_code.as_deref(), Some("timeout"));
        assert_eq!(f.msg_id.as_deref(), Some("a b"));
        assert_eq!((f.after, f.limit), (7, 5));
        assert_eq!(f.created_to_ms, Some(NOW - 10_000));
        assert_eq!(f.created_from_ms, Some(NOW - 900_000));
        assert_eq!(f.ids, [3, 4]);
        assert!(is_narrow(&f));
        let all = list(&mut Params::default(), &[], NOW).unwrap();
        assert_eq!(all.limit, 100);
        assert!(!is_narrow(&all));
    }

    #[test]
    fn where_the_path_says_the_state_no_filter_may() {
        let mut params = Params::read(Some("state=pending")).unwrap();
        let f = list(&mut params, &[RowState::Failed], NOW).unwrap();
        assert_eq!(f.states, [RowState::Failed].into());
        assert!(params.end().unwrap_err().detail.contains("\"state\""));
    }

    #[test]
    fn a_wrong_filter_is_a_sentence() {
        for (query, part) in [
            ("state=lost", "not \"lost\""),
            ("limit=1001", "limit must be 1 to 1000"),
            ("after=x", "after must be a number from 0"),
            ("id=1,x", "id must be row numbers"),
        ] {
            let mut params = Params::read(Some(query)).unwrap();
            let e = list(&mut params, &[], NOW).unwrap_err();
            assert!(e.detail.contains(part), "{query}: {}", e.detail);
        }
    }
}
