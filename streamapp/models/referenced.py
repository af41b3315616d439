"""Weights that nobody registered and a request names by a reference: asked for at their site, and promised a row.

The row says what the site says, that the file is not here, and what it is fetched from; whoever waits for it waits as
for anything else that is not on the disk. Only what a publisher gives a SHA-256 for is fetched for requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.errors import AppError, InvalidRequest, Overloaded, Unavailable
from streamapp.models import quarantine
from streamapp.models.cache import EVICTED, PULLED_FROM, Kind, Rows, Wanted
from streamapp.models.catalogue import LOCAL, models_root
from streamapp.models.download import NoSpace
from streamapp.models.families import family_of_file
from streamapp.models.learned import KIND
from streamapp.models.offer import Offer
from streamapp.models.peek import told
from streamapp.models.pull import Sites, slug, target_of
from streamapp.models.reference import Hub, Named, read_reference
from streamapp.models.steering import check_steered
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

log = get_logger(__name__)
R = TypeVar("R", ModelRow, LoraRow)
#: Trait of a row whose file has never been here.
PENDING = "pending"
#: What a site said is believed for so long, in seconds; what it refused, too, but shorter.
FRESH, REFUSED = 300.0, 15.0
#: Answers kept, questions at a time, and seconds that one may take: somebody waits for the answer of his request.
KNOWN, AT_ONCE, PATIENCE = 1_000, 8, 15.0
#: Rows of files that have never been here; those that no task waits for are forgotten first.
MOST_PENDING = 200


class Unfit(InvalidRequest):
    """It is known what it is, and it cannot be used for that."""

    code = "does_not_fit"
    status = 422


class Registered(Rows, Protocol):
    """The part of the registry that is used here."""

    async def insert(self, row: ModelRow | LoraRow) -> bool:
        """Add weights under a name that nothing has yet."""

    async def remove_model(self, name: str, version: str | None = None) -> list[ModelRow]:
        """Forget a checkpoint."""

    async def remove_lora(self, name: str, version: str | None = None) -> list[LoraRow]:
        """Forget a LoRA."""


def fetched_for_requests(settings: Settings) -> frozenset[str]:
    """Sites that requests may name files of; empty where only operators bring new ones."""
    sites = frozenset({"civitai", "hub"})
    if settings.fetch is None:
        # Whoever has a key could fill a disk that nobody bounded.
        return frozenset() if settings.api_keys and settings.models_max_bytes is None else sites
    return sites if settings.fetch == "any" else sites & {settings.fetch}


class References:
    """Answers what a reference means; thousand requests for it ask its site once."""

    def __init__(
        self,
        settings: Settings,
        registry: Registered,
        sites: Callable[[], Awaitable[Sites]],
        *,
        wanted: Wanted,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._registry, self._sites = settings, registry, sites
        self._wanted, self._changed = wanted, changed
        self._known: dict[str, tuple[float, asyncio.Task[Offer]]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)

    def may_fetch(self, text: str) -> bool:
        """Whether it is a reference to a site that requests may have files fetched from."""
        try:
            wanted = read_reference(text)
        except InvalidRequest:
            return False
        if isinstance(wanted, Named):
            return False
        return ("hub" if isinstance(wanted, Hub) else "civitai") in fetched_for_requests(self._settings)

    async def row(self, kind: Kind, text: str, served: Sequence[str] | None = None) -> ModelRow | LoraRow:
        """The row that the weights have, or will have when :meth:`promise` is kept.

        ``served``: families of which it may be; without them any that is drawn here.

        Raises:
            NotFound: its site has no such thing.
            Unfit: it is no such thing as is asked for, of a family that is not drawn here, pickled, or without digest.
            NeedsToken, NotAllowed: its maker does not give it to everybody.
            AppError: its site does not answer.
        """
        field = quarantine.FIELDS[kind]
        try:
            offer = await self._offer(text)
            self._check(offer, kind, served)
        except AppError as error:
            if type(error) is InvalidRequest:
                raise Unfit(error.message, **{**error.details, "field": field}) from error
            error.details.setdefault("field", field)
            raise
        rows: list[ModelRow | LoraRow] = list(
            await (self._registry.models() if kind == "model" else self._registry.loras())
        )
        same = [row for row in rows if row.digest == offer.file.digest]
        if same:
            return min(same, key=lambda row: bool(row.traits.get(EVICTED)))
        return self._promised(kind, offer, {row.name for row in rows})

    async def promise(self, row: ModelRow | LoraRow) -> None:
        """Register a row whose file is still to come, unless it is registered by now.

        Raises:
            Overloaded: as many files are waited for as may be.
            Unavailable: another file has got its name in between.
        """
        rows = await self._rows()
        if _among(row, rows):
            return
        await self._forget([one for one in rows if one.traits.get(PENDING)])
        if not await self._registry.insert(row):
            if _among(row, await self._rows()):
                return  # another request was first
            raise Unavailable(f"{row.name} is the name of other weights since a moment", retry_after=1)
        self._changed()
        log.info("weights are known by reference", action="promised", name=row.name, source=row.traits[PULLED_FROM])

    async def _rows(self) -> list[ModelRow | LoraRow]:
        return [*await self._registry.models(), *await self._registry.loras()]

    async def _forget(self, pending: list[ModelRow | LoraRow]) -> None:
        """Keep the rows without a file within their number."""
        left = len(pending)
        for row in pending if left >= MOST_PENDING else []:
            lora = isinstance(row, LoraRow)
            if not await self._wanted("lora" if lora else "model", row.name):
                remove = self._registry.remove_lora if lora else self._registry.remove_model
                await remove(row.name, row.version)
                left -= 1
        if left >= MOST_PENDING:
            raise Overloaded(f"{left} files are being fetched for requests: come again later", retry_after=60)

    # What the site says.
    async def _offer(self, text: str) -> Offer:
        now = asyncio.get_running_loop().time()
        known = self._known.get(text)
        if known is None or known[0] < now or _refused_before(known, now):
            if len(self._known) >= KNOWN:
                self._known.clear()
            known = (now + FRESH, asyncio.create_task(self._ask(text), name="reference"))
            known[1].add_done_callback(_look)
            self._known[text] = known
        return await asyncio.shield(known[1])

    async def _ask(self, text: str) -> Offer:
        try:
            async with asyncio.timeout(PATIENCE), self._turn:
                sites = await self._sites()
                return await told(sites.downloader.client, await sites.offer(text))
        except TimeoutError:
            raise Unavailable(f"the site of {text[:100]} does not answer in time", retry_after=10) from None

    def _check(self, offer: Offer, kind: Kind, served: Sequence[str] | None) -> None:
        """Refuse before anything is fetched what could not be drawn with."""
        name, limit = offer.file.name, self._settings.models_max_bytes
        if offer.kind != kind:
            raise InvalidRequest(f"{name} is a {offer.kind.replace('_', ' ')}, and a {kind} is asked for")
        family = family_of_file(offer.family or "", kind).name
        if kind == "controlnet":
            check_steered(family)
        if served is not None and family not in served:
            raise InvalidRequest(
                f"{name} is of family {family}, which no worker here serves (STREAMAPP_FAMILIES: {', '.join(served)})"
            )
        if offer.file.digest is None:
            raise InvalidRequest(
                f"{name}: its publisher gives no SHA-256, so nobody could tell what came; its operator can pull it"
            )
        if limit is not None and _size(offer) > limit:
            raise NoSpace(f"{name} has {_size(offer)} bytes, more than STREAMAPP_MODELS_MAX_BYTES ({limit})")

    def _promised(self, kind: Kind, offer: Offer, taken: set[str]) -> ModelRow | LoraRow:
        digest = offer.file.digest or ""
        title = slug(offer.title)
        names = (title, slug(f"{title[:40]}-{offer.version}"), f"{title[:45]}-{digest[:10]}")
        facts: dict[str, Any] = {
            "name": next((name for name in names if name not in taken), names[-1]),
            "version": digest[:10],
            "family": offer.family,
            "source": LOCAL,
            "path": target_of(self._settings, offer).relative_to(models_root(self._settings)).as_posix(),
            "digest": digest,
            "size": _size(offer),
            "traits": {
                **offer.traits,
                **({KIND: kind} if kind == "controlnet" else {}),
                "version": offer.version,
                PULLED_FROM: offer.reference,
                EVICTED: True,
                PENDING: True,
            },
        }
        return ModelRow(**facts) if kind == "model" else LoraRow(**facts)


def _among(row: ModelRow | LoraRow, rows: Sequence[ModelRow | LoraRow]) -> bool:
    """Whether these weights have their name."""
    return any((row.name, row.digest) == (one.name, one.digest) and type(one) is type(row) for one in rows)


def _size(offer: Offer) -> int:
    return offer.file.size or offer.about or 0


def _refused_before(known: tuple[float, asyncio.Task[Offer]], now: float) -> bool:
    """Whether a refusal is old enough to ask again."""
    until, task = known
    if not task.done():
        return False
    return task.cancelled() or (task.exception() is not None and now > until - FRESH + REFUSED)


def _look(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
