//! What becomes of a panic, which is a defect of ours whatever brought it about.
//!
//! Two kinds of work are told apart. One that a single message, request or peer brought is
//! [`contained`]: it ends with a [`Defect`], its message, request or peer bears that, and nobody else
//! does. Were it to end the process, whoever knows the message could end it again after every start.
//! Everything else is a loop that others wait for (the writer, an intake, a shard): a process in which
//! one has silently gone does harm for longer than one that is started again, and starting is safe at
//! any instant. So there a panic ends the process at once, whichever thread it is on.
//!
//! Either way the log has the place. The program installs this when it begins ([`install`]); without
//! it a panic ends its own task only, as in the tests of the library.

use std::cell::Cell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::pin;

/// Work ended in a panic. The log says where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it ended in a defect of the bridge; the log says where")]
pub struct Defect;

thread_local! {
    /// Whether contained work is being done on this thread.
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread until it is dropped.
struct Within(bool);

impl Within {
    fn enter() -> Self {
        Self(WITHIN.replace(true))
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        WITHIN.set(self.0);
    }
}

/// Does work whose panic is an error of its own. What it shares with others must be sound wherever it
/// may stop: here no lock's section can panic half-way through a change.
pub async fn contained<T>(work: impl Future<Output = T>) -> Result<T, Defect> {
    let mut work = pin!(work);
    poll_fn(|context| {
        let _within = Within::enter();
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(_) => std::task::Poll::Ready(Err(Defect)),
        }
    })
    .await
}

/// From here on a panic is logged, and ends the process unless its work is [`contained`].
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        say(panic);
        if !WITHIN.get() {
            std::process::abort();
        }
    }));
}

/// One line on standard error, which is there whatever the log is doing. Not the panic's own words,
/// which may hold what a stranger sent; the place says enough.
fn say(panic: &PanicHookInfo<'_>) {
    use std::io::Write as _;
    let thread = std::thread::current();
    let place = panic.location().map(ToString::to_string);
    let place = place.as_deref().unwrap_or("an unknown place");
    let end = match WITHIN.get() {
        true => "the message or request at hand bears it",
        false => "the process ends, to be started again",
    };
    // Nothing can be done about a standard error that is gone.
    let _ = writeln!(
        std::io::stderr(),
        "drawbridge: a defect (panic) at {place} on thread {:?}: {end}; please report the place",
        thread.name().unwrap_or("unnamed"),
    );
    // With RUST_BACKTRACE=1: the way there, which holds names and no values.
    let way = std::backtrace::Backtrace::capture();
    if way.status() == std::backtrace::BacktraceStatus::Captured {
        let _ = writeln!(std::io::stderr(), "{way}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_within_is_an_error_and_what_comes_after_is_not_within() {
        let bad = contained(async {
            tokio::task::yield_now().await;
            assert!(WITHIN.get());
            panic!("a defect");
        });
        assert_eq!(bad.await, Err::<(), _>(Defect));
        assert!(!WITHIN.get());
        assert_eq!(contained(async { 7 }).await, Ok(7));
    }

    /// Says that [`victim`] is alone in its process and may end it.
    const ALONE: &str = "DRAWBRIDGE_TEST_ALONE";

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn victim() {
        if std::env::var_os(ALONE).is_none() {
            return;
        }
        install();
        let contained = contained(async { panic!("borne by its message") });
        assert_eq!(contained.await, Err::<(), _>(Defect));
        eprintln!("still here");
        let _ = tokio::spawn(async { panic!("a loop of the bridge") }).await;
        eprintln!("here too");
    }

    #[test]
    fn a_panic_elsewhere_ends_the_process() {
        let name = "ops::defect::tests::victim";
        let ran = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(!ran.status.success());
        assert!(said.contains("still here"), "{said}");
        assert!(said.contains("the process ends"), "{said}");
        assert!(!said.contains("here too"), "{said}");
    }
}
