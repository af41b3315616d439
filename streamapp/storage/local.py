"""A local folder as storage: atomic writes, content types, range reads, signed addresses served by the web views."""

from __future__ import annotations

import asyncio
import errno
import mimetypes
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import quote, urlencode

from streamapp.errors import InvalidRequest, NotFound, Unavailable
from streamapp.storage.keys import checked_key
from streamapp.storage.port import CHUNK, ObjectInfo
from streamapp.storage.signing import load_secret, matches, sign

#: Leftovers of killed writers are removed at start when they are older than this, in seconds.
STALE = 3600.0
T = TypeVar("T")
TYPES = mimetypes.MimeTypes()
TYPES.add_type("image/webp", ".webp")
TYPES.add_type("image/avif", ".avif")


class LocalStorage:
    """Objects as files below ``root/objects``; several processes may share the folder.

    File work runs in threads. Symbolic links inside are refused, so nothing outside can be read or written.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._objects = root / "objects"
        self._types = root / "types"
        self._scratch = root / "scratch"
        self._clock = clock
        self._secret = b""

    async def start(self) -> None:
        """Make the folders and the signing key; remove what killed writers left behind."""
        await asyncio.to_thread(self._guarded, self._open)

    async def close(self) -> None:
        """Nothing is held open."""

    async def ping(self) -> None:
        """Write and remove a small file."""
        await asyncio.to_thread(self._guarded, self._probe)

    async def put(self, key: str, data: bytes | Path, content_type: str) -> None:
        """Write to a temporary file, make it durable, rename."""
        await asyncio.to_thread(self._guarded, lambda: self._write(checked_key(key), data, content_type))

    async def head(self, key: str) -> ObjectInfo | None:
        """Size, type, tag and time of an object."""
        return await asyncio.to_thread(self._guarded, lambda: self._head(checked_key(key)))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Chunks of the object, each read in a thread; a writer that replaces it meanwhile does not disturb."""
        file = await asyncio.to_thread(self._guarded, lambda: self._open_object(checked_key(key)))
        try:
            left = os.fstat(file.fileno()).st_size - start if end is None else end - start
            file.seek(start)
            while left > 0 and (chunk := await asyncio.to_thread(file.read, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
        finally:
            file.close()

    async def delete(self, key: str) -> None:
        """Remove the object and its empty folders."""
        await asyncio.to_thread(self._guarded, lambda: self._delete(checked_key(key)))

    async def url(self, key: str, *, expires_s: int = 3600, filename: str | None = None) -> str:
        """``/files/KEY?exp=…&sig=…`` (and ``&name=…``), relative to the web server; checked by :meth:`verify`."""
        checked_key(key)
        expires_at = int(self._clock()) + expires_s
        query = {"exp": str(expires_at), "sig": sign(self._signing_key(), key, expires_at, filename)}
        if filename:
            query["name"] = filename
        return f"/files/{quote(key)}?{urlencode(query)}"

    def verify(self, key: str, exp: str | int, sig: str, filename: str | None = None) -> bool:
        """Whether an address of :meth:`url` with these parts is ours and not over yet."""
        if not str(exp).isascii() or not str(exp).isdigit() or int(exp) < self._clock():
            return False
        return matches(self._signing_key(), key, int(exp), filename, sig)

    def _signing_key(self) -> bytes:
        if not self._secret:
            raise Unavailable("the storage is not started: it has no signing key yet")
        return self._secret

    # Everything below blocks and runs in threads.

    def _open(self) -> None:
        for folder in (self._objects, self._types, self._scratch):
            folder.mkdir(parents=True, exist_ok=True)
        self._secret = load_secret(self._root / ".signing-key")
        for left in self._scratch.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()

    def _probe(self) -> None:
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            file.write(b"ping")
            file.flush()

    def _write(self, key: str, data: bytes | Path, content_type: str) -> None:
        target, kind = self._path(self._objects, key), self._path(self._types, key)
        # The type goes first: a reader of a fresh object never sees a wrong one.
        if content_type == _guess(key):
            kind.unlink(missing_ok=True)
        else:
            self._replace(kind, content_type.encode())
        self._replace(target, data)

    def _replace(self, target: Path, data: bytes | Path) -> None:
        self._make_parent(target)
        descriptor, scratch = tempfile.mkstemp(dir=self._scratch)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, CHUNK)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # A concurrent delete may remove the parent once it is empty.
            for last in (False, True):
                try:
                    Path(scratch).replace(target)
                    break
                except FileNotFoundError:
                    if last:
                        raise
                    self._make_parent(target)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(scratch).unlink()
            raise
        _sync_folder(target.parent)

    def _make_parent(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_links(target)

    def _head(self, key: str) -> ObjectInfo | None:
        try:
            with self._open_object(key) as file:
                found = os.fstat(file.fileno())
        except NotFound:
            return None
        try:
            content_type = self._path(self._types, key).read_text()
        except FileNotFoundError:
            content_type = _guess(key)
        tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        return ObjectInfo(found.st_size, content_type, tag, found.st_mtime_ns // 1_000_000)

    def _open_object(self, key: str) -> BinaryIO:
        path = self._path(self._objects, key)
        try:
            self._refuse_links(path)
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"there is no object {key}", key=key) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotFound(f"there is no object {key}", key=key) from error
            raise
        return file

    def _delete(self, key: str) -> None:
        for root in (self._objects, self._types):
            path = self._path(root, key)
            with suppress(FileNotFoundError, NotADirectoryError):
                self._refuse_links(path)
                path.unlink()
            for folder in path.parents:
                if folder == root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def _path(self, root: Path, key: str) -> Path:
        return root / key

    def _refuse_links(self, path: Path) -> None:
        """A link among the folders could lead anywhere."""
        if path.parent.resolve() != self._root.resolve() / path.parent.relative_to(self._root):
            raise InvalidRequest(f"{path.name}: its folder is a symbolic link", field="key")

    def _guarded(self, work: Callable[[], T]) -> T:
        """Failures of the file system in the application's words."""
        try:
            return work()
        except OSError as error:
            raise Unavailable(f"the storage in {self._root} failed: {error.strerror or error}") from error


def _guess(key: str) -> str:
    return TYPES.guess_type(key)[0] or "application/octet-stream"


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
