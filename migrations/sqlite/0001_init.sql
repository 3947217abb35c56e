-- The ledger. Times are milliseconds since the Unix epoch, UTC; booleans are 0 or 1.
-- Row numbers are handed out by the one writer (high-water marks in `meta`), so no table needs a
-- sequence, and a number is never used twice even after its row was pruned.

CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- Outbound: one row per message and peer.
CREATE TABLE federation_queue (
    id              INTEGER PRIMARY KEY,
    protocol        TEXT    NOT NULL,
    peer            TEXT    NOT NULL,
    msg_id          TEXT    NOT NULL,
    out_seq         BIGINT  NOT NULL,
    event_id        TEXT    NOT NULL,
    event_type      TEXT    NOT NULL,
    order_key       TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('pending', 'delivered', 'failed', 'held')),
    attempts        BIGINT  NOT NULL,
    created_ms      BIGINT  NOT NULL,
    first_failed_ms BIGINT,
    next_at_ms      BIGINT,
    expires_ms      BIGINT,
    peer_fault      INTEGER NOT NULL,
    noticed         INTEGER NOT NULL DEFAULT 0,
    reason_code     TEXT,
    reason          TEXT,
    traceparent     TEXT,
    settled_ms      BIGINT,
    -- The body stands here, or once for several peers in federation_bodies; delivered: in neither.
    body_ref        BIGINT,
    body            BLOB,
    UNIQUE (protocol, msg_id, peer)
);

CREATE TABLE federation_bodies (
    id   INTEGER PRIMARY KEY,
    body BLOB NOT NULL
);

-- `state` at the end makes an index cover the counts, which otherwise read every row.
CREATE INDEX federation_queue_lane ON federation_queue (protocol, peer, id, next_at_ms, state)
    WHERE state = 'pending';
CREATE INDEX federation_queue_key ON federation_queue (protocol, peer, order_key, id)
    WHERE state = 'pending';
CREATE INDEX federation_queue_expiry ON federation_queue (expires_ms)
    WHERE state = 'pending' AND expires_ms IS NOT NULL;
CREATE INDEX federation_queue_delivered ON federation_queue (settled_ms)
    WHERE state = 'delivered';
CREATE INDEX federation_queue_failed ON federation_queue (settled_ms, protocol, state)
    WHERE state = 'failed';
CREATE INDEX federation_queue_unnoticed ON federation_queue (id)
    WHERE state = 'failed' AND noticed = 0;
CREATE INDEX federation_queue_held ON federation_queue (protocol, state)
    WHERE state = 'held';
CREATE INDEX federation_queue_body ON federation_queue (body_ref)
    WHERE body_ref IS NOT NULL;

CREATE TABLE delivery_attempts (
    id          INTEGER PRIMARY KEY,
    queue_id    BIGINT  NOT NULL,
    number      BIGINT  NOT NULL,
    at_ms       BIGINT  NOT NULL,
    duration_ms BIGINT  NOT NULL,
    status      INTEGER,
    code        TEXT    NOT NULL,
    detail      TEXT    NOT NULL
);

CREATE INDEX delivery_attempts_row ON delivery_attempts (queue_id, id);

-- Inbound: what was accepted. The body is dropped after a day, the key after the horizon.
CREATE TABLE federation_events (
    id           INTEGER PRIMARY KEY,
    protocol     TEXT    NOT NULL,
    peer         TEXT    NOT NULL,
    dedupe_key   TEXT    NOT NULL,
    event_id     TEXT    NOT NULL,
    event_type   TEXT    NOT NULL,
    subject      TEXT    NOT NULL,
    received_ms  BIGINT  NOT NULL,
    payload_hash BLOB    NOT NULL,
    headers      TEXT,
    payload      BLOB,
    UNIQUE (protocol, dedupe_key)
);

CREATE INDEX federation_events_bodies ON federation_events (received_ms)
    WHERE payload IS NOT NULL;
CREATE INDEX federation_events_ids ON federation_events (received_ms)
    WHERE payload IS NULL;

-- Accepted and not acknowledged by JetStream yet. A table of its own: acknowledging must not
-- rewrite the event with its body.
CREATE TABLE federation_unpublished (
    id INTEGER PRIMARY KEY
);

CREATE TABLE federation_replay (
    protocol   TEXT   NOT NULL,
    scope      TEXT   NOT NULL,
    id         BLOB   NOT NULL,
    expires_ms BIGINT NOT NULL,
    PRIMARY KEY (protocol, scope, id)
);

CREATE INDEX federation_replay_expiry ON federation_replay (expires_ms);

CREATE TABLE known_relays (
    protocol         TEXT   NOT NULL,
    domain           TEXT   NOT NULL,
    federation_url   TEXT   NOT NULL,
    alternatives     TEXT   NOT NULL,
    public_key       BLOB,
    discovered_via   TEXT   NOT NULL,
    last_verified_ms BIGINT NOT NULL,
    ttl_ms           BIGINT,
    status           TEXT   NOT NULL DEFAULT 'active',
    facts            TEXT   NOT NULL,
    PRIMARY KEY (protocol, domain)
);

CREATE TABLE peer_health (
    protocol TEXT NOT NULL,
    peer     TEXT NOT NULL,
    facts    TEXT NOT NULL,
    PRIMARY KEY (protocol, peer)
);

CREATE TABLE federation_trust (
    id         INTEGER PRIMARY KEY,
    protocol   TEXT   NOT NULL,
    pattern    TEXT   NOT NULL,
    rule       TEXT   NOT NULL,
    reason     TEXT,
    created_ms BIGINT NOT NULL,
    ends_ms    BIGINT,
    UNIQUE (protocol, pattern, rule)
);

CREATE TABLE relay_reputation (
    protocol   TEXT   NOT NULL,
    peer       TEXT   NOT NULL,
    score      BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    PRIMARY KEY (protocol, peer)
);

CREATE TABLE protocol_records (
    protocol TEXT NOT NULL,
    kind     TEXT NOT NULL,
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (protocol, kind, key)
);

CREATE TABLE federation_server_keys (
    protocol      TEXT   NOT NULL,
    key_id        TEXT   NOT NULL,
    public_key    TEXT   NOT NULL,
    first_seen_ms BIGINT NOT NULL,
    PRIMARY KEY (protocol, key_id)
);
