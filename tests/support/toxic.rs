//! A wire that can be unwell: a TCP proxy on loopback between the bridge and one that it talks to.
//!
//! It knows nothing of what it carries. What a real network does to a connection happens to all of
//! its connections at once, from one word to the next: late, reset, silent, slow, or cut in the moment
//! when the other side answers (it has stored what it was sent, and nobody will hear of that).
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How a wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It carries what it is given.
    Well,
    /// Every piece takes so long, each way.
    Late(Duration),
    /// Connections are reset, those that are there and those that come.
    Reset,
    /// Half-open: connections stand, and nothing arrives any more, either way. When it ends they are
    /// reset: what they lost cannot be made good.
    Silent,
    /// Of what the server sends a byte arrives in each such time.
    Slow(Duration),
    /// What the client sends arrives; with the first byte of an answer the connection is reset.
    Dropped,
}

/// The proxy; connections and listener end with it.
pub struct Toxic {
    /// Where clients connect.
    pub address: SocketAddr,
    mood: watch::Sender<Mood>,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    /// Connections that were reset.
    reset: AtomicU64,
    /// Of those the ones that lost an answer.
    dropped: AtomicU64,
}

impl Toxic {
    /// A wire to `server`, which need not listen yet.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port on loopback");
        Self::over(listener, server)
    }

    /// The same at a given address.
    pub async fn at(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("the wire's port");
        Self::over(listener, server)
    }

    fn over(listener: TcpListener, server: SocketAddr) -> Self {
        let address = listener.local_addr().expect("a bound socket");
        let (mood, moods) = watch::channel(Mood::Well);
        let counts = Arc::<Counts>::default();
        let counted = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { return };
                        connections.spawn(carry(client, server, moods.clone(), Arc::clone(&counted)));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Self {
            address,
            mood,
            counts,
            task,
        }
    }

    /// From now on it is so.
    pub fn mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Connections that were reset so far.
    pub fn resets(&self) -> u64 {
        self.counts.reset.load(Ordering::Relaxed)
    }

    /// Answers that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Toxic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How carrying one way ended.
enum End {
    /// The sender said so.
    Closed,
    /// The connection is to be reset; whether that loses an answer.
    Reset { answer: bool },
}

/// A way that has ended, with its sockets: they go when both ways have ended.
struct Ended {
    end: End,
    _from: OwnedReadHalf,
    to: OwnedWriteHalf,
}

async fn carry(
    client: TcpStream,
    server: SocketAddr,
    moods: watch::Receiver<Mood>,
    counts: Arc<Counts>,
) {
    reset_when_dropped(&client);
    // Nobody listens: the client is reset, as it would be without a wire.
    let Ok(upstream) = TcpStream::connect(server).await else {
        return;
    };
    reset_when_dropped(&upstream);
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = upstream.into_split();
    let asked = pump(client_in, server_out, moods.clone(), false);
    let answered = pump(server_in, client_out, moods, true);
    let (first, other) = futures_util::future::select(Box::pin(asked), Box::pin(answered))
        .await
        .into_inner();
    let mut ended = vec![first];
    // One side that has said all it has to say may still be answered.
    if matches!(ended[0].end, End::Closed) {
        ended.push(other.await);
    }
    for way in &ended {
        if let End::Reset { answer } = way.end {
            counts.reset.fetch_add(1, Ordering::Relaxed);
            counts
                .dropped
                .fetch_add(u64::from(answer), Ordering::Relaxed);
            return;
        }
    }
    // In good order: what was written still arrives.
    for way in &ended {
        let _ = socket2::SockRef::from(AsRef::<TcpStream>::as_ref(&way.to)).set_linger(None);
    }
}

/// Carries one way until it ends.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut moods: watch::Receiver<Mood>,
    answers: bool,
) -> Ended {
    let end = pieces(&mut from, &mut to, &mut moods, answers).await;
    Ended {
        end,
        _from: from,
        to,
    }
}

async fn pieces(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    moods: &mut watch::Receiver<Mood>,
    answers: bool,
) -> End {
    const RESET: End = End::Reset { answer: false };
    let mut buffer = vec![0; 64 * 1024];
    // Bytes were swallowed: this connection is beyond repair.
    let mut swallowed = false;
    loop {
        let mood = *moods.borrow_and_update();
        if mood == Mood::Reset || swallowed && mood != Mood::Silent {
            return RESET;
        }
        let count = tokio::select! {
            read = from.read(&mut buffer) => match read {
                // The other side does not hear of this end either.
                Ok(0) if mood == Mood::Silent => {
                    swallowed = true;
                    if moods.changed().await.is_err() {
                        return RESET;
                    }
                    continue;
                }
                Ok(0) => {
                    let _ = to.shutdown().await;
                    return End::Closed;
                }
                Ok(count) => count,
                Err(_) => return RESET,
            },
            changed = moods.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return RESET,
            },
        };
        let mood = *moods.borrow_and_update();
        match mood {
            Mood::Reset => return RESET,
            Mood::Dropped if answers => return End::Reset { answer: true },
            Mood::Silent => {
                swallowed = true;
                continue;
            }
            Mood::Late(by) => tokio::time::sleep(by).await,
            Mood::Well | Mood::Slow(_) | Mood::Dropped => {}
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let now = *moods.borrow();
            let step = match now {
                Mood::Slow(each) if answers => {
                    tokio::time::sleep(each).await;
                    1
                }
                _ => rest.len(),
            };
            let (part, others) = rest.split_at(step);
            if to.write_all(part).await.is_err() {
                return RESET;
            }
            rest = others;
        }
    }
}

/// Dropping the socket resets its connection, and does not end it in good order.
fn reset_when_dropped(socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
