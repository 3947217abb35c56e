//! `drawbridge probe uam`, by the binary, against a second bridge and against what people find in its
//! place: every fault has its step and its sentence, and the exit code follows.

mod support {
    pub mod bridge;
    pub mod dns;
    pub mod uam_client;
}

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use drawbridge::bus::find;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use support::bridge::{Bridge, Broker, free_address, pin};
use support::dns::{DnsStub, Zone};
use support::uam_client::{key_file_of, public_of};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

// ------------------------------------------------------------------------------------------ probing

/// The bridge that probes: a configuration and a key file, nothing that runs.
struct Prober {
    dir: tempfile::TempDir,
    config: PathBuf,
}

/// What the command printed and how it ended.
#[derive(Debug)]
struct Probed {
    steps: Vec<Value>,
    end: Value,
    success: bool,
}

impl Probed {
    fn code(&self) -> &str {
        self.end["fault"]["code"].as_str().unwrap_or("none")
    }

    fn sentence(&self) -> &str {
        self.end["fault"]["detail"].as_str().unwrap_or_default()
    }

    /// Result and text of the first step of a name.
    fn step(&self, name: &str) -> (Option<bool>, &str) {
        let step = self.steps.iter().find(|s| s["name"] == name);
        let step = step.unwrap_or_else(|| panic!("no step {name}: {self:#?}"));
        (
            step["ok"].as_bool(),
            step["detail"].as_str().unwrap_or_default(),
        )
    }

    fn faulty(&self, code: &str, step: &str) {
        assert_eq!(self.code(), code, "{self:#?}");
        assert!(!self.success, "a fault ends with another exit code than 0");
        assert_eq!(self.step(step).0, Some(false), "{self:#?}");
    }
}

impl Prober {
    /// `http`: lines of `[http]`; `tables`: whole tables.
    fn new(key: &str, http: &str, tables: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let key_path = dir.path().join("relay_key.pem");
        private(&key_path, &key_file_of(key));
        let config = dir.path().join("alpha.toml");
        let text = format!(
            "data_dir = {:?}\n[http]\nallow_cidrs = [\"127.0.0.0/8\"]\n\
             plain_hosts = [\"127.0.0.1\"]\nconnect_timeout = \"1s\"\n{http}\n\
             [uam]\ndomain = \"alpha.test\"\nkey_path = {key_path:?}\n{tables}",
            dir.path()
        );
        std::fs::write(&config, text).expect("a configuration");
        Self { dir, config }
    }

