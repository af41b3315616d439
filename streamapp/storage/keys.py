"""Keys of objects: which are legal, and the one of each picture."""

from __future__ import annotations

import hashlib
import re

from streamapp.errors import InvalidRequest

#: Longest key that fits the database's column and every file system.
MAX_KEY = 400
PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._=@+-]{0,199}\Z")
TASK_ID = re.compile(r"[a-z]+-(\d{4})(\d{2})(\d{2})-", re.ASCII)


def checked_key(key: str) -> str:
    """``key`` itself when it is legal: parts of letters, digits and ``._=@+-`` joined by slashes, none hidden.

    Raises:
        InvalidRequest: otherwise; there is no way out of the storage through a key.
    """
    if len(key) > MAX_KEY or not all(PART.match(part) for part in key.split("/")):
        raise InvalidRequest(f"{key[:80]!r} is not a key of a stored object", field="key")
    return key


def input_key(digest: str) -> str:
    """The key of a picture that was sent in, from the SHA-256 of its file: the same file is kept once."""
    return checked_key(f"inputs/{digest[:2]}/{digest}")


def image_key(task_id: str, index: int, extension: str = "png") -> str:
    """The key of picture ``index`` of a task, derived from both only: drawing it twice writes it once.

    The date from the task id comes first, so that a lifecycle rule or an operator can expire by prefix; then 256
    shards, so that no folder grows large.
    """
    shard = hashlib.sha256(task_id.encode()).hexdigest()[:2]
    match = TASK_ID.match(task_id)
    date = "/".join(match.groups()) if match else "undated"
    return checked_key(f"images/{date}/{shard}/{task_id}/{index}.{extension}")
