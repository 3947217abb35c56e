//! A receiving relay that writes down what it gets and answers as its script says. HTTP by hand, so
//! that an answer can be late, endless, torn or missing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::uam_client::{key_of, payload_text, verify_delivery};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A delivery, as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub body: Value,
    /// The envelope's own text within the body.
    pub envelope_text: String,
    pub signature: String,
}

impl Seen {
    pub fn text(&self) -> String {
        payload_text(&self.body["envelope"])
    }

    pub fn from(&self) -> String {
        self.body["envelope"]["from"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub fn id(&self) -> String {
        self.body["envelope"]["message_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// What the script says to a delivery.
#[derive(Clone, Debug)]
pub enum Say {
    Delivered,
    Duplicate,
    /// Status, further headers (`Name: value\r\n`), detail.
    Status(u16, &'static str, &'static str),
    /// These bytes, then the end of the connection.
    Raw(&'static str),
    /// A head, then this again and again.
    Endless(&'static str),
    /// Nothing, for ever.
    Hang,
    /// `delivered`, once that many deliveries are held.
    HoldUntil(usize),
    /// `delivered`, after this time.
    After(Duration),
}

type Script = Box<dyn Fn(&Seen, usize) -> Say + Send + Sync>;

/// A running peer; its port stays its own over [`Peer::down`] and [`Peer::up`].
pub struct Peer {
    pub name: &'static str,
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

struct Shared {
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    count: watch::Sender<usize>,
    connections: watch::Sender<bool>,
    /// Answers to GET, by path.
    pages: Mutex<HashMap<String, String>>,
}

impl Peer {
    /// Starts one; the script gets each delivery and its number, from 1.
    pub async fn start(
        name: &'static str,
        script: impl Fn(&Seen, usize) -> Say + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Self {
            name,
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Shared {
                script: Mutex::new(Box::new(script)),
                seen: Mutex::default(),
                count: watch::Sender::new(0),
                connections: watch::Sender::new(true),
                pages: Mutex::default(),
            }),
            accepting: Mutex::default(),
        };
        peer.accept(listener);
        peer
    }

    fn accept(&self, listener: TcpListener) {
        let shared = self.shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let mut up = shared.connections.subscribe();
                    tokio::select! {
                        _ = connection(shared, socket) => {}
                        _ = up.wait_for(|up| !up) => {}
                    }
                });
            }
        });
        *self.accepting.lock().unwrap() = Some(task);
    }

    /// Connections are refused from now on, and those open are cut.
    pub async fn down(&self) {
        let task = self.accepting.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
        self.shared.connections.send_replace(false);
    }

    /// On the same port again.
    pub async fn up(&self) {
        self.shared.connections.send_replace(true);
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        self.accept(socket.listen(256).unwrap());
    }

    pub fn script(&self, script: impl Fn(&Seen, usize) -> Say + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    /// What GET of a path answers.
    pub fn page(&self, path: &str, body: &Value) {
        let mut pages = self.shared.pages.lock().unwrap();
        pages.insert(path.to_owned(), body.to_string());
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Waits for that many deliveries, and gives all there are.
    pub async fn saw(&self, n: usize) -> Vec<Seen> {
        let mut count = self.shared.count.subscribe();
        let waited = tokio::time::timeout(PATIENCE, count.wait_for(|c| *c >= n)).await;
        let seen = self.seen();
        assert!(
            waited.is_ok(),
            "{} saw {} of {n} deliveries",
            self.name,
            seen.len()
        );
        seen
    }
}

async fn connection(shared: Arc<Shared>, mut socket: TcpStream) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some((head, body)) = request(&mut socket, &mut buffer).await? else {
            return Ok(());
        };
        let mut words = head.split(' ');
        if words.next() == Some("GET") {
            let path = words.next().unwrap_or_default();
            let page = shared.pages.lock().unwrap().get(path).cloned();
            let (status, text) = page.map_or((404, "{}".to_owned()), |p| (200, p));
            answer(&mut socket, status, "", &text).await?;
            continue;
        }
        let signature = header(&head, "x-uam-relay-signature");
        let believed = verify_delivery(&body, &signature, &key_of("alpha.test").verifying_key());
        assert!(believed.is_ok(), "{believed:?}");
        let text = String::from_utf8(body).unwrap();
        let seen = Seen {
            at: Instant::now(),
            body: serde_json::from_str(&text).unwrap(),
            envelope_text: envelope_text(&text),
            signature,
        };
        let number = {
            let mut all = shared.seen.lock().unwrap();
            all.push(seen.clone());
            all.len()
        };
        let say = (shared.script.lock().unwrap())(&seen, number);
        shared.count.send_replace(number);
        match say {
            Say::Delivered => taken(&mut socket, "delivered").await?,
            Say::Duplicate => taken(&mut socket, "duplicate").await?,
            Say::Status(status, headers, detail) => {
                let body = json!({"error": "error", "detail": detail}).to_string();
                answer(&mut socket, status, headers, &body).await?;
            }
            Say::Raw(bytes) => {
                socket.write_all(bytes.as_bytes()).await?;
                return socket.shutdown().await;
            }
            Say::Endless(piece) => {
                socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
                loop {
                    socket.write_all(chunk.as_bytes()).await?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Say::Hang => std::future::pending().await,
            Say::After(time) => {
                tokio::time::sleep(time).await;
                taken(&mut socket, "delivered").await?;
            }
            Say::HoldUntil(n) => {
                let mut count = shared.count.subscribe();
                let _ = count.wait_for(|c| *c >= n).await;
                taken(&mut socket, "delivered").await?;
            }
        }
    }
}

async fn taken(socket: &mut TcpStream, status: &str) -> std::io::Result<()> {
    let body = json!({"status": status, "detail": null}).to_string();
    answer(socket, 200, "", &body).await
}

async fn answer(
    socket: &mut TcpStream,
    status: u16,
    headers: &str,
    body: &str,
) -> std::io::Result<()> {
    let text = format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(text.as_bytes()).await
}

async fn request(
    socket: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<(String, Vec<u8>)>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let length: usize = header(&head, "content-length").parse().unwrap_or(0);
            if buffer.len() >= end + 4 + length {
                let rest = buffer.split_off(end + 4 + length);
                let body = std::mem::replace(buffer, rest).split_off(end + 4);
                return Ok(Some((head, body)));
            }
        }
        let mut piece = [0u8; 16 * 1024];
        let n = socket.read(&mut piece).await?;
        if n == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&piece[..n]);
    }
}

fn header(head: &str, name: &str) -> String {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

/// The text of the member `envelope`, exactly as it stands in the body.
fn envelope_text(body: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        envelope: &'a serde_json::value::RawValue,
    }
    let outer: Outer<'_> = serde_json::from_str(body).unwrap();
    outer.envelope.get().to_owned()
}
