"""A guard under every test: nothing but loopback is reached, not even by accident."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from functools import cache
from typing import Any

#: What tests tried to reach outside this machine since it was last cleared.
attempts: list[str] = []


@cache
def install() -> None:
    """Refuse connections and look-ups beyond loopback from now on, in this process, and note each in ``attempts``.

    An audit hook, since it sees every socket of the interpreter whoever opened it. It cannot be removed again,
    so it is added once however often this is called.
    """
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    match event:
        case "socket.connect" | "socket.sendto" | "socket.sendmsg":
            address = arguments[-1]
            # AF_UNIX addresses are strings, those of a connected datagram socket None.
            if isinstance(address, tuple) and len(address) >= 2 and not _local(address[0]):
                _refuse(f"{address[0]}:{address[1]}")
                raise PermissionError(f"tests may reach loopback only, not {address[0]}")
        case "socket.getaddrinfo" | "socket.gethostbyname":
            host = arguments[0]
            if host and not _local(host) and not _literal(host):
                _refuse(_text(host))
                raise socket.gaierror(socket.EAI_NONAME, "tests may look up loopback only")


def _refuse(target: str) -> None:
    # Names under .invalid and .test exist nowhere by RFC 2606: asking for them is how a test says "no such host".
    if not target.endswith((".invalid", ".test")):
        attempts.append(f"{target} (in {os.environ.get('PYTEST_CURRENT_TEST', 'no test')})")


def _text(host: str | bytes) -> str:
    return host.decode(errors="replace") if isinstance(host, bytes) else host


def _literal(host: str | bytes) -> bool:
    try:
        ipaddress.ip_address(_text(host).partition("%")[0])
    except ValueError:
        return False
    return True


def _local(host: str | bytes) -> bool:
    name = _text(host).partition("%")[0]
    if name in {"", "localhost", "0.0.0.0", "::"} or name.endswith(".localhost"):
        return True
    return _literal(name) and (
        (address := ipaddress.ip_address(name)).is_loopback
        or bool(isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped and address.ipv4_mapped.is_loopback)
    )
