//! A mainline's hands, written from the protocol sheet and not from the library: its token, made and
//! checked, and an HTTP request of which every step can go wrong on purpose.
//!
//! The token is put together as text, so that it can hold what `serde_json` cannot (half of a
//! surrogate pair) and be spoilt at any place.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A mainline's own User-Agent is that of its HTTP library.
pub const USER_AGENT: &str = "axios/1.21.1";

/// Wall clock, milliseconds since 1970.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Text as a JSON string.
pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

/// JSON as a reader in JavaScript would take it: an escape that stands for half of a surrogate pair is
/// a character of its own, which text here cannot hold and U+FFFD stands for.
pub fn lenient(bytes: &[u8]) -> Value {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(at) = rest.find("\\") {
        let (before, escape) = rest.split_at(at);
        out += before;
        let unit = |from: usize| {
            let digits = escape.get(from..from + 6)?.strip_prefix("\\u")?;
            u16::from_str_radix(digits, 16).ok()
        };
        let length = match (unit(0), unit(6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                out += "\\ufffd";
                rest = &escape[6..];
                continue;
            }
            _ => escape.chars().take(2).map(char::len_utf8).sum(),
        };
        out += &escape[..length];
        rest = &escape[length..];
    }
    out += rest;
    serde_json::from_str(&out).unwrap_or_default()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// So many random bytes in hex.
pub fn random_hex(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    getrandom::fill(&mut buffer).expect("the system's dice");
    hex(&buffer)
}

fn hmac(secret: &str, text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The members of a token in the order of the sheet; each value is JSON text.
#[derive(Clone, Debug)]
pub struct Parts(pub Vec<(&'static str, String)>);

impl Parts {
    /// A token of now with a new nonce. `name` is JSON text.
    pub fn fresh(peer_id: &str, host: &str, name: &str) -> Self {
        Self(vec![
            ("peerId", quoted(peer_id)),
            ("host", quoted(host)),
            ("name", name.to_owned()),
            ("timestamp", now_ms().to_string()),
            ("nonce", quoted(&random_hex(16))),
        ])
    }

    /// The same with another value (JSON text).
    pub fn with(mut self, key: &str, value: &str) -> Self {
        for (name, old) in &mut self.0 {
            if *name == key {
                value.clone_into(old);
            }
        }
        self
    }

    /// The same without a member.
    pub fn without(mut self, key: &str) -> Self {
        self.0.retain(|(name, _)| *name != key);
        self
    }

    /// The same with the members turned round: who signs what he sends needs no order.
    pub fn turned(mut self) -> Self {
        self.0.reverse();
        self
    }

    /// The signed text.
    pub fn text(&self) -> String {
        let members: Vec<_> = self.0.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        format!("{{{}}}", members.join(","))
    }

    /// The token.
    pub fn sign(&self, secret: &str) -> String {
        let text = self.text();
        let signature = hex(&hmac(secret, &text));
        let open = text.strip_suffix('}').expect("an object");
        URL_SAFE_NO_PAD.encode(format!("{open},\"signature\":\"{signature}\"}}"))
    }
}

/// A token of now.
pub fn token(secret: &str, peer_id: &str, host: &str, name: &str) -> String {
    Parts::fresh(peer_id, host, name).sign(secret)
}

/// What a token says, if it is made exactly as the sheet's section 4 asks and holds under `secret`.
pub fn read_token(secret: &str, token: &str) -> Result<Value, String> {
    if token.len() > 8192 {
        return Err("longer than 8192 characters".into());
    }
    let bytes = URL_SAFE_NO_PAD
        .decode(token)
        .map_err(|e| format!("no base64url without padding: {e}"))?;
    let text = String::from_utf8(bytes).map_err(|_| "no UTF-8")?;
    let parsed: Value = serde_json::from_str(&text).map_err(|e| format!("no JSON: {e}"))?;
    let member = |key: &str| parsed.get(key).map(Value::to_string).unwrap_or_default();
    let signed = format!(
        "{{\"peerId\":{},\"host\":{},\"name\":{},\"timestamp\":{},\"nonce\":{}}}",
        member("peerId"),
        member("host"),
        member("name"),
        member("timestamp"),
        member("nonce")
    );
    let signature = hex(&hmac(secret, &signed));
    let open = signed.strip_suffix('}').expect("an object");
    let whole = format!("{open},\"signature\":\"{signature}\"}}");
    if whole != text {
        return Err(format!("not the text {whole} but {text}"));
    }
    let stamp = parsed["timestamp"].as_i64().ok_or("timestamp no integer")?;
    if (now_ms() - stamp).abs() > 300_000 {
        return Err(format!("made at {stamp}, long ago or to come"));
    }
    let nonce = parsed["nonce"].as_str().unwrap_or_default();
    let plain = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    if nonce.len() != 32 || !nonce.chars().all(plain) {
        return Err(format!(
            "the nonce {nonce:?} is not 32 lower-case hex digits"
        ));
    }
    Ok(parsed)
}

// ----------------------------------------------------------------------------------------- requests

/// How the answer to a request gets lost, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The connection is closed when the first byte of the answer is there, unread.
    BeforeReading,
    /// Closed after some bytes of the answer.
    Partly(usize),
    /// Read to its end by a process that dies before it looks at it.
    Afterwards,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answered {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answered {
    /// Its body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The whole of it as text.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.head, String::from_utf8_lossy(&self.body))
    }
}

/// One request over a connection of its own.
pub struct Call<'a> {
    pub to: SocketAddr,
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// Sent as `application/json`; empty: no body and no type.
    pub body: &'a str,
    pub loss: Option<Loss>,
    pub patience: Duration,
}

impl Call<'_> {
    /// The answer, or why there is none.
    pub async fn send(&self) -> Result<Answered, String> {
        tokio::time::timeout(self.patience, self.talk())
            .await
            .map_err(|_| format!("timeout of {:?} exceeded", self.patience))?
            .map_err(|e| e.to_string())
    }

    async fn talk(&self) -> std::io::Result<Answered> {
        let mut socket = TcpStream::connect(self.to).await?;
        socket.set_nodelay(true)?;
        let mut text = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {USER_AGENT}\r\nAccept: application/json, text/plain, */*\r\nConnection: close\r\n",
            self.method, self.path, self.to
        );
        if !self.body.is_empty() || self.method == "POST" {
            text += &format!("Content-Length: {}\r\n", self.body.len());
        }
        if !self.body.is_empty() {
            text += "Content-Type: application/json\r\n";
        }
        for (name, value) in self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        text += self.body;
        socket.write_all(text.as_bytes()).await?;
        let mut buffer = Vec::new();
        if self.loss == Some(Loss::BeforeReading) {
            return Err(lost(&buffer, &socket).await);
        }
        loop {
            if let Some(answered) = whole(&buffer) {
                return match self.loss {
                    None => Ok(answered),
                    Some(_) => Err(lost(&buffer, &socket).await),
                };
            }
            if let Some(Loss::Partly(n)) = self.loss
                && buffer.len() >= n
            {
                return Err(lost(&buffer, &socket).await);
            }
            if socket.read_buf(&mut buffer).await? == 0 {
                return Err(std::io::Error::other("socket hang up"));
            }
        }
    }
}

/// What an error says when an answer with messages in it is lost.
pub const LOST_MESSAGES: &str = "an answer with messages in it is lost";

/// The error of a lost answer. What has not been read stays unread: closing then is a reset.
async fn lost(read: &[u8], socket: &TcpStream) -> std::io::Error {
    let mut rest = vec![0; 64 * 1024];
    let more = tokio::time::timeout(Duration::from_millis(20), async {
        // The first byte, and a moment for those right behind it.
        let _ = socket.peek(&mut [0]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        socket.peek(&mut rest).await.unwrap_or(0)
    });
    let more = if read.is_empty() {
        // Nothing read yet: as long as it takes.
        let _ = socket.peek(&mut [0]).await;
        more.await.unwrap_or(0)
    } else {
        more.await.unwrap_or(0)
    };
    let seen = [read, &rest[..more]].concat();
    std::io::Error::other(
        if String::from_utf8_lossy(&seen).contains("schemaVersion") {
            LOST_MESSAGES
        } else {
            "an answer is lost"
        },
    )
}

/// The answer once it is complete: a length, or chunks, or nothing to come (204, 304).
fn whole(buffer: &[u8]) -> Option<Answered> {
    let end = buffer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let rest = &buffer[end + 4..];
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let body = if let Some(length) = header("content-length") {
        rest.get(..length.parse().ok()?)?.to_vec()
    } else if header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        unchunked(rest)?
    } else {
        Vec::new()
    };
    Some(Answered { status, head, body })
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        rest = rest.get(line + 2..)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

/// A POST of JSON with some headers.
pub async fn post(
    to: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answered, String> {
    Call {
        to,
        method: "POST",
        path,
        headers,
        body,
        loss: None,
        patience: Duration::from_secs(10),
    }
    .send()
    .await
}

/// A GET with some headers.
pub async fn get(to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Answered, String> {
    Call {
        to,
        method: "GET",
        path,
        headers,
        body: "",
        loss: None,
        patience: Duration::from_secs(10),
    }
    .send()
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_token_is_the_one_that_the_reference_made() {
        // `gen-plain` of the vectors.
        let parts = Parts::fresh(
            "peer_1700000000000_0a1b2c3d",
            "volt-a.example",
            "\"Volt A\"",
        )
        .with("timestamp", "1700000000000")
        .with("nonce", "\"000102030405060708090a0b0c0d0e0f\"");
        let token = String::from_utf8(URL_SAFE_NO_PAD.decode(parts.sign(SECRET)).unwrap());
        assert!(token.unwrap().ends_with(
            "\"signature\":\"8903bb35e4b891042fec5ef3e81bfa3641fe5e39ba054ccac1f3d784768b7747\"}"
        ));
    }

    #[test]
    fn a_token_of_now_is_read_and_a_spoilt_one_is_not() {
        let parts = Parts::fresh("peer_1", "a.example", "\"A\"");
        assert!(read_token(SECRET, &parts.sign(SECRET)).is_ok());
        assert!(read_token(SECRET, &parts.sign("another secret 0123456789")).is_err());
        assert!(read_token(SECRET, &parts.clone().turned().sign(SECRET)).is_err());
        assert!(read_token(SECRET, &parts.without("nonce").sign(SECRET)).is_err());
    }

    #[test]
    fn half_a_pair_is_read_and_a_whole_one_stays() {
        let read = lenient(br#"{"a":"\ud83d\ude80 \ud83d\\ \udc00\"","b":"\\ud800"}"#);
        assert_eq!(read["a"], "\u{1f680} \u{fffd}\\ \u{fffd}\"");
        assert_eq!(read["b"], "\\ud800");
    }

    #[test]
    fn an_answer_in_chunks_is_put_together() {
        let text = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(whole(text).unwrap().body, b"abcde");
        assert!(whole(&text[..text.len() - 8]).is_none());
    }
}
