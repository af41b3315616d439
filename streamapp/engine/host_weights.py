"""The RAM tier: checkpoints and LoRA files as they were read, within a budget of bytes, the least recently used go.

Components that several checkpoints share (the same text encoder or VAE, bit for bit) are kept once. A thread
reads ahead what will be needed next, so that the disk is waited for while a batch is drawn. Where there is a
CUDA device the copies are pinned, so that it fetches them by itself.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch

from streamapp.engine import components
from streamapp.engine.tiers import Source, Tier, on_disk, source_of
from streamapp.engine.weights_file import WeightsFile

#: Seconds for which reading ahead may keep the interpreter from the thread that draws.
SWITCH_S = 0.0002


#: Gives a source's components, in the memory of those that it is given if it can use it; raises what is wrong with it.
Read = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Content:
    """One module's weights on the host, or one file's tensors."""

    module: Any
    architecture: str
    digest: str
    bytes: int


class FileTensors(dict[str, torch.Tensor]):
    """Tensors by name; ``metadata`` is what their file's header says beside them."""

    metadata: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class LooseTensors:
    """A file's tensors by name, in memory of their own."""

    by_name: FileTensors

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(tensor.nbytes for tensor in self.by_name.values())


@dataclass(frozen=True, eq=False)
class Host:
    """What was read of one source: components as their family takes them, and their contents in the same order.

    ``kept`` says whether this tier holds on to any of it; what it does not may be taken as it is.
    """

    parts: Any
    contents: tuple[Content, ...]
    kept: bool


