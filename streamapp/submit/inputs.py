"""Pictures that requests carry: read from where they are, checked, and kept once under the digest of their file.

A request names one as base64 (also as a ``data:`` address), as ``sha256:…`` of a picture that is here already, or by
its ``http(s)`` address, which is fetched through the guarded client. What travels on is the digest.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from streamapp.db import InputRow, Inputs, ModelRow
from streamapp.errors import AppError, InvalidRequest, TooLarge
from streamapp.generation import GenerationParams, InputRef, Size, Start
from streamapp.guarded import FetchFailed, GuardedClient, Refused
from streamapp.models.sizes import MAX_DELIVERED
from streamapp.postprocess.reading import seen
from streamapp.settings import Settings
from streamapp.storage import Storage, input_key

if TYPE_CHECKING:
    from streamapp.submit import Submission

DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
DATA = re.compile(r"data:[\w.+/-]*(?:;[\w.=+-]+)*;base64,", re.ASCII)
SPACE = re.compile(r"\s+")
#: How long another host may take to send a picture, in seconds.
FETCH = 20.0
#: How much of the denoising is done unless the request says so: from a picture, and behind a mask.
STRENGTH, MASKED = 0.8, 1.0
#: Proportions of mask and picture may differ by this much.
SAME = 0.02


class Parts(Protocol):
    """What of the runtime is used here."""

    @property
    def settings(self) -> Settings:
        """Limits."""

    @property
    def storage(self) -> Storage:
        """Keeps the files."""

    @property
    def inputs(self) -> Inputs:
        """Knows them."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A picture that is kept here, and whether it was new."""

    ref: InputRef
    bytes: int
    content_type: str


async def start_of(parts: Parts, asked: Submission, model: ModelRow) -> Start | None:
    """The picture that a request starts from, kept here; None for one that starts from nothing.

    Raises:
        InvalidRequest: it cannot be read or had, is too large, does not fit its mask, or the model does not take it.
        TooLarge: more bytes than a picture may have.
    """
    inpainting = bool(model.traits.get("inpainting"))
    if asked.init_image is None:
        _alone(asked, model.name, inpainting)
        return None
    if inpainting and asked.mask is None:
        raise InvalidRequest(
            f"{model.name} is an inpainting model: send a mask, too, or name another model", field="mask"
        )
    image = await taken(parts, asked.init_image, "init_image")
    mask = None if asked.mask is None else await taken(parts, asked.mask, "mask", mask=True)
    if mask is not None and abs(mask.width * image.height / (mask.height * image.width) - 1) > SAME:
        raise InvalidRequest(
            f"mask is {mask.width}x{mask.height} and init_image {image.width}x{image.height}: make them of one size",
            field="mask",
        )
    strength = (STRENGTH if mask is None else MASKED) if asked.strength is None else asked.strength
    return Start(
        image=image,
        mask=mask,
        strength=strength,
        resize=asked.resize_mode or "crop",
        feather=4 if asked.mask_feather is None else asked.mask_feather,
    )


def _alone(asked: Submission, model: str, inpainting: bool) -> None:
    """Refuse what goes with a picture where there is none."""
    for field in ("mask", "strength", "resize_mode", "mask_feather"):
        if getattr(asked, field) is not None:
            raise InvalidRequest(f"{field} goes with init_image: send that, or leave {field} out", field=field)
    if inpainting:
        raise InvalidRequest(
            f"{model} is an inpainting model: send init_image and mask, or name another model", field="init_image"
        )


def fitting(size: InputRef) -> Size:
    """The size that is delivered unless the request says so: the picture's own, within what is ever delivered."""
    longest = max(size.width, size.height)
    ratio = min(1.0, MAX_DELIVERED / longest)
    return Size(width=round(size.width * ratio), height=round(size.height * ratio))


async def taken(parts: Parts, given: str, field: str, *, mask: bool = False) -> InputRef:
    """A picture as a request gives it, kept here.

    Raises:
        InvalidRequest: it cannot be read or had, or has too many pixels.
        TooLarge: it has too many bytes.
    """
    if (match := DIGEST.match(given)) is not None:
        return await _known(parts, match[1], field)
    if given.startswith("sha256:"):
        raise InvalidRequest(f"{field}: sha256: is followed by 64 hexadecimal digits in lower case", field=field)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", given):
        data = await _fetched(given, parts.settings, field)
    else:
        data = await asyncio.to_thread(_plain, given, parts.settings.max_input_bytes, field)
    return (await keep(parts, data, field, mask=mask)).ref


