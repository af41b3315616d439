"""A family that costs nothing: deterministic pictures without tensors, for tests, load runs and trials of a fleet.

Options: ``tick_s`` (seconds per tick) or ``tick_seconds`` (a function of its rows), ``load_s``, ``decode_s`` (a
picture), ``sleep`` (how to spend them; tests inject a fake clock's), ``ledger`` (in a tick a byte a pixel and row is
taken from it), ``decode_bytes`` (a pixel of the picture that is decoded, a quarter of it in tiles). A prompt that
contains one of the words below makes it misbehave, which real weights do only when it hurts.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamapp.engine.embeddings import Embeddings
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Picture
from streamapp.engine.families import Device
from streamapp.engine.memory import ByteLedger
from streamapp.engine.sample import Sample

#: Words in a prompt that kill the process, hang it, spoil the sample, or make every tick last :data:`SLOW_TICK`.
CRASH, HANG, SPOIL, SLOW = "fake:crash", "fake:hang", "fake:nan", "fake:slow"
#: A word in a prompt whose picture cannot be decoded.
UNDECODABLE = "fake:undecodable"
#: Seconds: a slow sample takes about a tenth of its steps.
SLOW_TICK = 0.1


def read(path: Path, device: Device, options: Mapping[str, Any]) -> Path:
    """The path is not read."""
    del device, options
    return path


def build(parts: Path, device: Device, options: Mapping[str, Any]) -> FakeCheckpoint:
    """A fake checkpoint."""
    del device
    return FakeCheckpoint(parts, options)


class _Names(Embeddings):
    """Remembers names; files are not read."""

    def _read(self, name: str, path: Path) -> tuple[dict[str, Any], str]:
        del path
        return {}, name


class FakeCheckpoint:
    """Keeps the promises of a checkpoint and draws coloured stripes."""

    family = "fake"

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self._salt = path.name
        self._tick_s = float(options.get("tick_s") or 0.0)
        self._sleep: Callable[[float], None] = options.get("sleep") or time.sleep
        seconds = options.get("tick_seconds")
        self._seconds: Callable[[int], float] = seconds if callable(seconds) else lambda _: self._tick_s
        self._ledger: ByteLedger = options.get("ledger") or ByteLedger(sys.maxsize)
        self._decode_s = float(options.get("decode_s") or 0.0)
        self._decode_bytes = int(options.get("decode_bytes") or 0)
        self._loras: dict[str, int] = {}
        self.embeddings: Embeddings = _Names(self.family, {})
        self._forward_s = 0.0
        self._spend(float(options.get("load_s") or 0.0))

    def _spend(self, seconds: float) -> float:
        if seconds > 0:
            self._sleep(seconds)
        return seconds

    def validate(self, job: Any) -> None:
        """Sides must be multiples of eight, like everywhere."""
        if job.width % 8 or job.height % 8:
            raise EngineError("invalid_job", f"{job.width}x{job.height}: sides must be multiples of 8", field="width")

    def rows(self, job: Any) -> int:
        """Two when guided, like real ones."""
        return 2 if job.guidance_scale > 1 else 1

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Nothing to encode."""
        for sample in samples:
            sample.steps = sample.job.num_inference_steps

    def key(self, sample: Sample) -> tuple[Any, ...]:
        """Samples of one size share a tick."""
        return (sample.job.height // 8, sample.job.width // 8)

    def denoise(self, samples: Sequence[Sample]) -> None:
        """Spend a tick; misbehave where asked."""
        slow = any(SLOW in sample.job.prompt for sample in samples)
        with self._ledger.taken(sum(s.rows * s.job.width * s.job.height for s in samples)):
            self._forward_s += self._spend(max(self._seconds(sum(s.rows for s in samples)), SLOW_TICK if slow else 0.0))
        for sample in samples:
            if CRASH in sample.job.prompt and sample.step + 1 >= sample.steps // 2:
                os._exit(70)
            if HANG in sample.job.prompt:
                time.sleep(3600)

    def forward_s(self) -> float:
        """What ticks cost since the last call."""
        seconds, self._forward_s = self._forward_s, 0.0
        return seconds

    def decode(self, samples: Sequence[Sample], tiled: bool = False) -> list[Any]:
        """Stripes whose colours are a digest of everything that decides the picture."""
        return [self._picture(sample, tiled) for sample in samples]

    def _picture(self, sample: Sample, tiled: bool) -> Any:
        job = sample.job
        with self._ledger.taken(self._decode_bytes * job.width * job.height // (4 if tiled else 1)):
            self._spend(self._decode_s)
        if UNDECODABLE in job.prompt:
            raise RuntimeError("it does not want to")
        if SPOIL in job.prompt:
            return EngineError("not_finite", "the picture came out as not-a-number; try another seed or less guidance")
        about = (self._salt, job.prompt, job.negative_prompt, sample.seed, job.num_inference_steps, sample.adapters)
        digest = hashlib.sha256(repr(about).encode()).digest()
        stripe = max(1, job.width // 8)
        row = b"".join(digest[3 * (x // stripe % 8) : 3 * (x // stripe % 8) + 3] for x in range(job.width))
        info = {"seed": sample.seed, "sampler": "fake", "steps": sample.steps, "precision": "none", "notes": ()}
        picture = Picture(job.width, job.height, row * job.height, info)
        return picture.to_pil() if job.output == "pil" else picture

    def previews(self, samples: Sequence[Sample]) -> list[Any]:
        """Stripes have no sketch."""
        del samples
        return []

    def load_lora(self, name: str, tensors: Any) -> int:
        """Remember the name."""
        del tensors
        self._loras[name] = 1
        return 1

    def hold(self, sample: Sample) -> None:
        """Names are all there is."""

    def unload_lora(self, name: str) -> None:
        """Forget the name."""
        self._loras.pop(name, None)

    def encode_ahead(self, texts: Sequence[str], clip_skip: int) -> None:
        """Nothing to encode."""

    @property
    def adapters(self) -> Mapping[str, int]:
        """Names that were loaded."""
        return self._loras

    def identity(self, adapters: Sequence[str]) -> Mapping[str, str]:
        """The names that decide the stripes."""
        return {"checkpoint": self._salt, "precision": "none", **{f"LoRA {name}": name for name in adapters}}

    @property
    def bytes(self) -> int:
        """Weighs nothing."""
        return 0

    def release(self) -> None:
        """Nothing to free."""
