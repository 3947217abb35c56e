//! Who we are to the broker, and by what TLS: from the settings to the options of a connection.
//!
//! Promises: no secret stands in an address, an error or a log line (the client library logs
//! addresses); files with secrets and certificates are read again at each connect, so one that was
//! renewed heals a connection without a restart.

use std::sync::Arc;

use async_nats::{Auth, AuthError, ConnectOptions, ServerAddr};
use nkeys::KeyPair;
use zeroize::Zeroizing;

use super::{BusError, BusErrorKind};
use crate::config::{NatsConfig, NatsLogin, Secret, SecretFrom, read_secret};

/// Addresses without secrets, and the login that goes with them.
pub(super) struct Target {
    pub addresses: Vec<ServerAddr>,
    pub login: NatsLogin,
}

/// Takes an address list apart: what stands before an `@` becomes the login, unless one is set.
pub(super) fn target(config: &NatsConfig) -> Result<Target, BusError> {
    let wrong = |what: &str| {
        let shown = config.shown_url().unwrap_or_default();
        BusError::new(BusErrorKind::Config, format!("nats.url {shown} {what}"))
    };
    let url = config.url.as_deref().ok_or_else(|| {
        BusError::new(
            BusErrorKind::Config,
            "nats.url is not set and no managed server was started",
        )
    })?;
    let mut addresses = Vec::new();
    let mut from_url: Option<(String, Option<String>)> = None;
    for one in url.split(',') {
        let address: ServerAddr = one
            .trim()
            .parse()
            .map_err(|_| wrong("is not an address such as nats://127.0.0.1:4222"))?;
        let mut plain = address.clone().into_inner();
        if address.host().is_empty() {
            return Err(wrong("is not an address such as nats://127.0.0.1:4222"));
        }
        if let Some(user) = address.username() {
            let found = (decoded(user), address.password().map(decoded));
            if from_url.as_ref().is_some_and(|first| *first != found) {
                return Err(wrong(
                    "names different users for its servers; one login serves all",
                ));
            }
            from_url = Some(found);
            let emptied = plain
                .set_username("")
                .and_then(|()| plain.set_password(None));
            emptied.map_err(|()| wrong("holds a login that cannot be read"))?;
        }
        addresses.push(ServerAddr::from_url(plain).map_err(|_| wrong("has an unknown scheme"))?);
    }
    let text = |secret: String| SecretFrom::Text(Secret(secret.into()));
    let login = match (&config.login, from_url) {
        (NatsLogin::None, Some((user, Some(password)))) => NatsLogin::Password {
            user,
            password: text(password),
        },
        (NatsLogin::None, Some((token, None))) => NatsLogin::Token(text(token)),
        (set, _) => set.clone(),
    };
    Ok(Target { addresses, login })
}

/// Options that log in anew at each connect, with the TLS that was asked for.
pub(super) fn options(config: &NatsConfig, login: &NatsLogin) -> ConnectOptions {
    let mut options = match login {
        NatsLogin::None => ConnectOptions::new(),
        login => {
            let login = Arc::new(login.clone());
            ConnectOptions::with_auth_callback(move |nonce| {
                // A small file, and only at a connect.
                std::future::ready(auth(&login, &nonce).map_err(AuthError::new))
            })
        }
    };
    let tls = &config.tls;
    for roots in &tls.roots {
        options = options.add_root_certificates(roots.clone());
    }
    if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    options = options.require_tls(tls.required);
    if tls.first {
        options = options.tls_first();
    }
    options
}

/// Finds out before the first connect what could never work. The error is a sentence.
pub(super) fn check(config: &NatsConfig, login: &NatsLogin) -> Result<(), BusError> {
    let wrong = |what: String| BusError::new(BusErrorKind::Config, what);
    auth(login, b"nonce").map_err(wrong)?;
    let tls = &config.tls;
    let files = tls.roots.iter().map(|path| ("nats.tls_roots", path));
    let files = files.chain(
        tls.certificate
            .iter()
            .map(|path| ("nats.tls_certificate", path)),
    );
    for (setting, path) in files.chain(tls.key.iter().map(|path| ("nats.tls_key", path))) {
        let about = |what: String| wrong(format!("{setting} {}: {what}", path.display()));
        let text = std::fs::read(path).map(Zeroizing::new);
        let text = text.map_err(|e| about(e.to_string()))?;
        if !text.windows(11).any(|w| w == b"-----BEGIN ") {
            return Err(about("it is not PEM".to_owned()));
        }
    }
    if let Some(key) = &tls.key
        && let Ok(meta) = std::fs::metadata(key)
    {
        crate::config::private(key, &meta)
            .map_err(|what| wrong(format!("nats.tls_key names {}, {what}", key.display())))?;
    }
    Ok(())
}

