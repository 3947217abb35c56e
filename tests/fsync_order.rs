//! SIGKILL does not empty the page cache, so the crash test alone would pass without a single
//! fsync. Here strace writes down what the bridge asks of the kernel, and the order is read from it:
//! data is flushed to the ledger's log before a remote server hears 200, and before `FED_OUT` is
//! told that a message may be forgotten.

mod support {
    pub mod bridge;
    pub mod sink;
    pub mod uam_client;
}

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use support::bridge::{self, Bridge, Broker};
use support::sink::SinkOptions;
use support::uam_client::{self, Posted};

/// One finished system call of the trace, in the order in which the calls *ended* (a write counts
/// from its beginning: what it carries may be seen from then on).
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Bytes written to the ledger or its log, not yet safe.
    LedgerWritten,
    /// Flushed: what was written before is safe.
    LedgerFlushed,
    /// Bytes that came by a socket, as strace prints them.
    Received(String),
    /// Bytes that begin to leave by a socket.
    Sent(String),
}

/// The ledger's file.
const DATABASE: &str = "drawbridge.db";

/// Reads `strace -f -yy` output. `ledger` is the database file's name.
fn steps(trace: &str, ledger: &str) -> Vec<Step> {
    let mut begun: HashMap<&str, String> = HashMap::new();
    let mut found = Vec::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix("<unfinished ...>") {
            send(start, &mut found);
            begun.insert(pid, start.to_owned());
            continue;
        }
        let whole = if call.starts_with("<... ") {
            let start = begun.remove(pid).unwrap_or_default();
            format!("{start}{call}")
        } else {
            send(call, &mut found);
            call.to_owned()
        };
        let receives = ["read(", "readv(", "recvfrom(", "recvmsg("];
        if receives.iter().any(|r| whole.starts_with(r)) && by_socket(&whole) {
            found.push(Step::Received(whole));
            continue;
        }
        let file = whole.split('(').nth(1).unwrap_or_default();
        let of_ledger = file.split_once('<').is_some_and(|(_, rest)| {
            rest.split('>')
                .next()
                .is_some_and(|path| path.contains(&format!("/{ledger}")) && !path.ends_with("-shm"))
        });
        if !of_ledger {
            continue;
        }
        if whole.starts_with("pwrite64(") || whole.starts_with("write(") {
            found.push(Step::LedgerWritten);
        } else if whole.contains("sync(") && whole.trim_end().ends_with("= 0") {
            found.push(Step::LedgerFlushed);
        }
    }
    found
}

fn by_socket(call: &str) -> bool {
    call.contains("<TCP") || call.contains("<socket:")
}

fn send(call: &str, found: &mut Vec<Step>) {
    let sends = ["write(", "writev(", "sendto(", "sendmsg("];
    if sends.iter().any(|s| call.starts_with(s)) && by_socket(call) {
        found.push(Step::Sent(call.to_owned()));
    }
}

/// Whether the ledger was written and then flushed between the first thing received that `from`
/// names and the first thing sent after it that `to` names. `Err`: what is wrong.
fn flushed_between(
    steps: &[Step],
    from: impl Fn(&str) -> bool,
    to: impl Fn(&str) -> bool,
) -> Result<(), String> {
    let start = steps
        .iter()
        .position(|s| matches!(s, Step::Received(text) if from(text)))
        .ok_or("the beginning is not in the trace")?;
    let end = steps[start..]
        .iter()
        .position(|s| matches!(s, Step::Sent(text) if to(text)))
        .ok_or("the end is not in the trace")?
        + start;
    let between = &steps[start..end];
    let written = between.iter().position(|s| *s == Step::LedgerWritten);
    let flushed = between.iter().rposition(|s| *s == Step::LedgerFlushed);
    match (written, flushed) {
        (None, _) => Err("nothing was written to the ledger".into()),
        (Some(_), None) => Err("nothing was flushed".into()),
        (Some(written), Some(flushed)) if flushed < written => {
            Err("what was written to the ledger was not flushed".into())
        }
        _ => Ok(()),
    }
}

fn strace() -> bool {
    let works = std::process::Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        eprintln!(
            "\n*** SKIPPED: strace is not installed or not allowed; nothing was shown about fsync ***\n"
        );
    }
    works
}

