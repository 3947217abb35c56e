//! What the lists say of a name: a pure look-up over a snapshot.

use std::collections::HashMap;

use crate::clock::UnixMs;
use crate::protocol::PeerName;
use crate::store::TrustRow;

use super::{Rule, Standing};

/// Every rule, by protocol and list, then by pattern.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    lists: HashMap<(String, Rule), HashMap<String, TrustRow>>,
}

impl Rules {
    /// A snapshot of these rows; rows with an unknown list name are passed over.
    pub fn new(rows: Vec<TrustRow>) -> Self {
        let mut rules = Self::default();
        for row in rows {
            if let Some(rule) = Rule::parse(&row.rule) {
                rules.put(rule, row);
            }
        }
        rules
    }

    /// Adds or replaces; false: the pattern was there.
    pub fn put(&mut self, rule: Rule, row: TrustRow) -> bool {
        self.lists
            .entry((row.protocol.clone(), rule))
            .or_default()
            .insert(row.pattern.clone(), row)
            .is_none()
    }

    /// Removes; false: there was none.
    pub fn remove(&mut self, protocol: &str, rule: Rule, pattern: &str) -> bool {
        self.lists
            .get_mut(&(protocol.to_owned(), rule))
            .is_some_and(|list| list.remove(pattern).is_some())
    }

    /// One list, oldest first.
    pub fn list(&self, protocol: &str, rule: Rule) -> Vec<TrustRow> {
        let mut rows: Vec<TrustRow> = self
            .lists
            .get(&(protocol.to_owned(), rule))
            .map(|list| list.values().cloned().collect())
            .unwrap_or_default();
        rows.sort_by(|a, b| {
            (a.created_ms, a.id, &a.pattern).cmp(&(b.created_ms, b.id, &b.pattern))
        });
        rows
    }

    /// Every rule, by protocol, oldest first.
    pub fn all(&self) -> Vec<TrustRow> {
        let mut rows: Vec<TrustRow> = self
            .lists
            .values()
            .flat_map(|list| list.values().cloned())
            .collect();
        rows.sort_by(|a, b| {
            (&a.protocol, a.created_ms, a.id, &a.pattern, &a.rule).cmp(&(
                &b.protocol,
                b.created_ms,
                b.id,
                &b.pattern,
                &b.rule,
            ))
        });
        rows
    }

    /// Block wins over everything, quarantine over allow: the stricter word counts.
    pub fn standing(&self, protocol: &str, name: &str, now: UnixMs) -> Standing {
        self.ruling(protocol, name, now)
            .map_or(Standing::Ordinary, |(standing, _)| standing)
    }

    /// The standing and the rule it comes from: of one list the exact name before a suffix, the
    /// longer suffix before the shorter. `None`: no rule speaks of this name.
    pub fn ruling(&self, protocol: &str, name: &str, now: UnixMs) -> Option<(Standing, &TrustRow)> {
        let order = [
            (Rule::Block, Standing::Blocked),
            (Rule::Quarantine, Standing::Quarantined),
            (Rule::Allow, Standing::Allowed),
        ];
        order.into_iter().find_map(|(rule, standing)| {
            self.matching(protocol, rule, name, now)
                .map(|row| (standing, row))
        })
    }

    fn matching(&self, protocol: &str, rule: Rule, name: &str, now: UnixMs) -> Option<&TrustRow> {
        let list = self.lists.get(&(protocol.to_owned(), rule))?;
        if list.is_empty() {
            return None;
        }
        let lasting = |pattern: &str| list.get(pattern).filter(|row| row.in_force(now));
        if let Some(row) = lasting(name) {
            return Some(row);
        }
        let host = match name.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => name,
        };
        host.match_indices('.')
            .find_map(|(dot, _)| lasting(&format!("*{}", host.get(dot..)?)))
    }
}

impl TrustRow {
    /// Whether it has not come to its end.
    pub fn in_force(&self, now: UnixMs) -> bool {
        self.ends_ms.is_none_or(|end| now < end)
    }
}

