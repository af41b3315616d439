"""What a file server's answers mean: a file, a pause, or a reason that a person can act on."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from streamapp.errors import AppError, NotFound
from streamapp.guarded import FetchFailed

#: Longest pause that a server may ask for, seconds.
LONGEST = 300.0
RANGE_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)\Z")


class NeedsToken(AppError):
    """The file is given to known people only."""

    code = "needs_token"
    status = 401


class NotAllowed(AppError):
    """The file is not given to this account: early access, gated, or downloads switched off."""

    code = "not_allowed"
    status = 403


def pause_asked(answer: aiohttp.ClientResponse) -> float | None:
    """Seconds to wait when the server is busy (429) or broken for now (5xx); ``None`` when it is neither."""
    if answer.status != 429 and answer.status < 500:
        return None
    asked = answer.headers.get("Retry-After", "")
    if asked.isdigit():
        return min(LONGEST, float(asked))
    try:
        seconds = parsedate_to_datetime(asked).timestamp() - time.time()
    except ValueError:
        return 0.0
    return min(LONGEST, max(0.0, seconds))


def total_size(answer: aiohttp.ClientResponse) -> int | None:
    """Bytes of the whole file, as far as the answer tells them."""
    if answer.status == 206:
        match = RANGE_TOTAL.match(answer.headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    return answer.content_length


async def check_answer(name: str, answer: aiohttp.ClientResponse) -> None:
    """Return for a file.

    Raises:
        NeedsToken, NotAllowed, NotFound, AppError: what to do about it, in words.
        FetchFailed: anything that a later try may mend.
    """
    host = answer.url.host
    if answer.status in {200, 206}:
        if answer.content_type == "text/html":
            raise NeedsToken(f"{name}: {host} answered a web page instead of the file; {_token(host)}")
        return
    said = await _said(answer)
    if answer.status == 401:
        raise NeedsToken(f"{name}: {host} wants to know who asks{said}; {_token(host)}")
    if answer.status == 403:
        raise NotAllowed(f"{name}: {host} does not give it to you{said}; open its page, accept its terms or wait")
    if answer.status in {404, 410}:
        raise NotFound(f"{name} is not at {host} any more{said}")
    raise FetchFailed(f"{name}: {host} answered {answer.status}{said}")


def _token(host: str | None) -> str:
    site = "HUB" if host and host.endswith(("huggingface.co", "hf.co")) else "CIVITAI"
    return f"set STREAMAPP_{site}_TOKEN to an API key of yours"


async def _said(answer: aiohttp.ClientResponse) -> str:
    """The server's own words, shortened, for people."""
    raw = await answer.content.read(4096)
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    words = [body[key] for key in ("error", "message", "deadline") if isinstance(body, dict) and body.get(key)]
    text = ", ".join(str(word) for word in words)[:200]
    return f" ({text})" if text else ""
