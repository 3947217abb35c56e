//! The published test vectors, each answered by the real implementations of a protocol.
//!
//! Runs every `*.json` in `tests/vectors/` and, when `DRAWBRIDGE_EXTRA_VECTORS` names a folder, every
//! one there. What the reference did is in `expect` (VoltChat: `expected`, `response`, `after`); where
//! `bridge` is present it decides, member by member. An unknown kind or member is a failure, never
//! passed over: a vector that is not understood has not been run.

mod check;
mod files;
mod paracord;
#[path = "../support/mod.rs"]
mod support;
mod uam;
mod voltchat;

use futures_util::{StreamExt, stream};

/// Cases with a bridge of their own that run at once.
const AT_ONCE: usize = 8;

/// Fails with every case that was not as expected, or if there was none at all.
fn all_right(cases: impl IntoIterator<Item = (Result<(), String>, String)>) {
    let mut run = 0;
    let mut wrong = Vec::new();
    for (result, name) in cases {
        run += 1;
        if let Err(why) = result {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(run > 0, "no vectors found");
    assert!(
        wrong.is_empty(),
        "{} of {run} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Runs cases, some at once, each with a number of its own.
async fn each<T, R>(
    cases: impl IntoIterator<Item = T>,
    run: impl AsyncFn(usize, T) -> R,
) -> Vec<R> {
    let run = &run;
    stream::iter(cases.into_iter().enumerate())
        .map(|(n, case)| run(n, case))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}
