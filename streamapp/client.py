"""A small asynchronous client of the public HTTP API; the command line and the demo use nothing else.

Repeats what is safe to repeat: a submit carries an idempotency key, so the same task answers a second try.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson
from yarl import URL

from streamapp.errors import AppError, Conflict, InvalidRequest, NotFound, TooLarge

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
API = "/api/v1"
#: Full (429) or not ready (503, and what a proxy in front says while a process restarts).
COME_AGAIN = frozenset({429, 502, 503, 504})
POLL_S = 0.5


class ServiceError(AppError):
    """The service answered with an error that has no class of its own here."""

    code = "service_error"


class Unauthorized(ServiceError):
    """The service wants an API key, or another one."""

    code = "unauthorized"
    status = 401


class Busy(ServiceError):
    """The service was still full or not ready after all retries."""

    code = "overloaded"
    status = 503
    retryable = True


class Unreachable(ServiceError):
    """Nothing answers at the address."""

    code = "unreachable"
    status = 503
    retryable = True


class TimedOut(ServiceError):
    """The task had not ended within the time that the caller gave it; it goes on without the caller."""

    code = "timed_out"
    status = 504


ERRORS: dict[int, type[AppError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
}


@dataclass(frozen=True)
class Task:
    """A task as the service shows it; ``progress`` in percent, ``images`` absolute, ``body`` the whole answer."""

    id: str
    status: str
    progress: float
    images: tuple[str, ...] = ()
    error: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED


class Client:
    """Speaks to one service.

    Args:
        url: where it is, without path, such as ``http://127.0.0.1:8000``.
        api_key: sent as bearer token, to this address only.
        retries: how often a call is repeated when the service is full or not ready.
        timeout_s: limit of one call; waiting for a task has its own.
    """

    def __init__(self, url: str, *, api_key: str | None = None, retries: int = 5, timeout_s: float = 30.0) -> None:
        self.url = URL(url.rstrip("/"))
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._retries = retries
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session."""
        if self._session is None:
            raise RuntimeError("use the client as `async with Client(url) as client:`")
        return self._session

    async def submit(self, body: Mapping[str, Any]) -> Task:
        """Hand in one task; ``body`` is the JSON of ``POST /api/v1/image/generate``."""
        body = {**body, "idempotency_key": body.get("idempotency_key") or uuid.uuid4().hex}
        return self._task(await self.call("POST", f"{API}/image/generate", body=body))

    async def show(self, task_id: str) -> Task:
        """One task, now."""
        return self._task(await self.call("GET", f"{API}/image/task/{task_id}"))

    async def cancel(self, task_id: str) -> Task:
        """Ask for the end of a task; a queued one ends at once, a running one between two steps."""
        return self._task(await self.call("DELETE", f"{API}/image/task/{task_id}"))

    async def tasks(self, *, status: str | None = None, limit: int = 20) -> list[Task]:
        """The newest tasks of this user, newest first."""
        query = {"limit": str(limit)} | ({"status": status} if status else {})
        data = await self.call("GET", f"{API}/image/tasks", query=query)
        return [self._task(item) for item in data["tasks"]]

    async def models(self) -> dict[str, Any]:
        """What can be asked for: ``models``, ``loras``, ``samplers``, ``styles``."""
        return await self.call("GET", f"{API}/models")

    async def status(self) -> dict[str, Any]:
        """Workers, backlog, LoRA state and throughput."""
        return await self.call("GET", f"{API}/status")

    async def ready(self) -> bool:
        """Whether the service takes work now; False also when nobody answers."""
        try:
            async with self.session.get(self.url.with_path("/readyz"), timeout=self._timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def wait(
        self, task_id: str, *, seen: Callable[[Task], None] | None = None, timeout_s: float | None = None
    ) -> Task:
        """The task once it has ended; ``seen`` is called with every change on the way.

        Live events first; when they cannot be had (a proxy that buffers, a service without them) by asking again.

        Raises:
            TimedOut: after ``timeout_s`` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    async for glimpse in self.events(task_id):
                        if seen:
                            seen(glimpse)
                        if glimpse.ended:
                            break
                except (aiohttp.ClientError, ServiceError, NotFound):
                    pass  # NotFound of the events only: `show` below says whether the task exists
                while not (task := await self.show(task_id)).ended:
                    if seen:
                        seen(task)
                    await asyncio.sleep(POLL_S)
                return task
        except TimeoutError as error:
            raise TimedOut(f"{task_id} had not ended after {timeout_s:g} s; it goes on") from error

    async def events(self, task_id: str) -> AsyncIterator[Task]:
        """Changes of a task as they happen (server-sent events), until the service ends the stream."""
        url = self.url.with_path(f"{API}/image/task/{task_id}/events")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
        headers = {**self._headers, "Accept": "text/event-stream"}
        async with self.session.get(url, headers=headers, timeout=timeout) as response:
            if response.status != 200 or response.content_type != "text/event-stream":
                raise await _error(response)
            data: list[str] = []
            async for raw in response.content:
                line = raw.decode().rstrip("\r\n")
                if line.startswith("data:"):
                    data.append(line[5:].lstrip())
                elif not line and data:
                    yield self._task({"task_id": task_id, **orjson.loads("\n".join(data))})
                    data = []

    async def download(self, task: Task, folder: Path, *, name: str | None = None) -> list[Path]:
        """Fetch every picture of an ended task into ``folder``, as ``<task id>-<index>`` or ``<name>[-<index>]``."""
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        several = len(task.images) > 1
        stems = [f"{name or task.id}-{i}" if several or not name else name for i in range(len(task.images))]
        return [await self._save(url, folder, stem) for url, stem in zip(task.images, stems, strict=True)]

    async def call(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """One call of the API, repeated while the service is full or not ready; the ``data`` of its answer.

        Raises:
            AppError: by status; :class:`Unreachable` when nobody answers, :class:`Busy` after the last retry.
        """
        url = self.url.with_path(path).with_query(query or {})
        raw = None if body is None else orjson.dumps(body)
        headers = self._headers if raw is None else {**self._headers, "Content-Type": "application/json"}
        for turn in range(self._retries + 1):
            try:
                async with self.session.request(
                    method, url, data=raw, headers=headers, timeout=self._timeout
                ) as response:
                    if response.status < 400:
                        answer = orjson.loads(await response.read())
                        return dict(answer.get("data", answer))
                    error = await _error(response)
                    if response.status not in COME_AGAIN or turn == self._retries:
                        raise error
                    pause = _pause(response.headers.get("Retry-After"), turn)
            except aiohttp.ClientConnectorError as error:
                raise Unreachable(
                    f"nothing answers at {self.url}: start it with `streamapp up`, or give --url"
                ) from error
            except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
                if turn == self._retries:
                    raise Unreachable(f"{self.url} does not answer as expected: {error or 'time-out'}") from error
                pause = _pause(None, turn)
            await asyncio.sleep(pause)
        raise AssertionError("the last turn returns or raises")

    async def _save(self, address: str, folder: Path, stem: str) -> Path:
        # A presigned address must be sent byte for byte, and the key belongs to our own service only.
        url = URL(address, encoded=True)
        headers = self._headers if url.origin() == self.url.origin() else {}
        async with self.session.get(url, headers=headers, timeout=self._timeout) as response:
            if response.status != 200:
                raise await _error(response)
            data = await response.read()
            kind = response.content_type.partition("/")[2] or "png"
        path = folder / f"{stem}.{kind}"
        await asyncio.to_thread(_write, path, data)
        return path

    def _task(self, data: Mapping[str, Any]) -> Task:
        """A task from any answer that shows one: whole, just submitted, or an event."""
        error = data.get("error")
        images = data.get("images") or ()
        addresses = (item["url"] if isinstance(item, Mapping) else str(item) for item in images)
        return Task(
            id=str(data["task_id"]),
            status=str(data.get("status", "queued")),
            progress=float(data.get("progress") or 0.0),
            images=tuple(str(self.url.join(URL(address, encoded=True))) for address in addresses),
            error=str(error.get("message", error)) if isinstance(error, Mapping) else error,
            body=data,
        )


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a picture viewer that watches the folder never sees half a file."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _pause(retry_after: str | None, turn: int) -> float:
    """Seconds until the next try: what the service asks for (30 at most), else growing, spread at random."""
    if retry_after and retry_after.isdigit():
        return min(float(retry_after), 30.0) + random.uniform(0, 0.25)
    return random.uniform(0.5, 1.0) * min(0.5 * 2.0**turn, 8.0)


async def _error(response: aiohttp.ClientResponse) -> AppError:
    """The answer as an error with the service's own sentence and code."""
    try:
        body = orjson.loads(await response.read())
    except orjson.JSONDecodeError:
        body = {}
    body = body if isinstance(body, dict) else {}
    message = str(body.get("message") or f"{response.method} {response.url.path} answered {response.status}")
    kind = Busy if response.status in COME_AGAIN else ERRORS.get(response.status, ServiceError)
    return kind(message, answered=body.get("code"), http_status=response.status)
