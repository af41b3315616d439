"""ControlNets (Zhang et al. 2023): loading, and what they add to a tick of a U-Net.

``engine.load("canny", path, family="controlnet")`` loads one; it belongs to no checkpoint and serves all whose U-Net it
fits. In a tick each ControlNet is called once, over the rows that use it now; the other rows get zeros, so that samples
with different controls and with none share the U-Net's forward. A sample's picture equals that of diffusers' ControlNet
pipelines called for it alone, several ControlNets included (guess mode off).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch

from streamapp.engine.architectures import sd2, sd15, sdxl
from streamapp.engine.digests import digest
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device
from streamapp.engine.job import Control, Job
from streamapp.engine.sample import Sample
from streamapp.engine.single_file import fill, read_tensors

#: Of published U-Nets' configuration, what their first half, which a ControlNet copies, does not have.
OTHER_HALF = frozenset(["sample_size", "up_block_types"])
#: What a ControlNet and the U-Net must agree in, and how a message calls it.
AGREE: Sequence[tuple[str, str, str]] = (
    ("cross_attention_dim", "cross_attention_dim", "a cross-attention width of"),
    ("in_channels", "out_channels", "latent channels of"),
    ("block_out_channels", "block_out_channels", "channels by level of"),
    ("layers_per_block", "layers_per_block", "layers per level of"),
    ("addition_embed_type", "addition_embed_type", "further conditions of kind"),
    ("projection_class_embeddings_input_dim", "projection_class_embeddings_input_dim", "further conditions of width"),
)


def load(path: Path, device: Device) -> Any:
    """Load a diffusers folder, or one safetensors file in diffusers' or the published layout, without any network.

    A file's ``config.json`` may lie beside it; without one, the file has the size of a published SD 1.5, SD 2 or SDXL
    ControlNet.

    Raises:
        EngineError: ``load_failed`` with what is missing, unreadable or not supported.
    """
    import diffusers
    from diffusers.loaders import single_file_utils

    from streamapp.engine import flux_controls

    torch.set_num_threads(device.threads)
    # Typed as Any: diffusers annotates neither its converters nor its models' constructors.
    kind: Any = diffusers.ControlNetModel
    convert: Any = single_file_utils
    file = _weights(path)
    if flux_controls.described(file):
        return flux_controls.load(file, device)
    tensors = read_tensors(file)
    config = configuration(file, tensors)
    try:
        with torch.device("meta"):
            model: Any = kind(**config)
        converted = convert.convert_controlnet_checkpoint(tensors, config)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise EngineError("load_failed", f"{file.name}: {error}") from error
    fill(model, converted, getattr(torch, device.dtype), f"{file.name}: ControlNet")
    return ControlNet(device, model)


def _weights(path: Path) -> Path:
    """The safetensors file of a folder, or the file itself."""
    if path.is_dir():
        names = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
        found = [path / name for name in names if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if not found:
            raise EngineError("load_failed", f"{path.name} has no safetensors file")
        return found[0]
    if path.suffix != ".safetensors":
        raise EngineError("load_failed", f"{path.name}: only safetensors files are read")
    return path


def configuration(file: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The constructor's arguments, from the ``config.json`` beside the file or from the tensors' shapes."""
    if "difference" in tensors:
        raise EngineError("load_failed", f"{file.name} holds differences to a checkpoint; get the whole ControlNet")
    beside = file.with_name("config.json")
    if beside.is_file():
        try:
            config: dict[str, Any] = orjson.loads(beside.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise EngineError("load_failed", f"{beside.name} of {file.name}: {error}") from error
        kind = config.get("_class_name", "ControlNetModel")
        if kind != "ControlNetModel":
            drawn = "only ControlNetModel and FluxControlNetModel are drawn"
            raise EngineError("load_failed", f"{file.name} is a {kind}; {drawn}")
        if config.get("global_pool_conditions"):
            raise EngineError("load_failed", f"{file.name} pools its residuals (shuffle), which is not drawn yet")
        return {name: value for name, value in config.items() if not name.startswith("_")}
    cross = {t.shape[-1] for name, t in tensors.items() if name.endswith("attn2.to_k.weight")}
    known: Mapping[int, Mapping[str, Any]] = {768: sd15().unet, 1024: sd2().unet, 2048: sdxl().unet}
    width = cross.pop() if len(cross) == 1 else 0
    if width not in known:
        raise EngineError(
            "load_failed", f"{file.name} is no ControlNet of SD 1.5, SD 2 or SDXL; put its config.json beside it"
        )
    return {name: value for name, value in known[width].items() if name not in OTHER_HALF}


class ControlNet:
    """A loaded ControlNet."""

    def __init__(self, device: Device, model: Any) -> None:
        self._model = model.to(device.name).eval().requires_grad_(False)
        self._dtype: torch.dtype = model.dtype
        self._mask: torch.Tensor | None = None
        for block in (*model.down_blocks, model.mid_block):
            if getattr(block, "has_cross_attention", False):
                block.register_forward_pre_hook(self._masked, with_kwargs=True)

    def _masked(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Unlike the U-Net, diffusers' ControlNet does not hand a mask of padded prompts on to its blocks."""
        return args, {**given, "encoder_attention_mask": self._mask}

    def check(self, name: str, unet: Mapping[str, Any]) -> None:
        """Refuse a U-Net that it was not made for.

        Raises:
            EngineError: ``incompatible_control`` naming what differs.
        """
        own = self._model.config
        for key, theirs, what in AGREE:
            ours, wanted = _plain(own.get(key)), _plain(unet.get(theirs))
            if ours != wanted:
                message = f"control {name!r} has {what} {ours}, the checkpoint {wanted}"
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

    def picture(self, sample: Sample, number: int) -> torch.Tensor:
        """The picture of a sample's control, ``(3, h, w)``, 0..1, on the device; shared by all samples of the job."""

        def made() -> torch.Tensor:
            image = sample.job.controls[number].image
            pixels = torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8)
            planes = pixels.view(image.height, image.width, 3).permute(2, 0, 1).to(torch.float32) / 255
            return planes.to(self._model.device, self._dtype)

        found: torch.Tensor = sample.shared.get(("control", number), made)
        return found

    def residuals(self, inputs: Mapping[str, Any], mask: torch.Tensor | None) -> list[torch.Tensor]:
        """One forward: what it adds to the U-Net's skips, and last to its middle, each ``(B, c, h, w)``."""
        self._mask = mask
        try:
            down, middle = self._model(**inputs, return_dict=False)
        finally:
            self._mask = None
        return [*down, middle]

    def release(self) -> None:
        """Drop the weights."""
        self._model = None


def check(job: Job, nets: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Refuse a job whose ControlNets do not fit the denoiser of this configuration, or whose pictures its size.

    Raises:
        EngineError: ``incompatible_control`` or ``invalid_job``, naming what to change.
    """
    for control in job.controls:
        nets[control.model].check(control.model, unet)
        image = control.image
        if (image.width, image.height) != (job.width, job.height):
            message = f"the picture of control {control.model!r} is {image.width}x{image.height}, the job draws"
            raise EngineError(
                "invalid_job", f"{message} {job.width}x{job.height}; resize one to the other", field="controls"
            )


def acts(control: Control, step: int, steps: int) -> bool:
    """Whether a control takes part in a denoiser call, by diffusers' rule for shares of the denoising."""
    return control.scale != 0 and step / steps >= control.start and (step + 1) / steps <= control.end


def residuals(
    nets: Mapping[str, ControlNet],
    order: Sequence[Sample],
    inputs: Mapping[str, torch.Tensor],
    mask: torch.Tensor | None,
    added: Mapping[str, torch.Tensor],
) -> dict[str, Any]:
    """What the ControlNets add to a tick, as arguments of the U-Net; nothing when no row uses one now.

    Args:
        nets: by name.
        order: the sample of each row; a guided one has two.
        inputs: ``sample``, ``timestep`` and ``encoder_hidden_states`` of all rows.
        mask: of padded prompts.
        added: further conditions of all rows.
    """
    uses: dict[str, list[tuple[int, int]]] = {}
    for row, sample in enumerate(order):
        for number, control in enumerate(sample.job.controls):
            if acts(control, sample.step, sample.steps):
                uses.setdefault(control.model, []).append((row, number))
    total: list[torch.Tensor] = []
    for name, used in uses.items():
        net = nets[name]
        rows = torch.tensor([row for row, _ in used], device=inputs["sample"].device)
        scales = [float(order[row].job.controls[number].scale) for row, number in used]
        made = net.residuals(
            {
                **{key: value[rows] for key, value in inputs.items()},
                "controlnet_cond": torch.stack([net.picture(order[row], number) for row, number in used]),
                "conditioning_scale": inputs["sample"].new_tensor(scales).view(-1, 1, 1, 1),
                "added_cond_kwargs": {key: value[rows] for key, value in added.items()} or None,
            },
            None if mask is None else mask[rows],
        )
        total = total or [part.new_zeros(len(order), *part.shape[1:]) for part in made]
        for whole, part in zip(total, made, strict=True):
            whole.index_add_(0, rows, part)
    if not total:
        return {}
    return {"down_block_additional_residuals": total[:-1], "mid_block_additional_residual": total[-1]}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
