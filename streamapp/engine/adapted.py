"""What checkpoints of all families are: components on a device, with adapters mixed into some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from streamapp.engine.adapters import Adapter, Tensors, hold, read_adapter
from streamapp.engine.clip import Encodings
from streamapp.engine.decoding import for_decoding
from streamapp.engine.digests import digest
from streamapp.engine.families import Device
from streamapp.engine.mixing import Mixer
from streamapp.engine.previews import Colours
from streamapp.engine.sample import Sample
from streamapp.engine.solver import Batch
from streamapp.engine.stopwatch import Stopwatch


class AdaptedCheckpoint:
    """Components and adapters of a loaded checkpoint; how they draw is its subclasses' matter.

    Args:
        modules: all components with weights by name, ``vae`` among them.
        mixers: of the components that adapters may change, the denoiser's first.
        scheduler: the checkpoint's own configuration, variant included.
    """

    family = ""
    #: diffusers' reader of this family's LoRA files.
    lora_loader = ""

    def __init__(
        self, device: Device, modules: Mapping[str, Any], mixers: Mapping[str, Mixer], scheduler: Mapping[str, Any]
    ) -> None:
        for module in modules.values():
            module.to(device.name).eval().requires_grad_(False)
        denoiser = modules[next(iter(mixers))]
        self._device = device
        self._modules = dict(modules)
        self._denoiser = denoiser
        #: Asking a model for it walks all its modules.
        self._dtype = denoiser.dtype
        self._vae = modules["vae"]
        self._decoder = for_decoding(self._vae)
        self._scheduler = dict(scheduler)
        self._stopwatch = Stopwatch(denoiser, device.name)
        self._batch = Batch()
        self._digest: str | None = None
        self._colours: Colours | None = None
        self._adapters: dict[str, Adapter] = {}
        self._mixers = dict(mixers)
        self._mixer = next(iter(mixers.values()))
        self._encodings = Encodings()

    def forward_s(self) -> float:
        """Of the denoiser since the last call; waits for the device."""
        return self._stopwatch.seconds()

    @property
    def precision(self) -> str:
        """The type that the denoiser computes in."""
        return str(self._dtype).removeprefix("torch.")

    # Adapters.
    def load_lora(self, name: str, tensors: Tensors) -> int:
        """Keep an adapter's factors on the device."""
        targets = {part: self._modules[part] for part in self._mixers}
        self.unload_lora(name)
        adapter = read_adapter(name, tensors(), targets, self._denoiser.config, self._device.name, self.lora_loader)
        for mixer in self._mixers.values():
            mixer.attach(adapter)
        self._adapters[name] = adapter
        return adapter.bytes

    def unload_lora(self, name: str) -> None:
        """Forget an adapter and what was encoded with it."""
        adapter = self._adapters.pop(name, None)
        if adapter is None:
            return
        for mixer in self._mixers.values():
            mixer.forget(adapter)
        self._encodings.forget(name)

    def hold(self, sample: Sample) -> None:
        """Keep its adapters for a sample until it ends, also when they are unloaded."""
        hold(sample, self._adapters)

    @property
    def adapters(self) -> Mapping[str, int]:
        """Resident adapters and their bytes."""
        return {name: adapter.bytes for name, adapter in self._adapters.items()}

    def identity(self, adapters: Sequence[str]) -> Mapping[str, str]:
        """Weights, precision and library that decide a sample's numbers, each as a word."""
        if self._digest is None:
            tensors = ((f"{part}.{name}", p) for part, m in self._modules.items() for name, p in m.named_parameters())
            self._digest = digest(tensors, repr(sorted(self._scheduler.items())).encode())
        here = {**self._mixer.lingering, **self._adapters}
        return {
            "checkpoint": self._digest,
            "precision": self.precision,
            "torch": torch.__version__,
            **{f"LoRA {name}": here[name].digest for name in adapters},
        }

    @property
    def bytes(self) -> int:
        """Weights of all components, and the factors that rows of a batch hold."""
        weights: int = sum(p.numel() * p.element_size() for m in self._modules.values() for p in m.parameters())
        return weights + sum(mixer.bytes for mixer in self._mixers.values())

    def release(self) -> None:
        """Drop the weights, and leave their modules as they were: others may draw with them."""
        for close in (self._stopwatch.close, *(mixer.close for mixer in self._mixers.values())):
            close()
        self._denoiser = self._vae = self._decoder = None
        for table in (self._modules, self._mixers, self._adapters):
            table.clear()
        self._encodings.clear()
