-- When an answer that held this row had left for the peer that fetches it; the second one delivers it.
ALTER TABLE federation_queue ADD COLUMN handed_ms BIGINT;
