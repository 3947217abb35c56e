//! Layers of settings, merged, each value with the name of where it came from.
//!
//! The default file is the schema: a key that it does not name is unknown. Free are `[http.hosts]`,
//! whose keys are host names, and the blocks, which the default file can only show in a comment
//! ([`BLOCKS`]). A few settings have a second name, as another program's document writes them
//! ([`ALIASES`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::given::Given;
use super::{ConfigError, DEFAULT_TOML, Secret};

/// The table whose keys are the user's own.
const FREE_TABLE: &str = "http.hosts";
/// What is pinned of peers.
pub(super) const PEERS: &str = "peers";
/// Who may use VoltChat's administrative routes.
pub(super) const OPERATORS: &str = "voltchat.operators";
/// Lists of tables, with the keys of one block.
const BLOCKS: [(&str, &[&str]); 2] = [
    (
        PEERS,
        &[
            "protocol",
            "name",
            "endpoint",
            "public_key",
            "key_id",
            "domain",
            "accepted",
        ],
    ),
    (OPERATORS, &["name", "role", "token", "token_file"]),
];
/// Second names of settings, and the first.
const ALIASES: [(&str, &str); 3] = [
    ("voltchat.serverName", "server_name"),
    ("voltchat.allowedServers", "allowed_servers"),
    ("voltchat.maxHops", "max_hops"),
];

/// All layers so far as one table.
pub(super) struct Layers {
    schema: Table,
    merged: Table,
    origins: HashMap<String, String>,
    /// What was read from `_file` settings, by the key of the file.
    secrets: RefCell<BTreeMap<String, Secret>>,
    home: Option<PathBuf>,
    config_home: Option<PathBuf>,
}

impl Layers {
    /// The lowest layer alone.
    pub(super) fn defaults() -> Result<Self, ConfigError> {
        let schema: Table = DEFAULT_TOML
            .parse()
            .map_err(|e| ConfigError(format!("the built-in defaults cannot be read: {e}")))?;
        Ok(Self {
            merged: schema.clone(),
            schema,
            origins: HashMap::new(),
            secrets: RefCell::default(),
            home: None,
            config_home: None,
        })
    }

    /// Takes the user's directories from the environment: `HOME` and `XDG_CONFIG_HOME`.
    pub(super) fn set_homes(&mut self, env: &[(String, String)]) {
        let set = |wanted: &str| {
            let found = env
                .iter()
                .find(|(name, text)| name == wanted && !text.is_empty());
            found.map(|(_, text)| PathBuf::from(text))
        };
        self.home = set("HOME");
        self.config_home =
            set("XDG_CONFIG_HOME").or_else(|| self.home.as_ref().map(|home| home.join(".config")));
    }

    /// The user's home directory.
    pub(super) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// Where programs keep the user's settings.
    pub(super) fn config_home(&self) -> Option<&Path> {
        self.config_home.as_deref()
    }

    /// Puts the TOML `text` on top; `origin` (a file's name) stands in front of what is said about it.
    pub(super) fn add_text(&mut self, text: &str, origin: &str) -> Result<(), ConfigError> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            // Where and what, but not the text itself: the line may hold a password.
            let line = e
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(1, |before| before.matches('\n').count() + 1);
            ConfigError(format!("{origin}: line {line}: {}", e.message()))
        })?;
        self.add(table, origin)
    }

    /// Puts one value on top.
    pub(super) fn add_value(
        &mut self,
        path: &str,
        value: Value,
        origin: &str,
    ) -> Result<(), ConfigError> {
        let mut keys = path.rsplit('.');
        let mut layer = Table::new();
        if let Some(last) = keys.next() {
            layer.insert(last.to_owned(), value);
        }
        for key in keys {
            layer = Table::from_iter([(key.to_owned(), Value::Table(layer))]);
        }
        self.add(layer, origin)
    }

    fn add(&mut self, mut layer: Table, origin: &str) -> Result<(), ConfigError> {
        rename(&mut layer, origin)?;
        self.check(&layer, &self.schema, "", origin)?;
        for one in self.two_forms() {
            let other = format!("{one}_file");
            let set = |path: &str| {
                at(&layer, path)
                    .and_then(Value::as_str)
                    .is_some_and(|text| !text.is_empty())
            };
            match (set(&one), set(&other)) {
                (true, true) => {
                    return Err(ConfigError(format!(
                        "{origin}: {one} and {other} are two forms of one setting; keep one"
                    )));
                }
                (true, false) => clear(&mut self.merged, &other),
                (false, true) => clear(&mut self.merged, &one),
                (false, false) => {}
            }
        }
        merge(&mut self.merged, layer, "", origin, &mut self.origins);
        Ok(())
    }

    /// Notes what the file named by `path` held.
    pub(super) fn read_secret(&self, path: String, secret: &Secret) {
        self.secrets.borrow_mut().insert(path, secret.clone());
    }

    /// All of it, to be compared with what is read later.
    pub(super) fn given(&self) -> Given {
        Given::new(&self.merged, self.secrets.borrow().clone())
    }

    fn check(
        &self,
        layer: &Table,
        schema: &Table,
        prefix: &str,
        origin: &str,
    ) -> Result<(), ConfigError> {
        for (key, value) in layer {
            let path = join(prefix, key);
            if let Some((_, keys)) = BLOCKS.iter().find(|(name, _)| *name == path) {
                check_blocks(&path, keys, value, origin)?;
                continue;
            }
            match (schema.get(key), value) {
                (None, _) => return Err(self.unknown(&path, schema, origin)),
                (Some(Value::Table(_)), Value::Table(_)) if path == FREE_TABLE => {}
                (Some(Value::Table(below)), Value::Table(inner)) => {
                    self.check(inner, below, &path, origin)?;
                }
                (Some(Value::Table(_)), other) => {
                    return Err(ConfigError(format!(
                        "{origin}: {path} must be a section, [{path}], not {}",
                        kind(other)
                    )));
                }
                (Some(_), _) => {}
            }
        }
        Ok(())
    }

    fn unknown(&self, path: &str, schema: &Table, origin: &str) -> ConfigError {
        let mut beside: Vec<String> = schema.keys().map(|k| join(parent(path), k)).collect();
        let blocks = BLOCKS.iter().map(|(name, _)| (*name).to_owned());
        beside.extend(blocks.filter(|name| parent(name) == parent(path)));
        let all = self.paths();
        let hint = nearest(path, &beside)
            .or_else(|| nearest(path, &all))
            .map_or_else(String::new, |near| format!("; did you mean {near}?"));
        ConfigError(format!("{origin}: there is no setting {path}{hint}"))
    }

    /// Settings that have a second form, `KEY_file`: the secrets. One layer gives one of the forms,
    /// and its choice replaces a lower layer's.
    fn two_forms(&self) -> Vec<String> {
        let paths = self.paths();
        let plain = |path: &String| path.strip_suffix("_file").map(ToOwned::to_owned);
        let forms = paths.iter().filter_map(plain);
        forms.filter(|one| paths.contains(one)).collect()
    }

    /// Every key that holds a value, as a dotted path.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        collect(&self.schema, "", &mut paths);
        paths
    }

    /// The default of a key, for its kind.
    pub(super) fn default_of(&self, path: &str) -> Option<&Value> {
        at(&self.schema, path)
    }

    /// The value in force.
    pub(super) fn value(&self, path: &str) -> Option<&Value> {
        at(&self.merged, path)
    }

    /// A sentence about a key, with where its value came from in front.
    pub(super) fn wrong(&self, path: &str, sentence: &str) -> ConfigError {
        match self.origins.get(path) {
            Some(origin) => ConfigError(format!("{origin}: {path} {sentence}")),
            None => ConfigError(format!("{path} {sentence}")),
        }
    }
}

