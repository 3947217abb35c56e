//! What we say of ourselves to anybody: `/info`, `/discover` and the two `.well-known` paths. They
//! answer with federation switched off, too, and hold nothing that is a secret: no peer, no count.

use serde_json::{Value, json};

use super::{Own, text};
use crate::clock::UnixMs;

/// What we are, to a mainline.
const INSTANCE: &str = "voltchat-mainnet";
/// The protocol's name.
const PROTOCOL: &str = "voltchat-federation";
/// Its one version.
const VERSION: u32 = 1;

/// `GET /info`: the members of the real server and those of the specification.
pub fn info(own: &Own, enabled: bool, features: &Value) -> Value {
    json!({
        "host": own.host.as_str(),
        "name": own.name,
        "version": env!("CARGO_PKG_VERSION"),
        "mode": "mainline",
        "features": features,
        "instanceType": INSTANCE,
        "software": {"name": "voltchat", "protocol": PROTOCOL},
        "discoveryVersion": VERSION,
        "federationEnabled": enabled,
        "apiUrl": own.url,
        "imageServerUrl": own.url,
        "cdnEnabled": false,
        "cdnUrl": null,
    })
}

/// `GET /discover` and the `.well-known` paths. A bridge has no accounts and no servers of its own, so
/// nobody logs in here; what a backend answers for it is asked for by name.
pub fn discover(own: &Own, enabled: bool, now: UnixMs) -> Value {
    json!({
        "software": "voltchat",
        "protocol": PROTOCOL,
        "protocolVersion": VERSION,
        "instanceType": INSTANCE,
        "host": own.host.as_str(),
        "name": own.name,
        "description": "A federation bridge",
        "website": own.url,
        "endpoints": {
            "api": own.url,
            "images": own.url,
            "federation": format!("{}/api/federation", own.url),
            "discovery": format!("{}/.well-known/voltchat", own.url),
        },
        "capabilities": {
            "federation": enabled,
            "remoteInvites": true,
            "relayPush": true,
            "relayFetch": true,
            "serverSnapshots": false,
        },
        "auth": {
            "local": {"enabled": false, "canRegister": false},
            "oauth": {"enabled": false, "provider": null},
        },
        "federationEnabled": enabled,
        "discoveryVersion": VERSION,
        "verification": {"valid": true, "checkedAt": text::iso(now)},
        "apiUrl": own.url,
        "imageServerUrl": own.url,
        "cdnEnabled": false,
        "cdnUrl": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PeerName;

    fn own() -> Own {
        Own {
            host: PeerName::parse("volt-a.example").unwrap(),
            url: "https://volt-a.example".into(),
            name: "Volt A".into(),
        }
    }

    #[test]
    fn info_has_both_sets_of_members_and_no_count_of_peers() {
        let info = info(&own(), false, &json!({}));
        for name in [
            "version",
            "mode",
            "features",
            "instanceType",
            "software",
            "apiUrl",
        ] {
            assert!(!info[name].is_null(), "{name}");
        }
        assert_eq!(info["federationEnabled"], false);
        assert!(info.get("peerCount").is_none());
    }

    #[test]
    fn the_description_names_where_everything_is() {
        let page = discover(&own(), true, 1_700_000_000_000);
        let federation = "https://volt-a.example/api/federation";
        assert_eq!(page["endpoints"]["federation"], federation);
        assert_eq!(
            page["endpoints"]["discovery"],
            "https://volt-a.example/.well-known/voltchat"
        );
        assert_eq!(
            page["verification"]["checkedAt"],
            "2023-11-14T22:13:20.000Z"
        );
    }
}
