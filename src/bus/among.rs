//! Words between the instances of one bridge: `<prefix>.self.all.<what>` for everybody,
//! `<prefix>.self.<instance>.<what>` for one, who may answer.
//!
//! Plain NATS, never stored: what must not be missed stands in the database, and a word only says that
//! it is time to look.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::subject::token;
use super::{Bus, BusError};

/// Words heard at the same time at most; further ones wait in the subscription.
const AT_ONCE: usize = 64;
/// To everybody.
const ALL: &str = "all";

/// Takes a word (what, body); an answer goes back to who waits for one.
pub type Hearing = Arc<dyn Fn(String, Bytes) -> BoxFuture<'static, Option<Bytes>> + Send + Sync>;

impl Bus {
    /// A word to every instance, this one included. Not awaited; it may be lost.
    pub fn tell_all(&self, what: &str, body: Bytes) {
        self.notify(format!("{}.self.{ALL}.{what}", self.prefix()), body);
    }

    /// A question to one instance.
    pub async fn ask_instance(
        &self,
        name: &str,
        what: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, BusError> {
        let subject = format!("{}.self.{}.{what}", self.prefix(), token(name));
        self.request(subject, body, timeout).await
    }

    /// Hears what is told to everybody and to the instance of this name, until the bus is closed.
    /// Returns once words are being taken; the hearing goes on in the background.
    pub async fn hear_instances(&self, name: &str, hearing: Hearing) -> Result<(), BusError> {
        for to in [ALL.to_owned(), token(name)] {
            let root = format!("{}.self.{to}.", self.prefix());
            let client = self.inner.client.clone();
            let words = client.subscribe(format!("{root}>")).await.map_err(|e| {
                BusError::unavailable(format!("the other instances cannot be heard: {e}"))
            })?;
            tokio::spawn(hear(
                client,
                words,
                root,
                hearing.clone(),
                self.inner.closed.clone(),
            ));
        }
        self.round_trip().await
    }
}

async fn hear(
    client: async_nats::Client,
    mut words: async_nats::Subscriber,
    root: String,
    hearing: Hearing,
    closed: tokio_util::sync::CancellationToken,
) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let work = async {
            let permit = Arc::clone(&room).acquire_owned().await.ok()?;
            Some((permit, words.next().await?))
        };
        let next = tokio::select! {
            biased;
            () = closed.cancelled() => None,
            next = work => next,
        };
        let Some((permit, word)) = next else { return };
        let Some(what) = word.subject.strip_prefix(&root).map(str::to_owned) else {
            continue;
        };
        let (client, heard) = (client.clone(), hearing(what, word.payload));
        tokio::spawn(async move {
            let answer = heard.await;
            if let (Some(reply), Some(answer)) = (word.reply, answer)
                && let Err(e) = client.publish(reply, answer).await
            {
                tracing::debug!("nats: an answer to another instance was not sent: {e}");
            }
            drop(permit);
        });
    }
}