/// Reads what a rule may name: a server name, or `*.` and one. Case is of no account. An error is a
/// sentence.
pub fn pattern(text: &str) -> Result<String, String> {
    let text = text.trim().to_ascii_lowercase();
    let host = text.strip_prefix("*.").unwrap_or(&text);
    let ported = text.starts_with("*.") && host.contains(':');
    if PeerName::parse(host).is_err() || ported {
        return Err(format!(
            "{text:?} is neither a server name (\"relay.example.org\", \"relay.example.org:8443\") \
             nor a suffix (\"*.example.org\", which has no port and means every server below, not \
             example.org itself)"
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rule: &str, pattern: &str, ends_ms: Option<UnixMs>) -> TrustRow {
        TrustRow {
            id: 0,
            protocol: "uam".into(),
            pattern: pattern.into(),
            rule: rule.into(),
            reason: None,
            created_ms: 0,
            ends_ms,
        }
    }

    #[test]
    fn block_wins_over_allow_and_over_quarantine() {
        let rules = Rules::new(vec![
            row("allow", "a.test", None),
            row("quarantine", "a.test", None),
            row("block", "a.test", None),
            row("allow", "b.test", None),
            row("quarantine", "b.test", None),
            row("allow", "c.test", None),
        ]);
        assert_eq!(rules.standing("uam", "a.test", 0), Standing::Blocked);
        assert_eq!(rules.standing("uam", "b.test", 0), Standing::Quarantined);
        assert_eq!(rules.standing("uam", "c.test", 0), Standing::Allowed);
        assert_eq!(rules.standing("uam", "d.test", 0), Standing::Ordinary);
        assert_eq!(rules.standing("paracord", "a.test", 0), Standing::Ordinary);
    }

    #[test]
    fn a_star_matches_subdomains_on_any_port_and_not_the_domain_itself() {
        let rules = Rules::new(vec![row("block", "*.evil.test", None)]);
        for name in ["a.evil.test", "a.b.evil.test", "a.evil.test:8443"] {
            assert_eq!(rules.standing("uam", name, 0), Standing::Blocked, "{name}");
        }
        for name in ["evil.test", "notevil.test", "evil.test.example"] {
            assert_eq!(rules.standing("uam", name, 0), Standing::Ordinary, "{name}");
        }
    }

    #[test]
    fn the_ruling_names_the_rule_that_is_nearest_to_the_name() {
        let rules = Rules::new(vec![
            row("quarantine", "*.test", None),
            row("quarantine", "*.b.test", None),
            row("quarantine", "x.b.test", Some(100)),
        ]);
        let by = |name, now| {
            rules
                .ruling("uam", name, now)
                .map(|(_, r)| r.pattern.as_str())
        };
        assert_eq!(by("x.b.test", 0), Some("x.b.test"));
        assert_eq!(
            by("x.b.test", 100),
            Some("*.b.test"),
            "the nearer one ended"
        );
        assert_eq!(by("y.b.test:1", 0), Some("*.b.test"));
        assert_eq!(by("a.test", 0), Some("*.test"));
        assert_eq!(by("test", 0), None);
    }

    #[test]
    fn a_pattern_is_a_server_name_or_a_star_and_one() {
        assert_eq!(pattern(" Spam.Test "), Ok("spam.test".into()));
        assert_eq!(pattern("*.spam.test"), Ok("*.spam.test".into()));
        assert_eq!(pattern("spam.test:8443"), Ok("spam.test:8443".into()));
        for bad in ["", "*", "*.", "a b", "a/b", "**.x", "x.*", "*.x:1"] {
            assert!(pattern(bad).unwrap_err().contains("is neither"), "{bad}");
        }
    }

    #[test]
    fn a_rule_ends_when_it_says() {
        let rules = Rules::new(vec![row("block", "a.test", Some(100))]);
        assert_eq!(rules.standing("uam", "a.test", 99), Standing::Blocked);
        assert_eq!(rules.standing("uam", "a.test", 100), Standing::Ordinary);
    }
}
