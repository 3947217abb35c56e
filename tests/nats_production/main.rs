//! NATS as it is run in production: logins of every kind, TLS, domains, contexts, several servers,
//! and an account that may do only what the bridge needs ([`permissions`]).

mod permissions;

#[path = "../support"]
mod support {
    pub mod bridge;
    pub mod custom_broker;
    pub mod sink;
    pub mod uam_client;
}

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use drawbridge::bus::{Bus, BusErrorKind};
use drawbridge::config::{Config, NatsConfig};
use nkeys::KeyPair;
use serde_json::{Value, json};
use support::bridge;
use support::custom_broker::CustomBroker;

fn settings(broker: &CustomBroker, more: &str) -> NatsConfig {
    from_text(&format!("[nats]\nurl = \"{}\"\n{more}", broker.url()))
}

fn from_text(text: &str) -> NatsConfig {
    let mut nats = Config::from_text(text).expect("settings").nats;
    nats.connect_timeout = Duration::from_secs(10);
    nats
}

/// A file that only its owner can read.
fn secret_file(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
}

/// Connects, makes the streams, sends one message out and reads it back by the intake.
async fn works(nats: &NatsConfig) -> Bus {
    let bus = Bus::connect(nats).await.expect("connected");
    bus.apply_streams().await.expect("streams");
    let sent = bus.publish_out(
        "uam",
        "beta.com",
        "message",
        vec![],
        Bytes::from_static(b"{}"),
    );
    sent.await.expect("published");
    let mut intake = bus
        .open_intake("store", 1, &["uam"], &[])
        .await
        .expect("an intake");
    let batch = tokio::time::timeout(Duration::from_secs(10), intake.next_batch(1))
        .await
        .expect("in time")
        .expect("a batch");
    for message in batch {
        message.ack.ack().await.expect("acknowledged");
    }
    bus
}

async fn refused(nats: &NatsConfig) -> String {
    let error = Bus::connect(nats).await.err().expect("refused");
    assert_eq!(error.kind, BusErrorKind::Config, "{error}");
    error.to_string()
}

async fn until(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !ask().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test]
async fn user_and_password_log_in_and_a_wrong_one_is_a_sentence_without_it() {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(dir.path());
    let js = broker.jetstream("");
    let login = "authorization { user: u, password: \"s3cret/pass\" }";
    broker.start(&format!("{js}\n{login}")).await;
    works(&settings(
        &broker,
        "user = \"u\"\npassword = \"s3cret/pass\"",
    ))
    .await;
    // The same in the address, and one of two servers is down.
    let down = bridge::free_port();
    let url = format!(
        "nats://127.0.0.1:{down},nats://u:s3cret%2Fpass@127.0.0.1:{}",
        broker.port
    );
    works(&from_text(&format!("[nats]\nurl = \"{url}\""))).await;

    let said = refused(&settings(&broker, "user = \"u\"\npassword = \"wr0ng-one\"")).await;
    assert!(
        said.contains("refused our login") && !said.contains("wr0ng"),
        "{said}"
    );
}

#[tokio::test]
async fn a_token_logs_in() {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(dir.path());
    let js = broker.jetstream("");
    broker
        .start(&format!("{js}\nauthorization {{ token: \"t0ken\" }}"))
        .await;
    let file = dir.path().join("token");
    secret_file(&file, "t0ken\n");
    works(&settings(&broker, &format!("token_file = {file:?}"))).await;
    refused(&settings(&broker, "token = \"other\"")).await;
}

#[tokio::test]
async fn an_nkey_logs_in_by_its_seed_file() {
    let dir = tempfile::tempdir().expect("folder");
    let pair = KeyPair::new_user();
    let mut broker = CustomBroker::new(dir.path());
    let js = broker.jetstream("");
    let users = format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}",
        pair.public_key()
    );
    broker.start(&format!("{js}\n{users}")).await;
    let file = dir.path().join("seed.nk");
    secret_file(&file, &pair.seed().expect("a seed"));
    works(&settings(&broker, &format!("nkey_file = {file:?}"))).await;

    secret_file(&file, &KeyPair::new_user().seed().expect("a seed"));
    let said = refused(&settings(&broker, &format!("nkey_file = {file:?}"))).await;
    assert!(said.contains("refused our login"), "{said}");
}

