//! The environment as a layer.
//!
//! `DRAWBRIDGE_SECTION__KEY` names any key of the file. A name with `__` in it must be a setting; one
//! without is left alone unless it is a top-level key or a setting written with too few underscores,
//! since tools keep variables of their own under the same prefix. The names of the UAM document, of a
//! VoltChat mainline and of a Paracord server come first, so that ours win.

use toml::Value;

use super::ConfigError;
use super::layers::{Layers, nearest};

const PREFIX: &str = "DRAWBRIDGE_";

/// How the UAM document writes a value.
enum Form {
    Text,
    Integer,
    /// `1`, `true` or `yes`; anything else is false.
    Flag,
    Seconds,
    Hours,
    /// Python's names of levels.
    Level,
    /// `true`, exactly; anything else is false.
    Exactly,
    /// `true` or `false`, also as 1, yes, on and 0, no, off; anything else is a mistake.
    Switch,
    /// Items with commas between.
    List,
}

const UAM: [(&str, &str, Form); 10] = [
    ("UAM_RELAY_DOMAIN", "uam.domain", Form::Text),
    ("UAM_RELAY_HTTP_URL", "uam.http_url", Form::Text),
    ("UAM_RELAY_KEY_PATH", "uam.key_path", Form::Text),
    ("UAM_FEDERATION_ENABLED", "uam.enabled", Form::Flag),
    ("UAM_FEDERATION_MAX_HOPS", "uam.max_hops", Form::Integer),
    (
        "UAM_FEDERATION_RELAY_RATE_LIMIT",
        "uam.relay_rate_limit",
        Form::Integer,
    ),
    (
        "UAM_FEDERATION_TIMESTAMP_MAX_AGE",
        "uam.timestamp_max_age",
        Form::Seconds,
    ),
    (
        "UAM_FEDERATION_DISCOVERY_TTL_HOURS",
        "uam.discovery_ttl",
        Form::Hours,
    ),
    ("UAM_ADMIN_API_KEY", "uam.admin_api_key", Form::Text),
    ("UAM_LOG_LEVEL", "log.level", Form::Level),
];

/// A mainline's names. The general ones stand first, so that the federation's own win.
const VOLTCHAT: [(&str, &str, Form); 5] = [
    ("SERVER_URL", "voltchat.url", Form::Text),
    ("SERVER_NAME", "voltchat.server_name", Form::Text),
    ("FEDERATION_ENABLED", "voltchat.enabled", Form::Exactly),
    ("FEDERATION_SERVER_NAME", "voltchat.server_name", Form::Text),
    (
        "FEDERATION_ALLOWED_SERVERS",
        "voltchat.allowed_servers",
        Form::List,
    ),
];
/// Many programs have a SERVER_URL: the general names count only beside one that begins like this.
const VOLTCHAT_OWN: &str = "FEDERATION_";

/// A Paracord server's names. `PARACORD_FEDERATION_ALLOW_DISCOVERY` is not among them: nothing reads it
/// there either.
const PARACORD: [(&str, &str, Form); 9] = [
    (
        "PARACORD_FEDERATION_ENABLED",
        "paracord.enabled",
        Form::Switch,
    ),
    ("PARACORD_SERVER_NAME", "paracord.server_name", Form::Text),
    ("PARACORD_FEDERATION_DOMAIN", "paracord.domain", Form::Text),
    (
        "PARACORD_FEDERATION_SIGNING_KEY_PATH",
        "paracord.key_path",
        Form::Text,
    ),
    ("PARACORD_FEDERATION_KEY_ID", "paracord.key_id", Form::Text),
    (
        "PARACORD_FEDERATION_MAX_EVENTS_PER_PEER_PER_MINUTE",
        "paracord.max_events_per_peer_per_minute",
        Form::Integer,
    ),
    (
        "PARACORD_FEDERATION_MAX_USER_CREATES_PER_PEER_PER_HOUR",
        "paracord.max_user_creates_per_peer_per_hour",
        Form::Integer,
    ),
    (
        "PARACORD_FEDERATION_ALLOWED_GUILD_IDS",
        "paracord.allowed_guild_ids",
        Form::List,
    ),
    (
        "PARACORD_FEDERATION_READ_TOKEN",
        "paracord.read_token",
        Form::Text,
    ),
];

