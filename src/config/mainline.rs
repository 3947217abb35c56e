//! A VoltChat mainline's own `config.json` as a `[voltchat]` section.
//!
//! Only its `federation` and `server` blocks are read. What is taken, and what is not and why, stands
//! in the section's comments; a value that is not taken is never shown, for it may be a secret. The
//! section is judged by the parser before it is handed out.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use toml::Value as Toml;

use super::Config;

/// Members that need no explanation beyond this one.
const SERVER_REST: &str =
    "where and how the mainline itself listens; a bridge has [public] for that";
const NO_SECRETS: &str = "a bridge neither makes nor reads a mainline's tokens; operators get their own \
     under [[voltchat.operators]]";

/// The section made of the file's text. The error is a sentence that names the member.
pub fn section(text: &str) -> Result<String, String> {
    let text = text.trim_start_matches('\u{feff}');
    // The reader's own message could quote a secret; where it stopped is enough.
    let document: Value = serde_json::from_str(text)
        .map_err(|e| format!("it is not JSON (line {}, column {})", e.line(), e.column()))?;
    let Value::Object(document) = document else {
        return Err(format!("it must be a JSON object, not {}", kind(&document)));
    };
    let federation = block(&document, "federation")?;
    let server = block(&document, "server")?;
    if federation.is_none() && server.is_none() {
        return Err("it has neither a federation nor a server block".to_owned());
    }
    let empty = Map::new();
    let federation = federation.unwrap_or(&empty);
    let server = server.unwrap_or(&empty);

    let mut out = Out(String::new());
    out.say("From a mainline's config.json. Put it into your configuration file.");
    out.0.push_str("[voltchat]\n");
    enabled(federation, &mut out);
    url(server, &mut out)?;
    name(federation, server, &mut out)?;
    allowed(federation, &mut out)?;
    hops(federation, &mut out)?;
    left_out(&document, federation, server, &mut out);
    match Config::from_text(&out.0) {
        Ok(_) => Ok(out.0),
        Err(e) => Err(format!("what it says is not allowed here: {e}")),
    }
}

/// Lines of the section.
struct Out(String);

