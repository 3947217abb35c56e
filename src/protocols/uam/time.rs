//! Timestamps: RFC 3339 with a capital `T` and an offset or a capital `Z`; nothing looser.

use crate::clock::UnixMs;

/// Why a text is no timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    #[error("expected RFC 3339, for example 2026-05-01T12:00:00.000Z")]
    Shape,
    #[error("the offset is missing; write Z or +hh:mm")]
    NoOffset,
    #[error("no such date or time of day")]
    Range,
}

/// Reads a timestamp; answers microseconds since the Unix epoch (finer digits are cut off).
pub fn parse_micros(text: &str) -> Result<i64, TimeError> {
    let [
        y @ ..,
        b'-',
        mo1,
        mo2,
        b'-',
        d1,
        d2,
        b'T',
        h1,
        h2,
        b':',
        mi1,
        mi2,
        b':',
        s1,
        s2,
    ] = text
        .as_bytes()
        .first_chunk::<19>()
        .ok_or(TimeError::Shape)?
    else {
        return Err(TimeError::Shape);
    };
    let number = |part: &[u8]| digits(part).ok_or(TimeError::Shape);
    let (year, month, day) = (number(y)?, number(&[*mo1, *mo2])?, number(&[*d1, *d2])?);
    let hour = number(&[*h1, *h2])?;
    let (minute, second) = (number(&[*mi1, *mi2])?, number(&[*s1, *s2])?);
    let mut rest = text.as_bytes().get(19..).unwrap_or_default();
    let mut micros = 0;
    if let Some(after) = rest.strip_prefix(b".") {
        let count = after.iter().take_while(|d| d.is_ascii_digit()).count();
        if count == 0 {
            return Err(TimeError::Shape);
        }
        let (fraction, behind) = after.split_at_checked(count).unwrap_or((after, &[]));
        for i in 0..6 {
            let digit = fraction.get(i).map_or(0, |d| i64::from(d - b'0'));
            micros = micros * 10 + digit;
        }
        rest = behind;
    }
    let offset = match rest {
        [] => return Err(TimeError::NoOffset),
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let hours = digits(&[*h1, *h2]).ok_or(TimeError::Shape)?;
            let minutes = digits(&[*m1, *m2]).ok_or(TimeError::Shape)?;
            if hours > 23 || minutes > 59 {
                return Err(TimeError::Range);
            }
            let size = hours * 3600 + minutes * 60;
            if *sign == b'-' { -size } else { size }
        }
        _ => return Err(TimeError::Shape),
    };
    if year < 1
        || !(1..=12).contains(&month)
        || !(1..=month_days(year, month)).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return Err(TimeError::Range);
    }
    let days = days_from_civil(year, month, day);
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Ok(seconds * 1_000_000 + micros)
}

/// The same in milliseconds, rounded down.
pub fn parse_ms(text: &str) -> Result<UnixMs, TimeError> {
    parse_micros(text).map(|micros| micros.div_euclid(1000))
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ`, as senders write it.
pub fn format_ms(ms: UnixMs) -> String {
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil_from_days(days);
    let (seconds, milli) = (of_day / 1000, of_day % 1000);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{milli:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

fn digits(bytes: &[u8]) -> Option<i64> {
    bytes.iter().try_fold(0, |n, b| {
        b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0'))
    })
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar, by counting 400-year eras
/// that begin on 1 March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let years = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * years + years / 4 - years / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (years + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_3339_with_an_offset_is_read() {
        let noon = 1_777_636_800_000;
        for text in [
            "2026-05-01T12:00:00Z",
            "2026-05-01T12:00:00.000Z",
            "2026-05-01T12:00:00.0009Z",
            "2026-05-01T14:00:00+02:00",
            "2026-05-01T06:30:00.000-05:30",
            "2026-05-01T12:00:00-00:00",
        ] {
            assert_eq!(parse_ms(text), Ok(noon), "{text}");
        }
        assert_eq!(parse_micros("1969-12-31T23:59:59.999999Z"), Ok(-1));
        assert_eq!(
            parse_micros("2024-02-29T00:00:00Z"),
            Ok(1_709_164_800_000_000)
        );
    }

    #[test]
    fn anything_looser_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-05-01 12:00:00Z",
            "2026-05-01t12:00:00Z",
            "2026-05-01T12:00:00z",
            "20260501T120000Z",
            "2026-05-01T12:00Z",
            "2026-05-01T12:00:00,5Z",
            "2026-05-01T12:00:00.Z",
            "2026-05-01T12:00:00+0200",
            "2026-05-01T12:00:00+02",
            "2026-05-01T12:00:00Z ",
            " 2026-05-01T12:00:00Z",
            "2026-05-01T12:00:00é",
            "２０２６-05-01T12:00:00Z",
            "+026-05-01T12:00:00Z",
        ] {
            assert_eq!(parse_micros(text), Err(TimeError::Shape), "{text}");
        }
        assert_eq!(
            parse_micros("2026-05-01T12:00:00.250"),
            Err(TimeError::NoOffset)
        );
        for text in [
            "2026-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-05-00T12:00:00Z",
            "2026-05-01T24:00:00Z",
            "2026-05-01T12:60:00Z",
            "2026-05-01T12:00:60Z",
            "0000-05-01T12:00:00Z",
            "2026-05-01T12:00:00+24:00",
        ] {
            assert_eq!(parse_micros(text), Err(TimeError::Range), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for ms in [0, -1, 1_777_636_800_123, 951_782_400_000, 4_102_444_799_999] {
            assert_eq!(parse_ms(&format_ms(ms)), Ok(ms));
        }
        assert_eq!(format_ms(1_777_636_798_250), "2026-05-01T11:59:58.250Z");
    }
}
