//! The `nats` command's contexts: `~/.config/nats/context/NAME.json`, read by name.
//!
//! What the file says is the layer below the settings of `[nats]`: each of them that is set wins.
//! Members that only concern the `nats` command are passed over; one that changes how a connection
//! is made and that we cannot follow is an error, never quietly dropped.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Secret;

/// What a context says about a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    pub url: Option<String>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub token: Option<Secret>,
    pub creds: Option<PathBuf>,
    pub nkey: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub jetstream_domain: Option<String>,
    pub jetstream_api_prefix: Option<String>,
    pub inbox_prefix: Option<String>,
    pub tls_first: bool,
}

/// Members that change the connection and that we do not follow, with what to do instead.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("nsc", "name a credentials file (creds)"),
    ("user_jwt", "name a credentials file (creds)"),
    ("user_seed", "name a credentials file (creds)"),
    ("socks_proxy", "connect without a proxy"),
    ("windows_cert_store", "name files (cert, key)"),
    ("windows_cert_match", "name files (cert, key)"),
    ("windows_ca_certs_match", "name a file (ca)"),
];

/// Where contexts are: below `config_home` (`$XDG_CONFIG_HOME`, else `~/.config`).
fn file(config_home: &Path, name: &str) -> PathBuf {
    config_home
        .join("nats")
        .join("context")
        .join(format!("{name}.json"))
}

/// Reads a context by name. The error is a sentence about `nats.context`.
pub(super) fn read(
    config_home: Option<&Path>,
    home: Option<&Path>,
    name: &str,
) -> Result<Context, String> {
    if name.contains(['/', '\\']) || name.starts_with('.') {
        return Err(format!("must be a name, not a path: {name:?}"));
    }
    let Some(config_home) = config_home else {
        return Err("needs HOME or XDG_CONFIG_HOME, neither of which is set".to_owned());
    };
    let path = file(config_home, name);
    let text = std::fs::read_to_string(&path).map(zeroize::Zeroizing::new);
    let text = text.map_err(|e| {
        format!(
            "names {name:?}, but {} cannot be read: {e}; `nats context ls` shows what there is",
            path.display()
        )
    })?;
    let context = parse(&text, home)
        .map_err(|what| format!("names {name:?}, but {}: {what}", path.display()))?;
    if context.password.is_some() || context.token.is_some() {
        let secret = std::fs::metadata(&path)
            .map_err(|e| e.to_string())
            .and_then(|meta| super::secret::private(&path, &meta));
        secret.map_err(|what| {
            format!(
                "names {name:?}, but {} holds a secret, {what}",
                path.display()
            )
        })?;
    }
    Ok(context)
}

fn parse(text: &str, home: Option<&Path>) -> Result<Context, String> {
    // The text may hold a secret, so the reader's own message, which quotes it, is not repeated.
    let value: Value = serde_json::from_str(text)
        .map_err(|e| format!("it is not JSON (line {}, column {})", e.line(), e.column()))?;
    let Value::Object(members) = &value else {
        return Err("it is not a JSON object".to_owned());
    };
    let text = |name: &str| -> Result<Option<String>, String> {
        match members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(format!("{name} is not a text")),
        }
    };
    let secret = |name: &str| -> Result<Option<Secret>, String> {
        let Some(found) = text(name)? else {
            return Ok(None);
        };
        refuse_scheme(name, &found)?;
        Ok(Some(Secret(found.into())))
    };
    let path = |name: &str| -> Result<Option<PathBuf>, String> {
        let Some(found) = text(name)? else {
            return Ok(None);
        };
        let found = found.strip_prefix("file://").unwrap_or(&found).to_owned();
        refuse_scheme(name, &found)?;
        expand(&found, home)
            .map(Some)
            .ok_or_else(|| format!("{name} begins with ~, and HOME is not set"))
    };
    for (name, instead) in UNSUPPORTED {
        if text(name)?.is_some() {
            return Err(format!(
                "its {name} is not supported here; {instead} or set nats.* settings"
            ));
        }
    }
    Ok(Context {
        url: text("url")?,
        user: text("user")?,
        password: secret("password")?,
        token: secret("token")?,
        creds: path("creds")?,
        nkey: path("nkey")?,
        cert: path("cert")?,
        key: path("key")?,
        ca: path("ca")?,
        jetstream_domain: text("jetstream_domain")?,
        jetstream_api_prefix: text("jetstream_api_prefix")?,
        inbox_prefix: text("inbox_prefix")?,
        tls_first: members.get("tls_first") == Some(&Value::Bool(true)),
    })
}

/// `op://…`, `nsc://…`, `env://…`: resolved by the `nats` command alone.
fn refuse_scheme(name: &str, text: &str) -> Result<(), String> {
    match text.split_once("://") {
        Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_lowercase()) => Err(format!(
            "its {name} is a {scheme}:// reference, which only the nats command resolves; give \
             nats.{name} here or write the value or a path into the context"
        )),
        _ => Ok(()),
    }
}

fn expand(text: &str, home: Option<&Path>) -> Option<PathBuf> {
    match text.strip_prefix("~/") {
        Some(rest) => Some(home?.join(rest)),
        None => Some(PathBuf::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_read_and_what_is_not_is_passed_over() {
        let text = r#"{"description":"x","url":"nats://a:4222","user":"u","password":"p",
            "creds":"~/c.creds","ca":"/ca.pem","jetstream_domain":"hub","inbox_prefix":"_I",
            "color_scheme":"red","token":"","something_new":{"a":1},"tls_first":true}"#;
        let context = parse(text, Some(Path::new("/home/me"))).expect("read");
        assert_eq!(context.url.as_deref(), Some("nats://a:4222"));
        assert_eq!(context.creds, Some(PathBuf::from("/home/me/c.creds")));
        assert_eq!(context.ca, Some(PathBuf::from("/ca.pem")));
        assert_eq!(context.jetstream_domain.as_deref(), Some("hub"));
        assert_eq!(context.inbox_prefix.as_deref(), Some("_I"));
        assert!(context.tls_first && context.token.is_none());
        assert!(!format!("{context:?}").contains("\"p\""), "{context:?}");
    }

    #[test]
    fn what_cannot_be_followed_is_said() {
        for (text, word) in [
            (r#"{"nsc":"nsc://op/acc/user"}"#, "nsc"),
            (r#"{"socks_proxy":"socks5://x"}"#, "socks_proxy"),
            (r#"{"password":"op://vault/item"}"#, "op://"),
            (r#"{"creds":"nsc://a/b"}"#, "nsc://"),
            (r#"{"url":7}"#, "url is not a text"),
            ("[]", "object"),
            (r#"{"password":"hunter2""#, "not JSON"),
        ] {
            let said = parse(text, None).expect_err(text);
            assert!(said.contains(word), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn a_context_is_a_name_and_not_a_path() {
        for bad in ["../x", "a/b", ".hidden"] {
            let said = read(Some(Path::new("/nowhere")), None, bad).expect_err(bad);
            assert!(said.contains("not a path"), "{said}");
        }
    }
}
