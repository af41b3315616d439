"""Webhooks: the end of a task, told to its ``callback_url`` as Standard Webhooks has it, signed and tried for hours.

Every process that can sign sends. What is due is claimed in the database, an attempt at a time, so that no attempt
is made by two; a process that dies in the middle is followed by the next attempt, with the same id, once its claim
has run out. See https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import aiohttp
from pydantic import SecretStr

from streamapp.db import Callback, Delivery
from streamapp.db.delivery import host_of
from streamapp.errors import AppError, ConfigError, NotFound, Unavailable
from streamapp.guarded import Answer, FetchFailed, GuardedClient, Refused
from streamapp.settings import Settings
from streamapp.storage.signing import load_secret
from streamapp.telemetry import get_logger

if TYPE_CHECKING:
    from streamapp.runtime import Runtime

log = get_logger(__name__)

#: The body of a webhook, made when it is sent: addresses of pictures in it are then as fresh as can be.
#: Raises ``NotFound`` when there is nothing left to tell of, ``Unavailable`` when that cannot be known now.
Render = Callable[[Callback], Awaitable[bytes]]

PREFIX = "whsec_"
#: Webhooks under way in this process, and to one host.
TOGETHER, PER_HOST = 64, 8
POLL = 0.5
#: A claim outlives the exchange by this many seconds, within which its outcome is written down.
MARGIN = 30.0
#: Back-off in seconds: the first pause, its growth, the longest one, and the share by which it varies.
FIRST, GROWTH, LONGEST, JITTER = 5.0, 4.0, 4 * 3600.0, 0.2
#: Pause when nothing was sent because this service itself was not able to.
OURSELVES = 5.0
UNREADY = "not sent yet: this service could not read the task"
#: What is under way when the process stops has this long to end.
FAREWELL = 3.0


def signature(key: bytes, event_id: str, seconds: int, body: bytes) -> str:
    """``v1,`` and the HMAC-SHA256 over ``id.timestamp.body`` in base64."""
    signed = b".".join((event_id.encode(), str(seconds).encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def signing_secrets(settings: Settings) -> tuple[bytes, ...]:
    """The keys that sign here, each of which signs; blocks on a file in embedded mode. None: nothing can be sent.

    Without a setting, embedded mode keeps a key of its own in ``webhook-secret`` of the data folder.
    """
    given = [secret.get_secret_value() for secret in settings.webhook_secret]
    if not given and settings.embedded:
        given = [_own_secret(settings)]
    return tuple(base64.b64decode(secret.removeprefix(PREFIX)) for secret in given)


def _own_secret(settings: Settings) -> str:
    """The file is in the form that receivers take, so that its content can be handed over as it is."""
    path = settings.data_path / "webhook-secret"
    secret = load_secret(path, lambda: PREFIX.encode() + base64.b64encode(secrets.token_bytes(32)))
    try:
        Settings.standard_secrets((SecretStr(secret.decode().strip()),))
    except ValueError as error:
        raise ConfigError(f"{path} {error}; without the file another secret is made up", field=str(path)) from error
    return secret.decode().strip()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt led to: delivered (no ``error``), tried again ``after_s`` seconds, or given up."""

    error: str | None = None
    after_s: float | None = None


def judge(answer: Answer | AppError, attempt: int, attempts: int, vary: Callable[[float, float], float]) -> Outcome:
    """What becomes of a webhook after attempt number ``attempt`` of ``attempts``.

    2xx ends it well; 410 Gone and an address that is refused end it at once; anything else is tried again, after
    5 s, 20 s, 80 s … 4 h, varied by a fifth, or as late as ``Retry-After`` asks (4 h at most).
    """
    if isinstance(answer, Answer):
        if 200 <= answer.status < 300:
            return Outcome()
        error, final = f"the receiver answered {answer.status}", answer.status == 410
        asked = answer.headers.get("retry-after", "").strip()
        wish = float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 0.0
    else:
        error, final, wish = _reason(answer), not answer.retryable, 0.0
    if final or attempt >= attempts:
        return Outcome(error)
    # min() first: the power of a large attempt number is no float any more.
    pause = min(FIRST * GROWTH ** min(attempt - 1, 20), LONGEST)
    return Outcome(error, max(pause * vary(1 - JITTER, 1 + JITTER), min(wish, LONGEST)))


def _reason(error: AppError) -> str:
    """What the user who gave the address may know: not what names mean inside this network."""
    if isinstance(error, Refused):
        return "the address is not one that this service talks to"
    if isinstance(error.__cause__, TimeoutError):
        return "the receiver did not answer in time"
    if not isinstance(error.__cause__, aiohttp.ClientError | OSError):
        return "this service failed to send it"
    # Not the message, which has the whole address: its path may be a secret, and this goes to the log as well.
    return f"the receiver cannot be reached: {error.__cause__}"[:500]


