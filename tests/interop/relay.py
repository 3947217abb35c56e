"""Starts one real UAM relay, the installed `youam` package, on loopback.

The relay's own code runs unmodified. Within this process only, names are found by PEER_HOSTS
(loopback.py) and SRV records are asked at PEER_DNS, `127.0.0.1:PORT`, or, with `none`, do not exist.
Everything else comes from the UAM_* variables that the relay itself reads.
"""
import argparse
import ipaddress
import os
import sys

import dns.asyncresolver
import dns.resolver
import uvicorn

import loopback


def patch_dns(spec: str) -> None:
    if spec == "none":
        class NoDns:
            async def resolve(self, *_args, **_kwargs):
                raise dns.resolver.NXDOMAIN()

        dns.asyncresolver.Resolver = NoDns
        return
    host, _, port = spec.rpartition(":")
    if not ipaddress.ip_address(host).is_loopback:
        sys.exit("PEER_DNS must be a loopback address")
    real = dns.asyncresolver.Resolver

    def make(*_args, **_kwargs):
        resolver = real(configure=False)
        resolver.nameservers = [host]
        resolver.port = int(port)
        return resolver

    dns.asyncresolver.Resolver = make


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--bind", required=True)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--cert", required=True)
    arguments.add_argument("--key", required=True)
    a = arguments.parse_args()
    if not ipaddress.ip_address(a.bind).is_loopback:
        sys.exit("--bind must be a loopback address")
    loopback.install()
    patch_dns(os.environ.get("PEER_DNS", "none"))
    # asyncio and not uvloop: uvloop resolves names past the socket module.
    uvicorn.run("uam.relay.app:create_app", factory=True, host=a.bind, port=a.port, loop="asyncio",
                ssl_certfile=a.cert, ssl_keyfile=a.key)


if __name__ == "__main__":
    main()
