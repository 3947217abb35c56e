//! What the lists say of a name: a pure look-up over a snapshot.

use std::collections::HashMap;

use crate::clock::UnixMs;
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

    /// Block wins over everything, quarantine over allow: the stricter word counts.
    pub fn standing(&self, protocol: &str, name: &str, now: UnixMs) -> Standing {
        let order = [
            (Rule::Block, Standing::Blocked),
            (Rule::Quarantine, Standing::Quarantined),
            (Rule::Allow, Standing::Allowed),
        ];
        for (rule, standing) in order {
            if self.matches(protocol, rule, name, now) {
                return standing;
            }
        }
        Standing::Ordinary
    }

    fn matches(&self, protocol: &str, rule: Rule, name: &str, now: UnixMs) -> bool {
        let Some(list) = self.lists.get(&(protocol.to_owned(), rule)) else {
            return false;
        };
        if list.is_empty() {
            return false;
        }
        let lasts = |pattern: &str| {
            list.get(pattern)
                .is_some_and(|row| row.ends_ms.is_none_or(|end| now < end))
        };
        if lasts(name) {
            return true;
        }
        let host = match name.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => name,
        };
        host.match_indices('.')
            .any(|(dot, _)| lasts(&format!("*{}", &host[dot..])))
    }
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
    fn a_rule_ends_when_it_says() {
        let rules = Rules::new(vec![row("block", "a.test", Some(100))]);
        assert_eq!(rules.standing("uam", "a.test", 99), Standing::Blocked);
        assert_eq!(rules.standing("uam", "a.test", 100), Standing::Ordinary);
    }
}
