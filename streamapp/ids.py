"""Ids of tasks: readable, sortable by time, impossible to guess."""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime

#: Crockford's base 32 in lower case: sorts like the numbers it writes, and no letter looks like a digit.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
TASK_ID = re.compile(r"img-\d{8}-[0-9a-hjkmnp-tv-z]{16}\Z", re.ASCII)
DAY_MS = 86_400_000


def new_task_id(now_ms: int | None = None) -> str:
    """``img-20261123-`` and 16 characters: six for the millisecond of the day, ten (50 bits) at random.

    ``now_ms`` is the time in milliseconds since 1970, by default the host's.
    """
    now = int(time.time() * 1000) if now_ms is None else now_ms
    date = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y%m%d")
    return f"img-{date}-{_base32(now % DAY_MS, 6)}{_base32(secrets.randbits(50), 10)}"


def first_id_at(now_ms: int) -> str:
    """What every id made at that millisecond or later sorts behind, and every earlier one before."""
    date = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%d")
    return f"img-{date}-{_base32(now_ms % DAY_MS, 6)}"


def is_task_id(text: str) -> bool:
    """Whether ``text`` has the form of an id made here."""
    return TASK_ID.match(text) is not None


def _base32(number: int, length: int) -> str:
    return "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(length)))
