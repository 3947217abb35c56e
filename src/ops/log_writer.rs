//! Log lines on their way to standard error: gathered, so that a line costs its thread no system call.
//!
//! Lines wait at most [`DELAY`], or until [`FULL`] bytes of them do. A warning or error, and what
//! came before it, is written at once. Nothing is dropped: whoever finds the buffer full writes it.
//! What a crash takes are the last lines of information, never the reason for it.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Longest wait of a line.
const DELAY: Duration = Duration::from_millis(50);
/// Bytes that may wait.
const FULL: usize = 64 * 1024;

/// Writers that share one buffer; cloning shares it.
#[derive(Clone)]
pub struct Lines(Arc<Inner>);

struct Inner {
    waiting: Mutex<Vec<u8>>,
    /// Told when the first line comes into an empty buffer.
    some: Condvar,
    out: fn(&[u8]),
}

fn to_standard_error(bytes: &[u8]) {
    // Nobody is left to be told that standard error is gone.
    let _ = io::stderr().write_all(bytes);
}

impl Lines {
    /// Starts the thread that writes what waits.
    pub fn start() -> io::Result<Self> {
        let lines = Self(Arc::new(Inner {
            waiting: Mutex::new(Vec::new()),
            some: Condvar::new(),
            out: to_standard_error,
        }));
        let inner = lines.0.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || inner.write_behind())?;
        Ok(lines)
    }

    /// Writes what waits.
    pub fn flush(&self) {
        self.0.write_out(self.0.lock());
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock, so that lines stay in order.
    fn write_out(&self, mut waiting: MutexGuard<'_, Vec<u8>>) {
        (self.out)(&waiting);
        waiting.clear();
    }

    fn write_behind(&self) {
        loop {
            let waiting = self.lock();
            drop(self.some.wait_while(waiting, |lines| lines.is_empty()));
            std::thread::sleep(DELAY);
            self.write_out(self.lock());
        }
    }
}

/// Writes one event's line.
pub struct Line {
    lines: Lines,
    at_once: bool,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inner = &self.lines.0;
        let mut waiting = inner.lock();
        let first = waiting.is_empty();
        waiting.extend_from_slice(bytes);
        if self.at_once || waiting.len() >= FULL {
            inner.write_out(waiting);
        } else if first {
            drop(waiting);
            inner.some.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            lines: self.clone(),
            at_once: true,
        }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line {
            lines: self.clone(),
            // Less severe is greater.
            at_once: *meta.level() <= Level::WARN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(lines: &Lines, at_once: bool) -> Line {
        Line {
            lines: lines.clone(),
            at_once,
        }
    }

    fn unstarted() -> Lines {
        Lines(Arc::new(Inner {
            waiting: Mutex::new(Vec::new()),
            some: Condvar::new(),
            out: |_| {},
        }))
    }

    #[test]
    fn information_waits_and_a_warning_takes_it_along() {
        let lines = unstarted();
        line(&lines, false).write_all(b"waits\n").unwrap();
        assert_eq!(lines.0.lock().len(), 6);
        line(&lines, true).write_all(b"at once\n").unwrap();
        assert!(lines.0.lock().is_empty());
    }

    #[test]
    fn the_buffer_is_bounded() {
        let lines = unstarted();
        for _ in 0..FULL {
            line(&lines, false).write_all(b"12345").unwrap();
            assert!(lines.0.lock().len() < FULL);
        }
    }
}
