//! Addresses: `agent::domain`.

use std::fmt;

/// An address in its normal form: trimmed of ASCII white space, ASCII lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    full: String,
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address: expected name::domain, the name of a-z 0-9 _ - (at most 64), the \
     domain of a-z 0-9 . -, each beginning and ending with a letter or digit, at most 128 in all"
)]
pub struct BadAddress(pub String);

impl Address {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, BadAddress> {
        // The white space of ASCII as the reference trims it: vertical tab and the four separators too.
        let full = text
            .trim_matches(|c| matches!(c, ' ' | '\t'..='\r' | '\u{1c}'..='\u{1f}'))
            .to_ascii_lowercase();
        let bad = || BadAddress(text.chars().take(200).collect());
        let (agent, domain) = full.split_once("::").ok_or_else(bad)?;
        if full.len() > 128
            || agent.len() > 64
            || !well_formed(agent, |b| matches!(b, b'_' | b'-'))
            || !well_formed(domain, |b| matches!(b, b'.' | b'-'))
        {
            return Err(bad());
        }
        Ok(Self { full })
    }

    /// The name before `::`.
    pub fn agent(&self) -> &str {
        self.parts().0
    }

    /// The domain after `::`.
    pub fn domain(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.full.split_once("::").unwrap_or((&self.full, ""))
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

fn well_formed(part: &str, inner: impl Fn(u8) -> bool) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match part.as_bytes() {
        [first, middle @ .., last] => {
            alnum(*first) && alnum(*last) && middle.iter().all(|b| alnum(*b) || inner(*b))
        }
        [only] => alnum(*only),
        [] => false,
    }
}

/// The two parts of a recipient exactly as written: `NAME::DOMAIN`, neither empty, one separator.
/// Federation compares the text and converts nothing.
pub fn split_recipient(text: &str) -> Option<(&str, &str)> {
    let (name, domain) = text.split_once("::")?;
    (!name.is_empty() && !domain.is_empty() && !domain.contains("::")).then_some((name, domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_space_is_trimmed_and_ascii_letters_lowered_and_nothing_else_converted() {
        let read = Address::parse("  Alice::Alpha.TEST \n").unwrap();
        assert_eq!((read.agent(), read.domain()), ("alice", "alpha.test"));
        assert_eq!(read.to_string(), "alice::alpha.test");
        assert!(Address::parse("\u{3000}alice::alpha.test\u{a0}").is_err());
        assert!(Address::parse("\u{212a}elvin::alpha.test").is_err());
    }

    #[test]
    fn a_recipient_has_one_separator_and_two_parts() {
        assert_eq!(split_recipient("a::b"), Some(("a", "b")));
        for text in ["", "::", "a::", "::b", "a:b", "a::b::c", "a::b::"] {
            assert_eq!(split_recipient(text), None, "{text}");
        }
    }
}