async def keep(parts: Parts, data: bytes, field: str, *, mask: bool = False) -> Kept:
    """Check a file and keep it.

    Raises:
        InvalidRequest: it cannot be read, or has too many pixels.
        TooLarge: it has too many bytes.
    """
    limit = parts.settings.max_input_bytes
    if len(data) > limit:
        raise too_large(field, limit)
    found = await asyncio.to_thread(seen, data, parts.settings.max_input_pixels, field, mask=mask)
    digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
    # First noted, then stored: what is noted as used a moment ago is not swept away.
    await parts.inputs.keep(InputRow(digest, found.content_type, len(data), found.width, found.height))
    key = input_key(digest)
    if await parts.storage.head(key) is None:
        await parts.storage.put(key, data, found.content_type)
    return Kept(InputRef(digest=digest, width=found.width, height=found.height), len(data), found.content_type)


def too_large(field: str, limit: int) -> TooLarge:
    """The refusal of a file with more bytes than a picture may have."""
    return TooLarge(f"{field} has more than {limit} bytes, the limit of a picture here", field=field, limit=limit)


async def _known(parts: Parts, digest: str, field: str) -> InputRef:
    row = await parts.inputs.use(digest)
    if row is None or await parts.storage.head(input_key(digest)) is None:
        raise InvalidRequest(
            f"{field}: there is no picture sha256:{digest[:10]}… here, or not any more: send the picture", field=field
        )
    return InputRef(digest=digest, width=row.width, height=row.height)


async def _fetched(url: str, settings: Settings, field: str) -> bytes:
    guarded = GuardedClient(
        allow_private=settings.allow_private_inputs, timeout=FETCH, max_bytes=settings.max_input_bytes
    )
    try:
        async with guarded as client:
            answer = await client.request("GET", url)
    except Refused as error:
        hint = "" if error.details.get("host") is None else " (STREAMAPP_ALLOW_PRIVATE_INPUTS allows such addresses)"
        raise InvalidRequest(f"{field}: {error.message}{hint}", field=field) from error
    except FetchFailed as error:
        if error.details.get("too_large"):
            raise too_large(field, settings.max_input_bytes) from error
        raise _unreachable(field, error) from error
    if answer.status != 200:
        raise InvalidRequest(f"{field}: {url[:200]} answered {answer.status}, not with a picture", field=field)
    return answer.body


def _unreachable(field: str, error: AppError) -> InvalidRequest:
    return InvalidRequest(f"{field} could not be fetched: {error.message[:300]}", field=field)


def _plain(given: str, limit: int, field: str) -> bytes:
    """The bytes behind base64, with or without what a ``data:`` address puts before it."""
    match = DATA.match(given)
    if match is None and given.startswith("data:"):
        raise InvalidRequest(f"{field}: a data: address must be in base64", field=field)
    text = SPACE.sub("", given[match.end() :] if match else given)
    if len(text) > (limit + 3) * 4 // 3:
        raise too_large(field, limit)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"{field} is neither base64, nor a data:, http: or https: address, nor sha256: of a picture here",
            field=field,
        ) from error
    if not data:
        raise InvalidRequest(f"{field} is empty", field=field)
    return data


def described(request: Any, params: GenerationParams) -> Any:
    """The request as the row keeps it: pictures in it are named, not held."""
    said, start = request.get("params"), params.start
    if not isinstance(said, dict) or (start is None and not params.controls):
        return request
    named = {} if start is None else {"init_image": start.image, "mask": start.mask}
    found = {name: _named(value, named.get(name)) for name, value in said.items()}
    if params.controls:
        pairs = zip(said["controls"], params.controls, strict=True)
        found["controls"] = [{**one, "image": _named(one["image"], ref.image)} for one, ref in pairs]
    return {**request, "params": found}


def _named(value: Any, ref: InputRef | None) -> Any:
    return value if ref is None or _address(value) else ref.name


def _address(value: Any) -> bool:
    return isinstance(value, str) and value[:8].startswith(("http://", "https://"))
