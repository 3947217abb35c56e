//! One change of many rows, in bounded steps.
//!
//! A step reads a page of row numbers, changes those in one commit and tells their lanes. A request
//! ends after `limit` rows or a few seconds, whichever is first, with the place to go on from.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::params::Params;
use super::{AdminState, Fail, Reply, ok, select};
use crate::protocol::PeerName;
use crate::store::{QueueRow, RowFilter, RowState};

/// Rows of one step.
const STEP: usize = 500;
/// Rows of one request.
const MAX_ROWS: i64 = 100_000;
/// A request that has lasted this long ends with its step.
const PATIENCE: Duration = Duration::from_secs(4);

/// What becomes of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Pending: due now. Held: pending again.
    Retry,
    /// Pending or held: dead.
    GiveUp,
    /// Dead: pending again, from the start.
    Redrive,
    /// Dead: gone.
    Remove,
}

impl Change {
    fn states(self) -> &'static [RowState] {
        match self {
            Self::Retry | Self::GiveUp => &[RowState::Pending, RowState::Held],
            Self::Redrive | Self::Remove => &[RowState::Failed],
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::GiveUp | Self::Remove => "drop",
            Self::Redrive => "redrive",
        }
    }
}

/// What a request did.
#[derive(Debug, Default)]
struct Tally {
    /// Rows the filter found in a state that the change is for.
    matched: u64,
    changed: u64,
    /// Left alone: their `Fed-Expires` is over, they would be dead at once.
    expired: u64,
    next: Option<i64>,
}

/// Reads the parameters, checks that they say what is meant, and does it.
pub(super) async fn change(state: &AdminState, query: Option<String>, change: Change) -> Reply {
    let now = state.clock.now_ms();
    let mut params = Params::read(query.as_deref())?;
    let mut filter = select::which(&mut params, now)?;
    let most = params.number("limit", 1, MAX_ROWS)?.unwrap_or(MAX_ROWS);
    let (all, dry_run) = (params.flag("all")?, params.flag("dry_run")?);
    params.end()?;
    if !all && !dry_run && !select::is_narrow(&filter) {
        return Err(Fail::bad_request(
            "filter_needed",
            format!(
                "this would {} every row there is: give a filter, or all=true if that is meant",
                change.word()
            ),
        ));
    }
    filter.states = change.states().iter().copied().collect();
    let tally = run(
        state,
        filter,
        change,
        u64::try_from(most).unwrap_or(0),
        dry_run,
    )
    .await?;
    if tally.changed > 0 {
        tracing::info!(
            rows = tally.changed,
            change = change.word(),
            "queue rows changed by an operator"
        );
    }
    ok(&json!({
        "matched": tally.matched,
        "changed": tally.changed,
        "expired": tally.expired,
        "dry_run": dry_run,
        "next": tally.next,
    }))
}

async fn run(
    state: &AdminState,
    mut filter: RowFilter,
    change: Change,
    most: u64,
    dry_run: bool,
) -> Result<Tally, Fail> {
    let began = Instant::now();
    let mut tally = Tally::default();
    loop {
        let room = usize::try_from(most - tally.matched).unwrap_or(STEP);
        filter.limit = room.min(STEP);
        let rows = state.store.list_rows(&filter).await?;
        let full = rows.len() >= filter.limit;
        tally.matched += u64::try_from(rows.len()).unwrap_or(0);
        if let Some(last) = rows.last() {
            filter.after = last.id;
        }
        if !rows.is_empty() && !dry_run {
            step(state, rows, change, &mut tally).await?;
        }
        if !full {
            return Ok(tally);
        }
        if tally.matched >= most || began.elapsed() > PATIENCE {
            tally.next = Some(filter.after);
            return Ok(tally);
        }
    }
}

async fn step(
    state: &AdminState,
    rows: Vec<QueueRow>,
    change: Change,
    tally: &mut Tally,
) -> Result<(), Fail> {
    let now = state.clock.now_ms();
    let over = |row: &QueueRow| row.expires_ms.is_some_and(|end| end <= now);
    let (expired, rows): (Vec<_>, Vec<_>) = rows
        .into_iter()
        .partition(|row| change == Change::Redrive && over(row));
    tally.expired += u64::try_from(expired.len()).unwrap_or(0);
    let ids = |wanted: RowState| -> Vec<i64> {
        let of = rows.iter().filter(|row| row.state == wanted);
        of.map(|row| row.id).collect()
    };
    let store = &state.store;
    tally.changed += match change {
        Change::Retry => {
            let due = store.due_now(ids(RowState::Pending)).await?;
            let again = store.redrive(ids(RowState::Held)).await?;
            due.await? + again.await?
        }
        Change::GiveUp => {
            let all = rows.iter().map(|row| row.id).collect();
            let reason = "dropped from the queue by an operator";
            store.give_up(all, "dropped", reason).await?.await?
        }
        Change::Redrive => store.redrive(ids(RowState::Failed)).await?.await?,
        Change::Remove => store.drop_rows(ids(RowState::Failed)).await?.await?,
    };
    if change != Change::Remove {
        tell_lanes(state, &rows, change).await;
    }
    Ok(())
}

/// Each lane looks at its rows again, from the first that was changed. What is not told is found at
/// the next start; what is told twice does no harm.
async fn tell_lanes(state: &AdminState, rows: &[QueueRow], change: Change) {
    let Some(lanes) = &state.lanes else { return };
    if change == Change::GiveUp {
        lanes.have_died();
    }
    let mut first: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for row in rows {
        let lowest = first.entry((&row.protocol, &row.peer)).or_insert(row.id);
        *lowest = row.id.min(*lowest);
    }
    for ((protocol, peer), row) in first {
        let Ok(peer) = PeerName::parse(peer) else {
            continue;
        };
        if let Err(error) = lanes.tail(protocol, &peer, row).await {
            tracing::warn!(protocol, %peer, %error, "a lane was not told that its rows changed");
        }
    }
}
