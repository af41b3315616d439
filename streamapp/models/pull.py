"""From what somebody calls a model to weights on this machine and a row in the registry."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.errors import InvalidRequest, NotFound
from streamapp.guarded import GuardedClient
from streamapp.models.catalogue import LOCAL, NAME, models_root
from streamapp.models.civitai import CivitaiSite
from streamapp.models.download import Downloader, Fetched
from streamapp.models.families import family_of_file
from streamapp.models.hub import HubSite
from streamapp.models.kinds import Described, describe
from streamapp.models.learned import KIND
from streamapp.models.offer import Offer
from streamapp.models.reference import Hub, Named, read_reference
from streamapp.models.safe import check_lora, parse_header
from streamapp.models.steering import CONTROLNET, check_file
from streamapp.settings import Settings

#: Seconds that a site may take to begin its answer.
PATIENCE = 30.0
Progress = Callable[[int, int | None], None]
#: Hears what will be fetched before it is, and says where it is when it is here already.
Prepare = Callable[[Offer], Awaitable[Fetched | None]]


@dataclass(frozen=True, slots=True)
class Sites:
    """Where weights are looked for, and what fetches them."""

    civitai: CivitaiSite
    hub: HubSite
    downloader: Downloader

    async def offer(self, text: str) -> Offer:
        """What ``text`` refers to, as its site offers it.

        Raises:
            NotFound: it is a plain name, which no site knows, or the site has no such thing.
            AppError: see :meth:`CivitaiSite.offer` and :meth:`HubSite.offer`.
        """
        wanted = read_reference(text)
        if isinstance(wanted, Named):
            raise NotFound(
                f"{wanted.name!r} is no reference to a model: write civitai:MODEL@VERSION, an address of Civitai or "
                "the Hub, OWNER/NAME, an AIR or a SHA-256"
            )
        return await (self.hub.offer(wanted) if isinstance(wanted, Hub) else self.civitai.offer(wanted))


@asynccontextmanager
async def open_sites(settings: Settings) -> AsyncIterator[Sites]:
    """The sites of the settings."""
    client = GuardedClient(allow_private=settings.allow_private_sources, timeout=PATIENCE, max_bytes=8 * 1024**2)
    civitai, hub = settings.civitai_token, settings.hub_token
    async with client:
        yield Sites(
            CivitaiSite(client, settings.civitai_url, civitai.get_secret_value() if civitai else None),
            HubSite(client, settings.hub_url, hub.get_secret_value() if hub else None),
            Downloader(client),
        )


async def pull(
    sites: Sites,
    settings: Settings,
    text: str,
    *,
    name: str | None = None,
    progress: Progress = lambda *_: None,
    prepare: Prepare | None = None,
) -> ModelRow | LoraRow:
    """Fetch and verify what ``text`` refers to; the row is for the registry, which this does not write.

    Raises:
        InvalidRequest: not a kind or family that is drawn here, or a name that cannot be one.
        AppError: what the site says, see :meth:`Sites.offer` and :meth:`Downloader.fetch`.
    """
    offer = await sites.offer(text)
    local = name or slug(offer.title)
    if not NAME.match(local):
        raise InvalidRequest(
            f"name {local[:40]!r} must be letters, digits, blanks, dots, dashes or underscores", field="name"
        )
    if offer.family is not None:
        family_of_file(offer.family, offer.kind)
    target = target_of(settings, offer)
    known = await asyncio.to_thread(target.exists)
    fetched = None if prepare is None else await prepare(offer)
    if fetched is None:
        fetched = await sites.downloader.fetch(offer.file, target, progress)
    try:
        return await asyncio.to_thread(registered, models_root(settings), local, text, offer, fetched)
    except InvalidRequest:
        if fetched.path == target and not known:  # nobody's: it would only fill the disk
            await asyncio.to_thread(target.unlink, missing_ok=True)
        raise


def target_of(settings: Settings, offer: Offer) -> Path:
    """Where an offer's file comes to lie. The site's own file names never become paths: they may hold anything."""
    key = offer.file.digest[:10] if offer.file.digest else slug(offer.version)
    return models_root(settings) / f"{offer.kind}s" / f"{slug(offer.title)}-{key}.safetensors"


def registered(root: Path, name: str, text: str, offer: Offer, fetched: Fetched) -> ModelRow | LoraRow:
    """The row of what was fetched; the tensors have the last word on kind and family.

    Raises:
        InvalidRequest: the tensors are of a kind or family that is not drawn here, or not what the page says.
    """
    told = describe(parse_header(fetched.path, offer.file.name))
    family = _family(offer, told)
    facts: dict[str, Any] = {
        "name": name,
        "version": fetched.digest[:10],
        "family": family,
        "source": LOCAL,
        "path": fetched.path.relative_to(root).as_posix(),
        "digest": fetched.digest,
        "size": fetched.size,
    }
    traits = {**offer.traits, **told.traits, "version": offer.version, "pulled_from": text}
    if told.kind == CONTROLNET:
        return LoraRow(**facts, traits={**traits, KIND: CONTROLNET})
    if told.kind != "lora":
        return ModelRow(**facts, traits=traits)
    header = check_lora(fetched.path)
    words = traits.get("trigger_words") or list(header.trigger_words)
    return LoraRow(**facts, traits={**traits, "format": header.layout, "rank": header.rank, "trigger_words": words})


def _family(offer: Offer, told: Described) -> str:
    title = offer.file.name
    if told.kind not in {"model", "lora", CONTROLNET}:
        raise InvalidRequest(f"{title} holds a {told.kind.replace('_', ' ')}, not a checkpoint, LoRA or ControlNet")
    if told.kind != offer.kind and offer.family is not None:
        raise InvalidRequest(f"{title} holds a {told.kind}, its page says {offer.kind}")
    if offer.family is not None and told.family is not None and told.family != offer.family:
        raise InvalidRequest(f"{title} is of family {told.family}, its page says {offer.family}")
    family = offer.family or told.family
    if family is None:
        raise InvalidRequest(
            f"the family of {title} cannot be told from its tensors: fetch it yourself and use `streamapp models add`"
        )
    if told.kind == CONTROLNET:
        check_file(title, family, told)
    return family_of_file(family, told.kind).name


def slug(text: str) -> str:
    """A title as a file name: nothing that a shell, a path or a file system reads in its own way."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "model"
