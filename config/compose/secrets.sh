#!/bin/sh
# Makes the secrets of docker-compose.yml, each once: what is there stays.
#
# The containers read them as a user of their own, so the files are readable by all and the folder
# is closed to everybody but its owner.
set -eu
dir="${1:-$(dirname "$0")/secrets}"
mkdir -p "$dir"
chmod 0700 "$dir"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

make() { # name, text
    if [ ! -e "$dir/$1" ]; then
        printf '%s\n' "$2" >"$dir/$1"
        chmod 0644 "$dir/$1"
    fi
}

make postgres "$(random)"
for bridge in alpha beta; do
    make "nats_$bridge" "$(random)"
    make "store_$bridge" "postgres://$bridge:$(random)@postgres:5432/$bridge"
done
