//! Earlier consumers of the outbound stream: ours go before the next one is made, another store's are
//! refused.
//!
//! What a consumer is for stands in its metadata, which only its own leader tells. While that server
//! stands still the list lacks it, although it is there and keeps the next one from being made: its
//! name is all there is. A name that this process gave is reason enough to delete it. Names are asked
//! for only then, since not every account may.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind, Stream};
use futures_util::TryStreamExt;

use super::intake::Share;
use super::{Bus, BusError, BusErrorKind};
use crate::faults;

pub(super) const STORE_KEY: &str = "store";
pub(super) const UNIT_KEY: &str = "unit";
pub(super) const LEASE_KEY: &str = "lease";

/// How long a consumer whose server is silent may take to confirm that it was deleted.
const UNANSWERED: Duration = Duration::from_secs(1);

/// Names of the consumers that this process asked for.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<HashSet<String>>);

impl Made {
    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, name: String) {
        self.names().insert(name);
    }

    fn has(&self, name: &str) -> bool {
        self.names().contains(name)
    }

    fn forget(&self, name: &str) {
        self.names().remove(name);
    }

    /// Those of this share that are not among `there` have gone.
    fn keep(&self, share: &Share<'_>, there: &[String]) {
        self.names()
            .retain(|name| !share.may_be_in_the_way(name) || there.contains(name));
    }
}

impl Bus {
    /// Deletes what the share's next consumer replaces; answers the names of all that were told of.
    /// `Foreign`: another store reads this stream; `Unavailable`: a later owner has the unit.
    pub(super) async fn clear_the_way<I>(
        &self,
        stream: &Stream<I>,
        name: &str,
        store_id: &str,
        share: &Share<'_>,
    ) -> Result<Vec<String>, BusError> {
        let told: Vec<Info> = match stream.consumers().try_collect().await {
            Ok(list) => list,
            Err(e) => {
                let what = format!("the consumers of {name} cannot be listed: {e}");
                return Err(self.diagnose(name, what).await);
            }
        };
        for consumer in &told {
            let owner = consumer.config.metadata.get(STORE_KEY).map(String::as_str);
            // A work queue gives every message to one reader: a consumer that is not ours is
            // another's.
            if owner != Some(store_id) {
                return Err(foreign(name, &consumer.name, owner));
            }
            if replaces(share, consumer)? && !faults::on("stale_consumer") {
                self.delete_consumer(stream, name, &consumer.name).await?;
            }
        }
        Ok(told.into_iter().map(|info| info.name).collect())
    }

    /// Another consumer is in the way of the share's next one, and none that was told of is: deletes
    /// those of this process whose servers are silent; answers whether there was one. `Unavailable`:
    /// one is not of this process, and cannot be asked whose it is.
    pub(super) async fn clear_silent<I>(
        &self,
        stream: &Stream<I>,
        name: &str,
        share: &Share<'_>,
        told: &[String],
    ) -> Result<bool, BusError> {
        let names: Vec<String> = match stream.consumer_names().try_collect().await {
            Ok(names) => names,
            Err(e) => {
                tracing::debug!("nats: the names of the consumers of {name} cannot be had: {e}");
                return Ok(false);
            }
        };
        self.inner.made.keep(share, &names);
        let silent = names.iter().filter(|name| !told.contains(name));
        let mut found = false;
        for consumer in silent.filter(|name| share.may_be_in_the_way(name)) {
            if !self.inner.made.has(consumer) {
                return Err(BusError::unavailable(format!(
                    "stream {name} has consumer {consumer}, whose server does not say whose it is"
                )));
            }
            tracing::info!(
                consumer,
                "nats: the server of an earlier consumer of {name} does not answer; deleted by its name"
            );
            // Its leader would have to say that it is gone; the making of the next one shows it.
            let deleting = self.delete_consumer(stream, name, consumer);
            if let Ok(deleted) = tokio::time::timeout(UNANSWERED, deleting).await {
                deleted?;
            }
            found = true;
        }
        Ok(found)
    }

    async fn delete_consumer<I>(
        &self,
        stream: &Stream<I>,
        name: &str,
        consumer: &str,
    ) -> Result<(), BusError> {
        if let Err(e) = stream.delete_consumer(consumer).await
            && !gone(&e)
        {
            return Err(BusError::unavailable(format!(
                "consumer {consumer} of {name} cannot be deleted: {e}"
            )));
        }
        self.inner.made.forget(consumer);
        Ok(())
    }
}

fn foreign(stream: &str, consumer: &str, owner: Option<&str>) -> BusError {
    BusError::new(
        BusErrorKind::Foreign,
        format!(
            "stream {stream} is read by consumer {consumer} of another store ({}); two bridges \
             must not share an outbound stream. If that bridge is gone for good, delete the \
             consumer: nats consumer rm {stream} {consumer}",
            owner.unwrap_or("no store named"),
        ),
    )
}

/// Whether a consumer of our store gives way to this share's next one. A unit's gives way to a later
/// owner's; one that a later owner made means that the unit is not ours any more.
fn replaces(share: &Share<'_>, consumer: &Info) -> Result<bool, BusError> {
    let Share::Unit { name, lease, .. } = share else {
        return Ok(true);
    };
    let metadata = &consumer.config.metadata;
    let Some(unit) = metadata.get(UNIT_KEY) else {
        return Ok(true); // from a time when one instance read everything
    };
    if unit != name {
        return Ok(false);
    }
    let other: i64 = metadata
        .get(LEASE_KEY)
        .and_then(|l| l.parse().ok())
        .unwrap_or(0);
    if other > *lease {
        return Err(BusError::unavailable(format!(
            "unit {name} is read by a later owner (consumer {})",
            consumer.name
        )));
    }
    Ok(true)
}

fn gone(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(e) if e.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> Share<'_> {
        Share::Unit {
            name,
            lease: 3,
            subjects: Vec::new(),
        }
    }

    #[test]
    fn those_of_a_share_that_are_not_there_any_more_are_forgotten() {
        let made = Made::default();
        made.note("drawbridge-uam-2-3-7".into());
        made.note("drawbridge-uam-1-3-8".into());
        assert!(!made.has("drawbridge-6"), "nobody knows whose");
        assert!(made.has("drawbridge-uam-1-3-8"));
        made.keep(&unit("uam/1"), &[]);
        assert!(made.has("drawbridge-uam-2-3-7"));
        assert!(!made.has("drawbridge-uam-1-3-8"));
    }

    #[test]
    fn a_silent_consumer_keeps_the_share_waiting_that_it_may_be_in_the_way_of() {
        let all = Share::All {
            enabled: &["uam"],
            held_back: &[],
        };
        assert!(all.may_be_in_the_way("somebody's"));
        assert!(unit("uam/1").may_be_in_the_way("drawbridge-uam-1-2-5"));
        assert!(!unit("uam/1").may_be_in_the_way("drawbridge-uam-2-2-5"));
        assert!(!unit("uam/1").may_be_in_the_way("drawbridge-uam-10-2-5"));
    }
}
