//! What spilling is measured against: the rows of the same messages, handed to the store by a program
//! that does nothing else. Many parts are in flight, so that the group commit is always full.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;

use super::args::{WorldArgs, count};
use super::figures::approximate;
use super::traffic;
use crate::cli::Outcome;
use crate::clock::Clock;
use crate::store::{NewRow, RowState, Store};

/// Rows handed in at once.
const PART: usize = 64;
/// Parts whose commit is waited for at the same time.
const FLYING: usize = 128;

/// How it is started.
#[derive(Debug, clap::Args)]
pub struct BareStoreArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// Where the database is made.
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    rows: u32,
}

/// Writes them, says how fast, and waits for the end.
pub async fn bare_store(args: BareStoreArgs) -> Outcome {
    let told = |e: crate::store::StoreError| e.to_string();
    let (speech, clock) = (args.world.speech()?, Clock::system());
    let measured = count(args.rows);
    let warm = (measured / 5).max(1);
    let drafts = traffic::write(&speech, 0..warm + measured)?;
    let store = Store::open(&args.dir.join("drawbridge.db"), clock.clone())
        .await
        .map_err(told)?;
    let protocol = args.world.protocol.id();
    let ids = store.reserve_rows(drafts.len());
    let rows: Vec<NewRow> = ids
        .zip(drafts)
        .map(|(id, draft)| NewRow {
            id,
            protocol,
            peer: speech.peer(draft.peer),
            out_seq: draft.index as u64,
            event_id: draft.id.clone(),
            msg_id: draft.id,
            event_type: draft.kind.to_owned(),
            order_key: format!("{}\n{}", draft.peer, draft.index % 1024),
            body: draft.payload,
            created_ms: clock.now_ms(),
            expires_ms: None,
            traceparent: None,
            state: RowState::Pending,
            reason: None,
            records: Vec::new(),
            room_event: None,
        })
        .collect();
    let (first, rest) = rows.split_at(warm.min(rows.len()));
    write(&store, first).await?;
    let begun = Instant::now();
    write(&store, rest).await?;
    let took = begun.elapsed().as_secs_f64();
    store.close().await;
    println!(
        "{}",
        json!({"rows_per_s": approximate(measured as u64) / took.max(f64::MIN_POSITIVE)})
    );
    Ok(ExitCode::SUCCESS)
}

async fn write(store: &Store, rows: &[NewRow]) -> Result<(), String> {
    let told = |e: crate::store::StoreError| e.to_string();
    let mut flying = FuturesUnordered::new();
    for part in rows.chunks(PART) {
        if flying.len() >= FLYING
            && let Some(done) = flying.next().await
        {
            Result::map_err(done, told)?;
        }
        flying.push(store.enqueue(part.to_vec()).await.map_err(told)?);
    }
    while let Some(done) = flying.next().await {
        done.map_err(told)?;
    }
    Ok(())
}
