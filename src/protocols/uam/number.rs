//! Numbers as the signed bytes spell them: the output rules of Python's `json`.
//!
//! The kind depends on the text on the wire: with `.`, `e` or `E` it is a double, otherwise an
//! integer of unlimited size whose digits are kept. A double is written with the shortest digits
//! that read back the same; Rust's own formatting picks other digits on exact ties, so they come
//! from `zmij` and only the layout is ours.

/// Integers with more digits are unreadable to the reference and refused.
pub const MAX_INTEGER_DIGITS: usize = 4300;

/// What is wrong with a number that is grammatical JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberError {
    /// Out of the range of a double.
    NotFinite,
    /// Too many digits.
    TooLong,
}

fn is_double(text: &str) -> bool {
    text.bytes().any(|b| matches!(b, b'.' | b'e' | b'E'))
}

/// Checks a number that already follows JSON's grammar.
pub(super) fn check(text: &str) -> Result<(), NumberError> {
    if is_double(text) {
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(()),
            _ => Err(NumberError::NotFinite),
        }
    } else if text.trim_start_matches('-').len() > MAX_INTEGER_DIGITS {
        Err(NumberError::TooLong)
    } else {
        Ok(())
    }
}

/// Appends the canonical spelling of a number as read.
pub(super) fn write(text: &str, out: &mut String) {
    if !is_double(text) {
        out.push_str(if text == "-0" { "0" } else { text });
        return;
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => write_double(value, out),
        // Unreachable for a parsed number; the text itself is the least wrong thing to sign.
        _ => out.push_str(text),
    }
}

/// `repr` of a finite Python float.
fn write_double(value: f64, out: &mut String) {
    if value.is_sign_negative() {
        out.push('-');
    }
    let value = value.abs();
    if value == 0.0 {
        out.push_str("0.0");
        return;
    }
    let mut buffer = zmij::Buffer::new();
    let (digits, point) = digits_and_point(buffer.format_finite(value));
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    // value = 0.DIGITS × 10^point
    if !(-3..=16).contains(&point) {
        let (first, more) = digits.split_at_checked(1).unwrap_or((&digits, ""));
        out.push_str(first);
        if count > 1 {
            out.push('.');
            out.push_str(more);
        }
        let exponent = point - 1;
        out.push('e');
        out.push(if exponent < 0 { '-' } else { '+' });
        let size = exponent.unsigned_abs();
        if size < 10 {
            out.push('0');
        }
        out.push_str(&size.to_string());
    } else if point <= 0 {
        out.push_str("0.");
        for _ in point..0 {
            out.push('0');
        }
        out.push_str(&digits);
    } else if point >= count {
        out.push_str(&digits);
        for _ in count..point {
            out.push('0');
        }
        out.push_str(".0");
    } else {
        let split = usize::try_from(point).unwrap_or(0);
        let (whole, fraction) = digits.split_at_checked(split).unwrap_or((&digits, ""));
        out.push_str(whole);
        out.push('.');
        out.push_str(fraction);
    }
}

/// Significant digits without leading or trailing zeros, and where the point stands before them.
fn digits_and_point(text: &str) -> (String, i32) {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((m, e)) => (m, e.parse::<i32>().unwrap_or(0)),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let lead = all.len() - all.trim_start_matches('0').len();
    let digits = all.trim_matches('0').to_owned();
    let point =
        i32::try_from(whole.len()).unwrap_or(0) - i32::try_from(lead).unwrap_or(0) + exponent;
    (digits, point)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        let mut out = String::new();
        write(text, &mut out);
        out
    }

    #[test]
    fn the_table_of_the_sheet_holds() {
        for (wire, expected) in [
            ("1", "1"),
            ("1.0", "1.0"),
            ("1e0", "1.0"),
            ("-0", "0"),
            ("-0.0", "-0.0"),
            ("-1e-400", "-0.0"),
            ("1E2", "100.0"),
            ("1.10", "1.1"),
            ("1e15", "1000000000000000.0"),
            ("1e16", "1e+16"),
            ("10000000000000000.0", "1e+16"),
            ("9999999999999998.0", "9999999999999998.0"),
            ("0.0001", "0.0001"),
            ("0.00012", "0.00012"),
            ("0.00001", "1e-05"),
            ("1e-7", "1e-07"),
            ("1e22", "1e+22"),
            ("1e100", "1e+100"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("9007199254740993.0", "9007199254740992.0"),
            ("1801514316094494.25", "1801514316094494.2"),
            ("18446744073709551616", "18446744073709551616"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ] {
            assert_eq!(canonical(wire), expected, "{wire}");
        }
    }

    #[test]
    fn what_no_double_can_hold_and_endless_integers_are_refused() {
        assert_eq!(check("1e400"), Err(NumberError::NotFinite));
        assert_eq!(check(&"9".repeat(4300)), Ok(()));
        assert_eq!(check(&"9".repeat(4301)), Err(NumberError::TooLong));
        assert_eq!(check(&format!("-{}", "9".repeat(4300))), Ok(()));
    }
}
