"""A sample as bytes: parked between two ticks, resumed by this process or another as if nothing had been.

A state is a header in JSON and the bytes of every tensor, with a checksum over both; nothing in it is executed when it
is read. It holds whatever the sample holds: numbers, tensors, generators, pictures, and the frozen dataclasses of this
package. So a family adds to a state by keeping things in the :class:`~streamapp.engine.sample.Sample`.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import orjson

from streamapp.engine.errors import EngineError
from streamapp.engine.sample import Sample

MAGIC = b"streamapp sample"
#: Of the layout and of what a sample's fields mean.
VERSION = 1
#: Magic, version, checksum of all that follows, length of the header.
HEAD = struct.Struct("<16sIII")
#: Where values may come from.
PACKAGE = "streamapp.engine."
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Parked:
    """A state that was read: the sample, and what it needs to be drawn on.

    ``identity`` says by name what must be the same to go on: ``checkpoint``, ``precision``, ``LoRA …``.
    """

    identity: Mapping[str, str]
    sample: Sample


def park(sample: Sample, identity: Mapping[str, str]) -> bytes:
    """The sample as it is now, with a copy of all it holds.

    Raises:
        EngineError: ``invalid_job`` for a sample that holds something that has no form as bytes.
    """
    writer = _Writer()
    tree = writer.tree(sample)
    header = orjson.dumps({"identity": dict(identity), "sample": tree, "sizes": [len(blob) for blob in writer.blobs]})
    body = b"".join([header, *writer.blobs])
    return HEAD.pack(MAGIC, VERSION, zlib.crc32(body), len(header)) + body


def about(state: bytes) -> tuple[str, int]:
    """Job and image of a state, without reading its tensors; raises what :func:`read` raises."""
    header, _ = _opened(state)
    try:
        content = header["sample"]["fields"]
        return str(content["job_id"]), int(content["index"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError("bad_state", "the state holds no sample") from error


def read(state: bytes, device: str) -> Parked:
    """A sample from a state, its tensors on ``device`` where they were on an accelerator.

    Raises:
        EngineError: ``bad_state`` for bytes that are no state or damaged, ``state_mismatch`` for another version's.
    """
    header, blobs = _opened(state)
    try:
        sample = _Reader(blobs, header["sizes"], device).value(header["sample"])
        identity = {str(name): str(value) for name, value in header["identity"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise EngineError("bad_state", f"the state of the parked sample cannot be read: {error}") from error
    if not isinstance(sample, Sample):
        raise EngineError("bad_state", "the state holds no sample")
    return Parked(identity, sample)


def _opened(state: bytes) -> tuple[Any, memoryview]:
    """The header and the bytes of the tensors, unharmed."""
    if len(state) < HEAD.size or not state.startswith(MAGIC):
        raise EngineError("bad_state", "these bytes are not the state of a parked sample")
    _, version, checksum, length = HEAD.unpack_from(state)
    if version != VERSION:
        message = f"the version of the state is {version}, here it is {VERSION}; draw the job again"
        raise EngineError("state_mismatch", message, what="version")
    body = memoryview(state)[HEAD.size :]
    if zlib.crc32(body) != checksum:
        raise EngineError("bad_state", "the state of the parked sample is damaged; draw the job again")
    try:
        return orjson.loads(body[:length]), body[length:]
    except orjson.JSONDecodeError as error:
        raise EngineError("bad_state", f"the state of the parked sample cannot be read: {error}") from error


def check(identity: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse to go on with other weights or numbers than before.

    Raises:
        EngineError: ``state_mismatch`` naming what differs.
    """
    for name in [*identity, *(name for name in here if name not in identity)]:
        before, now = identity.get(name, "absent"), here.get(name, "absent")
        if before != now:
            message = f"the {name} of the parked sample was {before}, here it is {now}; draw the job again"
            raise EngineError("state_mismatch", message, what=name)


