"""A LoRA as ``multipart/form-data``: written to the disk while it arrives, never held in memory.

The limit of other requests (``client_max_size`` of aiohttp) is on bodies that are read whole; parts that are read in
pieces are counted here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp import BodyPartReader, web

from streamapp.db import LoraRow
from streamapp.errors import InvalidRequest, TooLarge
from streamapp.models.catalogue import place_of
from streamapp.models.incoming import Incoming
from streamapp.telemetry import get_logger
from web.answers import ok
from web.auth import USER
from web.models import of_lora

log = get_logger(__name__)
CHUNK = 1024 * 1024
FIELDS = ("name", "family")
MAX_FIELD = 400
#: Boundaries and headers beside the file, and a longest pause of the client, seconds.
AROUND = 64 * 1024
PATIENCE = 60.0


async def upload(app: Any, request: web.Request) -> web.Response:
    """Take a LoRA: the part ``file``, and ``name`` and ``family`` where the file does not tell them.

    Raises:
        InvalidRequest: the form or the file is not what it must be.
        TooLarge: larger than ``max_upload_bytes``.
        Conflict: the name is that of another LoRA.
    """
    limit = app.settings.max_upload_bytes
    if request.content_type != "multipart/form-data":
        raise InvalidRequest("send the LoRA as multipart/form-data: curl -F file=@brush.safetensors -F name=brush …")
    if request.content_length is not None and request.content_length > limit + AROUND:
        raise TooLarge(f"the upload is larger than {limit} bytes, the limit of an upload here", limit=limit)
    row, created = await _take(app, request)
    app.runtime.shelf.forget()
    log.info("LoRA uploaded", action="uploaded", name=row.name, bytes=row.size, user=request[USER], created=created)
    return ok({**of_lora(row), "created": created}, "registered" if created else "known already")


async def _take(app: Any, request: web.Request) -> tuple[LoraRow, bool]:
    fields: dict[str, str] = {}
    incoming: Incoming | None = None
    reader = await soon(request.multipart())
    try:
        while (part := await soon(reader.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise InvalidRequest("a form in a form is not read here")
            if part.name == "file" and incoming is None:
                incoming = await Incoming(app.settings, part.filename).__aenter__()
                while chunk := await soon(part.read_chunk(CHUNK)):
                    await incoming.write(chunk)
            elif part.name in FIELDS and part.name not in fields:
                fields[part.name] = await _text(part)
            else:
                raise InvalidRequest(
                    f"{str(part.name)[:60]} is not a field here, or is there twice; known: file, name, family"
                )
        if incoming is None or not incoming.size:
            raise InvalidRequest("file is missing: send the LoRA as the part `file`", field="file")
        row, new = await incoming.register(
            app.runtime.registry,
            fields.get("name") or None,
            fields.get("family") or None,
            request[USER],
            partial(app.runtime.cache.reserve, incoming),
        )
        if app.runtime.shared is not None:
            await app.runtime.shared.give(place_of(row, app.settings), row.digest)
        return row, new
    finally:
        if incoming is not None:
            app.runtime.cache.release(incoming)
            await incoming.__aexit__()


async def _text(part: BodyPartReader) -> str:
    """A short field."""
    data = b""
    while chunk := await soon(part.read_chunk(CHUNK)):
        data += chunk
        if len(data) > MAX_FIELD:
            raise InvalidRequest(f"{part.name} is too long", field=part.name)
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{part.name} is not UTF-8", field=part.name) from error


async def soon(coming: Any) -> Any:
    """What the client sends next.

    Raises:
        InvalidRequest: it is malformed, ends too early or does not come.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            return await coming
    except TimeoutError as error:
        raise InvalidRequest(f"nothing came for {PATIENCE:.0f} s: the upload was given up") from error
    except (ValueError, AssertionError, RuntimeError, aiohttp.ClientPayloadError) as error:
        # What aiohttp's reader raises for a body that ends early or has no boundaries.
        raise InvalidRequest("the form is not whole, or malformed: send the upload again") from error
