"""Files that the user's Hugging Face cache has already are used in place: linked into the models folder, not fetched.

Blobs of large files are named there by their SHA-256; see
https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from streamapp.models.digest import file_sha256
from streamapp.models.download import Fetched
from streamapp.models.locks import locked
from streamapp.models.offer import SHA256
from streamapp.models.safe import parse_header
from streamapp.telemetry import get_logger

log = get_logger(__name__)


async def from_hub_cache(digest: str, target: Path) -> Fetched | None:
    """Have the cache's file with this SHA-256 at ``target``, every byte checked; ``None``: the cache has it not.

    A hard link where the file system can, so that it takes its room once; a copy elsewhere. A file that is not what its
    name says is left alone.

    Raises:
        InvalidRequest: it is no safetensors file.
    """
    blob = await asyncio.to_thread(_blob, digest)
    if blob is None:
        return None
    await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
    async with locked(target):
        return await asyncio.to_thread(_linked, blob, digest, target)


def _blob(digest: str) -> Path | None:
    if not SHA256.match(digest):
        return None
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return next((path for path in sorted(hub.glob(f"models--*/blobs/{digest}")) if path.is_file()), None)


def _linked(blob: Path, digest: str, target: Path) -> Fetched | None:
    new = target.with_name(f"{target.name}.cached")
    try:
        new.unlink(missing_ok=True)
        try:
            new.hardlink_to(blob.resolve())
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(blob, new)
        if file_sha256(new) != digest:
            log.warning("a file of the Hugging Face cache is damaged", action="cache_damaged", digest=digest[:10])
            return None
        parse_header(new, target.name)
        size = new.stat().st_size
        new.replace(target)
    except OSError as error:  # no room, say: a download says so in its own words
        log.warning(str(error), action="cache_unused", digest=digest[:10])
        return None
    finally:
        new.unlink(missing_ok=True)
    log.info("weights taken from the Hugging Face cache", action="cache_taken", digest=digest[:10], bytes=size)
    return Fetched(target, digest, size, 0.0, 0)
