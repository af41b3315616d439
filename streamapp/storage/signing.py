"""Signed addresses of a local storage: HMAC-SHA256 with a key that never leaves the storage's folder."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path


def new_key() -> bytes:
    """32 bytes at random."""
    return secrets.token_bytes(32)


def load_secret(path: Path, make: Callable[[], bytes] = new_key) -> bytes:
    """The key kept at ``path``, made on first use, readable by its owner only; processes that race get the same."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    # mkstemp makes it 0600; a link appears whole or not at all, and never replaces another process's key.
    descriptor, scratch = tempfile.mkstemp(prefix=".secret-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        Path(scratch).unlink()
    return path.read_bytes()


def sign(secret: bytes, key: str, expires_at: int, filename: str | None) -> str:
    """The signature over what an address grants: which object, until when (seconds since 1970), under which name."""
    message = f"{key}\n{expires_at}\n{filename or ''}".encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()[:40]


def matches(secret: bytes, key: str, expires_at: int, filename: str | None, signature: str) -> bool:
    """Whether the signature is ours, in constant time."""
    return hmac.compare_digest(sign(secret, key, expires_at, filename).encode(), signature.encode())