fn read_trace(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_flushed_before_anybody_is_told_that_a_message_is_safe() {
    if !strace() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let binary =
        drawbridge::bus::find::server_binary(None, &drawbridge::bus::find::default_cache_dir())
            .await
            .expect("a nats-server");
    let mut broker = Broker::new(binary, &dir.path().join("broker"));
    broker.start().await;
    let options = SinkOptions {
        address: bridge::free_address(),
        domain: "beta.test".into(),
        trusts: "alpha.test".into(),
        dir: dir.path().join("sink"),
    };
    let peer = options.address;
    let listener = tokio::net::TcpListener::bind(peer)
        .await
        .expect("a listener");
    let sink = tokio::spawn(support::sink::serve(listener, options));
    let mut bridge = Bridge::new(
        &dir.path().join("bridge"),
        "alpha.test",
        Some(&broker.url()),
        "discovery = false",
        &bridge::pin("beta.test", peer),
    );
    let trace = dir.path().join("trace");
    let path = trace.display().to_string();
    bridge.under(&[
        "strace",
        "-D",
        "-f",
        "-yy",
        "-s",
        "65536",
        "-o",
        &path,
        "-e",
        "trace=write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync,recvfrom,recvmsg,read,readv",
    ]);
    bridge.start().await;

    // Inbound: one event, accepted.
    let id = uam_client::message_id();
    let envelope = uam_client::envelope(&id, "bob::beta.test", "alice::alpha.test", "safe?");
    let delivery = uam_client::delivery("beta.test", &envelope, false);
    let answer = uam_client::post(&bridge::client(), &bridge.public_url(), &delivery).await;
    assert_eq!(answer, Posted::Ok { duplicate: false });

    // Outbound: one event, acknowledged to the broker.
    let js = jetstream::new(bridge::connect(&broker.url()).await);
    let out_id = uam_client::message_id();
    let out = uam_client::envelope(&out_id, "alice::alpha.test", "bob::beta.test", "safe too?");
    js.publish("fed.out.uam.beta_test.message", out.to_string().into())
        .await
        .expect("published")
        .await
        .expect("acknowledged");
    let end = Instant::now() + Duration::from_secs(30);
    let acknowledged = |s: &str| s.contains("$JS.ACK.FED_OUT.");
    while !steps(&read_trace(&trace), DATABASE)
        .iter()
        .any(|s| matches!(s, Step::Sent(s) if acknowledged(s)))
    {
        assert!(
            Instant::now() < end,
            "FED_OUT is not acknowledged:\n{}",
            bridge::tail(&bridge.log())
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bridge.stop().await;
    sink.abort();

    let steps = steps(&read_trace(&trace), DATABASE);
    flushed_between(
        &steps,
        |s| s.contains(&id),
        |s| s.contains("HTTP/1.1 200") && s.contains("delivered"),
    )
    .unwrap_or_else(|why| panic!("inbound, before the 200: {why}"));
    flushed_between(&steps, |s| s.contains(&out_id), acknowledged)
        .unwrap_or_else(|why| panic!("outbound, before FED_OUT is acknowledged: {why}"));
}

mod reading {
    use super::{Step, flushed_between, steps};

    const TRACE: &str = r#"7 recvfrom(9<TCP:[127.0.0.1:8000->127.0.0.1:4]>, "POST id-1", 8192, 0, NULL, NULL) = 9
8 pwrite64(4</d/drawbridge.db-wal>, "x", 1, 0) = 1
8 fdatasync(4</d/drawbridge.db-wal> <unfinished ...>
7 sendto(5<TCP:[127.0.0.1:5->127.0.0.1:4222]>, "HPUB fed.in", 11, 0, NULL, 0) = 11
8 <... fdatasync resumed>)               = 0
7 writev(9<TCP:[127.0.0.1:8000->127.0.0.1:4]>, [{iov_base="HTTP/1.1 200 OK", iov_len=15}], 1) = 15
"#;

    fn judged(trace: &str) -> Result<(), String> {
        let steps = steps(trace, super::DATABASE);
        flushed_between(&steps, |s| s.contains("id-1"), |s| s.contains("200 OK"))
    }

    #[test]
    fn a_flush_that_ended_before_the_answer_began_counts() {
        assert_eq!(judged(TRACE), Ok(()));
    }

    #[test]
    fn a_flush_still_unfinished_when_the_answer_begins_does_not_count() {
        let mut lines: Vec<_> = TRACE.lines().collect();
        lines.swap(4, 5);
        assert_eq!(judged(&lines.join("\n")), Err("nothing was flushed".into()));
    }

    #[test]
    fn an_answer_without_any_flush_is_noticed() {
        let without: Vec<_> = TRACE.lines().filter(|l| !l.contains("fdatasync")).collect();
        assert_eq!(
            judged(&without.join("\n")),
            Err("nothing was flushed".into())
        );
    }

    #[test]
    fn a_write_after_the_last_flush_is_noticed() {
        let mut lines: Vec<_> = TRACE.lines().collect();
        let write = lines.remove(1);
        lines.insert(4, write);
        assert_eq!(
            judged(&lines.join("\n")),
            Err("what was written to the ledger was not flushed".into())
        );
    }

    #[test]
    fn a_flush_of_another_file_does_not_count() {
        let other = TRACE.replace("fdatasync(4</d/drawbridge.db-wal>", "fdatasync(4</d/other>");
        assert_eq!(judged(&other), Err("nothing was flushed".into()));
        assert!(!steps(&other, super::DATABASE).contains(&Step::LedgerFlushed));
    }
}