class HostWeights:
    """See the module. May be called from several threads.

    Args:
        budget: bytes; what is larger than all of it is read and not kept.
        pin: whether to page-lock what is kept.
    """

    def __init__(self, budget: int, *, pin: bool = False) -> None:
        self.budget = budget
        self._pin = pin
        self._lock = threading.Lock()
        self._kept: OrderedDict[Source, Host] = OrderedDict()
        self._coming: dict[Source, Future[Host]] = {}
        self._ahead: ThreadPoolExecutor | None = None
        #: What the caller of :meth:`get` may still copy from: its memory is not given to others.
        self._lent: Host | None = None

    @property
    def bytes(self) -> int:
        """Of everything that is kept, what is shared counted once."""
        with self._lock:
            return _bytes(self._kept.values())

    @property
    def paths(self) -> list[str]:
        """Where what is kept was read from."""
        with self._lock:
            return [str(source[-2]) for source in self._kept]

    def get(self, source: Source, read: Read) -> tuple[Host, Tier]:
        """What a source holds, and where it was. One thread calls it, and needs it until :meth:`done`."""
        with self._lock:
            coming = self._coming.get(source)
        if coming is not None and not coming.cancel():
            with suppress(Exception):  # whatever it was: it is read again, and raises where it is asked for
                coming.result()
        with self._lock:
            if source in self._kept:
                self._kept.move_to_end(source)
                self._lent = self._kept[source]
                return self._lent, "ram"
        return self._keep(source, read, lend=True), "disk"

    def done(self) -> None:
        """What was got last is copied: its memory may go to others when it makes room."""
        with self._lock:
            self._lent = None

    def tensors(self, path: Path) -> tuple[Mapping[str, torch.Tensor], Tier]:
        """The tensors of a LoRA's file, copied: it may be replaced while they are in use; and where they were.

        Raises:
            EngineError: ``load_failed``.
        """
        host, tier = self.get(source_of(path, "tensors"), lambda _: loose(path))
        return cast(LooseTensors, host.parts).by_name, tier

    def tensors_ahead(self, path: Path) -> None:
        """Read a LoRA's file in the background."""
        self.ahead(source_of(path, "tensors"), lambda _: loose(path))

    def ahead(self, source: Source, read: Read) -> None:
        """Read a source in the background, unless it is here or on its way; what is wrong with it is left to others.

        What is larger than the budget is not read: it would not stay.
        """
        with self._lock:
            if on_disk(source) > self.budget or source in self._kept or source in self._coming:
                return
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(1, "weights-ahead")
            future = self._coming[source] = self._ahead.submit(self._read_ahead, source, read)
        future.add_done_callback(lambda _: self._arrived(source))

    def _read_ahead(self, source: Source, read: Read) -> Host:
        with _sharing():
            return self._keep(source, read)

    def settle(self) -> None:
        """Wait until nothing is being read ahead."""
        with self._lock:
            coming = list(self._coming.values())
        for future in coming:
            with suppress(Exception):  # told to whoever asks for the source
                future.result()

    def clear(self) -> None:
        """Drop everything; what is being read is waited for."""
        if self._ahead is not None:
            self._ahead.shutdown(cancel_futures=True)
            self._ahead = None
        with self._lock:
            self._kept.clear()

    def _arrived(self, source: Source) -> None:
        with self._lock:
            self._coming.pop(source, None)

    def _keep(self, source: Source, read: Read, *, lend: bool = False) -> Host:
        """Read, into the memory of what makes room for it, share what is known, keep it while it fits."""
        parts = read(self._free(source, self._make_room(on_disk(source))))
        shared = False
        if isinstance(parts, LooseTensors):
            contents: tuple[Content, ...] = (Content(parts, "", "", parts.bytes),)
        else:
            contents = tuple(self._shared(module) for _, module in components.modules(parts))
            originals = [module for _, module in components.modules(parts)]
            instead = {id(was): content.module for was, content in zip(originals, contents, strict=True)}
            shared = any(id(now) != was for was, now in instead.items())
            parts = components.exchanged(parts, instead)
        size = sum({id(content): content.bytes for content in contents}.values())
        keep = bool(contents) and size <= self.budget
        host = Host(parts, contents, kept=keep or shared)
        with self._lock:
            if keep:
                self._kept[source] = host
            if lend:
                self._lent = host
        self._make_room(0)
        return host

    def _shared(self, module: Any) -> Content:
        """A module's content: a known one's where it is the same."""
        architecture, digest = components.architecture(module), components.content(module)
        with self._lock:
            known = [content for host in self._kept.values() for content in host.contents]
        for content in known:
            mine = (content.architecture, content.digest) == (architecture, digest)
            if mine and components.same(content.module, module):
                return content
        size = components.size(module)
        if self._pin and size <= self.budget:
            for tensor in chain(module.parameters(), module.buffers()):
                tensor.data = tensor.data.pin_memory()
        return Content(module, architecture, digest, size)

    def _make_room(self, size: int) -> list[tuple[Source, Host]]:
        """Let go of the least recently used until ``size`` bytes fit; what went."""
        gone = []
        with self._lock:
            while self._kept and _bytes(self._kept.values()) + size > self.budget:
                gone.append(self._kept.popitem(last=False))
        return gone

    def _free(self, source: Source, gone: Sequence[tuple[Source, Host]]) -> Any:
        """The components of one that went, of the same kind as the source, whose memory nobody uses.

        A source that is larger than the budget is handed over, and takes none.
        """
        with self._lock:
            held = {id(content) for host in self._kept.values() for content in host.contents}
        if on_disk(source) > self.budget:
            return None
        for other, host in gone:
            free = host is not self._lent and not any(id(content) in held for content in host.contents)
            if free and other[:-2] == source[:-2]:
                return host.parts
        return None


def loose(path: Path) -> LooseTensors:
    """Read every tensor of a file (``load_failed``)."""
    with WeightsFile(path) as file:
        found = FileTensors((name, torch.empty_like(tensor)) for name, tensor in file.tensors.items())
        found.metadata = file.metadata
        file.pour((tensor, file.tensors[name]) for name, tensor in found.items())
    return LooseTensors(found)


def _bytes(hosts: Iterable[Host]) -> int:
    return sum({id(content): content.bytes for host in hosts for content in host.contents}.values())


@contextmanager
def _sharing() -> Iterator[None]:
    """Meanwhile the thread that draws gets the interpreter back at once whenever it comes from the tensor library.

    A lower priority would do harm: whoever steps back while holding the interpreter holds everybody up.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
