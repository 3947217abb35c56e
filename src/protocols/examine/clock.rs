//! How far a remote server's clock is from ours, by the `Date` of its answers.

use ::http::HeaderMap;
use ::http::header::{AGE, DATE};
use jiff::fmt::rfc2822;

use super::{Found, Report};
use crate::clock::UnixMs;

/// Tells the step `clock`. `skew_s`: their clock less ours; `limit`: how far a request may be off;
/// both in seconds.
pub(in crate::protocols) fn clocks(skew_s: Option<i64>, limit: i64, report: &mut Report<'_>) {
    let Some(skew) = skew_s else {
        report.info("clock", "the answer has no Date header to compare with");
        return;
    };
    let side = if skew < 0 { "behind" } else { "ahead of" };
    let apart = skew.unsigned_abs();
    if skew.saturating_abs() > limit {
        let found = Found::blocks(
            "clock_skew",
            format!(
                "its clock is {apart} s {side} ours, requests may be {limit} s off: neither side \
                     takes the other's; compare both with a time server"
            ),
        );
        report.fault("clock", found);
    } else if skew.saturating_abs() > limit / 3 {
        let found = Found::hurts(
            "clock_skew",
            format!(
                "its clock is {apart} s {side} ours, and at {limit} s nothing passes any more; \
                     compare both with a time server"
            ),
        );
        report.fault("clock", found);
    } else if apart <= 1 {
        report.pass("clock", format!("the same as ours (limit {limit} s)"));
    } else {
        report.pass("clock", format!("{apart} s {side} ours (limit {limit} s)"));
    }
}

/// The `Date` of an answer, older by its `Age` in a cache, less our time; whole seconds.
pub(in crate::protocols) fn skew(headers: &HeaderMap, now_ms: UnixMs) -> Option<i64> {
    let date = headers.get(DATE)?.to_str().ok()?;
    let at = rfc2822::DateTimeParser::new()
        .parse_timestamp(date.trim())
        .ok()?;
    let age = headers
        .get(AGE)
        .and_then(|value| value.to_str().ok()?.trim().parse::<i64>().ok())
        .unwrap_or(0);
    Some(
        at.as_second()
            .saturating_add(age)
            .saturating_sub(now_ms.div_euclid(1000)),
    )
}