class _Writer:
    """Values to JSON, with the bytes of tensors beside it."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []

    def tree(self, value: Any) -> Any:
        """A value's JSON."""
        found: Any
        match value:
            case None | str() | int() | float():
                found = value
            case list():
                found = [self.tree(each) for each in value]
            case tuple():
                found = {"tuple": [each if isinstance(each, _PLAIN) else self.tree(each) for each in value]}
            case dict():
                found = {"dict": [[self.tree(key), self.tree(each)] for key, each in value.items()]}
            case bytes():
                found = {"bytes": self._blob(value)}
            case _ if is_dataclass(value) and type(value).__module__.startswith(PACKAGE):
                content = {field.name: self.tree(getattr(value, field.name)) for field in fields(value)}
                found = {"value": f"{type(value).__module__}:{type(value).__qualname__}", "fields": content}
            case _:
                found = self._array(value)
        return found

    def _array(self, value: Any) -> Any:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if kind in {"torch.Tensor", "torch.nn.parameter.Parameter"}:
            return self._tensor(value)
        if kind == "torch._C.Generator":
            return {"generator": self._tensor(value.get_state()), "device": str(value.device)}
        if kind == "numpy.ndarray":
            return {"array": self._blob(value.tobytes()), "dtype": value.dtype.str, "shape": list(value.shape)}
        if kind.startswith("PIL."):
            return {"picture": self._blob(value.tobytes()), "mode": value.mode, "size": list(value.size)}
        raise EngineError("invalid_job", f"a sample with a {kind} cannot be parked")

    def _tensor(self, value: Any) -> Any:
        import torch

        flat = value.detach().to("cpu").contiguous().reshape(-1)
        blob = self._blob(flat.view(torch.uint8).numpy().tobytes())
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": blob, "dtype": dtype, "shape": list(value.shape), "host": value.device.type == "cpu"}

    def _blob(self, content: bytes) -> int:
        self.blobs.append(content)
        return len(self.blobs) - 1


class _Reader:
    """The way back."""

    def __init__(self, blobs: memoryview, sizes: list[int], device: str) -> None:
        self._device = device
        self._blobs: list[memoryview] = []
        start = 0
        for size in sizes:
            self._blobs.append(blobs[start : start + size])
            start += size
        if start != len(blobs):
            raise ValueError(f"it has {len(blobs)} bytes of tensors, {start} are named")

    def value(self, tree: Any) -> Any:
        """The value of a JSON."""
        if isinstance(tree, _PLAIN):
            return tree
        if isinstance(tree, list):
            return [self.value(each) for each in tree]
        match tree:
            case {"tuple": items}:
                found: Any = tuple(each if isinstance(each, _PLAIN) else self.value(each) for each in items)
            case {"dict": items}:
                found = {self.value(key): self.value(each) for key, each in items}
            case {"bytes": blob}:
                found = bytes(self._blobs[blob])
            case {"value": name, "fields": content}:
                found = _kind(name)(**{field: self.value(each) for field, each in content.items()})
            case {"tensor": _}:
                found = self._tensor(tree)
            case {"generator": state, "device": device}:
                found = self._generator(state, device)
            case {"array": blob, "dtype": dtype, "shape": shape}:
                import numpy as np

                found = np.frombuffer(bytes(self._blobs[blob]), np.dtype(dtype)).reshape(shape)
            case {"picture": blob, "mode": mode, "size": size}:
                from PIL import Image

                found = Image.frombytes(mode, tuple(size), bytes(self._blobs[blob]))
            case _:
                raise TypeError("it holds something unknown")
        return found

    def _tensor(self, tree: dict[str, Any]) -> Any:
        import torch

        dtype = getattr(torch, tree["dtype"])
        # A copy: torch wants memory it may write to, and the state is the caller's.
        content = bytearray(self._blobs[tree["tensor"]])
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensor = flat.reshape(tree["shape"])
        return tensor if tree["host"] else tensor.to(self._device)

    def _generator(self, state: dict[str, Any], device: str) -> Any:
        import torch

        generator = torch.Generator(device)
        generator.set_state(self._tensor(state))
        return generator


def _kind(name: str) -> type:
    """A dataclass of this package that is loaded already: a state imports nothing."""
    module, _, kind = name.partition(":")
    found = getattr(sys.modules.get(module), kind, None) if module.startswith(PACKAGE) else None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ValueError(f"{name} is not known")
    return found
