//! Reads `[nats]`.
//!
//! Three layers make one login: the settings, else what stands in the URL, else the `nats` command's
//! context. Exactly one kind of login comes out, so that nobody wonders which one was used.

use std::path::PathBuf;

use super::{DurabilityPolicy, ManagedConfig, NatsConfig, NatsLogin, NatsTls};
use crate::config::ConfigError;
use crate::config::context::{self, Context};
use crate::config::layers::Layers;
use crate::config::model::{StreamPolicy, default_cache_dir};
use crate::config::read::{Section, parse_duration};
use crate::config::secret::{Secret, SecretFrom};

/// Reads `[nats]` and `[nats.managed]`.
pub(in crate::config) fn nats(
    layers: &Layers,
    s: &Section<'_>,
    managed: &Section<'_>,
) -> Result<NatsConfig, ConfigError> {
    let context = match s.text_or_none("context")? {
        Some(name) => context::read(layers.config_home(), layers.home(), name)
            .map_err(|what| s.wrong("context", &what))?,
        None => Context::default(),
    };
    let url = url(s, &context)?;
    let login = login(s, &context, url.as_deref())?;
    let tls = tls(s, &context)?;
    if url.is_none() {
        if s.text_or_none("context")?.is_some() {
            return Err(s.wrong("context", "names a context without a url; set nats.url"));
        }
        needs_no_url(s)?;
    }
    let jetstream_domain = token(s, "jetstream_domain", context.jetstream_domain)?;
    let jetstream_api_prefix = token(s, "jetstream_api_prefix", context.jetstream_api_prefix)?;
    if jetstream_domain.is_some() && jetstream_api_prefix.is_some() {
        return Err(s.wrong(
            "jetstream_api_prefix",
            "and nats.jetstream_domain exclude each other: a domain is a prefix",
        ));
    }
    let inbox = s.text("inbox_prefix")?;
    let inbox_prefix = match (inbox, context.inbox_prefix) {
        ("" | "_INBOX", Some(from_context)) => from_context,
        ("", None) => "_INBOX".to_owned(),
        (own, _) => own.to_owned(),
    };
    if !subject(&inbox_prefix) {
        return Err(s.wrong("inbox_prefix", SUBJECT));
    }
    Ok(NatsConfig {
        url,
        prefix: prefix(s)?,
        login,
        tls,
        jetstream_domain,
        jetstream_api_prefix,
        inbox_prefix,
        connect_timeout: s.duration("connect_timeout", "100ms", "1h")?,
        request_timeout: s.duration("request_timeout", "100ms", "5m")?,
        streams: match s.text("streams")? {
            "ensure" => StreamPolicy::Ensure,
            "verify" => StreamPolicy::Verify,
            "off" => StreamPolicy::Off,
            other => {
                let sentence = format!("must be \"ensure\", \"verify\" or \"off\", not {other:?}");
                return Err(s.wrong("streams", &sentence));
            }
        },
        partitions: s.int("partitions", 1, 64)?,
        replicas: s.int("replicas", 1, 5)?,
        max_ack_pending: s.int("max_ack_pending", 1, 100_000)?,
        publish_window: s.int("publish_window", 1, 10_000)?,
        stuck_after: s.duration("stuck_after", "1s", "1h")?,
        durability: match s.text("durability")? {
            "require" => DurabilityPolicy::Require,
            "warn" => DurabilityPolicy::Warn,
            "accept" => DurabilityPolicy::Accept,
            other => {
                let sentence =
                    format!("must be \"require\", \"warn\" or \"accept\", not {other:?}");
                return Err(s.wrong("durability", &sentence));
            }
        },
        monitoring_urls: monitoring(s)?,
        managed: managed_server(managed)?,
        on_managed: false,
    })
}

fn url(s: &Section<'_>, context: &Context) -> Result<Option<String>, ConfigError> {
    let own = s.secret("url")?.map(|url| url.0.to_string());
    let (url, key) = match own {
        Some(url) => (Some(url), "url"),
        None => (context.url.clone(), "context"),
    };
    if let Some(url) = &url {
        let address = |one: &str| match one.split_once("://") {
            Some((scheme, rest)) => matches!(scheme, "nats" | "tls") && !rest.is_empty(),
            None => !one.is_empty(),
        };
        if !url.split(',').all(|one| address(one.trim())) {
            // The value may hold a password: it is not repeated.
            let sentence = match key {
                "url" => "must be nats://HOST:PORT or tls://HOST:PORT, several with commas between",
                _ => "names a context whose url is not made of nats:// or tls:// addresses",
            };
            return Err(s.wrong(key, sentence));
        }
    }
    Ok(url)
}

