//! `[paracord]`: the settings, their names at a Paracord server, and what a mistake says.

use std::time::Duration;

use super::{error, load, with_env};

#[test]
fn the_defaults_serve_nothing_until_a_name_is_set() {
    let c = load("").paracord;
    assert!(c.enabled && c.running().is_none() && c.url.is_none() && c.domain.is_none());
    assert!(c.allowed_guild_ids.is_empty() && c.read_token.is_none() && !c.auto_trust);
    assert!(c.key_path.ends_with("drawbridge-data/paracord.key"));
    assert_eq!(c.key_overlap, Duration::from_secs(7 * 86_400));
    assert_eq!(
        (
            c.max_events_per_peer_per_minute,
            c.max_user_creates_per_peer_per_hour,
            c.push_per_minute
        ),
        (120, 100, 120)
    );
    assert_eq!(c.keep_bodies, None, "bodies are kept for ever");
}

#[test]
fn a_failed_push_is_tried_quickly_twice_more_and_then_from_five_seconds_to_twenty_minutes() {
    let delays = load("").paracord.retry_delays;
    let ms: Vec<u128> = delays.iter().map(Duration::as_millis).collect();
    assert_eq!(ms[..4], [500, 1000, 5_000, 10_000]);
    assert!(ms.windows(2).all(|pair| pair[0] <= pair[1]), "{ms:?}");
    assert_eq!(ms.last(), Some(&1_200_000));
}

#[test]
fn a_paracord_servers_variables_work_as_written_there() {
    let c = with_env(
        "",
        &[
            ("PARACORD_FEDERATION_ENABLED", "true"),
            ("PARACORD_SERVER_NAME", "chat.example.org"),
            ("PARACORD_FEDERATION_DOMAIN", "example.org"),
            ("PARACORD_FEDERATION_SIGNING_KEY_PATH", "/keys/signing.hex"),
            ("PARACORD_FEDERATION_KEY_ID", "ed25519:auto"),
            ("PARACORD_FEDERATION_ALLOW_DISCOVERY", "true"),
            ("PARACORD_FEDERATION_MAX_EVENTS_PER_PEER_PER_MINUTE", "0"),
            (
                "PARACORD_FEDERATION_MAX_USER_CREATES_PER_PEER_PER_HOUR",
                "7",
            ),
            (
                "PARACORD_FEDERATION_ALLOWED_GUILD_IDS",
                "12, -3,,9223372036854775807",
            ),
            ("PARACORD_FEDERATION_READ_TOKEN", "read-token-0123456789"),
        ],
    );
    let c = c.unwrap().paracord;
    assert!(c.enabled);
    assert_eq!(c.running(), Some("chat.example.org"));
    assert_eq!(c.domain.as_deref(), Some("example.org"));
    assert_eq!(c.key_path, std::path::Path::new("/keys/signing.hex"));
    assert_eq!(c.key_id.as_deref(), Some("ed25519:auto"));
    assert_eq!(
        (
            c.max_events_per_peer_per_minute,
            c.max_user_creates_per_peer_per_hour
        ),
        (0, 7)
    );
    assert_eq!(c.allowed_guild_ids, [12, -3, i64::MAX]);
    assert_eq!(
        c.read_token.as_ref().map(|t| t.0.as_str()),
        Some("read-token-0123456789")
    );
    assert!(!c.auto_trust, "discovery by others makes nobody trusted");
    assert!(!format!("{c:?}").contains("read-token-0123456789"));
}

#[test]
fn our_own_variables_win_over_a_paracord_servers_and_an_empty_one_says_nothing() {
    let c = with_env(
        "[paracord]\nserver_name = \"file.example.org\"\nallowed_guild_ids = [\"5\"]",
        &[
            ("PARACORD_SERVER_NAME", "theirs.example.org"),
            ("DRAWBRIDGE_PARACORD__SERVER_NAME", "ours.example.org"),
            ("PARACORD_FEDERATION_ALLOWED_GUILD_IDS", " "),
            ("PARACORD_FEDERATION_ENABLED", "off"),
        ],
    );
    let c = c.unwrap().paracord;
    assert_eq!(c.server_name.as_deref(), Some("ours.example.org"));
    assert_eq!(c.allowed_guild_ids, [5]);
    assert!(!c.enabled);
}

