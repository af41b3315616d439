"""Pictures that a sample starts from: image-to-image and inpainting, for every family.

A sample's picture equals that of diffusers' image-to-image and inpainting pipelines called for it alone, with the same
draws in the same order. The VAE encodes a job's picture once; each sample draws its own noise, the posterior's too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from streamapp.engine.errors import EngineError
from streamapp.engine.job import Job
from streamapp.engine.sample import Sample

FACTOR = 8
#: From planes ``(C, h, w)`` to how a denoiser takes latents.
Layout = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Inpainting:
    """What an inpainted sample keeps of its picture, each on the device and in the layout of its latents.

    Attributes:
        mask: ``(1, h, w)`` or the latents' shape, 1 where it is drawn anew.
        image, noise: as the latents; what is not drawn is these, mixed for the step. None where the U-Net takes a mask.
        channels: ``(5, h, w)``, mask and masked picture, which a U-Net with nine channels takes beside the latents.
    """

    mask: torch.Tensor
    image: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    channels: torch.Tensor | None = None


def first_step(job: Job, *, flow: bool = False) -> int | None:
    """The step that a job begins with, by diffusers' rule; None for one without a picture.

    The steps that ``strength`` leaves are rounded down, for flow matching up.

    Raises:
        EngineError: ``invalid_job`` when nothing is left to draw.
    """
    if job.image is None:
        return None
    steps = job.num_inference_steps
    if flow:
        return int(max(steps - min(steps * strength_of(job), steps), 0))
    left = min(int(steps * strength_of(job)), steps)
    if left < 1:
        message = f"strength {job.strength} leaves no step of {steps}; give more of either"
        raise EngineError("invalid_job", message, field="strength")
    return steps - left


def strength_of(job: Job) -> float:
    """How much of the denoising is done: 0.8 of it from a picture, all of it behind a mask, unless the job says."""
    if job.strength is not None:
        return job.strength
    return 0.8 if job.mask_image is None else 1.0


def check(job: Job, masked: bool) -> None:
    """Refuse pictures of another size than the job's, and those a U-Net cannot take.

    Args:
        job: checked already.
        masked: whether the U-Net takes a mask and a masked picture beside the latents.

    Raises:
        EngineError: ``invalid_job``, naming what to change.
    """
    if masked and job.mask_image is None:
        message = f"{job.model!r} is an inpainting model; give it an image and a mask, or choose another model"
        raise EngineError("invalid_job", message, field="image" if job.image is None else "mask_image")
    for field in ("image", "mask_image"):
        picture = getattr(job, field)
        if picture is not None and (picture.width, picture.height) != (job.width, job.height):
            message = f"the {field} is {picture.width}x{picture.height}, the job draws {job.width}x{job.height}"
            raise EngineError("invalid_job", f"{message}; resize one to the other", field=field)


def begin(
    vae: Any, sample: Sample, masked: bool, generator: torch.Generator, layout: Layout | None = None
) -> torch.Tensor:
    """A sample's first latents, float32 on the CPU; sets what it keeps of its picture.

    Args:
        vae: that encodes the picture.
        sample: with its schedule.
        masked: as in :func:`check`.
        generator: the sample's own, at its beginning.
        layout: from ``(C, h, w)`` to how the denoiser takes latents; None where it takes them so.
    """
    latents = _begun(vae, sample, masked, generator)
    given = sample.input
    if layout is None:
        return latents
    if given is not None:
        mask = given.mask.expand_as(given.image)
        sample.input = Inpainting(layout(mask), layout(given.image), layout(given.noise))
    return layout(latents)


def _begun(vae: Any, sample: Sample, masked: bool, generator: torch.Generator) -> torch.Tensor:
    job, schedule = sample.job, sample.schedule
    shape = (channels(vae), job.height // FACTOR, job.width // FACTOR)

    def drawn() -> torch.Tensor:
        return torch.randn((1, *shape), generator=generator)[0]

    if job.image is None:
        return drawn() * float(schedule.initial)
    inpainted, whole = job.mask_image is not None, strength_of(job) == 1
    image = None
    # Behind a mask that the U-Net takes, a picture that is drawn whole is not asked for.
    if not (masked and whole):
        image = _latent(vae, _posterior(vae, sample, "image"), drawn())
    noise = drawn()
    if inpainted:
        # The pipelines draw this also where they do not use it.
        third = drawn()
        sample.input = _inpainting(vae, sample, image, noise, third if masked else None)
    if image is None or (inpainted and whole):
        return noise * float(schedule.initial)
    kept, added = schedule.known[0]
    latents: torch.Tensor = kept * image + added * noise
    return latents


def _inpainting(
    vae: Any, sample: Sample, image: torch.Tensor | None, noise: torch.Tensor, third: torch.Tensor | None
) -> Inpainting:
    device = vae.device
    small = functional.interpolate(_mask(sample)[None], scale_factor=1 / FACTOR)[0].to(device)
    if third is None:
        assert image is not None  # noqa: S101 (only a U-Net that takes a mask goes without)
        return Inpainting(small, image.to(device), noise.to(device))
    behind = _latent(vae, _posterior(vae, sample, "masked"), third).to(device)
    return Inpainting(small, channels=torch.cat([small, behind]))


def blend(samples: Sequence[Sample]) -> None:
    """After the solver's step: what is not drawn becomes the picture again, noised for the next step."""
    for sample in samples:
        given = sample.input
        if given is not None and given.image is not None:
            kept, added = sample.schedule.known[sample.step + 1]
            known = kept * given.image + added * given.noise
            # In place: the batch's buffer goes on with it.
            sample.latents.copy_((1 - given.mask) * known + given.mask * sample.latents)


