//! Names that are answered badly.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::json;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::dns::{DnsStub, Zone};
use super::peer::{Peer, Say};
use super::uam_client::public_of;
use super::world::Setup;

/// TLS in front of a peer, with a certificate for that name; answers the certificate in PEM.
fn tls_before(listener: tokio::net::TcpListener, peer: &Peer) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec![peer.name.to_owned()];
    let certificate = rcgen::CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let ring = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let (acceptor, to) = (TlsAcceptor::from(Arc::new(config)), peer.address);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut inner = tokio::net::TcpStream::connect(to).await.unwrap();
                if let Ok(mut outer) = acceptor.accept(socket).await {
                    let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                }
            });
        }
    });
    certificate.pem()
}

#[tokio::test(flavor = "multi_thread")]
async fn servfail_on_srv_does_not_block_the_fallback() {
    let dns = DnsStub::start(&[
        ("_uam._tcp.beta.test", Zone::ServFail),
        ("beta.test", Zone::A(vec![Ipv4Addr::new(127, 0, 0, 44)])),
    ]);
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    beta.page(
        "/.well-known/uam-relay.json",
        &json!({"relay_domain": "beta.test", "public_key": public_of("beta.test"),
            "federation_endpoint": "https://beta.test/api/v1/federation/deliver"}),
    );
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new()
        .set("http.srv", "true")
        .set("http.dns_servers", &format!("[\"{}\"]", dns.address()))
        .set("http.timeout", r#""10s""#);
    // The fallback is at the port of https, which not every user may open.
    match tokio::net::TcpListener::bind("127.0.0.44:443").await {
        Ok(listener) => {
            let root = dir.path().join("root.pem");
            std::fs::write(&root, tls_before(listener, &beta)).unwrap();
            let mut world = setup
                .set("http.extra_roots", &format!("[{root:?}]"))
                .start()
                .await;
            world.send("beta.test", "x").await;
            world.event("delivery.delivered").await;
            assert_eq!(beta.seen().len(), 1);
        }
        Err(why) => {
            println!("only as far as the fallback's first step: {why}");
            let mut world = setup.start().await;
            world.send("beta.test", "x").await;
            let event = world.event("delivery.retrying").await;
            assert!(
                event["detail"].to_string().contains("127.0.0.44:443"),
                "{event}"
            );
        }
    }
    assert!(dns.queries() >= 2, "SRV, then the name itself");
}
