-- Dead and held rows of each peer, counted from an index alone.
CREATE INDEX federation_queue_dead_peer ON federation_queue (protocol, peer, id, state)
    WHERE state = 'failed';
CREATE INDEX federation_queue_held_peer ON federation_queue (protocol, peer, id, state)
    WHERE state = 'held';