/// What answers the server's challenge now.
fn auth(login: &NatsLogin, nonce: &[u8]) -> Result<Auth, String> {
    let mut auth = Auth::new();
    match login {
        NatsLogin::None => {}
        NatsLogin::Credentials(path) => {
            let text = read_secret(path).map_err(|e| format!("nats.credentials_file: {e}"))?;
            let about = |what: &str| format!("nats.credentials_file {}: {what}", path.display());
            let jwt = block(&text.0, "NATS USER JWT").ok_or_else(|| about("no user JWT in it"))?;
            let seed =
                block(&text.0, "USER NKEY SEED").ok_or_else(|| about("no nkey seed in it"))?;
            let pair = KeyPair::from_seed(seed).map_err(|_| about("its nkey seed is not valid"))?;
            auth.jwt = Some(jwt.to_owned());
            auth.signature = Some(sign(&pair, nonce)?);
        }
        NatsLogin::Nkey(from) => {
            let text = from.read().map_err(|e| format!("nats.nkey_file: {e}"))?;
            let seed = text.0.lines().map(str::trim).find(|l| l.starts_with('S'));
            let pair = seed
                .and_then(|seed| KeyPair::from_seed(seed).ok())
                .ok_or("nats.nkey holds no valid nkey seed (a line that begins with SU)")?;
            auth.nkey = Some(pair.public_key());
            auth.signature = Some(sign(&pair, nonce)?);
        }
        NatsLogin::Password { user, password } => {
            let password = password
                .read()
                .map_err(|e| format!("nats.password_file: {e}"))?;
            auth.username = Some(user.clone());
            auth.password = Some(password.0.to_string());
        }
        NatsLogin::Token(from) => {
            let token = from.read().map_err(|e| format!("nats.token_file: {e}"))?;
            auth.token = Some(token.0.to_string());
        }
    }
    Ok(auth)
}

fn sign(pair: &KeyPair, nonce: &[u8]) -> Result<Vec<u8>, String> {
    pair.sign(nonce)
        .map_err(|_| "the broker's challenge could not be signed".to_owned())
}

/// The text between `-----BEGIN name-----` and the line that ends it.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("BEGIN {name}"))?;
    let mut lines = rest.lines().skip(1).map(str::trim);
    lines
        .find(|line| !line.is_empty())
        .filter(|line| !line.starts_with('-'))
}

/// `%40` is `@`: what an address writes for characters that mean something in it.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let value = match (first, tail) {
            (b'%', [a, b, ..]) => std::str::from_utf8(&[*a, *b])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        out.push(value.unwrap_or(*first));
        rest = match (value, tail) {
            (Some(_), [_, _, behind @ ..]) => behind,
            _ => tail,
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn nats(text: &str) -> NatsConfig {
        let text = format!("[nats]\n{text}\n");
        Config::from_text(&text).expect("settings").nats
    }

    #[test]
    fn a_login_in_the_address_is_used_and_leaves_the_address() {
        let found = target(&nats("url = \"nats://u:p%40ss@a:4222,b:4223\"")).expect("target");
        let shown = format!("{:?}", found.addresses);
        assert!(
            !shown.contains("p%40ss") && !shown.contains("u:"),
            "{shown}"
        );
        assert_eq!(found.addresses.len(), 2);
        let auth = auth(&found.login, b"").expect("login");
        assert_eq!(auth.username.as_deref(), Some("u"));
        assert_eq!(auth.password.as_deref(), Some("p@ss"));
    }

    #[test]
    fn a_word_alone_before_the_host_is_a_token() {
        let found = target(&nats("url = \"nats://s3cret@a:4222\"")).expect("target");
        let auth = auth(&found.login, b"").expect("login");
        assert_eq!(auth.token.as_deref(), Some("s3cret"));
    }

    #[test]
    fn a_login_of_the_settings_wins_over_the_addresses() {
        let text = "url = \"nats://u:p@a:4222\"\ntoken = \"mine\"";
        let found = target(&nats(text)).expect("target");
        assert!(matches!(found.login, NatsLogin::Token(_)));
        assert!(!format!("{:?}", found.addresses).contains("u:p"));
    }

    #[test]
    fn a_credentials_file_is_taken_apart_and_a_broken_one_named() {
        let pair = KeyPair::new_user();
        let seed = pair.seed().expect("seed");
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("x.creds");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\nabc.def\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let write = |text: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        };
        write(&text);
        let login = NatsLogin::Credentials(path.clone());
        let found = auth(&login, b"nonce").expect("login");
        assert_eq!(found.jwt.as_deref(), Some("abc.def"));
        let signature = found.signature.expect("signed");
        assert!(pair.verify(b"nonce", &signature).is_ok());
        write("nothing");
        let said = auth(&login, b"nonce").err().expect("refused");
        assert!(said.contains("x.creds"), "{said}");
    }
}
