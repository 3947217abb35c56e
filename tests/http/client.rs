//! What the client refuses, limits and reports.

use std::time::Instant;

use drawbridge::protocol::TransportKind;
use tokio::net::TcpListener;

use super::dns::{DnsStub, Zone};
use super::*;

async fn kind(client: &Client, request: Request) -> TransportKind {
    let answer = client.send(request, LONG, 1000).await;
    answer.expect_err("an answer was not expected").kind
}

#[tokio::test]
async fn a_literal_forbidden_address_is_refused_in_every_spelling() {
    let target = Scripted::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let port = target.address.port();
    let strict = client(&HttpConfig {
        plain_hosts: ["127.0.0.1", "::1", "::ffff:7f00:1", "10.0.0.1"]
            .map(String::from)
            .to_vec(),
        ..strict()
    });
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "[fe80::1]",
        "[fd00:ec2::254]",
    ] {
        for scheme in ["https", "http"] {
            let request = get(format!("{scheme}://{host}:{port}/"));
            assert_eq!(
                kind(&strict, request).await,
                TransportKind::Forbidden,
                "{host}"
            );
        }
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn a_name_that_resolves_to_a_private_address_is_refused_unless_allowed() {
    let target = Scripted::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false).await;
    let port = target.address.port();
    let stub = DnsStub::start(&[
        ("beta.test", Zone::A(vec!["127.0.0.1".parse().unwrap()])),
        (
            "mixed.test",
            Zone::A(vec![
                "8.8.8.8".parse().unwrap(),
                "127.0.0.1".parse().unwrap(),
            ]),
        ),
        ("six.test", Zone::Aaaa(vec!["::1".parse().unwrap()])),
        ("half.test", Zone::A(vec!["8.8.8.8".parse().unwrap()])),
    ]);
    stub.add(
        "half.test",
        Zone::Aaaa(vec!["::ffff:10.0.0.1".parse().unwrap()]),
    );
    let names = ["beta.test", "mixed.test", "six.test", "half.test"];
    let config = HttpConfig {
        dns_servers: vec![stub.address()],
        plain_hosts: names.map(String::from).to_vec(),
        ..strict()
    };
    let refusing = client(&config);
    for name in names {
        let request = get(format!("http://{name}:{port}/"));
        assert_eq!(
            kind(&refusing, request).await,
            TransportKind::Forbidden,
            "{name}"
        );
    }
    assert_eq!(target.connections(), 0);

    let by_host = HttpConfig {
        allow_hosts: vec![format!("beta.test:{port}")],
        ..config.clone()
    };
    let by_network = HttpConfig {
        allow_cidrs: vec!["127.0.0.0/8".parse().unwrap()],
        ..config.clone()
    };
    for config in [by_host, by_network] {
        let request = get(format!("http://beta.test:{port}/"));
        let answer = client(&config).send(request, LONG, 10).await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
    }

    let other_port = HttpConfig {
        allow_hosts: vec!["beta.test:1".into()],
        ..config
    };
    let request = get(format!("http://beta.test:{port}/"));
    assert_eq!(
        kind(&client(&other_port), request).await,
        TransportKind::Forbidden
    );
}

#[tokio::test]
async fn the_hosts_table_is_asked_before_dns_and_guarded_like_it() {
    let target = Scripted::start("HTTP/1.1 204 No Content\r\n\r\n", false).await;
    let url = format!("http://gamma.test:{}/", target.address.port());
    let mut config = HttpConfig {
        hosts: vec![("gamma.test".into(), vec!["127.0.0.1".parse().unwrap()])],
        plain_hosts: vec!["gamma.test".into()],
        ..strict()
    };
    assert_eq!(
        kind(&client(&config), get(&url)).await,
        TransportKind::Forbidden
    );
    config.allow_hosts = vec!["gamma.test".into()];
    let answer = client(&config).send(get(&url), LONG, 10).await.unwrap();
    assert_eq!(answer.status, 204);
}

#[tokio::test]
async fn plain_http_is_spoken_only_to_hosts_that_are_named() {
    let config = HttpConfig {
        plain_hosts: Vec::new(),
        ..local()
    };
    let refused = client(&config)
        .send(get("http://127.0.0.1:1/"), LONG, 10)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, TransportKind::Forbidden);
    assert!(refused.detail.contains("plain_hosts"), "{refused}");
}

