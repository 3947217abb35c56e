-- Several instances on one database: who serves which unit of the outbound work, and until when by the
-- database's clock (milliseconds since the Unix epoch). A unit's epoch goes up with each owner.
CREATE TABLE federation_leases (
    unit     TEXT NOT NULL PRIMARY KEY,
    owner    TEXT NOT NULL,
    epoch    INTEGER NOT NULL,
    until_ms INTEGER NOT NULL
);

CREATE TABLE federation_instances (
    name     TEXT NOT NULL PRIMARY KEY,
    until_ms INTEGER NOT NULL
);
