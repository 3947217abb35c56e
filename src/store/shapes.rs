//! The multi-row statements of the writer.

use super::bulk::Shape;

/// Columns of a queue row, in the order in which they are bound.
macro_rules! insert_rows {
    () => {
        "INSERT INTO federation_queue (id, protocol, peer, msg_id, out_seq, event_id, event_type, \
         order_key, state, attempts, created_ms, first_failed_ms, next_at_ms, expires_ms, \
         peer_fault, reason_code, reason, traceparent, settled_ms, body_ref, body) "
    };
}
const QUEUE_COLUMNS: &str = "ittti tttti iiiii ttt ii b";

pub(super) const INSERT_ROWS: Shape = Shape {
    before: insert_rows!(),
    columns: QUEUE_COLUMNS,
    after: " ON CONFLICT DO NOTHING",
};
/// The same, telling which rows were new.
pub(super) const INSERT_ROWS_TOLD: Shape = Shape {
    before: insert_rows!(),
    columns: QUEUE_COLUMNS,
    after: " ON CONFLICT DO NOTHING RETURNING id",
};
pub(super) const INSERT_BODIES: Shape = Shape {
    before: "INSERT INTO federation_bodies (id, body) ",
    columns: "ib",
    after: " ON CONFLICT DO NOTHING",
};
/// Outcomes, in whatever order they come: delivered is final, dead and held give way to delivered
/// only, and a failed attempt never overwrites a later one.
pub(super) const UPDATE_ROWS: Shape = Shape {
    before: "WITH v (id, state, attempts, first_failed_ms, next_at_ms, peer_fault, reason_code, \
             reason, settled_ms) AS (",
    columns: "itiii itti",
    after: ") UPDATE federation_queue SET state = v.state, attempts = v.attempts, \
            first_failed_ms = COALESCE(v.first_failed_ms, federation_queue.first_failed_ms), \
            next_at_ms = v.next_at_ms, peer_fault = v.peer_fault, reason_code = v.reason_code, \
            reason = v.reason, settled_ms = v.settled_ms, noticed = 0, \
            body_ref = CASE WHEN v.state = 'delivered' THEN NULL ELSE body_ref END, \
            body = CASE WHEN v.state = 'delivered' THEN NULL ELSE body END \
            FROM v WHERE federation_queue.id = v.id AND CASE federation_queue.state \
            WHEN 'pending' THEN v.state <> 'pending' OR v.attempts >= federation_queue.attempts \
            WHEN 'delivered' THEN 1 = 0 ELSE v.state = 'delivered' END",
};
pub(super) const INSERT_ATTEMPTS: Shape = Shape {
    before: "INSERT INTO delivery_attempts (queue_id, number, at_ms, duration_ms, status, code, detail) ",
    columns: "iiiii tt",
    after: "",
};
pub(super) const NOTICED: Shape = Shape {
    before: "WITH v (id) AS (",
    columns: "i",
    after: ") UPDATE federation_queue SET noticed = 1 WHERE id IN (SELECT id FROM v)",
};
pub(super) const KNOWN_EVENTS: Shape = Shape {
    before: "WITH v (protocol, dedupe_key) AS (",
    columns: "tt",
    after: ") SELECT e.protocol, e.dedupe_key, e.id, e.payload_hash, u.id IS NULL \
            FROM v CROSS JOIN federation_events e LEFT JOIN federation_unpublished u ON u.id = e.id \
            WHERE e.protocol = v.protocol AND e.dedupe_key = v.dedupe_key",
};
pub(super) const KNOWN_REPLAYS: Shape = Shape {
    before: "WITH v (protocol, scope, id) AS (",
    columns: "ttb",
    after: ") SELECT r.protocol, r.scope, r.id, r.expires_ms FROM v CROSS JOIN federation_replay r \
            WHERE r.protocol = v.protocol AND r.scope = v.scope AND r.id = v.id",
};
pub(super) const INSERT_EVENTS: Shape = Shape {
    before: "INSERT INTO federation_events (id, protocol, peer, dedupe_key, event_id, event_type, \
             subject, received_ms, payload_hash, headers, payload) ",
    columns: "itttt t t i b t b",
    after: "",
};
pub(super) const INSERT_UNPUBLISHED: Shape = Shape {
    before: "INSERT INTO federation_unpublished (id) ",
    columns: "i",
    after: "",
};
pub(super) const INSERT_REPLAYS: Shape = Shape {
    before: "INSERT INTO federation_replay (protocol, scope, id, expires_ms) ",
    columns: "ttbi",
    after: " ON CONFLICT (protocol, scope, id) DO UPDATE SET expires_ms = excluded.expires_ms",
};
pub(super) const PUBLISHED: Shape = Shape {
    before: "WITH v (id) AS (",
    columns: "i",
    after: ") DELETE FROM federation_unpublished WHERE id IN (SELECT id FROM v)",
};
pub(super) const PUT_RECORDS: Shape = Shape {
    before: "INSERT INTO protocol_records (protocol, kind, key, value) ",
    columns: "tttt",
    after: " ON CONFLICT (protocol, kind, key) DO UPDATE SET value = excluded.value",
};
pub(super) const DELETE_ROWS: Shape = Shape {
    before: "WITH v (id) AS (",
    columns: "i",
    after: ") DELETE FROM federation_queue WHERE id IN (SELECT id FROM v)",
};
pub(super) const DELETE_ATTEMPTS: Shape = Shape {
    before: "WITH v (id) AS (",
    columns: "i",
    after: ") DELETE FROM delivery_attempts WHERE queue_id IN (SELECT id FROM v)",
};
pub(super) const DELETE_BODIES: Shape = Shape {
    before: "WITH v (id) AS (",
    columns: "i",
    after: ") DELETE FROM federation_bodies WHERE id IN (SELECT id FROM v)",
};
pub(super) const DROP_PAYLOADS: Shape = Shape {
    before: "WITH v (id) AS (",
    columns: "i",
    after: ") UPDATE federation_events SET payload = NULL, headers = NULL WHERE id IN (SELECT id FROM v)",
};
