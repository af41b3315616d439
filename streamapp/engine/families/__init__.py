"""Families of architectures: the interface each implements in one file, and the registry that loads them lazily.

A family's module defines ``read(path, device, options)``, which gives its components on the host, and
``build(parts, device, options) -> Checkpoint``, which takes them on the device. Adding a family is adding one file and
one line here; importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from streamapp.engine.embeddings import Embeddings
from streamapp.engine.errors import EngineError
from streamapp.engine.sample import Sample

#: family → module; a bare file's family is found by `detect` where it is not named.
MODULES: Mapping[str, str] = {
    "sd15": "streamapp.engine.families.sd15",
    "sdxl": "streamapp.engine.families.sdxl",
    "sd3": "streamapp.engine.families.sd3",
    "qwen_image": "streamapp.engine.families.qwen_image",
    "flux": "streamapp.engine.families.flux",
    "fake": "streamapp.engine.families.fake",
}
#: What :meth:`~streamapp.engine.engine.Engine.load` takes for a ControlNet: it draws nothing itself.
CONTROLNET = "controlnet"


@dataclass(frozen=True)
class Device:
    """Where and how a checkpoint is loaded; ``dtype`` is the denoiser's and its encoders', ``vae`` the VAE's."""

    name: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    vae: str = "float32"


class Checkpoint(Protocol):
    """A loaded checkpoint. The engine calls it from one thread, but for :meth:`decode`."""

    family: str
    embeddings: Embeddings

    def validate(self, job: Any) -> None:
        """Refuse what this checkpoint cannot draw, before the job runs (raises EngineError)."""

    def rows(self, job: Any) -> int:
        """Denoiser rows each image of a job takes in a tick: two when guided by a second branch."""

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Encode prompts (shared inside the call) and draw initial noise: the samples are ready to join a tick."""

    def key(self, sample: Sample) -> tuple[Any, ...]:
        """Samples with equal keys can share a tick."""

    def denoise(self, samples: Sequence[Sample]) -> None:
        """One denoiser forward for all and one solver step each; ``step`` is advanced by the engine."""

    def forward_s(self) -> float:
        """Seconds of the denoiser's forwards since the last call; waits until the device has done what it was given."""

    def decode(self, samples: Sequence[Sample], tiled: bool = False) -> list[Any]:
        """Finished latents to pictures, in the form each job's ``output`` names; EngineError in place of a bad one.

        Called by a thread of its own, while the others work. ``tiled``: with less memory, in tiles.
        """

    def previews(self, samples: Sequence[Sample]) -> list[Any]:
        """Small pictures of unfinished samples; empty for a family that gives none."""

    def load_lora(self, name: str, tensors: Callable[[], Mapping[str, Any]]) -> int:
        """Keep an adapter ready under ``name``; its bytes. ``tensors`` reads its file.

        Raises:
            EngineError: naming the layer that does not fit.
        """

    def unload_lora(self, name: str) -> None:
        """Forget an adapter; unknown names are ignored."""

    def hold(self, sample: Sample) -> None:
        """Keep its adapters for a sample until it ends, also when they are unloaded."""

    @property
    def adapters(self) -> Mapping[str, int]:
        """Adapters by name, with their bytes."""

    def encode_ahead(self, texts: Sequence[str], clip_skip: int) -> None:
        """Encode prompts that jobs will have, as far as there is room to keep them."""

    def identity(self, adapters: Sequence[str]) -> Mapping[str, str]:
        """By name what must be the same for a parked sample with these adapters to be drawn on, bit for bit.

        At least ``checkpoint`` and ``precision``, and ``LoRA NAME`` per adapter, as digests or words.
        """

    @property
    def bytes(self) -> int:
        """Weights held on the device."""

    def release(self) -> None:
        """Free the weights."""


def read(family: str | None, path: str | Path, device: Device, options: Mapping[str, Any]) -> Any:
    """The components of a checkpoint of ``family``, on the host: modules in whatever its ``build`` takes them in.

    Raises:
        EngineError: ``load_failed`` with the reason: unknown family, missing or unreadable files.
    """
    parts = _module(family).read(Path(path), device, options)
    vae = parts[0].get("vae") if isinstance(parts, tuple) else getattr(parts, "vae", None)
    if vae is not None:
        vae_type(vae, device)
    return parts


def vae_type(vae: Any, device: Device) -> Any:
    """A VAE in its type: on a CUDA device the denoiser's where it says that it stands that, else as the device says."""
    stands = device.name.startswith("cuda") and vae.config.get("force_upcast") is False
    name = device.dtype if stands and device.vae == "float32" else device.vae
    return vae if str(vae.dtype).endswith(f".{name}") else vae.to(getattr(import_module("torch"), name))


def build(family: str | None, parts: Any, device: Device, options: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of components on the device.

    Raises:
        EngineError: ``load_failed`` for components that do not go together, or a variant that is not known.
    """
    unet = getattr(parts, "unet", None)
    if options.get("channels_last") and unet is not None:
        unet.to(memory_format=import_module("torch").channels_last)
    return cast(Checkpoint, _module(family).build(parts, device, options))


def _module(family: str | None) -> Any:
    name = family or "sd15"
    if name not in MODULES:
        raise EngineError("load_failed", f"family {name!r} is not known; known: {', '.join(MODULES)}", family=name)
    return import_module(MODULES[name])


def load_control(path: str | Path, device: Device) -> Any:
    """Load a ControlNet; see :mod:`streamapp.engine.controls` (``load_failed``)."""
    return import_module("streamapp.engine.controls").load(Path(path), device)
