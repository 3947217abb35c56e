"""Lets one Python process find *.test names on loopback without a line in /etc/hosts.

PEER_HOSTS=alpha.test=127.0.0.11,gamma.test=127.0.0.13 names them. Any other name is unknown: the
machine's own resolver is never asked, so that nothing outside is ever contacted.
"""
import ipaddress
import os
import socket
import sys


def install() -> None:
    table = dict(pair.split("=", 1) for pair in os.environ["PEER_HOSTS"].split(","))
    real = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        name = table.get(name, name)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not in PEER_HOSTS") from None
        if not address.is_loopback:
            raise socket.gaierror(socket.EAI_FAIL, f"{host} is not on loopback")
        return real(name, *args, **kwargs)

    if not all(ipaddress.ip_address(a).is_loopback for a in table.values()):
        sys.exit("PEER_HOSTS must name loopback addresses")
    socket.getaddrinfo = getaddrinfo