class Callbacks:
    """Sends what is due, many at a time and few to each host.

    ``count`` takes the counters ``callbacks_delivered``, ``callbacks_delayed`` and ``callbacks_failed``; ``now`` is
    the clock of timestamps, in milliseconds; ``vary`` draws the jitter.
    """

    def __init__(
        self,
        delivery: Delivery,
        client: GuardedClient,
        render: Render,
        keys: Sequence[bytes],
        settings: Settings,
        *,
        now: Callable[[], int],
        count: MutableMapping[str, int] | None = None,
        vary: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._delivery = delivery
        self._client = client
        self._render = render
        self._keys = tuple(keys)
        self._attempts = settings.webhook_attempts
        self._hold = settings.webhook_timeout + MARGIN
        self._now = now
        self._count: MutableMapping[str, int] = {} if count is None else count
        self._vary = vary
        self._sending: dict[asyncio.Task[None], str] = {}
        self._freed = asyncio.Event()

    async def run(self) -> None:
        """Send for ever; what is under way when this is cancelled has a moment to end."""
        try:
            while True:
                try:
                    busy = await self.turn() > 0
                except Unavailable:
                    busy = False  # the outbox says so in the log; what is due stays due
                except Exception:  # supervised: webhooks must go on for as long as the process lives
                    log.exception("sending webhooks failed", action="callbacks_failed")
                    busy = False
                if not busy:
                    self._freed.clear()
                    # Not wait_for: it swallows a cancellation that comes together with the event.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL):
                            await self._freed.wait()
        finally:
            await self._settle()

    async def turn(self) -> int:
        """Claim what is due and has room, and start to send it; how many."""
        room = TOGETHER - len(self._sending)
        left = await self._delivery.next_callback_in() if room > 0 else None
        if left is None or left > 0:
            return 0
        sending = Counter(self._sending.values())
        claimed = await self._delivery.due_callbacks(room, self._hold, per_host=PER_HOST, sending=sending)
        for call in claimed:
            task = asyncio.create_task(self._send(call), name=f"callback-{call.event_id}")
            self._sending[task] = host_of(call.url)
            task.add_done_callback(self._ended)
        return len(claimed)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._sending:
            await asyncio.wait(self._sending)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self._freed.set()

    async def _settle(self) -> None:
        """Let what is under way end; the rest is due again when its claim runs out."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=FAREWELL)
        late = list(self._sending)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _send(self, call: Callback) -> None:
        """One attempt, and its outcome in the database."""
        try:
            await self._attempt(call)
        except Unavailable as error:  # due again when its claim runs out
            log.warning("the outcome of a webhook is lost", action="callback_lost", reason=error.message)
        except Exception as error:  # supervised: a defect must cost attempts, else it would be met for ever
            log.exception("a webhook could not be sent", action="callback_failed", event_id=call.event_id)
            defect = FetchFailed(repr(error))
            with suppress(Unavailable):
                await self._note(call, judge(defect, call.attempts, self._attempts, self._vary))

    async def _attempt(self, call: Callback) -> None:
        try:
            body = await self._render(call)
        except NotFound:
            return  # the task was deleted, and its webhooks with it
        except Unavailable:
            await self._patiently(partial(self._delay, call, OURSELVES, UNREADY, count=False))
            return
        answer: Answer | AppError
        try:
            answer = await self._client.post(call.url, body, self._headers(call.event_id, body))
        except (Refused, FetchFailed) as error:
            answer = error
        await self._note(call, judge(answer, call.attempts, self._attempts, self._vary))

    def _headers(self, event_id: str, body: bytes) -> dict[str, str]:
        """The headers of the specification; every key signs, so that a receiver may know any of them."""
        seconds = self._now() // 1000
        return {
            "content-type": "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": " ".join(signature(key, event_id, seconds, body) for key in self._keys),
        }

    async def _note(self, call: Callback, outcome: Outcome) -> None:
        """Write the outcome down, unless a later attempt has begun meanwhile."""
        error, after = outcome.error, outcome.after_s
        if error is not None and after is not None:
            done = await self._patiently(partial(self._delay, call, after, error))
        else:
            end = partial(self._delivery.end_callback, call.event_id, error, attempt=call.attempts)
            done = await self._patiently(end)
        if not done:
            return
        word = "delivered" if error is None else "failed" if after is None else "delayed"
        self._count[f"callbacks_{word}"] = self._count.get(f"callbacks_{word}", 0) + 1
        # Only the host: a path may be the receiver's secret.
        facts = {"task_id": call.task_id, "host": host_of(call.url), "attempt": call.attempts}
        if word == "failed":
            log.warning("a webhook is given up", action="callback_failed", reason=error, **facts)
        else:
            log.debug("a webhook was sent", action=f"callback_{word}", reason=error, **facts)

    async def _delay(self, call: Callback, after_s: float, error: str, *, count: bool = True) -> bool:
        return await self._delivery.delay_callback(call.event_id, after_s, error, attempt=call.attempts, count=count)

    async def _patiently(self, write: Callable[[], Awaitable[bool]]) -> bool:
        """An outcome is worth some patience: without it a delivered webhook goes out again."""
        delay = 0.5
        while True:
            try:
                return await write()
            except Unavailable:
                if delay > MARGIN / 4:
                    raise
                await asyncio.sleep(delay)
                delay *= 2


async def send_callbacks(runtime: Runtime, render: Render) -> None:
    """Send webhooks for as long as the process runs; never returns.

    Raises:
        ConfigError: the secret kept in the data folder is not one.
    """
    settings = runtime.settings
    keys = await asyncio.to_thread(signing_secrets, settings)
    if not keys:  # submits refuse a callback_url; what others accepted, others send
        await asyncio.Event().wait()
    client = GuardedClient(allow_private=settings.allow_private_callbacks, timeout=settings.webhook_timeout)
    async with client:
        sender = Callbacks(
            runtime.delivery, client, render, keys, settings, now=runtime.clock.now, count=runtime.app.counters
        )
        await sender.run()
