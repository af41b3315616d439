"""Which registered weights a request means, and whether they can be drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

from streamapp.db import LoraRow, ModelRow
from streamapp.engine.job import MAX_ADAPTERS
from streamapp.errors import InvalidRequest, Unavailable
from streamapp.generation import EmbeddingRef, LoraRef
from streamapp.models import quarantine
from streamapp.models.cache import EVICTED, PULLED_FROM, Kind, kind_of
from streamapp.models.learned import is_embedding, named
from streamapp.models.referenced import PENDING, References, Unfit
from streamapp.models.registered import how_to_pull
from streamapp.models.shipped import POCKET
from streamapp.models.steering import is_controlnet
from streamapp.settings import Settings

if TYPE_CHECKING:
    from streamapp.submit.shelf import Shelf


class Unknown(InvalidRequest):
    """Nothing of that name is registered, and it is not fetched for requests."""

    code = "not_found"
    status = 404


class NotHere(InvalidRequest):
    """It is known, its files are not on the disk, and the request does not want to wait for them."""

    code = "not_here"
    status = 409


@dataclass
class Absent:
    """Weights of one request whose files are not here; without ``prefetch`` the first one refuses the request.

    ``references`` answers for what is not even registered; without them nothing new is fetched.
    """

    prefetch: bool = False
    references: References | None = None
    rows: list[ModelRow | LoraRow] = field(default_factory=list)

    async def find(self, kind: Kind, text: str, served: Sequence[str] | None = None) -> ModelRow | LoraRow | None:
        """What the site of a reference says; ``None`` when there is nobody to ask.

        Raises:
            AppError: see :meth:`References.row`.
        """
        if not self.prefetch or self.references is None or not self.references.may_fetch(text):
            return None
        return await self.references.row(kind, text, served)

    async def promise(self) -> None:
        """Register what was not, now that the request is accepted but for its row.

        Raises:
            AppError: see :meth:`References.promise`.
        """
        for row in self.rows:
            if self.references is not None and row.traits.get(PENDING):
                await self.references.promise(row)

    def notes(self) -> list[str]:
        """Sentences for the answer."""
        return [f"{row.name} is not here and is fetched first{_whence(row)}" for row in self.rows]

    def add(self, row: ModelRow | LoraRow) -> None:
        """Note it, or refuse.

        Raises:
            NotHere: says how to get it.
        """
        if self.prefetch:
            self.rows.append(row)
            return
        kind = kind_of(row)
        raise NotHere(
            f"the files of {row.name} are not here: `streamapp {kind}s pull {row.traits.get(PULLED_FROM)} "
            f"--name {row.name}` or POST /api/v1/{kind}s/pull brings them, and so does a request without "
            "prefetch: false, unless STREAMAPP_FETCH is off",
            field=quarantine.FIELDS[kind],
        )


def _whence(row: ModelRow | LoraRow) -> str:
    """How large what was never here is, and where it comes from."""
    return f" ({row.size / 1e6:.0f} MB from {row.traits.get('page')})" if row.traits.get(PENDING) else ""


async def find_model(shelf: Shelf, name: str | None, settings: Settings, absent: Absent | None = None) -> ModelRow:
    """The checkpoint that is meant; ``None`` means the default one.

    Raises:
        InvalidRequest: it is not registered, not served, or its files are not here and shall not be fetched.
        AppError: its site refuses it, see :meth:`References.row`.
        Unavailable: none is registered at all.
    """
    if name is None:
        row = await _default_model(shelf, settings)
    else:
        found = await shelf.model(name)
        if found is None and absent is not None:
            coming = await absent.find("model", name, settings.families)
            found = coming if isinstance(coming, ModelRow) else None
        if found is None:
            raise unknown("model", name, [row.name for row in await shelf.models()], "model")
        row = found
    if row.family not in settings.families:
        raise InvalidRequest(
            f"model {row.name} is of family {row.family}, which no worker here serves "
            f"(STREAMAPP_FAMILIES: {', '.join(settings.families)})",
            field="model",
        )
    if row.traits.get(EVICTED):
        (absent or Absent()).add(row)
    return row


async def find_fallback(shelf: Shelf, name: str, settings: Settings) -> ModelRow:
    """A model to draw with when another one fails: it has to be here.

    Raises:
        InvalidRequest: see :func:`find_model`, or it is in quarantine.
    """
    row = await find_model(shelf, name, settings)
    if (reason := quarantine.why(row)) is not None:
        raise InvalidRequest(f"{row.name} is in quarantine: {reason}", field="model")
    return row


async def _default_model(shelf: Shelf, settings: Settings) -> ModelRow:
    """The model that ships where it is registered, else the only one; several others are for the user to choose."""
    known = [row for row in await shelf.models() if row.family in settings.families]
    served = sorted({row.name for row in known if not row.traits.get(PENDING)})
    if POCKET.name in served:
        served = [POCKET.name]
    if not served:
        raise Unavailable("no model is registered: `streamapp db upgrade` adds the one that ships", retry_after=30)
    if len(served) > 1:
        raise InvalidRequest(f"name the model: {', '.join(served[:20])}", field="model", known=served[:20])
    row = await shelf.model(served[0])
    if row is None:
        raise Unavailable("the models are being changed", retry_after=1)
    return row


async def find_loras(
    shelf: Shelf, asked: Sequence[LoraRef], model: ModelRow, absent: Absent | None = None
) -> list[LoraRow]:
    """The LoRAs that are meant, in the order of the request.

    Raises:
        InvalidRequest: one is not registered, does not fit the model, is named twice, or its files are not
            here and shall not be fetched.
        Quarantined: one failed to load too often.
    """
    names = [lora.name for lora in asked]
    if len(names) > MAX_ADAPTERS:
        raise InvalidRequest(f"{len(names)} LoRAs are named, at most {MAX_ADAPTERS} can be combined", field="loras")
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequest(f"LoRA {doubled} is named twice: add up its weights", field="loras")
    rows = []
    for name in names:
        row = await shelf.lora(name)
        if row is None and absent is not None:
            coming = await absent.find("lora", name)
            row = coming if isinstance(coming, LoraRow) else None
        if row is None:
            raise unknown("LoRA", name, [lora.name for lora in await shelf.loras() if not is_controlnet(lora)], "loras")
        if is_embedding(row):
            raise InvalidRequest(f"{name} is a learned word, no LoRA: write it in the text", field="loras")
        if is_controlnet(row):
            raise InvalidRequest(f"{name} is a ControlNet, no LoRA: name it in controls", field="loras")
        if row.family != model.family:
            raise Unfit(
                f"LoRA {name} fits models of family {row.family}, and {model.name} is of {model.family}", field="loras"
            )
        quarantine.refuse(row)
        if row.traits.get(EVICTED):
            (absent or Absent()).add(row)
        rows.append(row)
    if doubled := next((row.name for row in rows if rows.count(row) > 1), None):
        raise InvalidRequest(f"LoRA {doubled} is named twice: add up its weights", field="loras")
    return rows


async def find_embeddings(shelf: Shelf, model: ModelRow, *texts: str) -> list[LoraRow]:
    """The learned words that the texts name, of those that fit the model.

    Raises:
        Quarantined: one failed to load too often.
    """
    newest = {row.name: row for row in await shelf.loras() if row.family == model.family and is_embedding(row)}
    rows = [await shelf.lora(row.name) for row in named(newest.values(), *texts)]
    found = [row for row in rows if row is not None]
    for row in found:
        quarantine.refuse(row)
    return found


def refs(embeddings: Sequence[LoraRow]) -> tuple[EmbeddingRef, ...]:
    """Learned words as a task names them."""
    return tuple(EmbeddingRef(name=row.name) for row in embeddings)


def unknown(kind: str, name: str, known: Sequence[str], field: str) -> InvalidRequest:
    """A sentence with the nearest names, or the first ones; ``field`` is the request's."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:20]) or 'none'}"
    pull = how_to_pull(name, kind.lower())
    return Unknown(f"{kind} {name[:60]!r} is not registered here; {hint}{pull}", field=field, known=near or names[:20])
