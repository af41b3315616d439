"""Where pictures and uploads are kept: one port, a local folder or S3 behind it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from streamapp.errors import ConfigError
from streamapp.settings import Settings
from streamapp.storage.keys import checked_key, image_key, input_key
from streamapp.storage.local import LocalStorage
from streamapp.storage.port import ObjectInfo, Storage
from streamapp.storage.s3 import S3Storage

__all__ = [
    "LocalStorage",
    "ObjectInfo",
    "S3Storage",
    "Storage",
    "checked_key",
    "image_key",
    "input_key",
    "open_storage",
]


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings name; not started yet.

    Raises:
        ConfigError: when the URL names no folder or bucket.
    """
    url = urlsplit(settings.storage_url)
    if url.scheme == "file":
        return LocalStorage(Path(unquote(url.path)))
    if not url.netloc:
        raise ConfigError(f"storage {settings.storage_url} names no bucket: s3://BUCKET/PREFIX", field="storage")
    return S3Storage(url.netloc, unquote(url.path).strip("/"), endpoint=settings.s3_endpoint)
