"""A safetensors file as tensors that are views of it, and the fast way from there into memory.

What a module takes as it lies in the file is read straight into the module's own memory, in the file's order and in
large pieces (``preadv``); only what is cast or rearranged is read through the mapping. Where every page is in the page
cache already, the mapping is copied from instead: nothing is read then.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import orjson
import torch

from streamapp.engine.errors import EngineError

#: A header beyond this claims more than it can hold: no published file comes near.
LARGEST_HEADER = 100 * 1024**2
#: Bytes of one read: large enough for any disk, small enough that others get their turn.
PIECE = 8 * 1024**2
#: Buffers of one ``preadv`` (POSIX's IOV_MAX).
MOST_BUFFERS = 1024
#: Pages that are asked about, to see whether a file is in the page cache.
SAMPLE = 256
_LIBC = ctypes.CDLL(None)
#: Types by their names in a header.
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class WeightsFile:
    """One file. Its tensors must not be used after :meth:`close`.

    Attributes:
        tensors: views of the mapped file by name.
        metadata: words that its header has beside them.
        direct: bytes that were read straight to where they belong, so far.

    Raises:
        EngineError: ``load_failed`` for a file that is none, or is shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.direct = 0
        self.metadata: dict[str, str] = {}
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise EngineError("load_failed", f"{path.name}: {error}") from error
        try:
            self._size = os.fstat(self._file).st_size
            entries, start = self._header()
            self._storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=self._size)
            self._base = self._storage.data_ptr()
            self.tensors = {name: self._view(name, entry, start) for name, entry in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            self.close()
            raise EngineError("load_failed", f"{path.name}: {error}") from error
        _OPEN.add(self)

    def close(self) -> None:
        """Let go of the file; the mapping goes with the last view."""
        file, self._file = getattr(self, "_file", -1), -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, view: torch.Tensor) -> bool:
        """Whether a tensor lies in the mapped file, which is open."""
        return self._file >= 0 and view.device.type == "cpu" and 0 <= view.data_ptr() - self._base < self._size

    def pour(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Fill tensors from views of this file, or from whatever else a conversion made of them.

        Args:
            pairs: where to, on the host, and what, of the same shape.
        """
        ranges: list[tuple[int, torch.Tensor]] = []
        for target, source in pairs:
            if target.numel() == 0:
                continue
            place = source.data_ptr() - self._base
            same = source.dtype == target.dtype and source.is_contiguous() and target.is_contiguous()
            if same and target.device.type == "cpu" and 0 <= place < self._size:
                ranges.append((place, target))
            else:
                target.copy_(source)
        ranges.sort(key=lambda entry: entry[0])
        self.direct += sum(target.nbytes for _, target in ranges)
        if self._cached([(place, target.nbytes) for place, target in ranges]):
            for place, target in ranges:
                ctypes.memmove(target.data_ptr(), self._base + place, target.nbytes)
        else:
            read_ranges(self._file, [(place, _memory(target)) for place, target in ranges])

    def _header(self) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        if self._size < 8 or length > min(LARGEST_HEADER, self._size - 8):
            raise ValueError("it is no safetensors file")
        entries = orjson.loads(os.pread(self._file, length, 8))
        self.metadata = dict(entries.pop("__metadata__", None) or {})
        return entries, 8 + length

    def _view(self, name: str, entry: Any, start: int) -> torch.Tensor:
        begin, end = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), TYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{name} is of type {entry['dtype']}, which is not read")
        empty = torch.empty(0, dtype=dtype)
        count = torch.Size(shape).numel()
        if not 0 <= begin <= end <= self._size - start or end - begin != count * empty.element_size():
            raise ValueError(f"{name} lies outside the file: it is damaged, or not whole")
        if (start + begin) % empty.element_size():
            # A header of odd length: nothing of this type can be viewed in place.
            raw = torch.empty(0, dtype=torch.uint8).set_(self._storage, start + begin, (end - begin,), (1,))
            return raw.clone().view(dtype).reshape(shape)
        strides = torch.empty(shape, device="meta").stride()
        return empty.set_(self._storage, (start + begin) // empty.element_size(), shape, strides)

    def _cached(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Whether the page cache holds the ranges: a sample of their pages."""
        if not ranges:
            return False
        first, last = ranges[0][0] // mmap.PAGESIZE, (sum(ranges[-1]) - 1) // mmap.PAGESIZE
        present = ctypes.c_ubyte()
        for page in range(first, last + 1, max(1, (last - first) // SAMPLE)):
            at = ctypes.c_void_p(self._base + page * mmap.PAGESIZE)
            if _LIBC.mincore(at, ctypes.c_size_t(1), ctypes.byref(present)) != 0 or not present.value & 1:
                return False
        return True


class Views(dict[str, torch.Tensor]):
    """The tensors of a file by name, which stays open as long as this is held: :func:`pour` reads from it."""

    def __init__(self, path: Path) -> None:
        self.file = WeightsFile(path)
        super().__init__(self.file.tensors)


#: Files whose views may be about.
_OPEN: WeakSet[WeightsFile] = WeakSet()


def pour(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Fill tensors from whatever conversions made of views of open files; see :meth:`WeightsFile.pour`."""
    files = list(_OPEN)
    groups: dict[WeightsFile | None, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for target, source in pairs:
        home = next((file for file in files if file.has(source)), None)
        groups.setdefault(home, []).append((target, source))
    for file, some in groups.items():
        if file is not None:
            file.pour(some)
        else:
            for target, source in some:
                target.copy_(source)


def read_ranges(file: int, ranges: Sequence[tuple[int, memoryview]]) -> None:
    """Read ranges ``(offset, where to)``, ascending; those that touch go into one read of at most :data:`PIECE`.

    Raises:
        OSError: the file ends before.
    """
    waiting: list[memoryview] = []
    begin = end = 0
    for offset, memory in ranges:
        for start in range(0, len(memory), PIECE):
            piece = memory[start : start + PIECE]
            at = offset + start
            if waiting and (at != end or end - begin + len(piece) > PIECE or len(waiting) == MOST_BUFFERS):
                _read(file, waiting, begin)
                waiting = []
            if not waiting:
                begin = at
            waiting.append(piece)
            end = at + len(piece)
    if waiting:
        _read(file, waiting, begin)


def _read(file: int, buffers: list[memoryview], offset: int) -> None:
    while buffers:
        count = os.preadv(file, buffers, offset)
        if count == 0:
            raise OSError("the file ended before its last tensor")
        offset += count
        while buffers and count >= len(buffers[0]):
            count -= len(buffers.pop(0))
        if count:
            buffers[0] = buffers[0][count:]


def _memory(tensor: torch.Tensor) -> memoryview:
    """A contiguous host tensor's bytes."""
    array = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    return memoryview(array).cast("B")