    async fn probe(&self, name: &str) -> Probed {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
            .args(["probe", "uam", name, "--json", "--config"])
            .arg(&self.config)
            .output()
            .await
            .expect("the command runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .collect();
        let end = lines.pop().unwrap_or_else(|| {
            panic!(
                "nothing printed: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        let key_file = self.dir.path().join("relay_key.pem");
        let left = std::fs::read_dir(self.dir.path())
            .expect("the folder")
            .count();
        assert!(key_file.exists() && left == 2, "a probe writes nothing");
        Probed {
            steps: lines,
            end,
            success: output.status.success(),
        }
    }
}

fn private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).expect("a key file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
}

// ------------------------------------------------------------------------------- a second bridge

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_in_order_passes_every_step_and_its_disbelief_is_seen() {
    let dir = tempfile::tempdir().expect("a folder");
    let binary = find::server_binary(None, &find::default_cache_dir())
        .await
        .expect("a nats-server");
    let mut broker = Broker::new(binary, &dir.path().join("broker"));
    broker.start().await;
    let alpha = pin("alpha.test", free_address());
    let mut beta = Bridge::new(
        &dir.path().join("beta"),
        "beta.test",
        Some(&broker.url()),
        "",
        &alpha,
    );
    beta.start().await;
    let beta_pin = pin("beta.test", beta.public);

    let good = Prober::new("alpha.test", "", &beta_pin)
        .probe("beta.test")
        .await;
    assert!(good.success && good.end["ok"] == true, "{good:#?}");
    for step in [
        "address",
        "well-known",
        "key",
        "clock",
        "wire form",
        "signed request",
    ] {
        assert_eq!(good.step(step).0, Some(true), "{step}: {good:#?}");
    }
    assert!(good.step("key").1.contains("as pinned"), "{good:#?}");
    assert!(
        good.step("signed request").1.contains("at no cost"),
        "{good:#?}"
    );

    // Signed with a key that beta does not know, and cannot fetch from alpha.test.
    let forged = Prober::new("somebody else", "", &beta_pin)
        .probe("beta.test")
        .await;
    forged.faulty("signature_refused", "signed request");
    assert!(forged.sentence().contains("Invalid relay signature"));
    assert!(forged.sentence().contains("alpha.test"), "{forged:#?}");

    // Another key pinned here than the one that beta shows.
    let other = beta_pin.replace(&public_of("beta.test"), &public_of("gamma.test"));
    let pinned = Prober::new("alpha.test", "", &other)
        .probe("beta.test")
        .await;
    pinned.faulty("key_not_pinned", "key");
    assert_eq!(
        pinned.step("signed request").0,
        Some(true),
        "the rest is looked at"
    );

    // Nothing of this was a delivery.
    let log = beta.log();
    assert!(!log.contains("Federation message delivered"), "{log}");
    beta.stop().await;
    beta_down(&beta_pin).await;
}

async fn beta_down(beta_pin: &str) {
    let closed = Prober::new("alpha.test", "", beta_pin)
        .probe("beta.test")
        .await;
    closed.faulty("connect", "address");
    assert!(closed.sentence().contains("nothing takes connections"));
}

// ------------------------------------------------------------------------------------ not a relay

/// Serves every path over plain HTTP.
async fn serve(answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let at = listener.local_addr().expect("an address");
    let app = axum::Router::new().fallback(move |request: Request| {
        let answer = answer(request.uri().path());
        async move { answer }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    at
}

fn page(name: &str, base: &str) -> String {
    json!({
        "relay_domain": name,
        "federation_endpoint": format!("{base}/api/v1/federation/deliver"),
        "public_key": public_of(name),
        "version": "0.1",
    })
    .to_string()
}

#[tokio::test]
async fn a_parked_domain_is_no_relay_though_it_answers_200() {
    let at = serve(|_| {
        let kind = [(header::CONTENT_TYPE, "text/html")];
        (kind, "<html>This domain is for sale</html>").into_response()
    })
    .await;
    let tables =
        format!("[[peers]]\nprotocol=\"uam\"\nname=\"beta.test\"\nendpoint=\"http://{at}\"\n");
    let found = Prober::new("alpha.test", "", &tables)
        .probe("beta.test")
        .await;
    found.faulty("parked", "well-known");
    assert!(found.sentence().contains("no relay"), "{found:#?}");
}

#[tokio::test]
async fn a_clock_that_is_off_is_measured_against_the_limit() {
    let at = serve(|path| {
        if path != "/.well-known/uam-relay.json" {
            return StatusCode::NOT_FOUND.into_response();
        }
        let date = [(header::DATE, "Mon, 02 Nov 2020 00:00:00 GMT")];
        (date, page("beta.test", "http://127.0.0.1")).into_response()
    })
    .await;
    let found = Prober::new("alpha.test", "", &pin("beta.test", at))
        .probe("beta.test")
        .await;
    found.faulty("clock_skew", "clock");
    assert!(found.sentence().contains("behind ours"), "{found:#?}");
    let (ok, said) = found.step("signed request");
    assert_eq!(ok, None);
    assert!(
        said.contains("costs us 5 points"),
        "an older relay is not asked: {said}"
    );
}

#[tokio::test]
async fn servfail_on_srv_is_named_and_the_domain_is_asked_all_the_same() {
    let dns = DnsStub::start(&[
        ("_uam._tcp.beta.test", Zone::ServFail),
        // An address of its own, so that nothing of this machine listens there.
        ("beta.test", Zone::A(vec![Ipv4Addr::new(127, 87, 65, 43)])),
        ("private.test", Zone::A(vec![Ipv4Addr::new(10, 0, 0, 1)])),
    ]);
    let http = format!("dns_servers = [\"{}\"]", dns.address());
    let prober = Prober::new("alpha.test", &http, "");
    let found = prober.probe("beta.test").await;
    let (ok, said) = found.step("srv");
    assert_eq!(ok, Some(false));
    assert!(said.contains("Server Failure"), "{said}");
    found.faulty("connect", "address");
    assert!(
        found.sentence().contains("beta.test port 443"),
        "{found:#?}"
    );

    let private = prober.probe("private.test").await;
    private.faulty("address_forbidden", "address");
    assert!(private.sentence().contains("private use"), "{private:#?}");
    prober.probe("nowhere.test").await.faulty("dns", "address");
}

// -------------------------------------------------------------------------------------------- TLS

/// A certificate of a test authority.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: String,
}

fn certificate(name: &str, until: i32) -> Shown {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&ca_key).expect("an authority").pem();
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![name.into()]).expect("parameters");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let issuer = Issuer::new(ca, ca_key);
    let leaf = params.signed_by(&key, &issuer).expect("a certificate");
    Shown {
        chain: vec![leaf.der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        authority,
    }
}

/// A relay of the older form behind TLS: its well-known file, 404 for the rest.
async fn serve_tls(shown: &Shown, name: &str) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), shown.key.clone_key())
        .expect("a certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let at = listener.local_addr().expect("an address");
    let body = page(name, &format!("https://{name}:{}", at.port())).replace(
        &format!("\"relay_domain\":\"{name}\""),
        &format!("\"relay_domain\":\"{name}:{}\"", at.port()),
    );
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, body) = (acceptor.clone(), body.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(socket).await else {
                    return;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n")
                    && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0)
                {}
                let known = head.starts_with(b"GET /.well-known/uam-relay.json ");
                let (status, body) = if known {
                    ("200 OK", body.as_str())
                } else {
                    ("404 Not Found", "{}")
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    at
}

#[tokio::test]
async fn each_fault_of_a_certificate_has_its_own_name() {
    // Certificate for, valid until, authority trusted, the fault.
    let cases = [
        ("relay.test", 2050, true, "none"),
        ("relay.test", 2021, true, "tls_expired"),
        ("other.test", 2050, true, "tls_wrong_name"),
        ("relay.test", 2050, false, "tls_unknown_authority"),
    ];
    for (name, until, trusted, expected) in cases {
        let shown = certificate(name, until);
        let at = serve_tls(&shown, "relay.test").await;
        let roots = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(roots.path(), &shown.authority).expect("the authority");
        let extra = if trusted {
            format!("extra_roots = [{:?}]\n", roots.path())
        } else {
            String::new()
        };
        let http = format!("{extra}hosts = {{ \"relay.test\" = [\"127.0.0.1\"] }}");
        let prober = Prober::new("alpha.test", &http, "");
        let found = prober.probe(&format!("relay.test:{}", at.port())).await;
        assert_eq!(found.code(), expected, "{found:#?}");
        let (ok, said) = found.step("tls");
        assert_eq!(ok, Some(expected == "none"), "{found:#?}");
        assert!(said.contains(name) && said.contains("issued by"), "{said}");
        match expected {
            "none" => assert!(found.success && said.contains("days left"), "{found:#?}"),
            "tls_expired" => assert!(said.contains("days ago"), "{said}"),
            _ => assert!(!found.success),
        }
    }
}
