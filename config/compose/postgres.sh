#!/bin/sh
# Run once by the image of PostgreSQL, when its folder is empty: a role and a database for each
# bridge, with the password that stands in the bridge's own secret.
set -eu
for bridge in alpha beta; do
    password="$(sed 's|^[^:]*://[^:]*:\([^@]*\)@.*$|\1|' "/run/secrets/store_$bridge")"
    psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
        -v name="$bridge" -v password="$password" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
SQL
done
