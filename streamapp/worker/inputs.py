"""The picture that a task starts from: fetched, framed for the engine, and put around what was drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from streamapp.db import Inputs
from streamapp.engine.events import Picture
from streamapp.engine.images import Box, cut, feathered, pasted, resized
from streamapp.engine.preprocess import preprocess, raw
from streamapp.errors import NotFound
from streamapp.generation import ControlRef, GenerationParams, InputRef, Start
from streamapp.models.sizes import placement
from streamapp.postprocess.reading import decoded
from streamapp.storage import Storage, input_key


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a picture and of its mask, as they were sent."""

    image: bytes
    mask: bytes | None = None


async def fetch(storage: Storage, inputs: Inputs, start: Start) -> Files:
    """Both files, whole and unharmed, noted as used.

    Raises:
        NotFound: one is not there any more, or is not what was sent.
        Unavailable: storage or database do not answer.
    """
    image = await _file(storage, inputs, start.image, "init_image")
    return Files(image, None if start.mask is None else await _file(storage, inputs, start.mask, "mask"))


async def fetch_control(storage: Storage, inputs: Inputs, control: ControlRef) -> bytes:
    """The file of the picture that a ControlNet steers by; see :func:`fetch`."""
    return await _file(storage, inputs, control.image, "controls")


async def _file(storage: Storage, inputs: Inputs, ref: InputRef, field: str) -> bytes:
    await inputs.use(ref.digest)
    data = b"".join([part async for part in storage.read(input_key(ref.digest))])
    if hashlib.sha256(data).hexdigest() != ref.digest:
        raise NotFound(
            f"{field}: what is stored as {ref.name} is not what was sent: send the picture again", field=field
        )
    return data


def framed(files: Files, params: GenerationParams) -> tuple[Picture, Picture | None]:
    """Picture and mask as the engine draws from them: of the drawn size, what lies outside of it left out. Blocks."""
    box = _inner(params)
    picture, mask = _delivered(files, params)
    drawn = params.drawn

    def part(image: Any) -> Picture:
        return raw(cut(image, box, drawn.width, drawn.height))

    return part(picture), None if mask is None else part(mask)


def steering(data: bytes, control: ControlRef, params: GenerationParams) -> Picture:
    """The picture of a ControlNet as the engine takes it: framed like the task's own, then preprocessed. Blocks."""
    size, drawn = params.delivered, params.drawn
    mode = "crop" if params.start is None else params.start.resize
    whole = resized(decoded(data, "controls"), size.width, size.height, mode)
    picture = cut(whole, _inner(params), drawn.width, drawn.height)
    return raw(picture if control.preprocessor == "none" else preprocess(control.preprocessor, picture))


def restored(image: Any, files: Files, params: GenerationParams) -> Any:
    """What was drawn, with the picture as it was wherever the mask is black, its edge softened. Blocks."""
    picture, mask = _delivered(files, params)
    if mask is None or params.start is None:
        return image
    return pasted(picture, image, feathered(mask, params.start.feather))


def _delivered(files: Files, params: GenerationParams) -> tuple[Any, Any]:
    """Picture and mask at the delivered size."""
    start, size = params.start, params.delivered
    if start is None:
        raise ValueError("the task starts from no picture")
    picture = decoded(files.image, "init_image")
    framed_picture = resized(picture, size.width, size.height, start.resize)
    if files.mask is None:
        return framed_picture, None
    mask = resized(decoded(files.mask, "mask", mask=True), picture.width, picture.height, "stretch")
    return framed_picture, resized(mask, size.width, size.height, start.resize)


def _inner(params: GenerationParams) -> Box:
    """Where the drawn picture lies in the delivered one."""
    whole = params.delivered
    inner = placement(params.drawn, whole)
    left, top = (whole.width - inner.width) // 2, (whole.height - inner.height) // 2
    return Box(left, top, left + inner.width, top + inner.height)
