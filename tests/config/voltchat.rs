//! `[voltchat]`: the settings, their names in a mainline's world, and who may operate.

use std::time::Duration;

use drawbridge::config::{DEFAULT_TOML, OperatorRole};

use super::{error, load, with_env};

#[test]
fn the_defaults_serve_nothing_until_a_url_is_set() {
    let c = load("").voltchat;
    assert!(c.enabled && c.url.is_none() && c.operators.is_empty());
    assert!(c.allowed_servers.is_empty());
    assert_eq!((c.max_hops, c.fetch_batch, c.sync_at_once), (3, 50, 16));
    assert_eq!(c.sync_interval, Duration::from_secs(15));
    assert_eq!(c.mailbox_max_age, Duration::from_secs(7 * 86_400));
    assert!(c.key_path.ends_with("drawbridge-data/voltchat.key"));
}

#[test]
fn the_documents_names_are_second_names_of_ours() {
    let c = load(
        "[voltchat]\nurl = \"https://Bridge.Example.org:443/\"\nserverName = \" Alpha \"\n\
         allowedServers = [\"*.example.org\", \"\"]\nmaxHops = 4",
    )
    .voltchat;
    assert_eq!(c.url.as_deref(), Some("https://bridge.example.org"));
    assert_eq!(c.name, "Alpha");
    assert_eq!(c.allowed_servers, ["*.example.org", ""]);
    assert_eq!(c.max_hops, 4);
    assert_eq!(
        error("[voltchat]\nserverName = \"a\"\nserver_name = \"b\""),
        "configuration: voltchat.serverName and voltchat.server_name are two names of one setting; \
         keep one"
    );
}

#[test]
fn without_a_name_peers_see_our_host() {
    let c = load("[voltchat]\nurl = \"https://bridge.example.org:8443\"").voltchat;
    assert_eq!(c.name, "bridge.example.org:8443");
}

#[test]
fn a_list_that_is_no_list_of_texts_refuses_the_start() {
    for (text, sentence) in [
        (
            "allowed_servers = \"a.org\"",
            "voltchat.allowed_servers must be a list of texts, not a text",
        ),
        (
            "allowedServers = [\"a.org\", 7]",
            "voltchat.allowed_servers must be a list of texts, not a number",
        ),
        (
            "allowedServers = { a = 1 }",
            "voltchat.allowed_servers must be a list of texts, not a section",
        ),
    ] {
        let said = error(&format!("[voltchat]\n{text}"));
        assert_eq!(said, format!("configuration: {sentence}"), "{text}");
    }
}

#[test]
fn our_url_is_an_origin_and_without_tls_only_where_a_test_may_be() {
    for bad in [
        "bridge.example.org",
        "https://bridge.example.org/path",
        "https://u@bridge.example.org",
        "ftp://bridge.example.org",
        "https://bridge.example.org?x",
    ] {
        let said = error(&format!("[voltchat]\nurl = {bad:?}"));
        assert!(said.contains("voltchat.url must be an origin"), "{said}");
    }
    let said = error("[voltchat]\nurl = \"http://bridge.lan\"");
    assert!(said.contains("must begin with https://"), "{said}");
    assert!(said.contains("http.plain_hosts"), "{said}");
    for (text, url) in [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://localhost/", "http://localhost"),
    ] {
        let c = load(&format!("[voltchat]\nurl = {text:?}"));
        assert_eq!(c.voltchat.url.as_deref(), Some(url));
    }
    let c = load("[http]\nplain_hosts = [\"bridge.lan\"]\n[voltchat]\nurl = \"http://bridge.lan\"");
    assert_eq!(c.voltchat.url.as_deref(), Some("http://bridge.lan"));
}

#[test]
fn a_mainlines_variables_work_as_written_there() {
    let c = with_env(
        "",
        &[
            ("FEDERATION_ENABLED", "true"),
            ("FEDERATION_ALLOWED_SERVERS", "a.org, *.b.org,"),
            ("SERVER_URL", "https://bridge.example.org"),
            ("SERVER_NAME", "Volt"),
        ],
    );
    let c = c.unwrap().voltchat;
    assert_eq!(c.url.as_deref(), Some("https://bridge.example.org"));
    assert_eq!(c.name, "Volt");
    assert_eq!(c.allowed_servers, ["a.org", "*.b.org"]);
    assert!(c.enabled);
    let c = with_env(
        "",
        &[
            ("FEDERATION_ENABLED", "1"),
            ("FEDERATION_SERVER_NAME", "Federated"),
            ("SERVER_NAME", "Volt"),
            ("DRAWBRIDGE_VOLTCHAT__MAX_HOPS", "5"),
        ],
    );
    let c = c.unwrap().voltchat;
    assert!(!c.enabled, "a mainline knows only \"true\"");
    assert_eq!((c.name.as_str(), c.max_hops), ("Federated", 5));
}