fn jwt(issuer: &KeyPair, subject: &str, nats: Value) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let body = part(
        json!({"jti": "x", "iat": 1_700_000_000, "iss": issuer.public_key(),
        "name": "test", "sub": subject, "nats": nats}),
    );
    let signed = format!("{head}.{body}");
    let signature = issuer.sign(signed.as_bytes()).expect("signed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn limits_without_jetstream() -> Value {
    json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
        "wildcards": true, "conn": -1, "leaf": -1})
}

#[tokio::test]
async fn a_credentials_file_logs_in_at_a_server_run_by_an_operator() {
    let dir = tempfile::tempdir().expect("folder");
    let (operator, account, user) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    );
    let mut limits = limits_without_jetstream();
    for name in ["mem_storage", "disk_storage", "streams", "consumer"] {
        limits[name] = json!(-1);
    }
    let operator_jwt = jwt(
        &operator,
        &operator.public_key(),
        json!({"type": "operator", "version": 2}),
    );
    let account_jwt = jwt(
        &operator,
        &account.public_key(),
        json!({"type": "account", "version": 2, "limits": limits}),
    );
    // JetStream needs an account for the server's own messages.
    let system = KeyPair::new_account();
    let system_jwt = jwt(
        &operator,
        &system.public_key(),
        json!({"type": "account", "version": 2, "limits": limits_without_jetstream()}),
    );
    let user_jwt = jwt(
        &account,
        &user.public_key(),
        json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}),
    );
    let mut broker = CustomBroker::new(dir.path());
    let js = broker.jetstream("");
    broker
        .start(&format!(
            "{js}\noperator: {operator_jwt}\nresolver: MEMORY\nsystem_account: {1}\n\
             resolver_preload: {{ {0}: {account_jwt}, {1}: {system_jwt} }}",
            account.public_key(),
            system.public_key()
        ))
        .await;
    let file = dir.path().join("bridge.creds");
    let seed = user.seed().expect("a seed");
    secret_file(
        &file,
        &format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        ),
    );
    works(&settings(&broker, &format!("credentials_file = {file:?}"))).await;
}

struct Certificates {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn certificates(dir: &Path) -> Certificates {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair as Pair};
    let key = Pair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).expect("an authority");
    let issuer = Issuer::new(params, key);
    let make = |name: &str, hosts: Vec<String>| {
        let key = Pair::generate().expect("a key");
        let params = CertificateParams::new(hosts).expect("parameters");
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        let (c, k) = (
            dir.join(format!("{name}.pem")),
            dir.join(format!("{name}.key")),
        );
        std::fs::write(&c, certificate.pem()).expect("written");
        secret_file(&k, &key.serialize_pem());
        (c.display().to_string(), k.display().to_string())
    };
    let path = dir.join("ca.pem");
    std::fs::write(&path, ca.pem()).expect("written");
    Certificates {
        ca: path.display().to_string(),
        server: make("server", vec!["127.0.0.1".into(), "localhost".into()]),
        client: make("client", vec!["bridge".into()]),
    }
}

#[tokio::test]
async fn tls_with_own_roots_and_a_client_certificate() {
    let dir = tempfile::tempdir().expect("folder");
    let c = certificates(dir.path());
    let other = dir.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    let stranger = certificates(&other);
    let mut broker = CustomBroker::new(dir.path());
    let js = broker.jetstream("");
    let tls = format!(
        "cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true",
        c.server.0, c.server.1, c.ca
    );
    broker.start(&format!("{js}\ntls {{ {tls} }}")).await;
    let ours = format!(
        "tls_roots = [{:?}]\ntls_certificate = {:?}\ntls_key = {:?}",
        c.ca, c.client.0, c.client.1
    );
    works(&settings(&broker, &ours)).await;

    let wrong_root = ours.replace(&c.ca, &stranger.ca);
    let said = refused(&settings(&broker, &wrong_root)).await;
    assert!(
        said.contains("is not trusted") && said.contains("tls_roots"),
        "{said}"
    );
    let mut no_certificate = settings(&broker, &format!("tls_roots = [{:?}]", c.ca));
    no_certificate.connect_timeout = Duration::from_millis(500);
    assert!(Bus::connect(&no_certificate).await.is_err());

    // TLS before the greeting.
    broker
        .start(&format!("{js}\ntls {{ {tls}, handshake_first: true }}"))
        .await;
    works(&settings(&broker, &format!("{ours}\ntls_first = true"))).await;

    // A server without TLS is not spoken to when TLS is required.
    broker.start(&js).await;
    let mut required = settings(&broker, &format!("{ours}\ntls_required = true"));
    required.connect_timeout = Duration::from_millis(500);
    assert!(Bus::connect(&required).await.is_err());
}

