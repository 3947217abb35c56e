//! What each protocol's peerings are called and what of them is shown. Pure: from a method's answer to
//! lines.

use serde_json::{Map, Value};

use crate::cli::table::{printable, text, time};

/// How one protocol speaks of its peerings.
pub struct Words {
    /// As in subjects and settings.
    pub protocol: &'static str,
    /// What is said once `peers add` could reach the other side.
    pub added: fn(&Value) -> Vec<String>,
    /// What is said when it could not be reached, but is kept.
    pub unreached: &'static str,
    /// What a peering is, line by line.
    pub lines: fn(&Value) -> Vec<String>,
    /// What stands there now, line by line.
    pub seen: fn(&Value) -> Vec<String>,
    /// What went wrong when an accepted peer did not answer.
    pub failed: &'static str,
    /// What follows then.
    pub unsettled: &'static str,
    /// Behind `peers reject` and `peers remove`.
    pub ended: &'static str,
}

/// Every protocol whose peerings a person decides; the first is meant where none is named.
pub const ALL: [Words; 2] = [
    Words {
        protocol: "voltchat",
        added: |peer| {
            vec![format!(
                "{} was asked. Nothing is exchanged until its operator accepts; its first ping will \
                 tell.",
                text(&peer["host"])
            )]
        },
        unreached: "is kept, but could not be asked",
        lines: voltchat,
        seen: info,
        failed: "our ping failed",
        unsettled: "It is pinged again and again",
        ended: "The other side is not told.",
    },
    Words {
        protocol: "paracord",
        added: looked_up,
        unreached: "is kept, but could not be looked up",
        lines: paracord,
        seen: live,
        failed: "it could not be looked up",
        unsettled: "It is looked up again and again",
        ended: "The other side is not told; it goes on asking and is answered 403.",
    },
];

impl Words {
    /// Of this protocol; None: nobody decides about its peers one by one.
    pub fn of(protocol: &str) -> Option<&'static Self> {
        ALL.iter().find(|words| words.protocol == protocol)
    }
}

/// Where a peering stands: `requested`, `pending`, `connected`, `error`, `trusted`, `rejected`.
pub fn state(peer: &Value) -> String {
    match &peer["state"] {
        Value::Null => text(&peer["status"]),
        state => text(state),
    }
}

/// Why the last exchange failed.
pub fn last_error(peer: &Value) -> Option<&str> {
    let said = |name: &str| peer[name].as_str();
    said("lastError").or_else(|| said("last_error"))
}

fn voltchat(peer: &Value) -> Vec<String> {
    let direction = match peer["direction"].as_str() {
        Some("outgoing") => "we asked",
        Some("incoming") => "it asked",
        _ => "-",
    };
    let mut lines = vec![
        format!("host        {}", text(&peer["host"])),
        format!("url         {}", text(&peer["url"])),
        format!("name        {}", text(&peer["name"])),
        format!("peering     {} ({direction})", state(peer)),
        format!("last seen   {}", text(&peer["lastSeen"])),
    ];
    if let Some(error) = last_error(peer) {
        lines.push(format!("last error  {error}"));
    }
    let features = peer["features"].as_object().map_or(0, Map::len);
    if features > 0 {
        lines.push(format!("features    {}", peer["features"]));
    }
    lines.iter().map(|line| printable(line)).collect()
}

