//! The flood of `bench flood`: bad requests from many addresses, as fast as they are answered.
//!
//! Each address of 127.64.0.0/10 has one connection, and on it in turns: a request without
//! signature, one with a wrong signature, one that is no JSON. A connection that is closed is made
//! anew. One plain thread; it ends when its standard input is closed, and says then what it was
//! answered.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpSocket;

use super::args::{WorldArgs, count};
use super::load::{Prepare, prepare};
use super::speech::{Post, Speech};
use super::wait_for_the_end;
use crate::cli::Outcome;

/// Different requests made beforehand.
const REQUESTS: usize = 256;
/// Pause before a connection is made anew.
const PAUSE: Duration = Duration::from_millis(20);

/// How it is started.
#[derive(Debug, clap::Args)]
pub struct FlooderArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// The public listener.
    #[arg(long)]
    to: SocketAddr,
    /// Addresses that the requests come from.
    #[arg(long)]
    addresses: u32,
}

/// Answers by status; "none" where the connection ended instead.
type Answers = Rc<RefCell<BTreeMap<String, u64>>>;

/// Floods until standard input is closed.
pub async fn flooder(args: FlooderArgs) -> Outcome {
    let speech = args.world.speech()?;
    let forged = Prepare {
        first: 0,
        count: REQUESTS,
        forged: true,
    };
    let posts = spoilt(&*speech, prepare(&*speech, forged)?);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (tell, told) = tokio::sync::oneshot::channel();
    super::shard_thread(move || async move {
        let answers = Answers::default();
        let kept = answers.clone();
        let flood = async move {
            let local = tokio::task::LocalSet::new();
            for n in 0..args.addresses {
                let (posts, speech) = (posts.clone(), speech.clone());
                let source = address(n);
                let answers = answers.clone();
                local.spawn_local(async move {
                    let mut next = count(n);
                    loop {
                        let to = (source, args.to);
                        let ended = connection(to, &*speech, &posts, &mut next, &answers).await;
                        if ended.is_none() {
                            note(&answers, "none");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                });
            }
            local.await;
        };
        tokio::select! {
            () = flood => {}
            _ = stopped => {}
        }
        let _ = tell.send(kept.borrow().clone());
    })?;
    println!("{{}}");
    wait_for_the_end().await;
    let _ = stop.send(());
    let answers = told
        .await
        .map_err(|_| "the flood's thread ended abnormally")?;
    println!("{}", json!(answers));
    Ok(ExitCode::SUCCESS)
}

/// Address number `n` of the flood.
fn address(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x7f40_0001 + n))
}

/// A third each: no signature, a wrong one, no JSON.
fn spoilt(speech: &dyn Speech, posts: Vec<Post>) -> Arc<Vec<Post>> {
    let posts = posts.into_iter().enumerate().map(|(n, mut post)| {
        match n % 3 {
            0 => drop(post.headers.remove(speech.proof())),
            1 => {}
            _ => post.body = post.body.slice(..post.body.len() / 2),
        }
        post
    });
    Arc::new(posts.collect())
}

fn note(answers: &Answers, what: &str) {
    let mut answers = answers.borrow_mut();
    match answers.get_mut(what) {
        Some(n) => *n += 1,
        None => drop(answers.insert(what.to_owned(), 1)),
    }
}

/// Sends on one connection until it ends; None: it could not be made.
async fn connection(
    (source, to): (IpAddr, SocketAddr),
    speech: &dyn Speech,
    posts: &[Post],
    next: &mut usize,
    answers: &Answers,
) -> Option<()> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::new(source, 0)).ok()?;
    let stream = socket.connect(to).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::task::spawn_local(connection);
    let host = HeaderValue::from_str(&to.to_string()).ok()?;
    loop {
        *next = next.wrapping_add(1);
        let post = posts.get(*next % posts.len().max(1))?;
        let mut request: Request<Full<Bytes>> = Request::new(Full::new(post.body.clone()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(speech.path());
        let headers = request.headers_mut();
        headers.clone_from(&post.headers);
        headers.insert(HOST, host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let Ok(answer) = sender.send_request(request).await else {
            return Some(());
        };
        note(answers, answer.status().as_str());
        if answer.into_body().collect().await.is_err() {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_loopback_and_differ() {
        let all: std::collections::HashSet<_> = (0..100_000).map(address).collect();
        assert_eq!(all.len(), 100_000);
        assert!(all.iter().all(IpAddr::is_loopback));
    }
}