#[tokio::test]
async fn a_jetstream_domain_is_used_and_so_is_a_prefix() {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(dir.path());
    let js = broker.jetstream("domain: hub");
    broker.start(&format!("trace: true\n{js}")).await;
    let bus = works(&settings(&broker, "jetstream_domain = \"hub\"")).await;
    // As permissions.md says.
    until("it is acknowledged", async || {
        broker.log().contains("[PUB $JS.ACK.FED_OUT.")
    })
    .await;
    assert!(bus.stream_facts("FED_OUT").await.expect("asked").is_some());
    works(&settings(&broker, "jetstream_api_prefix = \"$JS.hub.API\"")).await;
    let wrong = settings(&broker, "jetstream_domain = \"nowhere\"");
    let bus = Bus::connect(&wrong).await.expect("connected");
    let said = bus.apply_streams().await.expect_err("no such domain");
    assert!(said.detail.contains("JetStream"), "{said}");
}

#[tokio::test]
async fn a_context_of_the_nats_command_is_used_by_its_name_and_settings_win() {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(dir.path());
    let js = broker.jetstream("domain: hub");
    let login = "authorization { user: u, password: p4ss }";
    broker.start(&format!("{js}\n{login}")).await;
    let contexts = dir.path().join("nats").join("context");
    std::fs::create_dir_all(&contexts).expect("a folder");
    let write = |context: Value| secret_file(&contexts.join("prod.json"), &context.to_string());
    let file = dir.path().join("bridge.toml");
    let load = |text: &str| {
        std::fs::write(&file, text).expect("written");
        let home = dir.path().display().to_string();
        Config::load(Some(&file), &[("XDG_CONFIG_HOME".to_owned(), home)])
    };
    let good = json!({"description": "x", "url": broker.url(), "user": "u", "password": "p4ss",
        "jetstream_domain": "hub", "inbox_prefix": "_INBOX_x", "color_scheme": ""});
    write(good.clone());
    let nats = load("[nats]\ncontext = \"prod\"").expect("settings").nats;
    assert_eq!(nats.inbox_prefix, "_INBOX_x");
    assert!(!format!("{nats:?}").contains("p4ss"));
    works(&nats).await;

    let mut wrong = good.clone();
    wrong["password"] = json!("other");
    write(wrong);
    let text = "[nats]\ncontext = \"prod\"\nuser = \"u\"\npassword = \"p4ss\"";
    works(&load(text).expect("settings").nats).await;

    let mut unsupported = good;
    unsupported["nsc"] = json!("nsc://o/a/u");
    write(unsupported);
    let said = load("[nats]\ncontext = \"prod\"").expect_err("unsupported");
    assert!(said.to_string().contains("nsc is not supported"), "{said}");
    let said = load("[nats]\ncontext = \"dev\"").expect_err("missing");
    assert!(said.to_string().contains("dev.json"), "{said}");
}

#[tokio::test]
async fn a_login_that_is_refused_after_a_reconnect_is_said_and_tried_until_it_is_right() {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(dir.path());
    let js = broker.jetstream("");
    let login =
        |password: &str| format!("{js}\nauthorization {{ user: u, password: \"{password}\" }}");
    broker.start(&login("first")).await;
    let file = dir.path().join("password");
    secret_file(&file, "first");
    let bus = works(&settings(
        &broker,
        &format!("user = \"u\"\npassword_file = {file:?}"),
    ))
    .await;

    broker.start(&login("second")).await;
    until("the refusal is known", async || {
        bus.trouble().is_some_and(|t| t.contains("authorization"))
    })
    .await;
    assert!(!bus.connected());
    secret_file(&file, "second");
    until("connected again", async || bus.connected()).await;
    assert_eq!(bus.trouble(), None);
    bus.apply_streams().await.expect("streams");
}
