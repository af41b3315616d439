"""Every diffusers sampler as a table of coefficients, so that samples with different samplers share one update.

All the solvers used are linear in (sample, model output, noise, what the solver keeps). So a step is a small matrix,
found by running diffusers' own scheduler once, in float64, on basis vectors instead of pictures: what comes out are the
coefficients. The reference is therefore the scheduler itself, quirks included, and a new sampler needs no formula here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from inspect import signature
from typing import Any

import orjson
import torch

from streamapp.engine.errors import EngineError
from streamapp.engine.names import AUTO, SAMPLERS, sampler_name, sampler_of
from streamapp.engine.sample import Sample

#: Inputs of a step: sample, model output, noise, then the kept tensors.
X, MODEL, NOISE, FIRST_SLOT = 0, 1, 2, 3
MAX_SLOTS = 8
WIDTH = FIRST_SLOT + MAX_SLOTS
RANDN = "randn"


@dataclass(frozen=True, eq=False)
class Schedule:
    """One sampler at one number of steps, for any sample.

    Attributes:
        sampler: its name.
        timesteps: one per denoiser call, float32 (second-order solvers call twice a step, but for the last).
        scale: factor of the sample before each call.
        coefficients: ``(calls, 1 + slots, 3 + slots)`` float64: rows are the next sample and the kept tensors, columns
            the sample, the model output, the noise and the tensors kept so far.
        noise: per call None, ``"randn"`` (drawn from the sample's generator), or the sigma interval of a Brownian path.
        sigmas: smallest and largest positive sigma, of the Brownian path.
        initial: standard deviation of the initial noise.
        known: for a picture that is started from: its factor and that of noise, before the first call and after each
            (after the last it is the picture itself).
    """

    sampler: str
    timesteps: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: torch.Tensor
    noise: tuple[str | tuple[float, float] | None, ...]
    sigmas: tuple[float, float]
    initial: float
    known: tuple[tuple[float, float], ...] = ()

    @property
    def slots(self) -> int:
        """How many tensors the solver keeps."""
        return int(self.coefficients.shape[1]) - 1

    @cached_property
    def rows(self) -> torch.Tensor:
        """Per call what a batch needs of it, float32: timestep, scale, and the coefficients padded to all slots."""
        calls, height, width = self.coefficients.shape
        table = torch.zeros(calls, 1 + MAX_SLOTS, WIDTH, dtype=torch.float64)
        table[:, :height, :width] = self.coefficients
        head = torch.tensor([self.timesteps, self.scale], dtype=torch.float64).T
        return torch.cat([head, table.flatten(1)], dim=1).float()


def schedule_for(sampler: str, steps: int, config: Mapping[str, Any], first: int | None = None) -> Schedule:
    """The schedule of a sampler for a checkpoint with this scheduler configuration; cached.

    ``first`` is the step that a job with a picture begins with; None for one without.

    Raises:
        EngineError: ``unknown_sampler``, or ``invalid_job`` when the scheduler refuses this number of steps.
    """
    return _schedule(sampler_name(sampler), steps, orjson.dumps(dict(config), option=orjson.OPT_SORT_KEYS), first)


@lru_cache(maxsize=512)
def _schedule(name: str, steps: int, config: bytes, first: int | None) -> Schedule:
    own = orjson.loads(config)
    sampler = sampler_of(name)
    class_name = sampler.scheduler or own["_class_name"]
    kind = getattr(import_module("diffusers"), class_name)
    if any(value and key not in signature(kind).parameters for key, value in sampler.options.items()):
        message = f"this checkpoint's own sampler ({class_name}) cannot take that schedule; name a sampler beside it"
        raise EngineError("unknown_schedule", message, field="schedule")
    scheduler = kind.from_config(own, **sampler.options)
    try:
        return trace(scheduler, _given_name(name, class_name), lambda: scheduler.set_timesteps(steps), first)
    except (ValueError, IndexError) as error:
        raise EngineError("invalid_job", f"{name} cannot do {steps} steps here: {error}", field="steps") from error


def _given_name(name: str, class_name: str) -> str:
    """The name of a checkpoint's own scheduler, where it has one, with the schedule behind it."""
    if not name.startswith(AUTO):
        return name
    own = next((s.name for s in SAMPLERS.values() if s.scheduler == class_name), class_name)
    return f"{own}{name.removeprefix(AUTO)}"


def trace(scheduler: Any, name: str, begin: Callable[[], None], first: int | None = None) -> Schedule:
    """Run ``scheduler`` once on basis vectors; ``begin`` sets its timesteps, ``first`` is the step to begin with.

    Raises:
        EngineError: ``invalid_job`` when it is not linear or keeps too much.
    """
    if scheduler.config.get("thresholding") or scheduler.config.get("clip_sample"):
        raise EngineError("invalid_job", f"{name}: this checkpoint clips its predictions, which is not linear")
    begin()
    # Flow matching takes samples as they are, and starts from plain noise.
    scaled = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    slots: dict[tuple[str, int], int] = {}
    rows, scales, noises = [], [], []
    timesteps = _begun(scheduler, first)
    known = [] if first is None else [_noised(scheduler, timesteps[:1])]
    with _noise_as_basis(scheduler) as drawn:
        for call, timestep in enumerate(timesteps, start=1):
            one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
            scales.append(float(scaled(one, timestep).reshape(())))
            for attribute, index in list(_kept(scheduler, slots)):
                _put(scheduler, attribute, index, _basis(FIRST_SLOT + slots[attribute, index]))
            drawn.clear()
            after = scheduler.step(_basis(MODEL), timestep, _basis(X), return_dict=False)[0]
            kept = {slots[where]: _get(scheduler, *where) for where in _kept(scheduler, slots)}
            empty = torch.zeros(WIDTH, dtype=torch.float64)
            rows.append(torch.stack([after.reshape(-1), *(kept.get(s, empty).reshape(-1) for s in range(MAX_SLOTS))]))
            noises.append(drawn[0] if drawn else None)
            if first is not None:
                known.append(_noised(scheduler, timesteps[call : call + 1]))
    used = len(slots)
    table = torch.stack(rows)[:, : 1 + used, : FIRST_SLOT + used].double()
    sigmas = getattr(scheduler, "sigmas", None)
    positive = sigmas[sigmas > 0] if isinstance(sigmas, torch.Tensor) else torch.ones(1)
    return Schedule(
        sampler=name,
        timesteps=tuple(float(t) for t in timesteps),
        scale=tuple(scales),
        coefficients=table,
        noise=tuple(noises),
        sigmas=(float(positive.min()), float(positive.max())),
        initial=float(getattr(scheduler, "init_noise_sigma", 1.0)),
        known=tuple(known),
    )


def _begun(scheduler: Any, first: int | None) -> torch.Tensor:
    """The timesteps from a step on, as diffusers' image-to-image pipelines cut them."""
    timesteps: torch.Tensor = scheduler.timesteps
    if first is None:
        return timesteps
    start = first * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return timesteps[start:]


def _noised(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
    """The factors of a picture and of noise at a timestep, after the calls so far; without one the picture alone."""
    if not len(timestep):
        return 1.0, 0.0
    if hasattr(scheduler, "add_noise"):
        mixed = scheduler.add_noise(_basis(X), _basis(NOISE), timestep).reshape(-1)
    else:  # flow matching has another name and order for it
        mixed = scheduler.scale_noise(_basis(X), timestep, _basis(NOISE)).reshape(-1)
    return float(mixed[X]), float(mixed[NOISE])


def _basis(place: int) -> torch.Tensor:
    vector = torch.zeros(1, WIDTH, 1, 1, dtype=torch.float64)
    vector[0, place] = 1
    return vector


def _is_vector(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == (1, WIDTH, 1, 1)


def _kept(scheduler: Any, slots: dict[tuple[str, int], int]) -> Iterator[tuple[str, int]]:
    """Where vectors are kept now: attribute and list index (−1: the attribute itself); new places get a slot."""
    for attribute, value in list(vars(scheduler).items()):
        places = enumerate(value) if isinstance(value, list) else [(-1, value)]
        for index, held in places:
            if _is_vector(held):
                slots.setdefault((attribute, index), len(slots))
                if len(slots) > MAX_SLOTS:
                    raise EngineError("invalid_job", f"{type(scheduler).__name__} keeps more than {MAX_SLOTS} tensors")
                yield attribute, index


def _get(scheduler: Any, attribute: str, index: int) -> torch.Tensor:
    value = getattr(scheduler, attribute)
    held: torch.Tensor = value if index < 0 else value[index]
    return held


def _put(scheduler: Any, attribute: str, index: int, vector: torch.Tensor) -> None:
    if index < 0:
        setattr(scheduler, attribute, vector)
    else:
        getattr(scheduler, attribute)[index] = vector


@contextmanager
def _noise_as_basis(scheduler: Any) -> Iterator[list[Any]]:
    """While tracing, noise is a basis vector, and how it was asked for is written down."""
    drawn: list[Any] = []

    def randn(*_: Any, **__: Any) -> torch.Tensor:
        drawn.append(RANDN)
        return _basis(NOISE)

    def brownian(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        drawn.append((float(start), float(end)))
        return _basis(NOISE)

    module = sys.modules[type(scheduler).__module__]
    original: Callable[..., torch.Tensor] | None = getattr(module, "randn_tensor", None)
    if original is not None:
        setattr(module, "randn_tensor", randn)  # noqa: B010 (mypy: a module has no such declared attribute)
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = brownian
    try:
        yield drawn
    finally:
        if original is not None:
            setattr(module, "randn_tensor", original)  # noqa: B010


class Batch:
    """What the samples of a batch hold, in one buffer from tick to tick while the batch stays the same.

    Columns of a row: sample, model output, noise, what the solver keeps. Samples get views of it. A tick is
    ``scaled, timesteps = batch.begin(samples)``, a forward, ``batch.finish(model)``.
    """

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._latents: Sequence[torch.Tensor] = ()
        self._after = torch.empty(0)
        self._rows = torch.empty(0)

    def begin(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """The scaled latents ``(B, *shape)`` and the timesteps ``(B,)`` of the denoiser call that is due."""
        if not self._holds(samples):
            slots = max(sample.schedule.slots for sample in samples)
            first = samples[0].latents
            self._after = first.new_zeros(len(samples), 1 + slots, *first.shape)
            for row, sample in enumerate(samples):
                self._after[row, 0] = sample.latents
                self._after[row, 1 : 1 + sample.schedule.slots] = sample.memory
            self._samples = list(samples)
        self._rows = torch.stack([s.schedule.rows[s.step] for s in samples]).to(self._after.device)
        scale = self._rows[:, 1].view(-1, *[1] * (self._after.dim() - 2))
        return self._after[:, 0] * scale, self._rows[:, 0]

    def finish(self, model: torch.Tensor) -> None:
        """One solver step for every sample, given the model's outputs ``(B, *shape)``."""
        before, size = self._after, len(self._samples)
        slots = before.shape[1] - 1
        columns = torch.cat([before[:, :1], model[:, None], self._noise(model)[:, None], before[:, 1:]], dim=1)
        table = self._rows[:, 2:].view(size, 1 + MAX_SLOTS, WIDTH)[:, : 1 + slots, : FIRST_SLOT + slots]
        after = torch.bmm(table, columns.flatten(2)).view(before.shape)
        self._after = after
        self._latents = after[:, 0].unbind()
        for sample, latents, kept in zip(self._samples, self._latents, after[:, 1:].unbind(), strict=True):
            sample.latents = latents
            own = sample.schedule.slots
            sample.memory = kept if own == slots else kept[:own]

    def _holds(self, samples: Sequence[Sample]) -> bool:
        """Whether the buffer is what these samples hold: the same ones, and nobody gave them other latents."""
        return len(samples) == len(self._latents) and all(
            ours is theirs and ours.latents is view
            for ours, theirs, view in zip(self._samples, samples, self._latents, strict=True)
        )

    def _noise(self, model: torch.Tensor) -> torch.Tensor:
        """The noise of every row, zeros where the solver takes none."""
        noise = torch.zeros_like(model)
        for row, sample in enumerate(self._samples):
            if sample.schedule.noise[sample.step] is not None:
                noise[row] = sample.noise(sample.step)
        return noise
