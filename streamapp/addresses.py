"""Which addresses anybody on the internet could reach, and a resolver that answers with no others."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from contextlib import suppress
from threading import Thread

from aiohttp.abc import AbstractResolver, ResolveResult

from streamapp.errors import AppError

#: Names that are looked up at the same time.
LOOKUPS = 64


class Refused(AppError):
    """The address is one this service does not talk to; retrying cannot help."""

    code = "address_refused"
    status = 400


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet could reach.

    IPv4 addresses wrapped in IPv6 (mapped, 6to4, NAT64) are judged by what they wrap.
    """
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour
        if wrapped is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(str(wrapped))
    return ip.is_global and not ip.is_multicast


def literal_address(host: str) -> str | None:
    """The address that a host spells out, also in the forms that only the system's resolver reads (``0x7f.1``).

    ``localhost`` means loopback wherever it is asked (RFC 6761), so it counts as spelled out.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return "127.0.0.1"
    if not re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}", name):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        return None


class PublicResolver(AbstractResolver):
    """Resolves names and refuses those of which any address is not public.

    In threads of its own: whoever submits a name chooses its name servers too, and those of uvloop, four for the whole
    process, would all wait for one that never answers, with every other connection of the process behind them.
    """

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of ``host``.

        Raises:
            Refused: when one of them is private, loopback, link-local or reserved.
            OSError: there is no such name, or nobody who knows it.
        """
        found = await self._look_up(host, port, family)
        for result in found:
            if not is_public(result["host"]):
                raise Refused(f"{host} resolves to {result['host']}, which is not a public address", host=host)
        return found

    async def close(self) -> None:
        """Nothing is held."""

    async def _look_up(self, host: str, port: int, family: int) -> list[ResolveResult]:
        await self._room.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(found: list[ResolveResult] | OSError) -> None:
            self._room.release()
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def work() -> None:
            found = _addresses(host, port, family)
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, found)

        # Nobody can stop a thread that waits for a name server; as a daemon it does not keep the process either.
        Thread(target=work, name="look-up", daemon=True).start()
        return await answer


def _addresses(host: str, port: int, family: int) -> list[ResolveResult] | OSError:
    """What the system's resolver knows; blocks."""
    try:
        infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except OSError as error:
        return error
    except UnicodeError as error:  # no name that could be asked for
        return OSError(f"{host!r} is not a host name: {error}")
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return [
        ResolveResult(
            hostname=host, host=str(address[0]), port=int(address[1]), family=kind, proto=protocol, flags=flags
        )
        for kind, _, protocol, _, address in infos
    ]