def widened(scaled: torch.Tensor, order: Sequence[Sample]) -> torch.Tensor:
    """The rows with mask and masked picture beside the latents, ``(B, 9, h, w)``."""
    return torch.cat([scaled, torch.stack([sample.input.channels for sample in order])], dim=1)


def _pixels(picture: Any) -> torch.Tensor:
    """``(3, H, W)``, 0..1."""
    flat = torch.frombuffer(bytearray(picture.pixels), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1).to(torch.float32) / 255


def _mask(sample: Sample) -> torch.Tensor:
    """``(1, H, W)``, 1 where it is at least half white, else 0; shared by all samples of the job."""

    def made() -> torch.Tensor:
        import numpy as np

        grey = np.array(sample.job.mask_image.to_pil().convert("L"))
        return (torch.from_numpy(grey)[None].to(torch.float32) / 255 >= 0.5).to(torch.float32)

    found: torch.Tensor = sample.shared.get("mask", made)
    return found


def _posterior(vae: Any, sample: Sample, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of the picture's latents, ``(4, h, w)`` each, float32 on the CPU; made once for a job."""

    def made() -> tuple[torch.Tensor, torch.Tensor]:
        pixels = _pixels(sample.job.image) * 2 - 1
        if which == "masked":
            pixels = pixels * (_mask(sample) < 0.5)
        # Video VAEs take frames; a picture is one.
        given = pixels[None, :, None] if _video(vae) else pixels[None]
        found = vae.encode(given.to(vae.device, vae.dtype)).latent_dist
        return _one(found.mean), _one(found.std)

    found: tuple[torch.Tensor, torch.Tensor] = sample.shared.get(which, made)
    return found


def _one(batch: torch.Tensor) -> torch.Tensor:
    """The only picture of a batch, ``(C, h, w)``."""
    return batch.flatten(0, 1).reshape(-1, *batch.shape[-2:]).float().cpu()


def channels(vae: Any) -> int:
    """Channels of a latent."""
    return int(vae.config.z_dim if _video(vae) else vae.config.latent_channels)


def _video(vae: Any) -> bool:
    return getattr(vae.config, "latent_channels", None) is None


def _latent(vae: Any, posterior: tuple[torch.Tensor, torch.Tensor], drawn: torch.Tensor) -> torch.Tensor:
    """A draw from the posterior in the denoiser's scale: the reverse of :func:`~streamapp.engine.decoding.decoded`."""
    config = vae.config
    found = posterior[0] + posterior[1] * drawn
    mean, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and spread is not None:
        found = (found - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(spread).view(-1, 1, 1)
    shift, scale = getattr(config, "shift_factor", None), getattr(config, "scaling_factor", None)
    return (found - float(shift or 0)) * float(1 if scale is None else scale)
