"""Accepting a task: the one function behind every form of the API.

Everything that a later stage would have to guess is resolved here, so that a row always means the same picture: the
model and its LoRAs, the words of the style, both sizes, sampler, steps, guidance, seed, cost and deadline.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamapp.db import LoraRow, ModelRow, NewTask, TaskRow
from streamapp.engine.job import MAX_CLIP_SKIP, MAX_GUIDANCE, MAX_STEPS
from streamapp.errors import InvalidRequest, Overloaded, TooLarge
from streamapp.generation import MAX_FEATHER, MAX_SEED, GenerationParams, LoraRef, Priority, Size, Start
from streamapp.guarded import GuardedClient, Refused
from streamapp.ids import new_task_id
from streamapp.models import sizes
from streamapp.models.families import Traits, traits_of
from streamapp.models.styles import find_style, styled
from streamapp.models.words import vocabulary_note
from streamapp.recipe import check_provenance
from streamapp.scheduling.cost import estimate
from streamapp.settings import Settings
from streamapp.submit.controls import ControlAsked, control_refs, find_controls
from streamapp.submit.fallback import clip_skip_of, unless_quarantined, with_fallback
from streamapp.submit.guidance import guidance_of, sampler_of, steps_left
from streamapp.submit.inputs import described, fitting, start_of
from streamapp.submit.weights import Absent, find_embeddings, find_fallback, find_loras, find_model, refs

if TYPE_CHECKING:
    from streamapp.runtime import Runtime

Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
ClipSkip = Annotated[int, Field(ge=1, le=MAX_CLIP_SKIP)]
Strength = Annotated[float, Field(gt=0, le=1)]
Feather = Annotated[int, Field(ge=0, le=MAX_FEATHER)]
ResizeMode = Literal["crop", "fill", "stretch"]
#: Ids, sizes and times that the message holds beside the parameters, in bytes.
ENVELOPE = 1024
#: The outbox of this process has this long to deliver a new row before the sweeper does, in milliseconds.
HOT_MS = 2_000
RETRY_AFTER = 10


class Submission(BaseModel):
    """A request in the one form that every API adapter makes; ``None`` asks for the model's own default.

    ``seed`` is that of the first picture; ``request`` is the body as it came, for the row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    model: str | None = None
    fallback_model: str | None = None
    loras: tuple[LoraRef, ...] = ()
    size: Size | None = None
    strict_size: bool = False
    style: str | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    true_cfg: Guidance | None = None
    sampler: str | None = None
    clip_skip: ClipSkip | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    negative: str | None = None
    init_image: str | None = None
    mask: str | None = None
    strength: Strength | None = None
    resize_mode: ResizeMode | None = None
    mask_feather: Feather | None = None
    controls: tuple[ControlAsked, ...] = ()
    n: int = Field(1, ge=1)
    priority: Priority = 2
    prefetch: bool = True
    callback_url: str | None = None
    idempotency_key: str | None = Field(None, min_length=1, max_length=200)
    provenance: Mapping[str, Any] | None = None
    trace: str | None = None
    request: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The row, whether it is new (else the same idempotency key made it before), and sentences for the answer."""

    row: TaskRow
    created: bool
    notes: tuple[str, ...]


async def submit(runtime: Runtime, submission: Submission, user: str) -> Accepted:
    """Accept a task: resolve it, insert its row, hand it to the outbox. Never waits for the broker.

    Raises:
        InvalidRequest: something cannot be done as asked; says what to change.
        Quarantined: its weights failed to load too often, and it has no fallback model.
        Conflict: ``provenance`` names weights that are others here.
        Overloaded: as many tasks as the settings allow are waiting.
        AppError: weights that it names by a reference cannot be had; ``code`` and ``status`` say why.
        Unavailable: the database does not answer; nothing was accepted, or the answer was lost.
    """
    settings = runtime.settings
    _check(submission, settings)
    await _room(runtime)
    shelf = runtime.shelf
    absent = Absent(submission.prefetch and settings.fetch != "off", runtime.references)
    model = await find_model(shelf, submission.model, settings, absent)
    loras = await find_loras(shelf, submission.loras, model, absent)
    said = styled(submission.text, submission.style), submission.negative or ""
    embeddings = await find_embeddings(shelf, model, *said)
    started = submission.init_image is not None
    nets = await find_controls(shelf, submission.controls, model, absent, started=started)
    start = await start_of(runtime, submission, model)
    controls = await control_refs(runtime, submission.controls, nets)
    own = _resolve(submission, model, loras, start)
    params = await with_fallback(
        submission,
        own.model_copy(update={"embeddings": refs(embeddings), "controls": controls}),
        model,
        loras,
        settings,
        lambda name: find_fallback(shelf, name, settings),
    )
    params = unless_quarantined(params, model)
    _check_length(params, settings)
    _check_provenance(submission.provenance, params, model, (*loras, *embeddings, *nets))
    new = replace(_task(submission, params, user, runtime), fetching=bool(absent.rows))
    await absent.promise()
    row, created = await runtime.tasks.insert(new)
    if created and not new.fetching:
        runtime.outbox.offer(row)
    if created:
        return Accepted(row, True, (*params.notes, *absent.notes()))
    again = "this idempotency_key was used before: this is the task it made"
    if row.request != new.request:
        again += ", and this request, which differs from the first one, made none"
    return Accepted(row, False, (again, *row.params.notes))


def _check_provenance(
    provenance: Mapping[str, Any] | None, params: GenerationParams, model: ModelRow, added: Sequence[LoraRow]
) -> None:
    if provenance is not None:
        check_provenance(
            provenance,
            model_digest=model.digest,
            lora_digests={row.name: row.digest for row in added},
            prompt=params.prompt,
            drawn=str(params.drawn),
        )


def _check(asked: Submission, settings: Settings) -> None:
    """What can be judged without asking anybody."""
    if not asked.text.strip():
        raise InvalidRequest("text is empty: say what the picture shall show", field="text")
    for field, text in (("text", asked.text), ("negative_text", asked.negative or "")):
        if len(text) > settings.max_prompt_chars:
            raise InvalidRequest(
                f"{field} has {len(text)} characters, at most {settings.max_prompt_chars} are read", field=field
            )
    if asked.n > settings.max_images:
        raise InvalidRequest(
            f"batch_size {asked.n} is more than the {settings.max_images} pictures one task may have: "
            "submit several tasks",
            field="batch_size",
        )
    if asked.seed is not None and asked.seed + asked.n - 1 > MAX_SEED:
        raise InvalidRequest(
            f"picture i uses seed + i, and {asked.seed} + {asked.n - 1} is more than {MAX_SEED}: take a smaller seed",
            field="seed",
        )
    if asked.callback_url is not None:
        if len(asked.callback_url) > 2_000:
            raise InvalidRequest("callback_url is longer than 2,000 characters", field="callback_url")
        _check_callback(asked.callback_url, settings)


def _check_callback(url: str, settings: Settings) -> None:
    """What can be judged of a webhook without asking anybody; what its name resolves to is judged when it is sent."""
    if not (settings.webhook_secret or settings.embedded):
        raise InvalidRequest(
            "callback_url: webhooks are signed and this service has no secret: "
            "its operator has to set STREAMAPP_WEBHOOK_SECRET",
            field="callback_url",
        )
    try:
        GuardedClient(allow_private=settings.allow_private_callbacks).check(url)
    except Refused as error:
        hint = "" if error.details.get("host") is None else " (STREAMAPP_ALLOW_PRIVATE_CALLBACKS allows such addresses)"
        raise InvalidRequest(f"callback_url: {error.message}{hint}", field="callback_url") from error


async def _room(runtime: Runtime) -> None:
    """Refuse while the service is full: nothing that is accepted is ever dropped."""
    limit = runtime.settings.max_queued
    if await runtime.tasks.queued(limit) >= limit:
        raise Overloaded(
            f"{limit} tasks are waiting, which is as many as this service accepts: come again in {RETRY_AFTER} s",
            retry_after=RETRY_AFTER,
        )


def _resolve(asked: Submission, model: ModelRow, loras: Sequence[LoraRow], start: Start | None) -> GenerationParams:
    """The complete parameters: no default is left open."""
    traits = traits_of(model.family, model.traits)
    style = find_style(asked.style)
    prompt = styled(asked.text, asked.style)
    wanted = asked.size or (_native(traits) if start is None else fitting(start.image))
    size = sizes.fit(wanted, traits, asked.strict_size, model=model.name)
    steps = traits.steps if asked.steps is None else asked.steps
    _check_steps(steps, start, model.family)
    guidance = guidance_of(asked.guidance, asked.true_cfg, asked.negative, model, traits)
    words = vocabulary_note(model.name, model.traits, asked.text)
    return GenerationParams(
        kind="txt2img" if start is None else "img2img" if start.mask is None else "inpaint",
        text=asked.text,
        prompt=prompt,
        negative_prompt=asked.negative or None,
        style=style.name if style else None,
        model=model.name,
        family=model.family,
        # By name: the request may have said a digest or a page.
        loras=tuple(LoraRef(name=row.name, weight=ref.weight) for row, ref in zip(loras, asked.loras, strict=True)),
        delivered=size.delivered,
        drawn=size.drawn,
        steps=steps,
        guidance=guidance.scale,
        true_cfg=guidance.true_cfg,
        sampler=sampler_of(asked.sampler, model, traits),
        clip_skip=clip_skip_of(asked.clip_skip, traits, model.name),
        seed=secrets.randbelow(MAX_SEED - asked.n + 2) if asked.seed is None else asked.seed,
        n=asked.n,
        start=start,
        notes=(*size.notes, *guidance.notes, *([words] if words else [])),
    )


def _check_steps(steps: int, start: Start | None, family: str) -> None:
    if start is not None and steps_left(steps, start.strength, family) < 1:
        raise InvalidRequest(
            f"strength {start.strength} leaves nothing of {steps} steps to do: give more of either", field="strength"
        )


def _check_length(params: GenerationParams, settings: Settings) -> None:
    """Refuse what the message could not hold."""
    room = settings.max_message_bytes - ENVELOPE
    if (length := len(params.model_dump_json().encode())) > room:
        raise TooLarge(f"the request has {length} bytes, a task may have {room}: shorten text or negative_text")


def _native(traits: Traits) -> Size:
    return Size(width=traits.native, height=traits.native)


def _task(asked: Submission, params: GenerationParams, user: str, runtime: Runtime) -> NewTask:
    settings = runtime.settings
    limits = (settings.deadline_urgent, settings.deadline_urgent, settings.deadline_normal, None)
    deadline = limits[asked.priority]
    return NewTask(
        id=new_task_id(runtime.clock.now()),
        user_id=user,
        idempotency_key=asked.idempotency_key,
        priority=asked.priority,
        family=params.family,
        model=params.model,
        params=params,
        request=described(asked.request, params),
        cost=estimate(params),
        max_attempts=settings.max_attempts,
        deadline_ms=None if deadline is None else int(deadline * 1000),
        callback_url=asked.callback_url,
        trace=asked.trace,
        produce_delay_ms=HOT_MS,
    )
