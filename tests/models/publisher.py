"""A file server with the faults that file servers have."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer


def checkpoint(size: int = 3_000_000) -> bytes:
    """A well-formed safetensors file of about ``size`` bytes."""
    import numpy as np
    from safetensors.numpy import save

    values = np.random.default_rng(7).integers(0, 256, size, dtype=np.uint8)
    return bytes(save({"model.diffusion_model.weight": values}))


@dataclass
class Publisher:
    """Serves one file at ``/file``; ``faults`` are used up one per request, then it behaves.

    Faults: ``drop`` (ends the connection at 30 %), ``500``, ``429``, ``html``, ``401``, ``403``, ``404``, ``short``
    (announces more than it has), ``other`` (other bytes of the same length), ``drip``, ``no-range`` (the whole file,
    whatever was asked), ``elsewhere`` (redirects to the second host), ``stall`` (falls silent at 30 %).
    """

    body: bytes
    etag: str | None = '"v1"'
    faults: list[str] = field(default_factory=list)
    seen: list[web.BaseRequest] = field(default_factory=list)
    sent: int = 0
    elsewhere: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        fault = self.faults.pop(0) if self.faults else ""
        match fault:
            case "500" | "404":
                return web.Response(status=int(fault))
            case "429":
                return web.Response(status=429, headers={"Retry-After": "7"})
            case "401" | "403":
                return web.json_response({"error": "Early Access", "message": "wait until Friday"}, status=int(fault))
            case "html":
                return web.Response(text="<html>Please log in</html>", content_type="text/html")
            case "elsewhere":
                return web.Response(status=307, headers={"Location": self.elsewhere})
        return await self._send(request, fault)

    async def _send(self, request: web.Request, fault: str) -> web.StreamResponse:
        body = bytes(len(self.body)) if fault == "other" else self.body
        start = request.http_range.start or 0
        match_tag = request.headers.get("If-Range")
        if fault == "no-range" or (match_tag is not None and match_tag != self.etag):
            start = 0
        headers = {"Content-Type": "application/octet-stream"}
        if self.etag:
            headers["ETag"] = self.etag
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        headers["Content-Length"] = str(len(body) - start + (1000 if fault == "short" else 0))
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        end = start + (len(body) - start) * 3 // 10 if fault in {"drop", "short", "stall"} else len(body)
        if fault == "drip":
            await response.write(body[start : start + 10])
            self.sent += 10
            await asyncio.sleep(30)
        for at in range(start, end, 64 * 1024):
            piece = body[at : min(end, at + 64 * 1024)]
            await response.write(piece)
            self.sent += len(piece)
        if fault == "stall":
            await asyncio.sleep(60)
        if fault in {"drop", "short"} and request.transport is not None:
            # What was written shall arrive: the other side sees a connection that ends too early.
            await asyncio.sleep(0.05)
            request.transport.close()
        return response


@asynccontextmanager
async def serving(publisher: Publisher, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """The address of the file while the block runs."""
    app = web.Application()
    app.router.add_get("/file", publisher.answer)
    async with TestServer(app, host=host) as server:
        yield str(server.make_url("/file"))
