"""The agents of a real UAM relay, made of the `youam` package's own protocol code.

Reads one JSON command a line from standard input and answers each with one JSON line:

  {"do": "register", "name": "alice", "source": "127.0.1.1"}  -> {"address", "public_key"}
  {"do": "send", "from": A, "to": B, "texts": [..]}           -> {"sent": [{"message_id", "delivered"}]}
  {"do": "inbox", "address": A}                               -> {"messages": [{"from", "message_id", "text"}]}
  {"do": "relays"}                     -> {"relays": {DOMAIN: [FEDERATION_URL, PUBLIC_KEY, DISCOVERED_VIA]}}

What went wrong comes as {"error": TEXT}. `inbox` verifies every envelope with the key that the
sender's own relay gives, decrypts it, and fails when either does not hold. RELAY_URL is the relay,
RELAY_DB its database, PEER_URLS maps the domains of other relays to their base URLs as JSON.
"""
import json
import os
import sqlite3
import ssl
import sys

import httpx
import loopback
from uam.protocol import (
    MessageType, create_envelope, decrypt_payload, deserialize_verify_key, from_wire_dict, generate_keypair,
    serialize_verify_key, to_wire_dict, verify_envelope,
)

RELAY = os.environ["RELAY_URL"]
PEERS = json.loads(os.environ["PEER_URLS"])
TLS = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
AGENTS = {}
KEYS = {}


def client(source=None):
    return httpx.Client(transport=httpx.HTTPTransport(verify=TLS, local_address=source), timeout=60)


def key_of(http, address):
    if address in AGENTS:
        return AGENTS[address]["public"]
    if address not in KEYS:
        base = PEERS[address.split("::")[1]]
        KEYS[address] = http.get(f"{base}/api/v1/agents/{address}/public-key").raise_for_status().json()["public_key"]
    return deserialize_verify_key(KEYS[address])


def register(http, c):
    secret, public = generate_keypair()
    with client(c.get("source")) as own:
        answer = own.post(f"{RELAY}/api/v1/register",
                          json={"agent_name": c["name"], "public_key": serialize_verify_key(public)})
    d = answer.raise_for_status().json()
    AGENTS[d["address"]] = {"secret": secret, "public": public, "auth": {"Authorization": f"Bearer {d['token']}"}}
    return {"address": d["address"], "public_key": serialize_verify_key(public)}


def send(http, c):
    me, sent = AGENTS[c["from"]], []
    for text in c["texts"]:
        envelope = create_envelope(c["from"], c["to"], MessageType.MESSAGE, text.encode(), me["secret"],
                                   key_of(http, c["to"]))
        answer = http.post(f"{RELAY}/api/v1/send", json={"envelope": to_wire_dict(envelope)}, headers=me["auth"])
        d = answer.raise_for_status().json()
        sent.append({"message_id": d["message_id"], "delivered": d["delivered"]})
    return {"sent": sent}


def inbox(http, c):
    me, found = AGENTS[c["address"]], []
    answer = http.get(f"{RELAY}/api/v1/inbox/{c['address']}", params={"limit": 500}, headers=me["auth"])
    for wire in answer.raise_for_status().json()["messages"]:
        envelope = from_wire_dict(wire)
        key = key_of(http, envelope.from_address)
        verify_envelope(envelope, key)
        text = decrypt_payload(envelope.payload, me["secret"], key).decode()
        found.append({"from": envelope.from_address, "message_id": envelope.message_id, "text": text})
    return {"messages": found}


def relays(http, c):
    with sqlite3.connect(f"file:{os.environ['RELAY_DB']}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT domain, federation_url, public_key, discovered_via FROM known_relays").fetchall()
    return {"relays": {row[0]: row[1:] for row in rows}}


def main():
    loopback.install()
    # No kept-alive connections: the relay is stopped and started in between.
    for line in sys.stdin:
        command = json.loads(line)
        work = {"register": register, "send": send, "inbox": inbox, "relays": relays}[command["do"]]
        try:
            with client() as http:
                answer = work(http, command)
        except Exception as e:  # the test says what it makes of it
            answer = {"error": f"{type(e).__name__}: {e} {getattr(getattr(e, 'response', None), 'text', '')}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