/// Gives settings written under their second name their first.
fn rename(layer: &mut Table, origin: &str) -> Result<(), ConfigError> {
    for (alias, key) in ALIASES {
        let Some((section, second)) = alias.split_once('.') else {
            continue;
        };
        let Some(Value::Table(inner)) = layer.get_mut(section) else {
            continue;
        };
        let Some(value) = inner.remove(second) else {
            continue;
        };
        if inner.insert(key.to_owned(), value).is_some() {
            return Err(ConfigError(format!(
                "{origin}: {alias} and {section}.{key} are two names of one setting; keep one"
            )));
        }
    }
    Ok(())
}

fn check_blocks(name: &str, keys: &[&str], value: &Value, origin: &str) -> Result<(), ConfigError> {
    let blocks = value.as_array().filter(|a| a.iter().all(Value::is_table));
    let Some(blocks) = blocks else {
        return Err(ConfigError(format!(
            "{origin}: {name} must be blocks that begin with [[{name}]], not {}",
            kind(value)
        )));
    };
    let known: Vec<String> = keys.iter().map(|k| join(name, k)).collect();
    for key in blocks
        .iter()
        .filter_map(Value::as_table)
        .flat_map(Table::keys)
    {
        if !keys.contains(&key.as_str()) {
            let path = join(name, key);
            let hint = nearest(&path, &known)
                .map_or_else(String::new, |near| format!("; did you mean {near}?"));
            return Err(ConfigError(format!(
                "{origin}: there is no setting {path}{hint}"
            )));
        }
    }
    Ok(())
}

fn merge(
    into: &mut Table,
    layer: Table,
    prefix: &str,
    origin: &str,
    origins: &mut HashMap<String, String>,
) {
    for (key, value) in layer {
        let path = join(prefix, &key);
        match (into.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(inner)) => {
                merge(below, inner, &path, origin, origins);
            }
            (_, value) => {
                into.insert(key, value);
                origins.insert(path, origin.to_owned());
            }
        }
    }
}

fn collect(table: &Table, prefix: &str, paths: &mut Vec<String>) {
    for (key, value) in table {
        let path = join(prefix, key);
        match value {
            Value::Table(inner) if path != FREE_TABLE => collect(inner, &path, paths),
            Value::Table(_) => {}
            _ => paths.push(path),
        }
    }
}

fn at<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((head, tail)) => at(table.get(head)?.as_table()?, tail),
    }
}

/// Sets a text back to "not set".
fn clear(table: &mut Table, path: &str) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), Value::String(String::new()));
        }
        Some((head, tail)) => {
            if let Some(Value::Table(inner)) = table.get_mut(head) {
                clear(inner, tail);
            }
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// The candidate that `wanted` is likely a slip of; none if nothing is near. Its last part decides, the
/// whole of it among those that are called alike.
pub(super) fn nearest(wanted: &str, candidates: &[String]) -> Option<String> {
    let leaf = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let wanted_leaf = leaf(wanted);
    candidates
        .iter()
        .map(|c| {
            let far = strsim::damerau_levenshtein(&leaf(c), &wanted_leaf);
            (far, strsim::damerau_levenshtein(c, wanted), c)
        })
        .min_by_key(|(far, in_all, _)| (*far, *in_all))
        .filter(|(far, ..)| *far <= 1 + wanted_leaf.chars().count() / 4)
        .map(|(_, _, c)| c.clone())
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}