/// The one login: of the settings, else of the URL, else of the context.
fn login(s: &Section<'_>, context: &Context, url: Option<&str>) -> Result<NatsLogin, ConfigError> {
    let mut found: Vec<(&str, NatsLogin)> = Vec::new();
    if let Some(path) = s.file_or_none("credentials_file")? {
        found.push(("credentials_file", NatsLogin::Credentials(path)));
    }
    if let Some(seed) = s.secret_from("nkey")? {
        found.push(("nkey", NatsLogin::Nkey(seed)));
    }
    if let Some(token) = s.secret_from("token")? {
        found.push(("token", NatsLogin::Token(token)));
    }
    match (s.text_or_none("user")?, s.secret_from("password")?) {
        (Some(user), Some(password)) => {
            let user = user.to_owned();
            found.push(("user", NatsLogin::Password { user, password }));
        }
        (Some(_), None) => {
            return Err(s.wrong(
                "user",
                "needs nats.password or nats.password_file beside it",
            ));
        }
        (None, Some(_)) => return Err(s.wrong("password", "needs nats.user beside it")),
        (None, None) => {}
    }
    if let [(one, _), (other, _), ..] = found.as_slice() {
        let sentence = format!("and nats.{one} are two ways to log in; keep one");
        return Err(s.wrong(other, &sentence));
    }
    if let Some((_, login)) = found.pop() {
        return Ok(login);
    }
    if url.is_some_and(|url| url.contains('@')) {
        return Ok(NatsLogin::None);
    }
    let text = |secret: &Secret| SecretFrom::Text(secret.clone());
    Ok(match context {
        Context {
            creds: Some(path), ..
        } => NatsLogin::Credentials(path.clone()),
        Context {
            nkey: Some(path), ..
        } => NatsLogin::Nkey(SecretFrom::File(path.clone())),
        Context {
            user: Some(user),
            password,
            ..
        } => NatsLogin::Password {
            user: user.clone(),
            password: password
                .as_ref()
                .map_or_else(|| SecretFrom::Text(Secret(String::new().into())), text),
        },
        Context {
            token: Some(token), ..
        } => NatsLogin::Token(text(token)),
        _ => NatsLogin::None,
    })
}

fn tls(s: &Section<'_>, context: &Context) -> Result<NatsTls, ConfigError> {
    let roots: Vec<PathBuf> = s.list("tls_roots")?.iter().map(|p| s.join(p)).collect();
    let (certificate, key) = (
        s.file_or_none("tls_certificate")?,
        s.file_or_none("tls_key")?,
    );
    let (certificate, key) = match (certificate, key) {
        (None, None) => (context.cert.clone(), context.key.clone()),
        own => own,
    };
    if certificate.is_some() != key.is_some() {
        return Err(s.wrong(
            "tls_certificate",
            "and nats.tls_key belong together: set both or none",
        ));
    }
    Ok(NatsTls {
        required: s.flag("tls_required")?,
        first: s.flag("tls_first")? || context.tls_first,
        roots: match (roots, &context.ca) {
            (own, Some(ca)) if own.is_empty() => vec![ca.clone()],
            (own, _) => own,
        },
        certificate,
        key,
    })
}

/// What only makes sense for a server of somebody else's.
fn needs_no_url(s: &Section<'_>) -> Result<(), ConfigError> {
    let logins = [
        "credentials_file",
        "user",
        "nkey",
        "nkey_file",
        "token",
        "token_file",
    ];
    let others = [
        "tls_certificate",
        "jetstream_domain",
        "jetstream_api_prefix",
        "monitoring_url",
    ];
    for key in logins.into_iter().chain(others) {
        if s.text_or_none(key)?.is_some() {
            return Err(s.wrong(key, "is for the server under nats.url, which is not set"));
        }
    }
    for key in ["tls_required", "tls_first"] {
        if s.flag(key)? {
            return Err(s.wrong(key, "is for the server under nats.url, which is not set"));
        }
    }
    if s.int::<u8>("replicas", 1, 5)? > 1 {
        return Err(s.wrong(
            "replicas",
            "is for a cluster of servers under nats.url, which is not set",
        ));
    }
    Ok(())
}

fn prefix(s: &Section<'_>) -> Result<String, ConfigError> {
    let prefix = s.text("prefix")?;
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !prefix.starts_with(|c: char| c.is_ascii_alphabetic())
        || !prefix.chars().all(letters)
        || prefix.len() > 32
    {
        return Err(s.wrong(
            "prefix",
            &format!(
                "must be a letter, then up to 31 letters, digits, \"_\" or \"-\", not {prefix:?}"
            ),
        ));
    }
    Ok(prefix.to_owned())
}

const SUBJECT: &str =
    "must be tokens with dots between, without spaces and wildcards, such as \"_INBOX_fed\"";