fn paracord(peer: &Value) -> Vec<String> {
    let fixed = match peer["domain_fixed"].as_bool() {
        Some(true) => " (fixed)",
        _ => "",
    };
    let mut lines = vec![
        format!("name        {}", text(&peer["name"])),
        format!("domain      {}{fixed}", text(&peer["domain"])),
        format!("endpoint    {}", text(&peer["endpoint"])),
        format!("status      {}", state(peer)),
        format!("last seen   {}", time(&peer["last_seen_ms"])),
        format!("has our key {}", fetched(&peer["fetched_our_keys_ms"])),
    ];
    for key in peer["keys"].as_array().into_iter().flatten() {
        let id = match &key["key_id"] {
            Value::Null => "any id".to_owned(),
            id => text(id),
        };
        let until = match (key["pinned"].as_bool(), &key["valid_until_ms"]) {
            (Some(true), _) => "pinned".to_owned(),
            (_, until) => format!("until {}", time(until)),
        };
        lines.push(format!(
            "key         {} ({id}, {until})",
            text(&key["fingerprint"])
        ));
    }
    if let Some(error) = last_error(peer) {
        lines.push(format!("last error  {error}"));
    }
    lines.iter().map(|line| printable(line)).collect()
}

fn fetched(at: &Value) -> String {
    match at {
        Value::Null => {
            "not seen fetching it: after a change of ours an operator there must act".into()
        }
        at => format!("fetched by itself, last {}", time(at)),
    }
}

fn looked_up(peer: &Value) -> Vec<String> {
    let mut said = vec![format!("{} was looked up:", text(&peer["name"]))];
    said.extend(paracord(peer).into_iter().map(|line| format!("  {line}")));
    said.push(match state(peer).as_str() {
        "trusted" => "It is trusted. Nothing passes before it trusts us as well.".to_owned(),
        _ => format!(
            "Nothing is exchanged yet. Compare the fingerprint with its operator, then: `drawbridge \
             peers accept paracord {}`.",
            text(&peer["name"])
        ),
    });
    said.iter().map(|line| printable(line)).collect()
}

/// What `GET /info` of a mainline says.
fn info(seen: &Value) -> Vec<String> {
    let (info, why) = (&seen["info"], seen["infoError"].as_str());
    let lines = match info {
        Value::Null => vec![format!("GET /info   {}", why.unwrap_or("gave no answer"))],
        info => {
            let members = info.as_object().into_iter().flatten();
            let members = members.map(|(name, value)| format!("  {name} = {}", text(value)));
            std::iter::once("GET /info there says:".to_owned())
                .chain(members)
                .collect()
        }
    };
    lines.iter().map(|line| printable(line)).collect()
}

/// What a Paracord server says of itself at this moment.
fn live(seen: &Value) -> Vec<String> {
    let there = &seen["live"];
    let lines = match there {
        Value::Null => {
            let why = seen["live_error"].as_str().unwrap_or("no answer");
            vec![format!("now         {why}")]
        }
        there => {
            let keys = there["keys"].as_array().into_iter().flatten();
            let keys = keys.map(|key| format!("  key       {}", text(&key["fingerprint"])));
            [
                "It says now:".to_owned(),
                format!("  domain    {}", text(&there["domain"])),
                format!("  endpoint  {}", text(&there["endpoint"])),
            ]
            .into_iter()
            .chain(keys)
            .collect()
        }
    };
    lines.iter().map(|line| printable(line)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_paracord_servers_name_domain_endpoint_and_fingerprints_are_shown_before_it_is_trusted() {
        let peer = json!({
            "name": "chat.example",
            "domain": "example",
            "domain_fixed": false,
            "endpoint": "https://chat.example/_paracord/federation/v1",
            "status": "pending",
            "keys": [{"key_id": "ed25519:auto", "fingerprint": "aa:bb", "pinned": false,
                      "valid_until_ms": 1_700_000_000_000_i64}],
            "last_error": null,
        });
        let said = looked_up(&peer).join("\n");
        for part in [
            "chat.example",
            "domain      example",
            "https://chat.example/_paracord",
            "aa:bb (ed25519:auto",
            "peers accept paracord chat.example",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("It is trusted"), "{said}");
    }

    #[test]
    fn control_characters_of_a_server_do_not_reach_the_terminal() {
        let peer = json!({"name": "x", "domain": "a\u{1b}[2Jb", "status": "pending"});
        let said = paracord(&peer).join("\n");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
}
