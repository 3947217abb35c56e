//! Rows of the outbound queue, and those of them that are dead.
//!
//! A change takes the filters of the list as its parameters, at least one of them or `all=true`;
//! `dry_run=true` counts what it would touch. One request changes at most `limit` rows and says in
//! `next` where to go on.

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::bulk::{self, Change};
use super::params::Params;
use super::routes::{Route, get, post};
use super::{Access, AdminState, Fail, Reply, Shared, ok, select};
use crate::store::{QueueRow, RowState};

/// A body longer than this is not shown.
const MAX_BODY_SHOWN: usize = 4 << 20;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/api/v1/queue", Access::Token, list),
        get("/api/v1/queue/{id}", Access::Token, show),
        post("/api/v1/queue/retry", retry),
        post("/api/v1/queue/drop", give_up),
        get("/api/v1/dead", Access::Token, list_dead),
        get("/api/v1/dead/{id}", Access::Token, show_dead),
        post("/api/v1/dead/redrive", redrive),
        post("/api/v1/dead/drop", remove),
    ]
}

/// `GET /api/v1/queue`: `rows` (oldest first), `counts` by protocol, and `next`, the `after` of the
/// page to come, when this one is full.
async fn list(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    page(&state, query, &[]).await
}

/// `GET /api/v1/dead`: the same for dead rows.
async fn list_dead(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    page(&state, query, &[RowState::Failed]).await
}

async fn page(state: &AdminState, query: Option<String>, states: &[RowState]) -> Reply {
    let now = state.clock.now_ms();
    let mut params = Params::read(query.as_deref())?;
    let filter = select::list(&mut params, states, now)?;
    params.end()?;
    let mut rows = state.store.list_rows(&filter).await?;
    rows.iter_mut().for_each(|row| say_stranded(state, row));
    let counts = state.store.queue_counts().await?;
    let next = rows
        .last()
        .filter(|_| rows.len() >= filter.limit)
        .map(|row| row.id);
    ok(&json!({"now_ms": now, "rows": rows, "counts": counts, "next": next}))
}

/// `GET /api/v1/queue/{id}`: `row`, `attempts` (oldest first), and with `body=true` the event's
/// `body` (`null` once delivered) as JSON, or as text where it is none.
async fn show(
    State(state): Shared,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Fail> {
    one(&state, &id, query, None).await
}

/// `GET /api/v1/dead/{id}`: the same for a dead row.
async fn show_dead(
    State(state): Shared,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Fail> {
    one(&state, &id, query, Some(RowState::Failed)).await
}

async fn one(
    state: &AdminState,
    id: &str,
    query: Option<String>,
    wanted: Option<RowState>,
) -> Reply {
    let mut params = Params::read(query.as_deref())?;
    let with_body = params.flag("body")?;
    params.end()?;
    let row = match id.parse() {
        Ok(id) => state.store.row(id).await?,
        Err(_) => None,
    };
    let row = row
        .filter(|row| wanted.is_none_or(|state| row.state == state))
        .ok_or_else(|| {
            let kind = wanted.map_or("row", |_| "dead row");
            Fail::not_found(
                "no_such_row",
                format!(
                    "there is no {kind} {id:?}; delivered rows go after a day, dead ones after 30"
                ),
            )
        })?;
    let mut row = row;
    say_stranded(state, &mut row);
    let attempts = state.store.attempts_of(row.id).await?;
    let mut shown = json!({"now_ms": state.clock.now_ms(), "row": row, "attempts": attempts});
    if with_body && let Value::Object(members) = &mut shown {
        members.insert("body".into(), body_of(&row.body));
        members.insert("body_bytes".into(), row.body.len().into());
    }
    ok(&shown)
}

/// A pending row that no lane attempts says why.
fn say_stranded(state: &AdminState, row: &mut QueueRow) {
    if row.state == RowState::Pending
        && let Some(lanes) = &state.lanes
        && let Some(why) = lanes.stranded(&row.protocol, &row.peer)
    {
        row.reason_code = Some("not_attempted".to_owned());
        row.reason = Some(why);
    }
}

fn body_of(body: &[u8]) -> Value {
    if body.is_empty() || body.len() > MAX_BODY_SHOWN {
        return Value::Null;
    }
    serde_json::from_slice(body)
        .unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned().into())
}

/// `POST /api/v1/queue/retry`: pending rows are due now, held ones pending again.
async fn retry(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    bulk::change(&state, query, Change::Retry).await
}

/// `POST /api/v1/queue/drop`: pending and held rows are dead, with the reason `dropped`.
async fn give_up(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    bulk::change(&state, query, Change::GiveUp).await
}

/// `POST /api/v1/dead/redrive`: dead rows are pending again under their event id, with a schedule
/// of their own from the start.
async fn redrive(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    bulk::change(&state, query, Change::Redrive).await
}

/// `POST /api/v1/dead/drop`: dead rows are gone; the same message would be new again.
async fn remove(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    bulk::change(&state, query, Change::Remove).await
}
