"""What an engine has loaded: checkpoints, ControlNets, and by checkpoint LoRAs and learned words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamapp.engine.admission import Admission
from streamapp.engine.caps import Caps
from streamapp.engine.decoder import Decoder
from streamapp.engine.errors import EngineError
from streamapp.engine.families import CONTROLNET, Checkpoint, Device, build, load_control, read
from streamapp.engine.job import Job
from streamapp.engine.memory import Memory
from streamapp.engine.precision import AUTO, precise
from streamapp.engine.queue import Queue
from streamapp.engine.sample import Sample
from streamapp.engine.tiers import Budgets, Loaded, Source, Tier, Tiers

#: Fields of a source that say in which types it was read.
TYPES = 2


class Weights:
    """The part of an engine that loads and drops.

    Args:
        device: where they are loaded.
        options: passed to every family's ``read`` and ``build``.
        budgets: bytes that weights may take.
    """

    clock: Callable[[], float]
    caps: Caps
    decoder: Decoder
    memory: Memory
    admission: Admission
    strict_precision: bool
    _queue: Queue

    def __init__(self, device: Device, options: Mapping[str, Any], budgets: Budgets) -> None:
        self.device = device
        self.tiers = Tiers(device, budgets)
        self._sources: dict[str, Source] = {}
        #: What is to be said of pictures by checkpoint.
        self._notes: dict[str, tuple[str, ...]] = {}
        self._options = dict(options)
        self._checkpoints: dict[str, Checkpoint] = {}
        self._controls: dict[str, Any] = {}

    def load(
        self,
        name: str,
        path: str | Path,
        family: str | None = None,
        variant: str | None = None,
        keep: Collection[str] = (),
    ) -> Loaded:
        """Load a checkpoint under ``name``; one that is loaded under that name already is replaced when idle.

        Where VRAM's budget is full, the least recently used checkpoints that nobody draws with go, but for those in
        ``keep``. Family ``controlnet`` loads a ControlNet, which jobs of every checkpoint that it fits can name.

        Raises:
            EngineError: ``load_failed``, ``no_room`` and ``memory_pressure`` (retryable), or ``invalid_job``
                while samples still use the old one.
        """
        began = self.clock()
        self._unused(name)
        device, notes = self._precise(family)
        if family == CONTROLNET:
            control = load_control(path, device)
            self.unload(name)
            self._controls[name] = control
            return Loaded(name, "disk", control.bytes, self.clock() - began)
        if family == "fake":  # nothing to keep: it needs no tensor library
            self.unload(name)
            self._checkpoints[name], self._notes[name] = build(family, Path(path), device, self._about(variant)), notes
            return Loaded(name, "disk", 0, self.clock() - began)
        source = self._source(device, path, family, variant)
        if self._sources.get(name, ())[TYPES:] == source[TYPES:]:
            self._checkpoint(name)
            return Loaded(name, "vram", 0, self.clock() - began)
        options = self._about(variant)
        host, tier = self.tiers.host.get(source, self._reader(device, path, family, variant))
        self.unload(name)
        evicted: list[str] = []
        parts, moved = self.tiers.sets.place(name, host, self._idle(keep), self._evicting(evicted), self._beside())
        try:
            self._checkpoints[name] = build(family, parts, device, options)
        except BaseException:
            self.tiers.sets.drop(name)
            raise
        finally:
            self.tiers.host.done()
        self._sources[name], self._notes[name] = source, notes
        return Loaded(
            name, "vram" if host.contents and not moved else tier, moved, self.clock() - began, tuple(evicted)
        )

    def prefetch(self, path: str | Path, family: str | None = None, variant: str | None = None) -> None:
        """Read a checkpoint into RAM in the background: its :meth:`load` then takes it from there."""
        device, _ = self._precise(family)
        source = self._source(device, path, family, variant)
        self.tiers.host.ahead(source, self._reader(device, path, family, variant))

    def prefetch_lora(self, path: str | Path) -> None:
        """Read a LoRA's file into RAM in the background."""
        self.tiers.host.tensors_ahead(Path(path))

    def unload(self, name: str) -> None:
        """Free a checkpoint or a ControlNet; unknown names are ignored. Its copy in RAM stays while there is room."""
        self._unused(name)
        placed = name in self._sources
        self._let_go(name)
        if placed:
            self.tiers.sets.drop(name)

    def _let_go(self, name: str) -> None:
        self.caps.forget(name)
        self.admission.forget(name)
        self._sources.pop(name, None)
        self._notes.pop(name, None)
        for loaded in (self._checkpoints.pop(name, None), self._controls.pop(name, None)):
            if loaded is not None:
                loaded.release()

    def _evicting(self, evicted: list[str]) -> Callable[[str], None]:
        def evict(name: str) -> None:
            evicted.append(name)
            self._let_go(name)

        return evict

    def _idle(self, keep: Collection[str]) -> list[str]:
        """Checkpoints that may go, the least recently used first."""
        busy = {sample.job.model for sample in (*self._queue, *self.decoder.samples)}
        return [name for name in self._checkpoints if name not in busy and name not in keep]

    def _beside(self) -> int:
        """Bytes on the device that are no modules of checkpoints: LoRAs and ControlNets."""
        adapters = sum(sum(checkpoint.adapters.values()) for checkpoint in self._checkpoints.values())
        return adapters + sum(int(control.bytes) for control in self._controls.values())

    def _reader(
        self, device: Device, path: str | Path, family: str | None, variant: str | None
    ) -> Callable[[Any], Any]:
        """Reads a checkpoint's components, into the memory of others that are not needed any more where it can."""
        options = self._about(variant)
        return lambda into: read(family, path, device, {**options, "into": into})

    def _precise(self, family: str | None) -> tuple[Device, tuple[str, ...]]:
        used = self.memory.used() if self.device.dtype == AUTO else None
        return precise(self.device, family, used, self.strict_precision)

    def _source(self, device: Device, path: str | Path, family: str | None, variant: str | None) -> Source:
        """Where a checkpoint is read from, behind the types it is read in."""
        return (device.dtype, device.vae, *self.tiers.source(path, family, variant))

    def _about(self, variant: str | None) -> dict[str, Any]:
        return {**self._options, "variant": variant, "clock": self.clock, "controls": self._controls}

    def load_lora(self, name: str, path: str | Path, model: str) -> Loaded:
        """Keep an adapter ready for jobs of ``model``; its file's tensors stay in RAM while there is room.

        Raises:
            EngineError: ``incompatible_lora`` naming the layer, ``load_failed`` for an unreadable file.
        """
        began, tiers = self.clock(), list[Tier]()

        def tensors() -> Mapping[str, Any]:
            found, tier = self.tiers.host.tensors(Path(path))
            tiers.append(tier)
            return found

        size = self._checkpoint(model).load_lora(name, tensors)
        return Loaded(name, tiers[0] if tiers else "disk", size, self.clock() - began)

    def unload_lora(self, name: str) -> None:
        """Forget an adapter everywhere; prepared samples are drawn with it to their end, those before that fail."""
        for checkpoint in self._checkpoints.values():
            checkpoint.unload_lora(name)
        lacking = [s for s in self._queue if not s.steps and name in dict(s.adapters)]
        message = f"LoRA {name!r} was unloaded while the job waited; load it again and submit the job once more"
        self._fail(lacking, EngineError("unknown_lora", message, field="loras"))

    def load_embedding(self, name: str, path: str | Path, model: str) -> None:
        """Let prompts of ``model`` name a learned word (textual inversion); a file that is loaded is not read again.

        Of a checkpoint's 256 stay; the least recently loaded ones that no waiting job names go first.

        Raises:
            EngineError: ``incompatible_embedding`` for one of another family, ``load_failed`` for an unreadable file,
                ``invalid_job`` while jobs that name another one of this name wait.
        """
        known = self._checkpoint(model).embeddings
        if known.has(name, Path(path)):
            return
        self._unnamed(name)
        known.load(name, Path(path))
        known.make_room({name, *(each for sample in self._queue for each in self._named(sample))})

    def unload_embedding(self, name: str) -> None:
        """Forget a learned word everywhere (``invalid_job`` while jobs that name it wait)."""
        self._unnamed(name)
        for checkpoint in self._checkpoints.values():
            checkpoint.embeddings.forget(name)

    def encode_ahead(self, texts: Sequence[str], model: str, clip_skip: int = 1) -> None:
        """Encode prompts, or negative ones, that jobs of ``model`` will have; they are kept while there is room."""
        self._checkpoint(model).encode_ahead(texts, clip_skip)

    def _fail(self, samples: Sequence[Sample], error: EngineError) -> None:
        raise NotImplementedError

    def _checkpoint(self, name: str) -> Checkpoint:
        found = self._checkpoints.get(name)
        if found is None:
            known = ", ".join(self._checkpoints) or "none"
            raise EngineError("unknown_model", f"model {name!r} is not loaded; loaded: {known}", field="model")
        self._checkpoints[name] = self._checkpoints.pop(name)  # the least recently used are first
        return found

    def _complete(self, job: Job) -> Checkpoint:
        """The checkpoint of a job whose weights are all here."""
        checkpoint = self._checkpoint(job.model)
        job.require(checkpoint.adapters, self._controls, checkpoint.embeddings.sizes)
        return checkpoint

    def _identity(self, sample: Sample) -> dict[str, str]:
        """What must be the same for a sample to be drawn on."""
        adapters = [name for name, _ in sample.adapters]
        own = self._checkpoints[sample.job.model].identity(adapters)
        nets = {f"control {each.model}": self._controls[each.model].digest for each in sample.job.controls}
        words = {f"embedding {name}": found for name, found in self._named(sample).items()}
        return {"kind of device": self.device.name.partition(":")[0], **own, **nets, **words}

    def _named(self, sample: Sample) -> dict[str, str]:
        """The embeddings that a sample's prompts name, until they are encoded."""
        job = sample.job
        texts = () if sample.steps else (job.prompt, job.negative_prompt or "")
        return self._checkpoints[job.model].embeddings.named(*texts)

    def _unnamed(self, name: str) -> None:
        if any(name.lower() == each.lower() for sample in self._queue for each in self._named(sample)):
            raise EngineError("invalid_job", f"embedding {name!r} is in use; wait for the jobs that name it")

    def _sizes(self) -> dict[str, dict[str, Any]]:
        """Resident bytes by kind and name."""
        checkpoints = self._checkpoints.values()
        return {
            "checkpoints": {name: checkpoint.bytes for name, checkpoint in self._checkpoints.items()},
            "controls": {name: control.bytes for name, control in self._controls.items()},
            "loras": {name: size for c in checkpoints for name, size in c.adapters.items()},
            "embeddings": {name: size for c in checkpoints for name, size in c.embeddings.sizes.items()},
            "tiers": self.tiers.figures(),
        }

    def _unused(self, name: str) -> None:
        samples = (*self._queue, *self.decoder.samples)
        if any(name in (s.job.model, *(control.model for control in s.job.controls)) for s in samples):
            raise EngineError("invalid_job", f"model {name!r} is in use; wait for its samples or cancel them")
