//! The time that is measured: from the end of the warm-up until everything is done.

use tokio::time::Instant;

/// Looks are taken every few milliseconds; the clock starts at one of them: at the first that finds
/// the warm-up over, or, when everything was done by then, at the last before it. So something is
/// always left to be counted, however fast it went.
pub struct Stretch<C> {
    warm: usize,
    all: usize,
    done: usize,
    begun: Instant,
    /// What had been used by then.
    before: C,
}

impl<C> Stretch<C> {
    /// Of `all` messages the first `warm` are not counted; none is done yet.
    pub fn new(warm: usize, all: usize, before: C) -> Self {
        Self {
            warm,
            all,
            done: 0,
            begun: Instant::now(),
            before,
        }
    }

    /// A look: so many are done.
    pub fn look(&mut self, done: usize, used: impl FnOnce() -> C) {
        if self.done < self.warm && done < self.all {
            (self.done, self.begun, self.before) = (done, Instant::now(), used());
        }
    }

    /// How many were done in it, with [`Stretch::seconds`] taken when all are.
    pub fn counted(&self) -> usize {
        self.all - self.done
    }

    /// How long it has lasted.
    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// What had been used when it began.
    pub fn before(&self) -> &C {
        &self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(looks: &[usize]) -> (usize, usize) {
        let mut stretch = Stretch::new(20, 100, 0);
        for &done in looks {
            stretch.look(done, || done);
        }
        (stretch.counted(), *stretch.before())
    }

    #[test]
    fn it_begins_at_the_first_look_after_the_warm_up() {
        assert_eq!(counted(&[0, 7, 30, 60, 100]), (70, 30));
    }

    #[test]
    fn it_begins_before_when_the_rest_was_done_between_two_looks() {
        assert_eq!(counted(&[0, 7, 100, 100]), (93, 7));
        assert_eq!(counted(&[100]), (100, 0));
    }
}
