-- Rows past their time are looked for protocol by protocol: those of one that is switched off must not
-- stand in the way of the others'.
CREATE INDEX federation_queue_expired ON federation_queue (protocol, expires_ms)
    WHERE state = 'pending' AND expires_ms IS NOT NULL;
DROP INDEX federation_queue_expiry;

CREATE INDEX known_relays_age ON known_relays (last_verified_ms);
