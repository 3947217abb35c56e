-- Events of rooms, as other servers read them: ours, and what came into rooms we host. Only the
-- envelope goes, by a setting; the id stays.
CREATE TABLE federation_room_events (
    protocol TEXT   NOT NULL,
    event_id TEXT   NOT NULL,
    origin   TEXT   NOT NULL,
    room     TEXT   NOT NULL,
    position BIGINT NOT NULL,
    kept_ms  BIGINT NOT NULL,
    envelope BLOB,
    PRIMARY KEY (protocol, event_id, origin)
);

CREATE INDEX federation_room_events_page
    ON federation_room_events (protocol, room, position, event_id) WHERE envelope IS NOT NULL;
CREATE INDEX federation_room_events_age ON federation_room_events (protocol, kept_ms)
    WHERE envelope IS NOT NULL;

-- Ids are pruned protocol by protocol: those of one that keeps them must not stand in the way.
CREATE INDEX federation_events_old_ids ON federation_events (protocol, received_ms)
    WHERE payload IS NULL;
DROP INDEX federation_events_ids;
