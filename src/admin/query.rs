//! The filters of `GET /api/v1/queue`: `protocol`, `peer`, `type`, `state` (`pending`, `delivered`,
//! `failed` or `dead`, `held`; several with commas), `reason`, `msg_id`, `after` (row number), `limit`
//! (1 to 1000, default 100). Each at most once; an unknown one is an error, for a misspelt filter
//! would show everything.

use std::borrow::Cow;

use crate::store::{RowFilter, RowState};

/// Rows of one answer when `limit` is not given.
const DEFAULT_LIMIT: usize = 100;
/// And at most.
const MAX_LIMIT: usize = 1000;

/// Reads a query string; an error is a sentence about the parameter that is wrong.
pub(super) fn row_filter(query: &str) -> Result<RowFilter, String> {
    let mut filter = RowFilter {
        limit: DEFAULT_LIMIT,
        ..RowFilter::default()
    };
    let mut seen: Vec<Cow<'_, str>> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name)?;
        let value = decode(value)?;
        if seen.contains(&name) {
            return Err(format!("the filter {name} is given twice"));
        }
        match name.as_ref() {
            "protocol" => filter.protocol = Some(value.into_owned()),
            "peer" => filter.peer = Some(value.into_owned()),
            "type" => filter.event_type = Some(value.into_owned()),
            "reason" => filter.reason_code = Some(value.into_owned()),
            "msg_id" => filter.msg_id = Some(value.into_owned()),
            "state" => {
                for word in value.split(',').filter(|word| !word.is_empty()) {
                    filter.states.insert(state(word)?);
                }
            }
            "after" => {
                filter.after = value
                    .parse()
                    .map_err(|_| format!("after must be a row number, not {value:?}"))?;
            }
            "limit" => {
                filter.limit = value
                    .parse()
                    .ok()
                    .filter(|n| (1..=MAX_LIMIT).contains(n))
                    .ok_or_else(|| format!("limit must be 1 to {MAX_LIMIT}, not {value:?}"))?;
            }
            other => {
                return Err(format!(
                    "there is no filter {other:?}; there are protocol, peer, type, state, reason, \
                     msg_id, after and limit"
                ));
            }
        }
        seen.push(name);
    }
    Ok(filter)
}

fn state(word: &str) -> Result<RowState, String> {
    match word {
        "pending" => Ok(RowState::Pending),
        "delivered" => Ok(RowState::Delivered),
        "failed" | "dead" => Ok(RowState::Failed),
        "held" => Ok(RowState::Held),
        other => Err(format!(
            "state must be pending, delivered, failed or held, not {other:?}"
        )),
    }
}

/// Percent-decoding, `+` for a space.
fn decode(text: &str) -> Result<Cow<'_, str>, String> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => out.push(u8::try_from(high * 16 + low).unwrap_or(b'?')),
                _ => return Err(format!("{text:?} has a % without two hex digits")),
            },
            other => out.push(other),
        }
    }
    String::from_utf8(out)
        .map(Cow::Owned)
        .map_err(|_| format!("{text:?} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_is_read() {
        let f = row_filter(
            "protocol=uam&peer=beta.com%3A8443&type=message&state=pending,dead&reason=timeout&msg_id=a+b&after=7&limit=5",
        )
        .unwrap();
        assert_eq!(f.protocol.as_deref(), Some("uam"));
        assert_eq!(f.peer.as_deref(), Some("beta.com:8443"));
        assert_eq!(f.event_type.as_deref(), Some("message"));
        assert!(f.states.contains(&RowState::Pending) && f.states.contains(&RowState::Failed));
        assert_eq!(f.states.len(), 2);
        assert_eq!(f.reason_code.as_deref(), Some("timeout"));
        assert_eq!(f.msg_id.as_deref(), Some("a b"));
        assert_eq!((f.after, f.limit), (7, 5));
        assert_eq!(row_filter("").unwrap().limit, DEFAULT_LIMIT);
    }

    #[test]
    fn a_wrong_filter_is_a_sentence() {
        for (query, part) in [
            ("stat=pending", "there is no filter \"stat\""),
            ("state=lost", "not \"lost\""),
            ("limit=0", "limit must be 1 to 1000"),
            ("limit=1001", "limit must be 1 to 1000"),
            ("after=x", "after must be a row number"),
            ("peer=%4", "two hex digits"),
            ("peer=%ff", "is not UTF-8"),
            ("peer=a&peer=b", "given twice"),
        ] {
            let e = row_filter(query).unwrap_err();
            assert!(e.contains(part), "{query}: {e}");
        }
    }
}
