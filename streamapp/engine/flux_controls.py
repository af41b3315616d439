"""ControlNets of Flux: loading, and what they add to a tick of its transformer.

They are loaded and named like those of U-Nets (:mod:`streamapp.engine.controls`). In a tick each is called once, over
the samples that use it now; the other rows get zeros. A sample's picture equals that of ``FluxControlNetPipeline``
called for it alone, several ControlNets included; both branches of a guided sample get what was made for its prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch

from streamapp.engine.controls import acts
from streamapp.engine.digests import digest
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device
from streamapp.engine.job import Job
from streamapp.engine.mmdit import half
from streamapp.engine.packed import pack
from streamapp.engine.sample import Sample
from streamapp.engine.single_file import fill, read_tensors

FACTOR = 8
#: What a ControlNet and the transformer must agree in, and how a message calls it.
AGREE: Sequence[tuple[str, str]] = (
    ("in_channels", "packed latent channels of"),
    ("joint_attention_dim", "a text width of"),
    ("pooled_projection_dim", "a pooled text width of"),
    ("num_attention_heads", "attention heads numbering"),
    ("attention_head_dim", "attention heads of width"),
)


def described(file: Path) -> bool:
    """Whether the ``config.json`` beside a file says that it is one."""
    return _config(file).get("_class_name") == "FluxControlNetModel"


def load(file: Path, device: Device) -> FluxControlNet:
    """A ``FluxControlNetModel`` in diffusers' layout, described by the ``config.json`` beside it.

    Raises:
        EngineError: ``load_failed`` with what is missing, unreadable or not supported.
    """
    import diffusers

    kind: Any = diffusers.FluxControlNetModel
    try:
        with torch.device("meta"):
            model: Any = kind(**{name: value for name, value in _config(file).items() if not name.startswith("_")})
    except (TypeError, ValueError, KeyError) as error:
        raise EngineError("load_failed", f"{file.name}: {error}") from error
    fill(model, read_tensors(file), half(device), f"{file.name}: ControlNet")
    return FluxControlNet(device, model)


def _config(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = orjson.loads(file.with_name("config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found


class FluxControlNet:
    """A loaded ControlNet.

    Attributes:
        modes: kinds of pictures that a union of ControlNets tells apart; 0 for one that is made for a single kind.
        encodes: whether its picture is given as latents of the checkpoint's VAE, and not as pixels.
        plan: how many blocks of both kinds it gives something to add, and whether those are repeated over the
            transformer's (XLabs) rather than stretched.
    """

    def __init__(self, device: Device, model: Any) -> None:
        self._model = model.to(device.name).eval().requires_grad_(False)
        self._dtype: torch.dtype = model.dtype
        self.modes = int(model.config.num_mode or 0)
        self.encodes = model.input_hint_block is None
        self.plan = (len(model.transformer_blocks), len(model.single_transformer_blocks), not self.encodes)

    def check(self, name: str, transformer: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that it was not made for (``incompatible_control`` naming what differs)."""
        own = self._model.config
        for key, what in AGREE:
            if own.get(key) != transformer.get(key):
                message = f"control {name!r} has {what} {own.get(key)}, the checkpoint {transformer.get(key)}"
                hint = "it was made for another family; choose one made for this checkpoint's"
                raise EngineError("incompatible_control", f"{message}: {hint}", field="controls")

    @property
    def bytes(self) -> int:
        """Weights held on the device."""
        return sum(p.numel() * p.element_size() for p in self._model.parameters())

    @property
    def digest(self) -> str:
        """Which weights these are."""
        return digest(self._model.named_parameters(), str(self._dtype).encode())

    def added(self, given: Mapping[str, Any], scales: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """One forward: what it adds behind each double and each single block, ``(B, tokens, width)`` each."""
        own = dict(given)
        if not self._model.config.guidance_embeds:
            own["guidance"] = None
        double, single = self._model(**own, conditioning_scale=scales.view(-1, 1, 1), return_dict=False)
        return list(double or ()), list(single or ())

    def release(self) -> None:
        """Drop the weights."""
        self._model = None


def check(job: Job, nets: Mapping[str, Any]) -> None:
    """Refuse modes that a ControlNet does not have, and what is not drawn together (``invalid_job``)."""
    if job.controls and job.image is not None:
        raise EngineError(
            "invalid_job", "Flux starts from a picture or takes controls, not both; leave one out", field="controls"
        )
    for control in job.controls:
        modes = getattr(nets[control.model], "modes", 0)
        if modes and (control.mode is None or not 0 <= control.mode < modes):
            message = f"control {control.model!r} is a union of several; give its mode, 0 to {modes - 1}"
            raise EngineError("invalid_job", message, field="controls")
        if not modes and control.mode is not None:
            raise EngineError(
                "invalid_job", f"control {control.model!r} has no modes; leave mode out", field="controls"
            )


def draw_first(sample: Sample, nets: Mapping[str, FluxControlNet], channels: int, generator: torch.Generator) -> None:
    """Take from a sample's generator what the latents of its pictures are drawn with, as the pipeline does first."""
    for control in sample.job.controls:
        if nets[control.model].encodes:
            _noise(sample.job, channels, generator)


def _noise(job: Job, channels: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn((1, channels, job.height // FACTOR, job.width // FACTOR), generator=generator)


def condition(sample: Sample, number: int, nets: Mapping[str, FluxControlNet], vae: Any) -> torch.Tensor:
    """The picture of a sample's control as its ControlNet takes it, without the batch's dimension."""
    net, control = nets[sample.job.controls[number].model], sample.job.controls[number]

    def pixels() -> torch.Tensor:
        planes = torch.frombuffer(bytearray(control.image.pixels), dtype=torch.uint8)
        planes = planes.view(control.image.height, control.image.width, 3).permute(2, 0, 1)
        return (planes.to(torch.float32) / 127.5 - 1).to(vae.device)

    def encoded() -> torch.Tensor:
        """Drawn anew from the seed, also by a sample that was parked."""
        generator = torch.Generator("cpu").manual_seed(sample.seed)
        posterior = sample.shared.get(
            ("posterior", number), lambda: vae.encode(pixels()[None].to(vae.dtype)).latent_dist
        )
        for _ in range(sum(nets[each.model].encodes for each in sample.job.controls[:number])):
            _noise(sample.job, posterior.mean.shape[1], generator)
        noise = _noise(sample.job, posterior.mean.shape[1], generator)
        latents = posterior.mean + posterior.std * noise.to(posterior.mean)
        return pack(((latents - vae.config.shift_factor) * vae.config.scaling_factor)[0])

    if net.encodes:
        return sample.shared.get(("control latents", number, sample.index), encoded)  # type: ignore[no-any-return]
    return sample.shared.get(("control", number), pixels)  # type: ignore[no-any-return]


def residuals(
    nets: Mapping[str, FluxControlNet],
    rows: Sequence[Sample],
    prompts: Sequence[bool],
    given: Mapping[str, Any],
    vae: Any,
    blocks: tuple[int, int],
) -> dict[str, Any]:
    """What the ControlNets add to a tick, as arguments of the transformer; nothing when no row uses one now.

    Args:
        nets: by name.
        rows: the sample of each row.
        prompts: whether a row is of its sample's prompt, and not of the negative one.
        given: the transformer's arguments for all rows.
        vae: the checkpoint's, for pictures that are given as latents.
        blocks: double and single blocks of the transformer.
    """
    uses: dict[str, list[tuple[int, int]]] = {}
    for row, sample in enumerate(rows):
        for number, control in enumerate(sample.job.controls):
            if prompts[row] and acts(control, sample.step, sample.steps):
                uses.setdefault(control.model, []).append((row, number))
    plans = {nets[name].plan for name in uses}
    alike = len(plans) == 1
    total: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for name, used in uses.items():
        net = nets[name]
        made = net.added(*_arguments(net, rows, used, given, vae, nets))
        to, of = _both_branches(rows, used, given["hidden_states"].device)
        for whole, parts, count, repeats in zip(total, made, blocks, (net.plan[2], False), strict=True):
            added = parts if alike else _spread(parts, count, repeats)
            if not whole:
                whole.extend(part.new_zeros(len(rows), *part.shape[1:]) for part in added)
            for sums, part in zip(whole, added, strict=False):
                sums.index_add_(0, to, part[of])
    if not uses:
        return {}
    return {
        "controlnet_block_samples": total[0] or None,
        "controlnet_single_block_samples": total[1] or None,
        "controlnet_blocks_repeat": alike and plans.pop()[2],
    }


def _arguments(
    net: FluxControlNet,
    rows: Sequence[Sample],
    used: Sequence[tuple[int, int]],
    given: Mapping[str, Any],
    vae: Any,
    nets: Mapping[str, FluxControlNet],
) -> tuple[dict[str, Any], torch.Tensor]:
    """Of one ControlNet: the transformer's own for the rows that use it, with their pictures; and their scales."""
    latents = given["hidden_states"]
    places = torch.tensor([row for row, _ in used], device=latents.device)
    shared = ("txt_ids", "img_ids")
    own = {key: value if value is None or key in shared else value[places] for key, value in given.items()}
    pictures = [condition(rows[row], number, nets, vae) for row, number in used]
    own["controlnet_cond"] = torch.stack(pictures).to(latents)
    if net.modes:
        modes = [[rows[row].job.controls[number].mode] for row, number in used]
        own["controlnet_mode"] = torch.tensor(modes, device=latents.device)
    return own, latents.new_tensor([float(rows[row].job.controls[number].scale) for row, number in used])


def _both_branches(
    rows: Sequence[Sample], used: Sequence[tuple[int, int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """To which rows goes what was made for which use: a guided sample has two."""
    pairs = [(to, of) for of, (row, _) in enumerate(used) for to, sample in enumerate(rows) if sample is rows[row]]
    return torch.tensor([to for to, _ in pairs], device=device), torch.tensor([of for _, of in pairs], device=device)


def _spread(parts: list[torch.Tensor], count: int, repeats: bool) -> list[torch.Tensor]:
    """One part for each of the transformer's blocks, by its own rule for fewer parts than blocks."""
    if not parts:
        return []
    stretch = math.ceil(count / len(parts))
    return [parts[block % len(parts) if repeats else block // stretch] for block in range(count)]