impl Out {
    fn say(&mut self, comment: &str) {
        let mut line = String::from("#");
        for word in comment.split_whitespace() {
            if line.len() + word.len() >= 100 {
                self.0.push_str(&line);
                self.0.push('\n');
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        self.0.push_str(&line);
        self.0.push('\n');
    }

    fn set(&mut self, key: &str, value: &Toml) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{key} = {value}");
    }
}

fn enabled(federation: &Map<String, Value>, out: &mut Out) {
    let given = federation.get("enabled");
    let on = given == Some(&Value::Bool(true));
    match given {
        Some(Value::Bool(_)) => out.say("federation.enabled"),
        None => out.say("federation.enabled is missing, which a mainline takes as false."),
        Some(other) => out.say(&format!(
            "federation.enabled is {}; a mainline federates only with exactly true.",
            kind(other)
        )),
    }
    out.set("enabled", &Toml::Boolean(on));
}

fn url(server: &Map<String, Value>, out: &mut Out) -> Result<(), String> {
    let Some(given) = text(server, "server", "url")? else {
        out.say(
            "server.url is missing. The url is the bridge's public origin and its host the bridge's \
             name among peers:",
        );
        out.0.push_str("# url = \"https://bridge.example.org\"\n");
        return Ok(());
    };
    let uri: Result<http::Uri, _> = given.trim().parse();
    let origin = uri.ok().and_then(|uri| {
        let authority = uri.authority()?.as_str();
        let authority = authority.rsplit('@').next().unwrap_or(authority);
        (uri.scheme_str() == Some("https")).then(|| format!("https://{authority}"))
    });
    match origin {
        Some(origin) => {
            out.say(
                "server.url: right if the bridge takes the mainline's place. A bridge beside the \
                 mainline is a peer of its own and needs a host of its own here.",
            );
            out.set("url", &Toml::String(origin));
        }
        None => {
            out.say(
                "server.url is no https:// address, and peers take no other. Give the bridge its \
                 public origin:",
            );
            out.0.push_str("# url = \"https://bridge.example.org\"\n");
        }
    }
    Ok(())
}

fn name(
    federation: &Map<String, Value>,
    server: &Map<String, Value>,
    out: &mut Out,
) -> Result<(), String> {
    let own = text(federation, "federation", "serverName")?;
    let shown = text(server, "server", "name")?;
    let (why, name) = match (own, shown) {
        (Some(own), None) => ("federation.serverName", own),
        (Some(own), Some(_)) => (
            "federation.serverName. What the mainline shows to its peers is server.name, which may \
             differ.",
            own,
        ),
        (None, Some(shown)) => ("server.name", shown),
        (None, None) => return Ok(()),
    };
    out.say(why);
    out.set("server_name", &Toml::String(name.to_owned()));
    Ok(())
}

fn allowed(federation: &Map<String, Value>, out: &mut Out) -> Result<(), String> {
    let hosts: &[Value] = match federation.get("allowedServers") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(hosts)) => hosts,
        Some(other) => {
            return Err(format!(
                "federation.allowedServers must be an array of texts, not {}: a mainline takes it as \
                 an empty list, open to everybody",
                kind(other)
            ));
        }
    };
    let mut texts = Vec::with_capacity(hosts.len());
    for host in hosts {
        match host {
            Value::String(text) => texts.push(Toml::String(text.clone())),
            other => {
                return Err(format!(
                    "federation.allowedServers must hold texts only, not {}",
                    kind(other)
                ));
            }
        }
    }
    if texts.is_empty() {
        out.say(
            "federation.allowedServers is empty: for a mainline every public host is welcome. Here \
             strangers may ask, and nothing is exchanged until an operator accepts them.",
        );
    } else {
        out.say("federation.allowedServers");
    }
    out.set("allowed_servers", &Toml::Array(texts));
    Ok(())
}

fn hops(federation: &Map<String, Value>, out: &mut Out) -> Result<(), String> {
    let hops = match federation.get("maxHops") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Number(n)) => n.as_i64().filter(|n| (1..=16).contains(n)),
        Some(_) => None,
    };
    let hops = hops.ok_or("federation.maxHops must be a whole number from 1 to 16")?;
    out.say("federation.maxHops: a mainline reads it nowhere, a bridge keeps to it.");
    out.set("max_hops", &Toml::Integer(hops));
    Ok(())
}

/// What was not taken, by name and without its value.
fn left_out(
    document: &Map<String, Value>,
    federation: &Map<String, Value>,
    server: &Map<String, Value>,
    out: &mut Out,
) {
    let rest = |block: &Map<String, Value>, name: &str, taken: &[&str]| {
        let keys = block.keys().filter(|key| !taken.contains(&key.as_str()));
        let keys: Vec<String> = keys.map(|key| format!("{name}.{}", plain(key))).collect();
        keys.join(", ")
    };
    out.0.push('\n');
    out.say("Not taken:");
    let taken = ["enabled", "serverName", "allowedServers", "maxHops"];
    for (names, why) in [
        (
            rest(federation, "federation", &taken),
            "a bridge has no use for it",
        ),
        (rest(server, "server", &["url", "name"]), SERVER_REST),
    ] {
        if !names.is_empty() {
            out.say(&format!("{names}: {why}."));
        }
    }
    if document.contains_key("security") {
        out.say(&format!("security: {NO_SECRETS}."));
    }
    out.say(
        "The mainline's peers and their secrets: they are in its database and belong to its host. \
         Each peer is asked anew, with `drawbridge peers add voltchat HOST`.",
    );
}

fn block<'a>(
    document: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a Map<String, Value>>, String> {
    match document.get(name) {
        None => Ok(None),
        Some(Value::Object(block)) => Ok(Some(block)),
        Some(other) => Err(format!("{name} must be an object, not {}", kind(other))),
    }
}

