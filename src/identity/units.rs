//! Text as servers written in ECMAScript measure it: trimmed by their rule, counted in UTF-16 units.
//!
//! A secret that such a server shares with us is the same secret only if both trim and cut it alike,
//! so the rules stand here, below every protocol. They differ from Rust's: U+FEFF is white space,
//! U+0085 is not, and a character beyond U+FFFF counts twice.

/// Whether ECMAScript's `trim` takes this character away.
fn blank(c: char) -> bool {
    matches!(
        c,
        '\u{9}'..='\u{d}'
            | ' '
            | '\u{a0}'
            | '\u{1680}'
            | '\u{2000}'..='\u{200a}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{202f}'
            | '\u{205f}'
            | '\u{3000}'
            | '\u{feff}'
    )
}

/// The text without the white space around it.
pub fn trim(text: &str) -> &str {
    text.trim_matches(blank)
}

/// Length in UTF-16 units.
pub fn units(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

/// The text trimmed and then cut to at most `limit` UTF-16 units. Half a surrogate pair that a cut
/// leaves is U+FFFD, as it is once encoded.
pub fn cut(text: &str, limit: usize) -> String {
    let text = trim(text);
    let mut left = limit;
    for (at, c) in text.char_indices() {
        let kept = text.get(..at).unwrap_or(text);
        if left == 0 {
            return kept.to_owned();
        }
        match left.checked_sub(c.len_utf16()) {
            Some(rest) => left = rest,
            None => return format!("{kept}\u{fffd}"),
        }
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ecmascript_trims_is_not_what_rust_trims() {
        assert_eq!(trim("\u{feff}\u{a0}\u{2029}\tx\u{3000}\r\n"), "x");
        for kept in ["\u{85}x\u{85}", "\u{200b}x", "\u{180e}x", "\u{1c}x"] {
            assert_eq!(trim(kept), kept);
        }
        assert_eq!(trim(" \u{feff} "), "");
    }

    #[test]
    fn a_cut_counts_utf16_units_and_never_leaves_half_a_pair() {
        assert_eq!(units("a\u{e4}\u{1f680}"), 4);
        assert_eq!(cut("  a\u{1f680}b  ", 9), "a\u{1f680}b");
        assert_eq!(cut("a\u{1f680}b", 3), "a\u{1f680}");
        assert_eq!(cut("a\u{1f680}b", 2), "a\u{fffd}");
        assert_eq!(cut("a\u{1f680}b", 1), "a");
        assert_eq!(cut("ab", 0), "");
    }
}
