//! What was written, kept to tell one reading of the configuration from another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use super::Secret;
use super::layers::PEERS;

/// Every setting as the layers gave it, the peers by their fingerprint, and what secrets were read at
/// the time. Never shown: it holds passwords.
#[derive(Clone)]
pub struct Given {
    table: Table,
    secrets: BTreeMap<String, Secret>,
}

impl Given {
    pub(super) fn new(merged: &Table, secrets: BTreeMap<String, Secret>) -> Self {
        let kept = merged.iter().map(|(key, value)| {
            // Ten thousand peers would be kept twice over: whether they are the same is enough.
            let value = match key == PEERS {
                true => Value::String(fingerprint(value)),
                false => value.clone(),
            };
            (key.clone(), value)
        });
        let table = kept.collect();
        Self { table, secrets }
    }

    /// The settings that differ, as dotted paths in order: `nats.url`, `peers`. A secret's file that
    /// holds something else now is its `_file` setting.
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let mut paths = BTreeSet::new();
        differences(&self.table, &other.table, "", &mut paths);
        let held = |given: &Self, path: &String| {
            given.secrets.get(path).map(|secret| secret.0.to_string())
        };
        for path in self.secrets.keys().chain(other.secrets.keys()) {
            let file = format!("{path}_file");
            if held(self, path) != held(other, path)
                && !paths.contains(path)
                && !paths.contains(&file)
            {
                paths.insert(file);
            }
        }
        paths.into_iter().collect()
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given")
    }
}

fn fingerprint(value: &Value) -> String {
    crate::identity::hex(&Sha256::digest(value.to_string()))
}

fn differences(one: &Table, other: &Table, prefix: &str, paths: &mut BTreeSet<String>) {
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for key in keys {
        let path = match prefix {
            "" => key.clone(),
            prefix => format!("{prefix}.{key}"),
        };
        match (one.get(key), other.get(key)) {
            (Some(Value::Table(a)), Some(Value::Table(b))) => differences(a, b, &path, paths),
            (Some(Value::Table(only)), None) | (None, Some(Value::Table(only)))
                if path != PEERS =>
            {
                differences(only, &Table::new(), &path, paths);
            }
            (a, b) if a != b => {
                paths.insert(path);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn two_readings_differ_in_the_settings_that_say_something_else() {
        let read = |text: &str| Config::from_text(text).unwrap().given;
        let one = read("[uam]\ndomain = \"a.test\"\nmax_hops = 3\n");
        assert!(one.changed(&one).is_empty());
        let other = read(
            "[uam]\ndomain = \"b.test\"\n[http.hosts]\n\"x.test\" = [\"192.0.2.1\"]\n\
             [[peers]]\nprotocol = \"uam\"\nname = \"c.test\"\n",
        );
        assert_eq!(
            one.changed(&other),
            ["http.hosts.x.test", "peers", "uam.domain"]
        );
        assert_eq!(one.changed(&other), other.changed(&one));
    }

    #[test]
    fn a_secret_file_that_holds_something_else_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let read = |held: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(&file, held).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            Config::from_text(&format!("[uam]\nadmin_api_key_file = {file:?}\n")).unwrap()
        };
        let (one, other) = (read("first-key"), read("second-key"));
        assert_eq!(one.given.changed(&other.given), ["uam.admin_api_key_file"]);
        assert!(!format!("{other:?}").contains("second-key"));
    }
}