#[test]
fn a_variable_that_cannot_be_read_refuses_the_start_by_its_name() {
    for (name, text, sentence) in [
        (
            "PARACORD_FEDERATION_ENABLED",
            "ture",
            "PARACORD_FEDERATION_ENABLED must be true or false, not \"ture\"",
        ),
        (
            "PARACORD_FEDERATION_MAX_EVENTS_PER_PEER_PER_MINUTE",
            "-1",
            "PARACORD_FEDERATION_MAX_EVENTS_PER_PEER_PER_MINUTE must be a whole number, not \"-1\"",
        ),
        (
            "PARACORD_SERVER_NAME",
            "Chat.Example.org",
            "must be a lower-case host name",
        ),
        (
            "PARACORD_FEDERATION_ALLOWED_GUILD_IDS",
            "1,general",
            "must hold guild ids (decimal numbers as text), not \"general\"",
        ),
    ] {
        let said = with_env("", &[(name, text)]).expect_err(name);
        assert!(said.contains(sentence) && said.contains(name), "{said}");
    }
    let said = with_env("", &[("PARACORD_FEDERATION_READ_TOKEN", "short-secret")]);
    let said = said.expect_err("too short");
    assert!(said.contains("at least 16 printable"), "{said}");
    assert!(!said.contains("short-secret"), "{said}");
}

#[test]
fn our_url_is_an_origin_since_a_path_in_front_would_break_every_signature() {
    for bad in [
        "chat.example.org",
        "https://chat.example.org/prefix",
        "https://u@chat.example.org",
        "ftp://chat.example.org",
    ] {
        let said = error(&format!("[paracord]\nurl = {bad:?}"));
        assert!(said.contains("paracord.url must be an origin"), "{said}");
    }
    let said = error("[paracord]\nurl = \"http://bridge.lan\"");
    assert!(
        said.contains("must begin with https://") && said.contains("http.plain_hosts"),
        "{said}"
    );
    for (text, url) in [
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("https://Chat.Example.org:443", "https://chat.example.org"),
    ] {
        let c = load(&format!("[paracord]\nurl = {text:?}"));
        assert_eq!(c.paracord.url.as_deref(), Some(url));
    }
    let c = load("[http]\nplain_hosts = [\"bridge.lan\"]\n[paracord]\nurl = \"http://bridge.lan\"");
    assert_eq!(c.paracord.url.as_deref(), Some("http://bridge.lan"));
}

#[test]
fn a_setting_outside_its_bounds_names_itself() {
    for (text, sentence) in [
        (
            "server_name = \"chat example\"",
            "paracord.server_name must be a lower-case host name such as \"chat.example.org\"",
        ),
        ("domain = \"A\"", "paracord.domain must be a lower-case"),
        ("poll_page = 1001", "paracord.poll_page must be"),
        ("key_id = \"a b\"", "paracord.key_id must be at most 128"),
        (
            "allowed_guild_ids = [\"9223372036854775808\"]",
            "paracord.allowed_guild_ids must hold guild ids",
        ),
        ("server_nam = \"a\"", "did you mean paracord.server_name?"),
    ] {
        let said = error(&format!("[paracord]\n{text}"));
        assert!(said.contains(sentence), "{text}: {said}");
    }
}

#[test]
fn the_read_token_has_one_form() {
    let said = error("[paracord]\nread_token = \"0123456789abcdef\"\nread_token_file = \"x\"");
    assert!(said.contains("read_token"), "{said}");
    let c = load("[paracord]\nread_token = \"0123456789abcdef\"");
    assert!(c.paracord.read_token.is_some());
    assert!(!format!("{c:?}").contains("0123456789abcdef"));
}
