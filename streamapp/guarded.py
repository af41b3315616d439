"""The one HTTP client for addresses that users name (callbacks, later models and input pictures).

A URL from a request must not reach what only this host can reach: the scheme is allow-listed, every
address a name resolves to is checked (and that very address is connected to, so a name cannot change
its mind between check and use), redirects are followed by us and checked like the first address, and
size and time are limited. See OWASP's server-side request forgery prevention cheat sheet.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from streamapp import __version__
from streamapp.addresses import PublicResolver, Refused, is_public, literal_address
from streamapp.errors import AppError

__all__ = ["Answer", "FetchFailed", "GuardedClient", "PublicResolver", "Refused", "is_public"]

REDIRECTS = frozenset({301, 302, 303, 307, 308})


class FetchFailed(AppError):
    """The other side did not answer, or not completely; trying again may help."""

    code = "fetch_failed"
    status = 502
    retryable = True


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers (lower-case names) and at most the allowed bytes of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class GuardedClient:
    """An HTTP client for addresses from outside.

    Args:
        allow_private: whether loopback and private addresses are fine (a setting of the operator).
        schemes: URL schemes that are spoken.
        timeout: seconds for the whole exchange, redirects included.
        max_bytes: most bytes of a body that are read; more is an error.
        max_redirects: redirects followed before giving up.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        schemes: frozenset[str] = frozenset({"http", "https"}),
        timeout: float = 15.0,
        max_bytes: int = 1024 * 1024,
        max_redirects: int = 3,
    ) -> None:
        self._allow_private = allow_private
        self._schemes = schemes
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        resolver = None if self._allow_private else PublicResolver()
        # The connector keeps no DNS answers: each exchange resolves and checks again.
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, limit_per_host=8)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._timeout, sock_read=self._timeout),
            # Bodies arrive as they are: a range of a file can be continued, and no small answer unpacks to gigabytes.
            headers={"Accept-Encoding": "identity", "User-Agent": f"streamapp/{__version__}"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def check(self, url: str) -> URL:
        """The parsed address, if it is one we would talk to.

        Raises:
            Refused: for another scheme, credentials in the URL, no host, or a literal address that is not public.
        """
        try:
            parsed = URL(url)
            # Names are decoded late, and one whose labels are too long would only be noticed by the resolver.
            (parsed.host or "").encode("idna")
        except ValueError as error:
            raise Refused(f"{url!r} is not a URL: {error}") from error
        if parsed.scheme not in self._schemes or not parsed.host or re.search(r"[\s\x00-\x20]", parsed.host):
            raise Refused(f"the address must start with {' or '.join(f'{s}://' for s in sorted(self._schemes))}")
        if parsed.user or parsed.password:
            raise Refused("the address must not carry a user name or password")
        literal = literal_address(parsed.host)
        if not self._allow_private and literal is not None and not is_public(literal):
            raise Refused(f"{parsed.host} is not a public address", host=parsed.host)
        return parsed

    async def request(
        self, method: str, url: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One exchange, redirects followed (303, and 301 or 302 after a POST, become GET as in RFC 9110 15.4).

        Raises:
            Refused: the address, or one it redirects to, is not one we talk to.
            FetchFailed: connection, time limit, too large a body, too many redirects.
        """
        try:
            async with asyncio.timeout(self._timeout), self._follow(method, url, body, headers) as answer:
                return await self._read(answer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _failed(url, error) from error

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One POST of which only the answer's head counts: no redirect is followed and no body is read.

        Raises:
            Refused: the address is not one we talk to.
            FetchFailed: connection, time limit.
        """
        if self._session is None:
            raise RuntimeError("GuardedClient is used outside its context")
        target = self.check(url)
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._session.post(target, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                return Answer(answer.status, {key.lower(): value for key, value in answer.headers.items()}, b"")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _failed(url, error) from error

    @asynccontextmanager
    async def stream(
        self, url: str, *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET of any length: the caller reads the body; ``timeout`` limits the time until it begins, and each pause.

        Raises:
            Refused, FetchFailed: as :meth:`request`, also while the body is read.
        """
        try:
            async with self._follow("GET", url, None, headers) as answer:
                yield answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _failed(url, error) from error

    @asynccontextmanager
    async def _follow(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer behind all redirects."""
        if self._session is None:
            raise RuntimeError("GuardedClient is used outside its context")
        target = self.check(url)
        origin, sent = target.origin(), dict(headers or {})
        for _ in range(self._max_redirects + 1):
            async with self._session.request(method, target, data=body, headers=sent, allow_redirects=False) as answer:
                if answer.status not in REDIRECTS or "location" not in answer.headers:
                    yield answer
                    return
                target = self.check(str(target.join(URL(answer.headers["location"]))))
                if answer.status == 303 or (answer.status in {301, 302} and method == "POST"):
                    method, body = "GET", None
                if target.origin() != origin:  # never hand a credential to another host
                    sent = {key: value for key, value in sent.items() if key.lower() != "authorization"}
        raise FetchFailed(f"{url} redirects more than {self._max_redirects} times")

    async def _read(self, answer: aiohttp.ClientResponse) -> Answer:
        """The body, as long as it keeps within the limit."""
        parts, size = [], 0
        async for chunk in answer.content.iter_chunked(64 * 1024):
            size += len(chunk)
            if size > self._max_bytes:
                raise FetchFailed(f"the answer is larger than {self._max_bytes} bytes", too_large=True)
            parts.append(chunk)
        return Answer(answer.status, {key.lower(): value for key, value in answer.headers.items()}, b"".join(parts))


def _failed(url: str, error: BaseException) -> AppError:
    """What to raise for a failure of the exchange; a refusal by the resolver comes wrapped in one."""
    cause = error.__cause__ or error.__context__
    return cause if isinstance(cause, Refused) else FetchFailed(f"{url}: {str(error) or type(error).__name__}")
