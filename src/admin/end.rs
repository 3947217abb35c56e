//! When a rule or a pause ends.

use super::Fail;
use crate::clock::UnixMs;
use crate::config::parse_duration;

/// When something ends that was given an RFC 3339 time or a length such as `2h`; `None`: neither.
pub(super) fn at(
    until: Option<&str>,
    lasting: Option<&str>,
    now: UnixMs,
) -> Result<Option<UnixMs>, Fail> {
    let wrong = |detail: String| Fail::bad_request("bad_end", detail);
    let end = match (until, lasting) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(wrong("give until or for, not both".into())),
        (Some(text), None) => text
            .parse::<jiff::Timestamp>()
            .map_err(|_| {
                wrong(format!(
                    "until must be a time such as \"2026-11-20T10:00:00Z\", not {text:?}"
                ))
            })?
            .as_millisecond(),
        (None, Some(text)) => {
            let lasting = parse_duration(text).ok_or_else(|| {
                wrong(format!(
                    "for must be a duration such as \"2h\" or \"7d\", not {text:?}"
                ))
            })?;
            now.saturating_add(i64::try_from(lasting.as_millis()).unwrap_or(i64::MAX))
        }
    };
    if end <= now {
        return Err(wrong("this end is over already".into()));
    }
    Ok(Some(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_time_or_a_length_and_lies_ahead() {
        assert_eq!(at(None, None, 5).unwrap(), None);
        assert_eq!(at(None, Some("2h"), 5).unwrap(), Some(7_200_005));
        let time = at(Some("2026-11-20T10:00:00Z"), None, 5).unwrap();
        assert_eq!(time, Some(1_795_168_800_000));
        for (until, lasting) in [
            (Some("2026-11-20T10:00:00Z"), Some("2h")),
            (Some("tomorrow"), None),
            (Some("1960-01-01T00:00:00Z"), None),
            (None, Some("2 weeks")),
            (None, Some("0s")),
        ] {
            let e = at(until, lasting, 5).unwrap_err();
            assert_eq!(e.code, "bad_end");
        }
    }
}
