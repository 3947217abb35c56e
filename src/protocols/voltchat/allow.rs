//! The list of hosts that may peer with us (`allowed_servers`), asked at peering, at handshake and at
//! every authenticated request.
//!
//! An empty list lets every public host ask; such a stranger waits for the operator, and nothing is
//! exchanged before. A private host needs an entry of exactly its name and port, whatever else the
//! list says.

use serde_json::Value;

use super::host;

/// The list, its entries in their one form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList(Vec<String>);

impl AllowList {
    /// The list of a configuration; blank entries drop out.
    pub fn new(entries: &[String]) -> Self {
        Self(
            entries
                .iter()
                .map(|entry| host::normal(entry))
                .filter(|entry| !entry.is_empty())
                .collect(),
        )
    }

    /// The list in a document. The error is a sentence: it is no list of texts.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let entries = value.as_array().ok_or(
            "the list of allowed servers is not a list; write it as [\"volt.example\"], or leave \
             it out to let every public server ask for peering",
        )?;
        let texts = entries.iter().map(|entry| match entry {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!(
                "the list of allowed servers holds {other}, which is no text; name a host there"
            )),
        });
        Ok(Self::new(&texts.collect::<Result<Vec<_>, _>>()?))
    }

    /// Whether this host, in whatever form, may peer with us.
    pub fn admits(&self, host: &str) -> bool {
        let name = host::normal(host);
        if name.is_empty() {
            return false;
        }
        let named = self.0.contains(&name);
        if named || host::is_private(&name) {
            return named;
        }
        self.0.is_empty()
            || self.0.iter().any(|entry| {
                let suffix = entry.strip_prefix('*');
                suffix.is_some_and(|suffix| {
                    suffix.is_empty() || (suffix.starts_with('.') && name.ends_with(suffix))
                })
            })
    }

    /// Whether it names nobody, so that every public host may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(entries: &[&str]) -> AllowList {
        AllowList::new(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_but_its_own_entry_admits_a_private_host() {
        for host in ["10.0.0.1", "127.1", "a.localhost", "[::1]", "not a host"] {
            for open in [&[][..], &["*"], &["*.localhost", "*.0.0.1", "*"]] {
                assert!(!list(open).admits(host), "{host} by {open:?}");
            }
            assert!(list(&[host]).admits(host), "{host}");
        }
        assert!(!list(&["10.0.0.1"]).admits("10.0.0.1:8443"));
    }

    #[test]
    fn a_wildcard_covers_what_is_below_it_on_the_same_port() {
        let list = list(&["*.Fed.example", " "]);
        assert!(list.admits("a.fed.example") && list.admits("A.B.FED.example"));
        for host in [
            "fed.example",
            "xfed.example",
            "a.fed.example:8443",
            "a.fed.example.",
        ] {
            assert!(!list.admits(host), "{host}");
        }
        assert!(!super::AllowList::new(&["a*.example".to_owned()]).admits("ab.example"));
        assert!(!super::AllowList::new(&["*fed.example".to_owned()]).admits("xfed.example"));
    }

    #[test]
    fn a_list_of_blanks_is_empty_and_a_list_that_is_none_is_an_error() {
        assert!(list(&["", "  "]).is_empty());
        assert!(AllowList::from_json(&json!([])).is_ok_and(|list| list.is_empty()));
        for none in [
            json!(null),
            json!("volt.example"),
            json!({}),
            json!(["a", 5]),
        ] {
            assert!(AllowList::from_json(&none).is_err(), "{none}");
        }
    }
}
