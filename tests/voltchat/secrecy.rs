//! The secret between two peers stays between them, and the bridge is nobody's tool to reach other
//! machines.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::bridge::free_address;
use crate::support::mainline::{Mainline, Options};
use crate::support::volt_client::{post, random_hex};
use crate::support::volt_world::{BASE, MODERATOR, READER, Setup, Volt};

const SOON: Duration = Duration::from_secs(10);

/// Writes down what it is sent, and answers all the same.
struct Canary {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Canary {
    async fn at(address: SocketAddr, answer: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (list, answer) = (Arc::clone(&heard), answer.to_owned());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (list, answer) = (Arc::clone(&list), answer.clone());
                tokio::spawn(async move {
                    let place = {
                        let mut list = list.lock().expect("no panic");
                        list.push(String::new());
                        list.len() - 1
                    };
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                        let whole = {
                            let mut list = list.lock().expect("no panic");
                            list[place] += &text;
                            list[place].contains("\r\n\r\n") && list[place].ends_with('}')
                        };
                        if whole {
                            let _ = socket.write_all(answer.as_bytes()).await;
                            return;
                        }
                    }
                });
            }
        });
        Self { address, heard }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("no panic").clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_appears_in_no_answer_no_log_no_event_and_no_file() {
    let options = Options::at(free_address());
    let host = options.address.to_string();
    let setup = Setup::new("Volt A")
        .allow(&host)
        .allow("*")
        .table("[log]\nlevel = \"trace\"\n");
    let mainline = Mainline::start(options).await;
    let a = Volt::start(&setup).await;
    let mut everything = a.client.subscribe("fed.>").await.unwrap();
    let mut secrets = Vec::new();
    let mut seen = String::new();

    // A secret of ours, and one of theirs.
    let asked = a.request("Volt M", &mainline.url()).await;
    seen += &asked.to_string();
    secrets.push(mainline.peer(&a.host).unwrap().secret);
    mainline.accept(&a.host).await;
    a.until_status(&host, "connected").await;
    let id = a.id_of(&host).await;
    let bearer = Some(MODERATOR);
    let again = Some(json!({"name": "M", "url": mainline.url()}));
    for (method, path, bearer, body) in [
        ("GET", "/peers".to_owned(), Some(READER), None),
        ("GET", "/peers".to_owned(), bearer, None),
        ("GET", format!("/peers/{id}"), bearer, None),
        ("POST", "/peers".to_owned(), bearer, again),
        ("POST", format!("/peers/{id}/accept"), bearer, None),
        ("GET", "/info".to_owned(), None, None),
        ("GET", "/discover".to_owned(), None, None),
    ] {
        let (status, answer) = a.api(method, &path, bearer, body).await;
        seen += &format!("{status} {answer}\n");
    }
    for (method, body) in [
        ("peer.list", json!({})),
        ("peer.get", json!({"peer": host})),
        ("peer.inspect", json!({"peer": host})),
        ("peer.handshake", json!({"peer": host})),
    ] {
        seen += &a.call(method, body).await.to_string();
    }
    a.publish(&host, "announcement", json!({"n": 1}), &[]).await;
    mainline
        .until("a message is fetched", SOON, |m| m.taken().len() == 1)
        .await;
    mainline.relay(&a.host, "announcement", "{\"n\":2}");
    a.until_events(1, SOON).await;
    for path in [
        "/api/v1/peers",
        "/api/v1/queue",
        &format!("/api/v1/peers/voltchat/{host}"),
    ] {
        seen += &a.bridge.admin_api("GET", path).await.1.to_string();
    }
    let theirs = random_hex(32);
    let body = json!({"name": "X", "host": "x.example", "url": "https://x.example",
                      "sharedSecret": theirs, "features": {}});
    for _ in 0..2 {
        let path = format!("{BASE}/handshake");
        let answer = post(a.bridge.public, &path, &[], &body.to_string()).await;
        seen += &answer.unwrap().text();
    }
    secrets.push(theirs);
    // One that is refused, and one in a body that is no JSON.
    let spoilt = random_hex(32);
    let body =
        format!("{{\"name\":\"X\",\"host\":\"x.example\",\"sharedSecret\":\"{spoilt}\" oops");
    let path = format!("{BASE}/handshake");
    let answer = post(a.bridge.public, &path, &[], &body).await;
    seen += &answer.unwrap().text();
    secrets.push(spoilt);

    while let Ok(Some(message)) =
        tokio::time::timeout(Duration::from_millis(300), everything.next()).await
    {
        seen += &format!(
            "{:?}{}",
            message.headers,
            String::from_utf8_lossy(&message.payload)
        );
    }
    for secret in secrets {
        assert!(!seen.contains(&secret), "a secret was shown");
        assert!(!a.bridge.log().contains(&secret), "a secret is in the log");
        assert_eq!(a.files_with(&secret), [""; 0].map(std::path::PathBuf::from));
        let token_part = secret.to_uppercase();
        assert!(!seen.contains(&token_part));
    }
    assert!(
        !a.bridge.log().contains(MODERATOR),
        "an operator's token is in the log"
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let key = std::fs::metadata(a.dir.path().join("voltchat.key")).expect("the key file");
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_of_the_handshake_is_not_followed() {
    let thief = Canary::at(
        free_address(),
        "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"accepted\":true}",
    )
    .await;
    let (mut setup, mut doors) = (Setup::new("Volt A"), Vec::new());
    for status in [301, 302, 303, 307, 308] {
        let redirect = format!(
            "HTTP/1.1 {status} Moved\r\nlocation: http://{}{BASE}/handshake\r\ncontent-length: 0\r\n\r\n",
            thief.address
        );
        let door = Canary::at(free_address(), &redirect).await;
        setup = setup.allow(door.address.to_string());
        doors.push((status, door));
    }
    let a = Volt::start(&setup).await;
    for (status, door) in doors {
        let peer = a
            .request("Volt M", &format!("http://{}", door.address))
            .await;
        assert_eq!(peer["status"], "pending", "{peer}");
        assert!(peer["lastError"].is_string(), "{peer}");
        assert_eq!(door.heard().len(), 1);
        assert_eq!(thief.heard(), [""; 0], "{status} was followed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_makes_the_bridge_speak_to_machines_inside() {
    let inside = Canary::at("127.9.9.9:0".parse().unwrap(), "HTTP/1.1 200 OK\r\n\r\n").await;
    let port = inside.address.port();
    let mut setup = Setup::new("Volt A")
        .allow("*")
        .allow("*.example")
        .line("handshakes_per_minute", "1000");
    setup.http += "[http.hosts]\n\"evil.example\" = [\"127.9.9.9\"]\n\"evil6.example\" = [\"::1\"]\n\"mapped.example\" = [\"::ffff:127.9.9.9\"]\n\"meta.example\" = [\"169.254.169.254\"]\n";
    let a = Volt::start(&setup).await;
    let policy = "Peer host is not allowed by federation policy";
    for host in [
        format!("127.9.9.9:{port}"),
        "127.0.0.1".into(),
        "localhost".into(),
        "a.localhost".into(),
        "10.0.0.1".into(),
        "192.168.1.1:8443".into(),
        "169.254.169.254".into(),
        "2130706433".into(),
        "0x7f.1".into(),
        "127.1".into(),
        "[::1]".into(),
        "[fd00::1]".into(),
        "[fe80::1]".into(),
        "[::ffff:127.9.9.9]".into(),
        "printer.local".into(),
        "db.internal".into(),
        "0.0.0.0".into(),
        "100.64.0.1".into(),
        "[::]".into(),
    ] {
        let body = json!({"name": "X", "host": host, "url": format!("https://{host}"),
                          "sharedSecret": random_hex(32)});
        let path = format!("{BASE}/handshake");
        let answer = post(a.bridge.public, &path, &[], &body.to_string())
            .await
            .unwrap();
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (403, &json!(policy)),
            "{host}"
        );
        for body in [
            json!({"name": "X", "host": host}),
            json!({"name": "X", "url": format!("https://{host}")}),
        ] {
            let (status, answer) = a.api("POST", "/peers", Some(MODERATOR), Some(body)).await;
            assert_eq!((status, &answer["error"]), (403, &json!(policy)), "{host}");
        }
    }
    // A public host whose url leads elsewhere.
    for url in [
        format!("https://127.9.9.9:{port}"),
        "http://good.example".into(),
        "https://good.example:8443".into(),
        "https://user:pw@good.example".into(),
        "https://good.example/path".into(),
        "https://good.example@evil.example".into(),
        "https://good.example?x".into(),
        "ftp://good.example".into(),
        "file:///etc/passwd".into(),
        "good.example".into(),
    ] {
        let body = json!({"name": "X", "host": "good.example", "url": url, "sharedSecret": random_hex(32)});
        let path = format!("{BASE}/handshake");
        let answer = post(a.bridge.public, &path, &[], &body.to_string())
            .await
            .unwrap();
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &json!("Invalid URL (HTTPS required)")),
            "{url}"
        );
    }
    assert_eq!(a.peers().await, Vec::<Value>::new());

    // Names that are public and addresses that are not: asked by us, and asked by them.
    for name in [
        "evil.example",
        "evil6.example",
        "mapped.example",
        "meta.example",
    ] {
        let url = format!("https://{name}:{port}");
        let peer = a.request("X", &url).await;
        assert_eq!(peer["status"], "pending", "{peer}");
        assert!(peer["lastError"].is_string(), "{peer}");
        a.remove(&format!("{name}:{port}")).await;
        let host = format!("{name}:{port}");
        let body = json!({"name": "X", "host": host, "url": url, "sharedSecret": random_hex(32)});
        let path = format!("{BASE}/handshake");
        let answer = post(a.bridge.public, &path, &[], &body.to_string())
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        a.call("peer.inspect", json!({"peer": host})).await;
        a.accept(&host).await;
        let peer = a.until_status(&host, "error").await;
        assert!(
            !peer["lastError"].to_string().contains("haredSecret"),
            "{peer}"
        );
    }
    assert_eq!(inside.heard(), [""; 0]);
}