/// Whether text is a subject without wildcards.
fn subject(text: &str) -> bool {
    text.len() <= 128
        && text.split('.').all(|token| {
            !token.is_empty()
                && token
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !matches!(b, b'*' | b'>'))
        })
}

fn token(
    s: &Section<'_>,
    key: &str,
    from_context: Option<String>,
) -> Result<Option<String>, ConfigError> {
    let found = match s.text_or_none(key)? {
        Some(own) => Some(own.trim_end_matches('.').to_owned()),
        // The context's may end in a dot.
        None => from_context.map(|t| t.trim_end_matches('.').to_owned()),
    };
    match found {
        Some(text) if !subject(&text) => Err(s.wrong(key, SUBJECT)),
        other => Ok(other),
    }
}

fn monitoring(s: &Section<'_>) -> Result<Vec<String>, ConfigError> {
    let Some(text) = s.text_or_none("monitoring_url")? else {
        return Ok(Vec::new());
    };
    text.split(',')
        .map(|one| one.trim().trim_end_matches('/'))
        .map(|one| match one.split_once("://") {
            Some(("http" | "https", rest)) if !rest.is_empty() => Ok(one.to_owned()),
            _ => Err(s.wrong(
                "monitoring_url",
                &format!("must be http://HOST:8222, several with commas between, not {one:?}"),
            )),
        })
        .collect()
}

fn managed_server(managed: &Section<'_>) -> Result<ManagedConfig, ConfigError> {
    let sync_interval = managed.text("sync_interval")?;
    if sync_interval != "always" && parse_duration(sync_interval).is_none_or(|d| d.is_zero()) {
        return Err(managed.wrong(
            "sync_interval",
            &format!("must be \"always\" or a duration such as \"2m\", not {sync_interval:?}"),
        ));
    }
    Ok(ManagedConfig {
        binary: managed.file_or_none("binary")?,
        port: Some(managed.int("port", 0, 65_535)?).filter(|port| *port != 0),
        store_dir: managed.file("store_dir")?,
        cache_dir: match managed.file_or_none("cache_dir")? {
            Some(dir) => dir,
            None => default_cache_dir(),
        },
        sync_interval: sync_interval.to_owned(),
        max_payload: managed.size("max_payload", "64KiB", "64MiB")?,
        open: managed.flag("open")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn nats(text: &str) -> Result<NatsConfig, String> {
        let read = Config::from_text(&format!("[nats]\n{text}\n"));
        read.map(|c| c.nats).map_err(|e| e.to_string())
    }

    #[test]
    fn one_login_comes_out_and_two_are_an_error() {
        let url = "url = \"nats://a\"";
        let one = nats(&format!("{url}\ntoken = \"t\"")).expect("settings");
        assert!(matches!(one.login, NatsLogin::Token(_)));
        let said = nats(&format!("{url}\ntoken = \"t\"\nnkey = \"SU\"")).expect_err("two");
        assert!(said.contains("two ways to log in"), "{said}");
        let said = nats(&format!("{url}\nuser = \"u\"")).expect_err("half");
        assert!(said.contains("password_file"), "{said}");
        for own in ["token = \"t\"", "replicas = 3"] {
            let said = nats(own).expect_err("no server");
            assert!(said.contains("nats.url, which is not set"), "{said}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        let url = "url = \"nats://u:hunter2@a\"";
        for (more, word) in [
            (
                "durability = \"maybe\"",
                "\"require\", \"warn\" or \"accept\"",
            ),
            ("inbox_prefix = \"a b\"", "tokens with dots between"),
            ("inbox_prefix = \"_INBOX.>\"", "tokens with dots between"),
            ("jetstream_domain = \"a.*\"", "tokens with dots between"),
            (
                "jetstream_domain = \"a\"\njetstream_api_prefix = \"b\"",
                "exclude each other",
            ),
            ("monitoring_url = \"nats:8222\"", "http://HOST:8222"),
            ("tls_certificate = \"/c.pem\"", "belong together"),
            ("stuck_after = \"10ms\"", "1s to 1h"),
            ("context = \"../x\"", "not a path"),
        ] {
            let said = nats(&format!("{url}\n{more}")).expect_err(more);
            assert!(said.contains(word), "{more}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn several_servers_and_monitoring_ports_are_lists_with_commas() {
        let read = nats(
            "url = \"nats://a:4222, tls://b, c:1\"\nmonitoring_url = \"http://a:8222/, https://b\"",
        );
        let read = read.expect("settings");
        assert_eq!(read.monitoring_urls, ["http://a:8222", "https://b"]);
        assert_eq!(
            read.shown_url().as_deref(),
            Some("nats://a:4222,tls://b,nats://c:1")
        );
    }
}
