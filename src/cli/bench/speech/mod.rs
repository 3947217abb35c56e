//! What a protocol looks like to the bench: messages of a backend and of peers, the peers' answers,
//! and the same work done without the bridge's rules.

mod paracord;
mod uam;
mod voltchat;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use clap::ValueEnum;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::pipeline::Bridge;
use super::rig::Broker;
use super::world::World;
use crate::clock::UnixMs;

/// What is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Spoken {
    /// Relays; each message signed by its agent and by its relay.
    #[default]
    Uam,
    /// Mainlines; each push with a token under a shared secret.
    Voltchat,
    /// Servers with rooms; each event signed, and each push of it.
    Paracord,
}

impl Spoken {
    /// As in subjects and settings.
    pub fn id(self) -> &'static str {
        match self {
            Self::Uam => "uam",
            Self::Voltchat => "voltchat",
            Self::Paracord => "paracord",
        }
    }

    /// It, spoken in a world.
    pub fn speech(self, world: World) -> Result<Arc<dyn Speech>, String> {
        Ok(match self {
            Self::Uam => Arc::new(uam::Uam::new(world)),
            Self::Voltchat => Arc::new(voltchat::Voltchat::new(world)?),
            Self::Paracord => Arc::new(paracord::Paracord::new(world)?),
        })
    }
}

/// Which way messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From us to the peers.
    Out,
    /// From the peers to us.
    In,
}

/// A message as a backend publishes it.
pub struct Draft {
    /// Its number; it can be read back from what the peer gets.
    pub index: usize,
    /// Whose it becomes, by number.
    pub peer: usize,
    /// Its type as subjects have it.
    pub kind: &'static str,
    /// `Nats-Msg-Id`.
    pub id: String,
    pub payload: Bytes,
}

/// A delivery, ready to be sent.
pub struct Post {
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What a peer answers.
pub type Reply = (StatusCode, Bytes);

/// An event as it is published on `fed.in`.
pub struct Taken {
    pub peer: String,
    pub kind: &'static str,
    pub id: String,
    pub text: Bytes,
}

/// One protocol in one world.
pub trait Speech: Send + Sync {
    /// Where deliveries go.
    fn path(&self) -> &'static str;

    /// The name of a peer.
    fn peer(&self, n: usize) -> String;

    /// Message `index` of our backend.
    fn draft(&self, index: usize, now_ms: UnixMs) -> Result<Draft, String>;

    /// Message `index` of the peers, proven.
    fn post(&self, index: usize, now_ms: UnixMs) -> Result<Post, String>;

    /// The same event delivered once more, with a proof of its own: what senders do that got no answer.
    fn again(&self, post: &Post, now_ms: UnixMs) -> Result<Post, String>;

    /// Whether an answer of ours takes a message for the first time; None: it takes none.
    fn took(&self, status: u16, body: &[u8]) -> Option<bool>;

    /// Ordering keys that each peer's messages take turns in.
    fn keys_of_a_peer(&self) -> usize;

    /// The header that proves a delivery.
    fn proof(&self) -> HeaderName;

    /// Makes a delivery one that anybody could have made up: a bit of its proof is another.
    fn forge(&self, post: &mut Post) -> Result<(), String> {
        let name = self.proof();
        let proof = post.headers.get(&name).ok_or("a delivery without proof")?;
        let forged = forged(proof.as_bytes());
        let value = HeaderValue::from_bytes(&forged).map_err(|e| e.to_string())?;
        post.headers.insert(name, value);
        Ok(())
    }

    /// Which of our messages came; the answer to what is none of them.
    fn index(&self, body: &[u8]) -> Result<usize, Reply>;

    /// Whether it is proven to come from us.
    fn proves(&self, headers: &HeaderMap, body: &Bytes) -> bool;

    /// A peer's answer to a message it takes.
    fn taken(&self, body: &[u8]) -> Reply;

    /// Whatever else a peer answers.
    fn page(&self, method: &Method, path: &str, host: &str) -> Option<Reply>;

    /// The bridge's settings, its key written beside them; `far`: where every peer listens.
    fn settings(
        &self,
        dir: &Path,
        public: SocketAddr,
        far: Option<SocketAddr>,
    ) -> Result<String, String>;

    /// Whether peers must be made known to a running bridge before anything is sent to them.
    fn needs_introduction(&self) -> bool {
        false
    }

    /// Makes the peers known to a running bridge, and lifts what bounds them there.
    fn introduce<'a>(
        &'a self,
        bridge: &'a Bridge,
        broker: &'a Broker,
    ) -> BoxFuture<'a, Result<(), String>>;

    /// What a bare program posts for a backend's message.
    fn bare_out(&self, peer: &str, id: &str, payload: &[u8]) -> Result<Post, String>;

    /// What a bare program publishes for a delivery, once it is proven.
    fn bare_in(&self, headers: &HeaderMap, body: &Bytes) -> Option<Taken>;
}

/// A file that only we can read, with one line.
fn write_secret(path: &Path, line: &str) -> Result<(), String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt;
    let told = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(told)?;
    writeln!(file, "{line}").map_err(told)
}

/// A proof with one digit of its second half changed. The half matters: in an Ed25519 signature it is
/// the number, and a changed first half would be refused sooner, mostly as no point of the curve.
fn forged(proof: &[u8]) -> Vec<u8> {
    let mut forged = proof.to_vec();
    let at = forged.len() * 5 / 8;
    if let Some(digit) = forged.get_mut(at) {
        *digit = if *digit == b'a' { b'b' } else { b'a' };
    }
    forged
}

/// What stands between `before` and `after` somewhere in a text that is not read as JSON: for the
/// process that only counts arrivals. Our texts are compact.
fn between<'a>(text: &'a [u8], before: &[u8], after: u8) -> Option<&'a str> {
    let at = text.windows(before.len()).position(|w| w == before)? + before.len();
    let rest = text.get(at..)?;
    let end = rest.iter().position(|b| *b == after)?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

/// Text of this many bytes; none where there is no room.
fn filler(bytes: usize) -> String {
    "QmVuY2g".chars().cycle().take(bytes).collect()
}