#[test]
fn another_programs_server_url_is_not_ours() {
    let env = [
        ("SERVER_URL", "http://somewhere:5000/x"),
        ("SERVER_NAME", "x"),
    ];
    let c = with_env("", &env).unwrap().voltchat;
    assert!(c.url.is_none() && c.name != "x");
}

#[test]
fn the_commented_operator_block_is_valid_once_it_has_a_token() {
    let block: Vec<&str> = DEFAULT_TOML
        .lines()
        .skip_while(|l| *l != "# [[voltchat.operators]]")
        .take_while(|l| l.starts_with('#'))
        .filter_map(|l| l.strip_prefix("# "))
        .filter(|l| !l.starts_with("token_file"))
        .collect();
    let text = block.join("\n");
    let with_token = text.replace("token = \"\"", "token = \"0123456789abcdef\"");
    let c = load(&with_token);
    let alice = &c.voltchat.operators[0];
    assert_eq!(
        (alice.name.as_str(), alice.role),
        ("alice", OperatorRole::Moderator)
    );
    assert!(!format!("{c:?}").contains("0123456789abcdef"));
    assert!(error(&text).contains("token or token_file is needed"));
}

#[test]
fn an_operators_token_comes_from_a_file_and_a_new_one_is_a_change() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alice");
    let write = |held: &str, mode| {
        std::fs::write(&file, held).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let text = format!(
        "[[voltchat.operators]]\nname = \"alice\"\nrole = \"reader\"\ntoken_file = {file:?}\n"
    );
    write("first-0123456789\n", 0o644);
    let said = error(&text);
    assert!(
        said.contains("(alice): token_file names") && said.contains("chmod"),
        "{said}"
    );
    write("first-0123456789\n", 0o600);
    let one = load(&text);
    assert_eq!(
        one.voltchat.operators[0].token.0.as_str(),
        "first-0123456789"
    );
    assert!(!one.voltchat.operators[0].role.moderates());
    write("second-0123456789\n", 0o600);
    let changed = one.given.changed(&load(&text).given);
    assert_eq!(changed, ["voltchat.operators.alice.token_file"]);
}

#[test]
fn a_mistake_in_an_operators_block_names_the_operator() {
    let block = |rest: &str| format!("[[voltchat.operators]]\nname = \"alice\"\n{rest}\n");
    let good = block("role = \"admin\"\ntoken = \"0123456789abcdef\"");
    for (text, sentence) in [
        (
            block("role = \"moderater\"\ntoken = \"0123456789abcdef\""),
            "voltchat.operators (alice): role must be one of reader, moderator, admin, not \
             \"moderater\"; did you mean moderator?",
        ),
        (
            block("role = \"admin\"\ntoken = \"short-secret\""),
            "voltchat.operators (alice): token must be at least 16 printable ASCII characters \
             without spaces, such as `openssl rand -hex 32` prints",
        ),
        (
            block("role = \"admin\"\ntoken = \"0123456789abcdef\"\ntoken_file = \"x\""),
            "voltchat.operators (alice): token and token_file are two forms of one setting; keep one",
        ),
        (
            "[[voltchat.operators]]\nrole = \"admin\"".to_owned(),
            "voltchat.operators (block 1): name is needed in every [[voltchat.operators]] block",
        ),
        (good.repeat(2), "voltchat.operators names alice twice"),
        (
            format!("{good}{}", good.replace("alice", "bob")),
            "voltchat.operators gives alice and bob the same token",
        ),
        (
            block("rol = \"admin\""),
            "there is no setting voltchat.operators.rol; did you mean voltchat.operators.role?",
        ),
        (
            "[voltchat]\noperators = 3".to_owned(),
            "voltchat.operators must be blocks that begin with [[voltchat.operators]], not a number",
        ),
        (
            "[voltchat]\noperatrs = 3".to_owned(),
            "there is no setting voltchat.operatrs; did you mean voltchat.operators?",
        ),
    ] {
        assert_eq!(error(&text), format!("configuration: {sentence}"), "{text}");
    }
    load(&good);
}
