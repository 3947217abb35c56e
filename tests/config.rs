//! The configuration: what the commented file promises, and what a mistake says.

use std::io::Write as _;
use std::time::Duration;

use drawbridge::config::{Config, DEFAULT_TOML, StreamPolicy};

#[path = "config/paracord.rs"]
mod paracord;
#[path = "config/voltchat.rs"]
mod voltchat;

fn load(text: &str) -> Config {
    Config::from_text(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn error(text: &str) -> String {
    match Config::from_text(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(e) => e.to_string(),
    }
}

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let env: Vec<(String, String)> = env
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect();
    Config::load(Some(file.path()), &env).map_err(|e| e.to_string())
}

#[test]
fn the_defaults_are_the_documents() {
    let c = load("");
    assert!(c.nats.url.is_none());
    assert_eq!(c.nats.prefix, "fed");
    assert_eq!(c.nats.streams, StreamPolicy::Ensure);
    assert_eq!(c.nats.managed.port, None);
    assert_eq!(c.nats.managed.max_payload, 16 << 20);
    assert_eq!(c.public.address.port(), 8000);
    assert!(c.admin.address.ip().is_loopback());
    assert_eq!(c.outbound.peer_window, 8);
    let secs: Vec<u64> = c.uam.retry_delays.iter().map(Duration::as_secs).collect();
    assert_eq!(secs, [30, 300, 1800, 7200]);
    assert_eq!(c.uam.max_hops, 3);
    assert_eq!(c.uam.relay_rate_limit, 1000);
    assert_eq!(c.uam.timestamp_max_age, Duration::from_secs(300));
    assert_eq!(c.uam.discovery_ttl, Duration::from_secs(3600));
    assert_eq!(c.uam.key_overlap, Duration::from_secs(7 * 86_400));
    assert!(c.uam.enabled && !c.uam.charge_unproven && !c.ops_single);
    assert!(c.uam.running().is_none(), "no domain, no protocol");
    assert!(c.peers.is_empty());
}

#[test]
fn the_default_file_read_as_a_users_file_changes_nothing() {
    assert_eq!(
        format!("{:?}", load(DEFAULT_TOML)),
        format!("{:?}", load(""))
    );
}

#[test]
fn the_commented_peer_block_is_valid_as_it_stands() {
    // One "#" less: what a reader does who uses the block.
    let block: Vec<&str> = DEFAULT_TOML
        .lines()
        .skip_while(|l| *l != "# [[peers]]")
        .filter_map(|l| l.strip_prefix("# "))
        .collect();
    let c = load(&block.join("\n"));
    assert_eq!(c.peers.len(), 1);
    assert_eq!(c.peers[0].name, "beta.com");
    assert_eq!(
        c.peers[0].endpoint.as_deref(),
        Some("https://relay.beta.com")
    );
    assert!(c.peers[0].accepted && c.peers[0].public_key.is_none());
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_a_suggestion() {
    for (text, sentence) in [
        (
            "[outbound]\npeer_windw = 3",
            "there is no setting outbound.peer_windw; did you mean outbound.peer_window?",
        ),
        (
            "domain = \"a.com\"",
            "there is no setting domain; did you mean uam.domain?",
        ),
        (
            "[outbund]\npeer_window = 3",
            "there is no setting outbund; did you mean outbound?",
        ),
        (
            "[[peers]]\nprotocol = \"uam\"\nname = \"b.com\"\nendpont = \"\"",
            "there is no setting peers.endpont; did you mean peers.endpoint?",
        ),
        (
            "[uam]\nsomething_else_entirely = 1",
            "there is no setting uam.something_else_entirely",
        ),
    ] {
        assert_eq!(error(text), format!("configuration: {sentence}"));
    }
    let e = with_env("[uam]\ndomian = \"a.com\"", &[]).unwrap_err();
    assert!(
        e.contains(".tmp") && e.contains("did you mean uam.domain?"),
        "{e}"
    );
}

#[test]
fn a_wrong_value_is_a_sentence_that_names_the_key() {
    for (text, sentence) in [
        (
            "[outbound]\npeer_window = 0",
            "outbound.peer_window must be 1 to 1024, not 0",
        ),
        (
            "[outbound]\npeer_window = \"8\"",
            "outbound.peer_window must be 1 to 1024, not a text",
        ),
        (
            "[outbound]\npeer_window = 9\nglobal_window = 8",
            "outbound.peer_window must not be over outbound.global_window (8), not 9",
        ),
        (
            "[outbound]\njitter = 2",
            "outbound.jitter must be 0 to 1, not 2",
        ),
        (
            "[nats]\nrequest_timeout = 5",
            "nats.request_timeout must be a duration such as \"30s\", not a number",
        ),
        (
            "[nats]\nrequest_timeout = \"5\"",
            "nats.request_timeout must be a duration such as \"200ms\", \"30s\", \"5m\" or \"2h\", not \"5\"",
        ),
        (
            "[nats]\nrequest_timeout = \"2d\"",
            "nats.request_timeout must be 100ms to 5m, not 2d",
        ),
        (
            "[nats]\nstreams = \"maybe\"",
            "nats.streams must be \"ensure\", \"verify\" or \"off\", not \"maybe\"",
        ),
        (
            "[nats]\nprefix = \"a.b\"",
            "nats.prefix must be a letter, then up to 31 letters, digits, \"_\" or \"-\", not \"a.b\"",
        ),
        (
            "[nats]\nurl = \"ftp://user:hunter2@x\"",
            "nats.url must be nats://HOST:PORT or tls://HOST:PORT, several with commas between",
        ),
        ("nats = 3", "nats must be a section, [nats], not a number"),
        (
            "[public]\nmax_body_bytes = \"1MB\"",
            "public.max_body_bytes must be a size such as 65536, \"64KiB\" or \"1MiB\", not \"1MB\"",
        ),
        (
            "[public]\nmax_body_bytes = 12",
            "public.max_body_bytes must be 1KiB to 256MiB, not 12",
        ),
        (
            "[public]\naddress = \"localhost\"",
            "public.address must be IP:PORT such as \"127.0.0.1:8000\" or \"[::]:8000\", not \"localhost\"",
        ),
        (
            "[public]\ntls_key = \"key.pem\"",
            "public.tls_key needs public.tls_certificate beside it",
        ),
        (
            "[log]\nlevel = \"loud\"",
            "log.level must be error, warn, info, debug or trace, or a filter such as \"info,drawbridge::bus=debug\", not \"loud\"",
        ),
        (
            "[uam]\ndomain = \"a.com:80\"",
            "uam.domain must be a domain such as \"chat.example.org\", without port, not \"a.com:80\"",
        ),
        (
            "[uam]\nhttp_url = \"relay.a.com\"",
            "uam.http_url must be a base URL such as \"https://relay.example.org\", not \"relay.a.com\"",
        ),
        (
            "[uam]\nretry_delays = [\"30s\", 5]",
            "uam.retry_delays must be a list of texts, not a number",
        ),
        (
            "[http]\nallow_cidrs = [\"10.0.0.0/33\"]",
            "http.allow_cidrs must hold ranges such as \"10.0.0.0/8\", not \"10.0.0.0/33\"",
        ),
        (
            "[http.hosts]\n\"a.com\" = [\"b\"]",
            "http.hosts.a.com must be a list of IP addresses, not \"b\"",
        ),
        (
            "[[peers]]\nprotocol = \"uan\"\nname = \"b.com\"",
            "peers (b.com): protocol must be one of uam, paracord, not \"uan\"; did you mean uam?",
        ),
        (
            "[[peers]]\nprotocol = \"uam\"",
            "peers (block 1): name is needed in every [[peers]] block",
        ),
        (
            "[[peers]]\nprotocol = \"uam\"\nname = \"b.com\"\npublic_key = \"short\"",
            "peers (b.com): public_key must be an Ed25519 key, base64 of 32 bytes",
        ),
        (
            "[peers]\nname = \"b.com\"",
            "peers must be blocks that begin with [[peers]], not a section",
        ),
    ] {
        assert_eq!(error(text), format!("configuration: {sentence}"), "{text}");
    }
}

#[test]
fn without_a_token_the_admin_listener_is_refused_anywhere_but_on_loopback() {
    let open = "[admin]\naddress = \"0.0.0.0:8001\"\n";
    let e = error(open);
    assert!(
        e.contains("admin.address must be a loopback address") && e.contains("admin.token_file"),
        "{e}"
    );
    load("[admin]\naddress = \"[::1]:0\"");
    let c = load(&format!("{open}token = \"0123456789abcdef\""));
    assert!(!format!("{c:?}").contains("0123456789abcdef"));
    let e = error(&format!("{open}token = \"short\""));
    assert!(
        e.contains("admin.token must be at least 16 printable ASCII characters")
            && !e.contains("short"),
        "{e}"
    );
    let e = error("[admin]\nmetrics = \"yes\"");
    assert!(e.contains("admin.metrics must be \"auto\""), "{e}");
    let e = error("[admin]\nurl = \"bridge:8001\"");
    assert!(e.contains("admin.url must be a URL"), "{e}");
    let e = error("[admin]\ntls_key = \"key.pem\"");
    assert!(
        e.contains("admin.tls_key needs admin.tls_certificate beside it"),
        "{e}"
    );
}

#[test]
fn a_password_in_the_nats_url_is_not_shown() {
    let c = load("[nats]\nurl = \"nats://me:hunter2@bus.example.org:4222\"");
    let shown = format!("{c:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("nats://bus.example.org:4222"), "{shown}");
    assert!(c.nats.url.is_some_and(|u| u.contains("hunter2")));
}

#[test]
fn a_broken_file_says_where() {
    let e = error("[uam]\ndomain = \n");
    assert!(
        e.starts_with("configuration: ") && e.contains("line 2"),
        "{e}"
    );
    let e = Config::load(Some("/nowhere/x.toml".as_ref()), &[]).unwrap_err();
    assert!(e.to_string().contains("/nowhere/x.toml cannot be read"));
}

#[test]
fn layers_go_default_then_file_then_uam_names_then_our_names() {
    let text = "[uam]\ndomain = \"file.com\"\nmax_hops = 4\nrelay_rate_limit = 7";
    let c = with_env(
        text,
        &[
            ("UAM_RELAY_DOMAIN", "Env.com"),
            ("UAM_FEDERATION_MAX_HOPS", "5"),
            ("DRAWBRIDGE_UAM__MAX_HOPS", "6"),
        ],
    )
    .unwrap();
    assert_eq!(c.uam.domain.as_deref(), Some("env.com"));
    assert_eq!(c.uam.http_url.as_deref(), Some("https://env.com"));
    assert_eq!((c.uam.max_hops, c.uam.relay_rate_limit), (6, 7));
}

#[test]
fn every_name_of_the_uam_document_works_as_written_there() {
    let c = with_env(
        "",
        &[
            ("UAM_RELAY_DOMAIN", "alpha.com"),
            ("UAM_RELAY_HTTP_URL", "https://relay.alpha.com/"),
            ("UAM_RELAY_KEY_PATH", "/keys/relay_key.pem"),
            ("UAM_FEDERATION_ENABLED", "yes"),
            ("UAM_FEDERATION_MAX_HOPS", "5"),
            ("UAM_FEDERATION_RELAY_RATE_LIMIT", "2000"),
            ("UAM_FEDERATION_TIMESTAMP_MAX_AGE", "120"),
            ("UAM_FEDERATION_DISCOVERY_TTL_HOURS", "0"),
            ("UAM_ADMIN_API_KEY", "s3cret"),
            ("UAM_LOG_LEVEL", "WARNING"),
            ("UAM_DB_PATH", "not ours"),
        ],
    )
    .unwrap();
    assert_eq!(c.uam.running(), Some("alpha.com"));
    assert_eq!(c.uam.http_url.as_deref(), Some("https://relay.alpha.com"));
    assert_eq!(c.uam.key_path.to_str(), Some("/keys/relay_key.pem"));
    assert_eq!((c.uam.max_hops, c.uam.relay_rate_limit), (5, 2000));
    assert_eq!(c.uam.timestamp_max_age, Duration::from_secs(120));
    assert_eq!(c.uam.discovery_ttl, Duration::from_secs(3600));
    assert!(!format!("{c:?}").contains("s3cret"));
    assert_eq!(c.log.level, "warn");
    assert_eq!(
        c.uam.admin_api_key.map(|k| k.0.to_string()).as_deref(),
        Some("s3cret")
    );
}

#[test]
fn federation_is_on_for_1_true_and_yes_and_off_for_anything_else() {
    for (text, on) in [
        ("1", true),
        ("true", true),
        ("TRUE", true),
        ("Yes", true),
        ("0", false),
        ("false", false),
        ("on", false),
        ("", true),
    ] {
        let c = with_env("", &[("UAM_FEDERATION_ENABLED", text)]).unwrap();
        assert_eq!(c.uam.enabled, on, "{text:?}");
    }
}

#[test]
fn our_variables_are_read_as_the_kind_their_key_has() {
    let c = with_env(
        "",
        &[
            ("DRAWBRIDGE_DATA_DIR", "/var/lib/drawbridge"),
            ("DRAWBRIDGE_NATS__MANAGED__PORT", "4333"),
            ("DRAWBRIDGE_LOG__JSON", "true"),
            ("DRAWBRIDGE_OUTBOUND__JITTER", "0.5"),
            (
                "DRAWBRIDGE_HTTP__DNS_SERVERS",
                "192.0.2.53, 192.0.2.54:5353",
            ),
            ("DRAWBRIDGE_UAM__RETRY_DELAYS", "1s,2s"),
        ],
    )
    .unwrap();
    assert_eq!(c.nats.managed.port, Some(4333));
    assert_eq!(
        c.uam.key_path.to_str(),
        Some("/var/lib/drawbridge/relay_key.pem")
    );
    assert!(c.log.json);
    assert_eq!(c.http.dns_servers[0].port(), 53);
    assert_eq!(c.http.dns_servers[1].port(), 5353);
    assert_eq!(c.uam.retry_delays.len(), 2);
}

#[test]
fn a_mistaken_variable_is_an_error_and_another_tools_variable_is_not() {
    for name in ["DRAWBRIDGE_UAM__DOMIAN", "DRAWBRIDGE_UAM_DOMAIN"] {
        let e = with_env("", &[(name, "x")]).unwrap_err();
        assert!(e.contains(name), "{e}");
        assert!(e.contains("did you mean DRAWBRIDGE_UAM__DOMAIN?"), "{e}");
    }
    let e = with_env("", &[("DRAWBRIDGE_OUTBOUND__PEER_WINDOW", "0")]).unwrap_err();
    assert_eq!(
        e,
        "DRAWBRIDGE_OUTBOUND__PEER_WINDOW: outbound.peer_window must be 1 to 1024, not 0"
    );
    let e = with_env("", &[("DRAWBRIDGE_OUTBOUND__PEER_WINDOW", "many")]).unwrap_err();
    assert!(e.contains("must be a whole number, not \"many\""), "{e}");
    let tools = [
        ("DRAWBRIDGE_FAULT", "x"),
        ("DRAWBRIDGE_CRASH_ROUNDS", "3"),
        ("DRAWBRIDGE_EXTRA_VECTORS", "/x"),
    ];
    with_env("", &tools).unwrap();
}

#[test]
fn a_secret_comes_from_a_file_that_others_cannot_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.key");
    std::fs::write(&path, "from-file\n").unwrap();
    let mode = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let text = format!("[uam]\nadmin_api_key_file = {:?}", path.to_str().unwrap());
    mode(0o644);
    let e = error(&text);
    assert!(
        e.contains("uam.admin_api_key_file names") && e.contains("chmod"),
        "{e}"
    );
    mode(0o600);
    let key = |c: Config| c.uam.admin_api_key.map(|k| k.0.to_string());
    assert_eq!(key(load(&text)).as_deref(), Some("from-file"));
    let c = with_env(&text, &[("UAM_ADMIN_API_KEY", "from-env")]).unwrap();
    assert_eq!(key(c).as_deref(), Some("from-env"), "the higher layer wins");
    let both = format!("{text}\nadmin_api_key = \"x\"");
    assert!(error(&both).contains("two forms of one setting"));
    std::fs::write(&path, "\n").unwrap();
    assert!(error(&text).contains("which is empty"));
}

#[test]
fn a_pinned_plain_endpoint_names_its_host_for_the_guard() {
    let c = load(
        "[[peers]]\nprotocol = \"uam\"\nname = \"beta.test\"\nendpoint = \"http://127.0.0.1:9000/\"\n\
         [[peers]]\nprotocol = \"uam\"\nname = \"gamma.test\"\nendpoint = \"https://relay.gamma.test\"\naccepted = false",
    );
    assert_eq!(c.http.plain_hosts, ["127.0.0.1:9000"]);
    assert_eq!(c.http.allow_hosts, ["127.0.0.1:9000"]);
    assert_eq!(
        c.peers[0].endpoint.as_deref(),
        Some("http://127.0.0.1:9000")
    );
    assert!(!c.peers[1].accepted);
    let twice = "[[peers]]\nprotocol = \"uam\"\nname = \"b.com\"\n";
    assert!(error(&twice.repeat(2)).contains("names b.com twice"));
}

#[test]
fn relative_paths_are_relative_to_the_data_directory() {
    let c = load(
        "data_dir = \"/srv/db\"\n[public]\ntls_certificate = \"chain.pem\"\ntls_key = \"/etc/key.pem\"",
    );
    assert_eq!(c.nats.managed.store_dir.to_str(), Some("/srv/db/nats"));
    let path = |p: Option<std::path::PathBuf>| p.map(|p| p.display().to_string());
    assert_eq!(
        path(c.public.tls_certificate).as_deref(),
        Some("/srv/db/chain.pem")
    );
    assert_eq!(path(c.public.tls_key).as_deref(), Some("/etc/key.pem"));
}