/// A non-blank text.
fn text<'a>(
    block: &'a Map<String, Value>,
    name: &str,
    key: &str,
) -> Result<Option<&'a str>, String> {
    match block.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
        Some(other) => Err(format!("{name}.{key} must be a text, not {}", kind(other))),
    }
}

/// A stranger's member name, fit for a comment.
fn plain(key: &str) -> String {
    let fits = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    key.chars().filter(fits).take(60).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(document: &Value) -> (String, super::super::VoltChatConfig) {
        let text = section(&document.to_string()).expect("a section");
        let config = Config::from_text(&text).expect("valid").voltchat;
        (text, config)
    }

    #[test]
    fn what_a_mainline_says_about_federation_becomes_our_section() {
        let (text, config) = read(&json!({
            "server": {"url": "https://Chat.Example.org/app", "name": "Volt \"1\"", "port": 5000,
                "mode": "mainline"},
            "federation": {"enabled": true, "serverName": null, "maxHops": 3,
                "allowedServers": ["*.example.net", "peer.org"], "sharedSecret": "hunter2-hunter2"},
            "security": {"jwtSecret": "hunter2", "adminUsers": ["root"]},
            "database": {"password": "hunter2"},
        }));
        assert!(config.enabled);
        assert_eq!(config.url.as_deref(), Some("https://chat.example.org"));
        assert_eq!(config.name, "Volt \"1\"");
        assert_eq!(config.allowed_servers, ["*.example.net", "peer.org"]);
        assert_eq!(config.max_hops, 3);
        assert!(!text.contains("hunter2"), "{text}");
        for part in [
            "server.port",
            "server.mode",
            "federation.sharedSecret",
            "security: ",
            "a host of its own",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_mainline_that_does_not_say_exactly_true_does_not_federate() {
        for given in [json!("true"), json!(1), json!(null), json!(false)] {
            let (_, config) = read(&json!({"federation": {"enabled": given}}));
            assert!(!config.enabled, "{given}");
        }
        assert!(!read(&json!({"server": {}})).1.enabled);
    }

    #[test]
    fn an_address_that_peers_would_not_take_is_left_to_the_operator() {
        let (text, config) = read(&json!({"server": {"url": "http://localhost:5000"}}));
        assert!(config.url.is_none());
        assert!(text.contains("server.url is no https:// address"), "{text}");
    }

    #[test]
    fn an_empty_list_is_taken_and_said_to_mean_something_else_here() {
        let (text, config) = read(&json!({"federation": {"allowedServers": []}}));
        assert!(config.allowed_servers.is_empty());
        let text = text.replace("\n# ", " ");
        assert!(text.contains("strangers may ask"), "{text}");
    }

    #[test]
    fn a_mistake_names_the_member() {
        for (document, part) in [
            ("[]", "must be a JSON object, not an array"),
            ("{\"jwtSecret\":\"hunter2\"", "it is not JSON (line 1"),
            ("{}", "neither a federation nor a server block"),
            ("{\"federation\":[]}", "federation must be an object"),
            ("{\"server\":{\"url\":7}}", "server.url must be a text"),
            (
                "{\"federation\":{\"allowedServers\":\"a.org\"}}",
                "federation.allowedServers must be an array of texts, not a text",
            ),
            (
                "{\"federation\":{\"allowedServers\":[null]}}",
                "federation.allowedServers must hold texts only, not null",
            ),
            (
                "{\"federation\":{\"maxHops\":\"3\"}}",
                "federation.maxHops must be a whole number",
            ),
            (
                "{\"federation\":{\"serverName\":true}}",
                "federation.serverName must be a text",
            ),
            (
                "{\"server\":{\"url\":\"https://under_score.org\"}}",
                "voltchat.url must be an origin",
            ),
        ] {
            let said = section(document).expect_err(document);
            assert!(said.contains(part), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
