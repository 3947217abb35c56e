//! What came out so far, read once: the receiver's log, `FED_IN` and `FED_DEAD`.

use std::collections::HashSet;
use std::path::Path;

use async_nats::jetstream;

use crate::support::checker::{Dead, Published};
use crate::support::sink::{Line, LogTail};
use crate::support::traffic::{self, Tail};

/// What was seen of each.
pub struct Seen {
    log: LogTail,
    inward: Tail,
    dead: Tail,
    /// `FED_IN` as it stands, and when it was made.
    pub events: Vec<Published>,
    pub made: i64,
    /// Every dead letter that there ever was: a broker that was rolled back forgets some.
    pub dead_letters: Vec<Dead>,
    dead_ids: HashSet<String>,
    /// How often the broker's files were replaced by older ones.
    pub history: i64,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            log: LogTail::default(),
            inward: Tail::of("FED_IN"),
            dead: Tail::of("FED_DEAD"),
            events: Vec::new(),
            made: 0,
            dead_letters: Vec::new(),
            dead_ids: HashSet::new(),
            history: 0,
        }
    }
}

impl Seen {
    /// The receiver's log.
    pub fn log(&mut self, dir: &Path) -> &[Line] {
        self.log.more(dir)
    }

    /// Reads on; whether `FED_IN` is there.
    pub async fn look(&mut self, js: &jetstream::Context) -> bool {
        if let Some(more) = self.dead.more(js).await {
            let new = traffic::dead_letters(&more.messages);
            self.dead_letters
                .extend(new.filter(|d| self.dead_ids.insert(d.id.clone())));
        }
        let Some(more) = self.inward.more(js).await else {
            return false;
        };
        if more.anew {
            self.events.clear();
        }
        self.made = more.made.saturating_add(self.history);
        self.events
            .extend(traffic::events(self.made, &more.messages));
        true
    }

    /// The broker's files are older ones from now on.
    pub fn rolled_back(&mut self) {
        self.history += 1;
        self.inward = Tail::of("FED_IN");
        self.dead = Tail::of("FED_DEAD");
    }
}