/// Puts the variables that are settings on top.
pub(super) fn apply(layers: &mut Layers, env: &[(String, String)]) -> Result<(), ConfigError> {
    let given = |name: &str| {
        let found = env.iter().find(|(n, _)| n == name).map(|(_, v)| v.trim());
        // An empty variable is how compose files write "not set".
        found.filter(|text| !text.is_empty())
    };
    let meant = VOLTCHAT
        .iter()
        .any(|(name, ..)| name.starts_with(VOLTCHAT_OWN) && given(name).is_some());
    let voltchat = VOLTCHAT.into_iter().filter(|_| meant);
    for (name, path, form) in UAM.into_iter().chain(voltchat).chain(PARACORD) {
        if let Some(text) = given(name) {
            layers.add_value(path, documented(name, text, form)?, name)?;
        }
    }
    let paths = layers.paths();
    let mut ours: Vec<_> = env
        .iter()
        .filter_map(|(name, text)| Some((name, name.strip_prefix(PREFIX)?, text)))
        .collect();
    ours.sort();
    refuse_two_forms(&ours)?;
    for (name, rest, text) in ours {
        let path = rest.to_ascii_lowercase().replace("__", ".");
        if paths.contains(&path) {
            let value = typed(layers, &path, name, text)?;
            layers.add_value(&path, value, name)?;
            continue;
        }
        let flat = |p: &str| p.replace(['.', '_'], "");
        let meant = paths.iter().find(|p| flat(p) == flat(&path)).cloned();
        let meant = match meant {
            Some(meant) => Some(meant),
            None if rest.contains("__") => nearest(&path, &paths),
            None => continue,
        };
        let hint = meant.map_or_else(String::new, |p| {
            format!("; did you mean {PREFIX}{}?", variable(&p))
        });
        return Err(ConfigError(format!(
            "the environment variable {name} names no setting{hint}"
        )));
    }
    Ok(())
}

fn variable(path: &str) -> String {
    path.replace('.', "__").to_ascii_uppercase()
}

/// Within one layer a setting and its `_file` form exclude each other; variables arrive one by one,
/// so this is looked at here.
fn refuse_two_forms(ours: &[(&String, &str, &String)]) -> Result<(), ConfigError> {
    let set = |wanted: &str| {
        ours.iter()
            .any(|(_, rest, text)| *rest == wanted && !text.is_empty())
    };
    for (name, rest, _) in ours {
        if let Some(plain) = rest.strip_suffix("_FILE")
            && set(rest)
            && set(plain)
        {
            return Err(ConfigError(format!(
                "{name} and {PREFIX}{plain} are two forms of one setting; keep one"
            )));
        }
    }
    Ok(())
}

/// Reads `text` as the document of the variable's protocol has it.
fn documented(name: &str, text: &str, form: Form) -> Result<Value, ConfigError> {
    let number = |unit: &str| {
        text.parse::<i64>()
            .ok()
            .filter(|n| *n >= 0)
            .ok_or_else(|| ConfigError(format!("{name} must be {unit}, not {text:?}")))
    };
    Ok(match form {
        Form::Text => Value::String(text.to_owned()),
        Form::Integer => Value::Integer(number("a whole number")?),
        Form::Flag => Value::Boolean(matches!(
            text.to_ascii_lowercase().as_str(),
            "1" | "true" | "yes"
        )),
        Form::Exactly => Value::Boolean(text == "true"),
        Form::Switch => {
            Value::Boolean(switch(text).ok_or_else(|| {
                ConfigError(format!("{name} must be true or false, not {text:?}"))
            })?)
        }
        Form::List => list(text),
        Form::Seconds => Value::String(format!("{}s", number("a whole number of seconds")?)),
        Form::Hours => Value::String(format!("{}h", number("a whole number of hours")?.max(1))),
        Form::Level => Value::String(match text.to_ascii_lowercase().as_str() {
            "warning" => "warn".to_owned(),
            "critical" | "fatal" => "error".to_owned(),
            other => other.to_owned(),
        }),
    })
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Reads `text` as the kind of value that the key has by default.
fn typed(layers: &Layers, path: &str, name: &str, text: &str) -> Result<Value, ConfigError> {
    let wrong = |wanted: &str| ConfigError(format!("{name} must be {wanted}, not {text:?}"));
    let trimmed = text.trim();
    Ok(match layers.default_of(path) {
        Some(Value::Integer(_)) => {
            Value::Integer(trimmed.parse().map_err(|_| wrong("a whole number"))?)
        }
        Some(Value::Float(_)) => Value::Float(trimmed.parse().map_err(|_| wrong("a number"))?),
        Some(Value::Boolean(_)) => match trimmed.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" => Value::Boolean(true),
            "0" | "false" | "no" => Value::Boolean(false),
            _ => return Err(wrong("true or false")),
        },
        Some(Value::Array(_)) => list(trimmed),
        _ => Value::String(trimmed.to_owned()),
    })
}

/// Items with commas between.
fn list(text: &str) -> Value {
    Value::Array(
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| Value::String(item.to_owned()))
            .collect(),
    )
}
