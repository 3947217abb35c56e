//! The server's limits and its end.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use axum::Router;
use axum::extract::Extension;
use axum::routing::{get as route, post as route_post};
use drawbridge::http::server::{ClientAddr, Server};
use drawbridge::protocol::TransportKind;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::*;

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn run(server: Server, router: Router) -> Running {
    let address = server.local_addr();
    let stop = CancellationToken::new();
    let task = tokio::spawn(server.serve(router, stop.clone()));
    Running {
        address,
        stop,
        task,
    }
}

fn serve(config: &ListenConfig, router: Router) -> Running {
    run(Server::bind(config, false).unwrap(), router)
}

fn hello() -> Router {
    Router::new().route("/", route(|| async { "hello" })).route(
        "/size",
        route_post(|body: Bytes| async move { body.len().to_string() }),
    )
}

/// Everything the server sends until it closes.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    until_closed(&mut stream).await
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_head_or_silent_is_dropped() {
    let config = ListenConfig {
        header_timeout: Duration::from_millis(200),
        ..listen()
    };
    let server = serve(&config, hello());
    for opening in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: x\r\n", "PRI * HTT"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(opening.as_bytes()).await.unwrap();
        let closed = tokio::time::timeout(LONG, until_closed(&mut stream)).await;
        assert!(closed.is_ok(), "{opening:?} was not dropped");
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept_beyond_the_head_limit_and_closed_at_its_own() {
    let config = ListenConfig {
        header_timeout: Duration::from_millis(150),
        idle_timeout: Duration::from_millis(700),
        ..listen()
    };
    let server = serve(&config, hello());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = [0; 512];
    assert!(stream.read(&mut answer).await.unwrap() > 0);
    let started = Instant::now();
    assert_eq!(stream.read(&mut answer).await.unwrap(), 0, "not closed");
    assert!(started.elapsed() > Duration::from_millis(400));

    // A second head that stalls is measured by the head's limit, not by the idle one.
    let config = ListenConfig {
        idle_timeout: LONG,
        ..config
    };
    let server = serve(&config, hello());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    assert!(stream.read(&mut answer).await.unwrap() > 0);
    stream.write_all(b"GET / H").await.unwrap();
    let closed = tokio::time::timeout(LONG / 2, until_closed(&mut stream)).await;
    assert!(closed.is_ok());
}

#[tokio::test]
async fn heads_too_large_or_with_too_many_fields_are_refused() {
    let server = serve(&listen(), hello());
    let large = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "y".repeat(20_000)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(101)
    );
    for request in [large, many] {
        let answer = exchange(server.address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_cap_is_413_announced_or_not_and_one_below_it_passes() {
    let server = serve(&listen(), hello());
    let announced = "POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n";
    let answer = exchange(server.address, announced).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("payload_too_large"), "{answer}");

    let chunked = format!(
        "POST /size HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n500001\r\n{}",
        "z".repeat(0x0050_0001)
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let (_, answer) = tokio::join!(writing.write_all(chunked.as_bytes()), async {
        let mut answer = [0; 12];
        reading.read_exact(&mut answer).await.unwrap();
        answer
    });
    assert_eq!(&answer, b"HTTP/1.1 413");

    // Above axum's own default of 2 MB, below ours of 4 MiB.
    let request = post(
        format!("http://{}/size", server.address),
        vec![b'x'; 3 << 20],
    );
    let answer = client(&local()).send(request, LONG, 100).await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"3145728"[..]));
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_408_and_an_answer_that_does_not_come_is_503() {
    let config = ListenConfig {
        request_timeout: Duration::from_millis(200),
        ..listen()
    };
    let router = hello().route("/stuck", route(std::future::pending::<()>));
    let server = serve(&config, router);
    let slow = "POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc";
    let answer = exchange(server.address, slow).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let stuck = "GET /stuck HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = exchange(server.address, stuck).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_maximum_wait_for_a_place() {
    let config = ListenConfig {
        max_connections: 1,
        ..listen()
    };
    let server = serve(&config, hello());
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(request).await.unwrap();
    let mut answer = [0; 512];
    assert!(first.read(&mut answer).await.unwrap() > 0);
    let mut second = TcpStream::connect(server.address).await.unwrap();
    second.write_all(request).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(200), second.read(&mut answer)).await;
    assert!(waiting.is_err(), "served beyond the maximum");
    drop(first);
    assert!(second.read(&mut answer).await.unwrap() > 0);
}

/// Answers when told to; says when a request came in.
fn gate() -> (Router, Arc<Notify>, Arc<Notify>) {
    let (arrived, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (arrived, release) = (Arc::clone(&arrived), Arc::clone(&release));
        move || async move {
            arrived.notify_one();
            release.notified().await;
            "done"
        }
    };
    (Router::new().route("/", route(handler)), arrived, release)
}

#[tokio::test]
async fn stopping_answers_what_is_in_hand_and_takes_nothing_new() {
    let (router, arrived, release) = gate();
    let server = serve(&listen(), router);
    let idle = TcpStream::connect(server.address).await.unwrap();
    let request = get(format!("http://{}/", server.address));
    let asking = tokio::spawn(async move { client(&local()).send(request, LONG, 10).await });
    arrived.notified().await;
    server.stop.cancel();
    // The listener is closed once new connections are refused.
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    release.notify_one();
    let answer = asking.await.unwrap().unwrap();
    assert_eq!(&answer.body[..], b"done");
    tokio::time::timeout(SECOND * 5, server.task)
        .await
        .expect("an idle connection must not hold the drain")
        .unwrap();
    drop(idle);
}

#[tokio::test]
async fn what_does_not_finish_within_the_drain_is_cut() {
    let (router, arrived, _release) = gate();
    let config = ListenConfig {
        drain_timeout: Duration::from_millis(100),
        ..listen()
    };
    let server = serve(&config, router);
    let request = get(format!("http://{}/", server.address));
    let asking = tokio::spawn(async move { client(&local()).send(request, LONG, 10).await });
    arrived.notified().await;
    server.stop.cancel();
    server.task.await.unwrap();
    let cut = asking.await.unwrap().unwrap_err();
    assert_eq!(cut.kind, TransportKind::Broken);
}

#[tokio::test]
async fn two_servers_share_one_port() {
    let first = Server::bind(&listen(), true).unwrap();
    let config = ListenConfig {
        address: first.local_addr(),
        ..listen()
    };
    let second = Server::bind(&config, true).unwrap();
    assert!(Server::bind(&config, false).is_err(), "only on demand");
    let seen = [
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    ];
    let marked = |flag: &Arc<AtomicBool>| {
        let flag = Arc::clone(flag);
        Router::new().route(
            "/",
            route(move || async move {
                flag.store(true, Ordering::SeqCst);
            }),
        )
    };
    let running = [run(first, marked(&seen[0])), run(second, marked(&seen[1]))];
    let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let deadline = Instant::now() + LONG;
    while !seen.iter().all(|s| s.load(Ordering::SeqCst)) {
        assert!(Instant::now() < deadline, "one of the two got nothing");
        exchange(running[0].address, request).await;
    }
}

#[tokio::test]
async fn the_client_address_is_the_sockets_or_what_a_trusted_proxy_says() {
    let say = || {
        Router::new().route(
            "/",
            route(|Extension(ClientAddr(ip)): Extension<ClientAddr>| async move { ip.to_string() }),
        )
    };
    let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                   x-forwarded-for: 6.6.6.6, 9.9.9.9\r\nx-forwarded-for: 127.0.0.5\r\n\r\n";
    let plain = serve(&listen(), say());
    assert!(
        exchange(plain.address, request)
            .await
            .ends_with("\r\n127.0.0.1")
    );
    let config = ListenConfig {
        trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
        ..listen()
    };
    let proxied = serve(&config, say());
    assert!(
        exchange(proxied.address, request)
            .await
            .ends_with("\r\n9.9.9.9")
    );
}

#[tokio::test]
async fn tls_holds_by_a_root_of_our_own_and_a_new_certificate_is_taken_without_a_restart() {
    let pki = Pki::new();
    let config = ListenConfig {
        tls_certificate: Some(pki.certificate()),
        tls_key: Some(pki.key()),
        ..listen()
    };
    let trusting = HttpConfig {
        extra_roots: vec![pki.root()],
        hosts: vec![("beta.test".into(), vec!["127.0.0.1".parse().unwrap()])],
        ..local()
    };
    let bound = Server::bind(&config, false).unwrap();
    let certificate = bound.certificate().unwrap();
    let server = run(
        bound,
        Router::new().route(
            "/",
            route(
                |request: axum::extract::Request| async move { format!("{:?}", request.version()) },
            ),
        ),
    );
    let by_name = format!("https://beta.test:{}/", server.address.port());
    let by_literal = format!("https://{}/", server.address);
    for url in [&by_name, &by_literal] {
        let answer = client(&trusting).send(get(url), LONG, 100).await.unwrap();
        assert_eq!(&answer.body[..], b"HTTP/2.0");
    }
    let distrusting = client(&HttpConfig {
        extra_roots: Vec::new(),
        ..trusting.clone()
    });
    let refused = distrusting
        .send(get(&by_name), LONG, 100)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, TransportKind::Tls, "{refused}");

    // A broken file leaves the old certificate in use; another root's is taken.
    let other = Pki::new();
    std::fs::write(pki.certificate(), "not a certificate").unwrap();
    assert!(certificate.reload().is_err());
    assert!(
        client(&trusting)
            .send(get(&by_name), LONG, 100)
            .await
            .is_ok()
    );
    std::fs::copy(other.certificate(), pki.certificate()).unwrap();
    std::fs::copy(other.key(), pki.key()).unwrap();
    certificate.reload().unwrap();
    let refused = client(&trusting)
        .send(get(&by_name), LONG, 100)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, TransportKind::Tls);
    let trusting = HttpConfig {
        extra_roots: vec![other.root()],
        ..trusting
    };
    assert!(
        client(&trusting)
            .send(get(&by_name), LONG, 100)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_tls_handshake_is_dropped() {
    let pki = Pki::new();
    let config = ListenConfig {
        tls_certificate: Some(pki.certificate()),
        tls_key: Some(pki.key()),
        header_timeout: Duration::from_millis(100),
        ..listen()
    };
    let server = serve(&config, hello());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let closed = tokio::time::timeout(LONG, until_closed(&mut stream)).await;
    assert!(closed.is_ok());
}

#[tokio::test]
async fn an_address_in_use_and_a_missing_certificate_are_told_by_name() {
    let taken = Server::bind(&listen(), false).unwrap();
    let config = ListenConfig {
        address: taken.local_addr(),
        ..listen()
    };
    let error = Server::bind(&config, false).err().unwrap().to_string();
    assert!(error.contains(&taken.local_addr().to_string()), "{error}");
    let config = ListenConfig {
        tls_certificate: Some("/nonexistent/cert.pem".into()),
        tls_key: Some("/nonexistent/key.pem".into()),
        ..listen()
    };
    let error = Server::bind(&config, false).err().unwrap().to_string();
    assert!(error.contains("/nonexistent/cert.pem"), "{error}");
}
