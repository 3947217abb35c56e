-- Several instances on one database: who serves which unit of the outbound work, and until when by the
-- database's clock (milliseconds since the Unix epoch). A unit's epoch goes up with each owner.
CREATE TABLE federation_leases (
    unit     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    owner    TEXT COLLATE "C" NOT NULL,
    epoch    BIGINT NOT NULL,
    until_ms BIGINT NOT NULL
);

CREATE TABLE federation_instances (
    name     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    until_ms BIGINT NOT NULL
);
