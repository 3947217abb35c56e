-- What the broker was known to have at a moment: every event with a ledger number below `ledger` (of
-- the stream's own events) is at or below sequence `seq` of the stream made at `created_ns`, and the
-- message at `seq` is `msg_id`. `top`: events numbered from here on did not exist then.
CREATE TABLE federation_checkpoints (
    stream     TEXT COLLATE "C"   NOT NULL,
    created_ns BIGINT NOT NULL,
    seq        BIGINT NOT NULL,
    msg_id     TEXT COLLATE "C"   NOT NULL,
    ledger     BIGINT NOT NULL,
    top        BIGINT NOT NULL,
    at_ms      BIGINT NOT NULL,
    PRIMARY KEY (stream, created_ns, seq)
);

-- The newest message of each stream that JetStream acknowledged and whose event is marked.
CREATE TABLE federation_tips (
    stream     TEXT COLLATE "C"   NOT NULL PRIMARY KEY,
    created_ns BIGINT NOT NULL,
    seq        BIGINT NOT NULL,
    msg_id     TEXT COLLATE "C"   NOT NULL
);

-- Events of quarantined peers: on fed.held, not on fed.in. A released one gets a new ledger number,
-- so that the ledger's order stays the order of fed.in.
CREATE TABLE federation_held (
    id          BIGINT PRIMARY KEY,
    protocol    TEXT COLLATE "C"    NOT NULL,
    peer        TEXT COLLATE "C"    NOT NULL,
    bytes       BIGINT  NOT NULL,
    received_ms BIGINT  NOT NULL
);

CREATE INDEX federation_held_peer ON federation_held (protocol, peer, id, bytes, received_ms);

-- 1: larger than the broker takes at present; holds no checkpoint back.
ALTER TABLE federation_unpublished ADD COLUMN stuck BIGINT NOT NULL DEFAULT 0;