#[tokio::test]
async fn a_url_with_a_password_is_refused_without_showing_it() {
    let refused = client(&local())
        .send(get("https://user:hunter2@beta.test/"), LONG, 10)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, TransportKind::Invalid);
    assert!(!refused.detail.contains("hunter2"), "{refused}");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let inside = Scripted::start("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret", false).await;
    let outside = Scripted::start(
        format!(
            "HTTP/1.1 302 Found\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
            inside.address
        ),
        false,
    )
    .await;
    let answer = client(&local())
        .send(get(format!("http://{}/", outside.address)), LONG, 100)
        .await
        .unwrap();
    assert_eq!(answer.status, 302);
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn a_body_that_never_ends_hits_the_total_timeout() {
    let endless = Scripted::start("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc", true).await;
    let started = Instant::now();
    let error = client(&local())
        .send(
            get(format!("http://{}/", endless.address)),
            Duration::from_millis(200),
            1000,
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind, TransportKind::Timeout);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_body_larger_than_allowed_is_too_large_announced_or_not() {
    let announced =
        Scripted::start("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", true).await;
    let mut chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..100 {
        chunked.extend(b"40\r\n");
        chunked.extend([b'x'; 64]);
        chunked.extend(b"\r\n");
    }
    let chunked = Scripted::start(chunked, true).await;
    for server in [announced, chunked] {
        let request = get(format!("http://{}/", server.address));
        assert_eq!(
            kind(&client(&local()), request).await,
            TransportKind::TooLarge
        );
    }
}

#[tokio::test]
async fn a_body_of_several_chunks_arrives_whole_up_to_the_limit() {
    let server = Scripted::start(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n4\r\nghij\r\n0\r\n\r\n",
        false,
    )
    .await;
    let request = get(format!("http://{}/", server.address));
    let answer = client(&local()).send(request, LONG, 10).await.unwrap();
    assert_eq!(&answer.body[..], b"abcdefghij");
}

#[tokio::test]
async fn failures_have_their_kind() {
    let local = client(&HttpConfig {
        dns_servers: vec![],
        hosts: vec![("beta.test".into(), vec!["127.0.0.1".parse().unwrap()])],
        ..super::local()
    });
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let request = get(format!("http://{address}/"));
    assert_eq!(kind(&local, request).await, TransportKind::Connect);

    let cut = Scripted::start("", false).await;
    let request = post(format!("http://{}/", cut.address), "x");
    assert_eq!(kind(&local, request).await, TransportKind::Broken);

    let nonsense = Scripted::start("220 mail ready\r\n\r\n", false).await;
    let request = get(format!("http://{}/", nonsense.address));
    assert_eq!(kind(&local, request).await, TransportKind::Broken);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let request = get(format!("https://{plain}/"));
    assert_eq!(kind(&local, request).await, TransportKind::Tls);

    for url in ["not a url", "ftp://beta.test/", "data:text/plain,x"] {
        assert_eq!(
            kind(&local, get(url)).await,
            TransportKind::Invalid,
            "{url}"
        );
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_a_dns_failure() {
    let stub = DnsStub::start(&[("broken.test", Zone::ServFail)]);
    let client = client(&HttpConfig {
        dns_servers: vec![stub.address()],
        ..strict()
    });
    for name in ["nowhere.test", "broken.test"] {
        let request = get(format!("https://{name}/"));
        assert_eq!(kind(&client, request).await, TransportKind::Dns, "{name}");
    }
}

#[tokio::test]
async fn a_peer_that_accepts_and_never_speaks_times_out_while_connecting_by_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = client(&HttpConfig {
        connect_timeout: Duration::from_millis(200),
        ..local()
    });
    let request = get(format!("https://{address}/"));
    assert_eq!(kind(&client, request).await, TransportKind::Timeout);
}

#[tokio::test]
async fn srv_targets_come_best_first() {
    let stub = DnsStub::start(&[(
        "_uam._tcp.beta.test",
        Zone::Srv(vec![
            (20, 100, 1, "c.beta.test"),
            (10, 5, 2, "b.beta.test"),
            (10, 50, 8443, "A.beta.test"),
        ]),
    )]);
    let client = client(&HttpConfig {
        dns_servers: vec![stub.address()],
        ..strict()
    });
    let targets = client.srv("_uam._tcp.beta.test").await.unwrap();
    let order: Vec<_> = targets
        .iter()
        .map(|t| (t.target.as_str(), t.port))
        .collect();
    assert_eq!(
        order,
        [
            ("a.beta.test", 8443),
            ("b.beta.test", 2),
            ("c.beta.test", 1)
        ]
    );
}

#[tokio::test]
async fn no_srv_record_is_an_empty_list_and_no_answer_is_an_error() {
    let stub = DnsStub::start(&[
        ("_uam._tcp.broken.test", Zone::ServFail),
        ("_uam._tcp.silent.test", Zone::Silent),
        ("_uam._tcp.other.test", Zone::A(vec![])),
        ("_uam._tcp.off.test", Zone::Srv(vec![(0, 0, 0, ".")])),
    ]);
    let config = HttpConfig {
        dns_servers: vec![stub.address()],
        ..strict()
    };
    let asking = client(&config);
    for none in ["nowhere", "other", "off"] {
        let found = asking.srv(&format!("_uam._tcp.{none}.test")).await;
        assert_eq!(found.unwrap(), [], "{none}");
    }
    let started = Instant::now();
    let before = stub.queries();
    let (broken, silent) = tokio::join!(
        asking.srv("_uam._tcp.broken.test"),
        asking.srv("_uam._tcp.silent.test")
    );
    assert_eq!(broken.unwrap_err().kind, TransportKind::Dns);
    assert_eq!(silent.unwrap_err().kind, TransportKind::Dns);
    assert!(started.elapsed() < Duration::from_secs(4));
    // One for the broken name at least, and the silent one is asked again: a datagram may be lost.
    assert!(stub.queries() >= before + 3);

    let asked = stub.queries();
    let off = client(&HttpConfig {
        srv: false,
        ..config
    });
    assert_eq!(off.srv("_uam._tcp.broken.test").await.unwrap(), []);
    assert_eq!(stub.queries(), asked);
}

#[tokio::test]
async fn the_request_names_us_and_carries_headers_and_body() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = read_head(&mut stream).await;
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-a: 1\r\n\r\n")
            .await;
        (head, body)
    });
    let mut request = post(format!("http://{address}/in?x=1"), "hi");
    request
        .headers
        .insert("x-relay", "alpha.test".parse().unwrap());
    let answer = client(&local()).send(request, LONG, 10).await.unwrap();
    assert_eq!(answer.headers["x-a"], "1");
    let (head, body) = seen.await.unwrap();
    let agent = format!(
        "user-agent: Drawbridge/{} (federation)\r\n",
        env!("CARGO_PKG_VERSION")
    );
    assert!(head.starts_with("POST /in?x=1 HTTP/1.1\r\n"), "{head}");
    assert!(
        head.contains(&agent) && head.contains("x-relay: alpha.test\r\n"),
        "{head}"
    );
    assert!(
        head.contains("content-length: 2\r\n") && &body == b"hi",
        "{head}"
    );
}

/// Environment variables can be set safely for a child only: the test runs itself.
#[test]
fn proxy_variables_of_the_environment_are_ignored() {
    const CHILD: &str = "DRAWBRIDGE_TEST_PROXY_CHILD";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Ok(url) = std::env::var(CHILD) {
        let answer = runtime
            .block_on(client(&local()).send(get(url), LONG, 10))
            .unwrap();
        assert_eq!(&answer.body[..], b"direct");
        return;
    }
    runtime.block_on(async {
        let direct =
            Scripted::start("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ndirect", false).await;
        let proxy =
            Scripted::start("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproxy", false).await;
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "client::proxy_variables_of_the_environment_are_ignored",
        ]);
        child.env(CHILD, format!("http://{}/", direct.address));
        for name in [
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
            "HTTPS_PROXY",
        ] {
            child.env(name, format!("http://{}", proxy.address));
        }
        let output = child.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!((direct.connections(), proxy.connections()), (1, 0));
    });
}
