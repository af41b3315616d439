"""ControlNets that a request names, each with the picture that it steers by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamapp.db import LoraRow, ModelRow
from streamapp.engine.job import MAX_CONTROLS, MAX_SCALE
from streamapp.engine.preprocess import ABSENT
from streamapp.errors import InvalidRequest
from streamapp.generation import ControlRef
from streamapp.models import quarantine
from streamapp.models.cache import EVICTED
from streamapp.models.families import FAMILIES, family
from streamapp.models.referenced import Unfit
from streamapp.models.steering import is_controlnet
from streamapp.submit.inputs import Parts, taken
from streamapp.submit.weights import Absent, unknown

if TYPE_CHECKING:
    from streamapp.submit.shelf import Shelf

Preprocessor = Literal["none", "canny", "depth", "pose"]
Share = Annotated[float, Field(ge=0, le=1)]


class ControlAsked(BaseModel):
    """One ControlNet of a request; ``image`` is given like a picture to start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, max_length=200)
    image: str = Field(min_length=1)
    scale: float = Field(1.0, ge=0, le=MAX_SCALE)
    start: Share = 0.0
    end: Share = 1.0
    preprocessor: Preprocessor = "none"
    mode: int | None = Field(None, ge=0, le=63)


class MissingWeights(InvalidRequest):
    """What would be done needs weights that are not there."""

    code = "missing_weights"


async def find_controls(
    shelf: Shelf,
    asked: Sequence[ControlAsked],
    model: ModelRow,
    absent: Absent | None = None,
    *,
    started: bool = False,
) -> list[LoraRow]:
    """The ControlNets that are meant, in the order of the request; their pictures are not looked at.

    ``started`` says whether the request starts from a picture.

    Raises:
        InvalidRequest: one is not registered or does not fit the model, the model takes none, or its values do not
            go together.
        MissingWeights: a preprocessor's.
        Quarantined: one failed to load too often.
        AppError: its site refuses it, see :meth:`References.row`.
    """
    if not asked:
        return []
    if len(asked) > MAX_CONTROLS:
        raise InvalidRequest(
            f"{len(asked)} ControlNets are named, at most {MAX_CONTROLS} steer together", field="controls"
        )
    if not family(model.family).controlnets:
        able = ", ".join(kind.name for kind in FAMILIES.values() if kind.controlnets)
        raise Unfit(
            f"{model.name} is of family {model.family}, whose models take no ControlNet yet; those of {able} do",
            field="controls",
        )
    if started and family(model.family).flow:
        raise InvalidRequest(
            f"{model.name} starts from a picture or is steered by ControlNets, not both: leave one of them out",
            field="controls",
        )
    for number, control in enumerate(asked):
        _check(control, f"controls.{number}")
    return [await _found(shelf, control, number, model, absent) for number, control in enumerate(asked)]


def _check(control: ControlAsked, field: str) -> None:
    if not control.start < control.end:
        raise InvalidRequest(
            f"{field} starts at {control.start} and ends at {control.end} of the steps: it must begin before it ends",
            field=f"{field}.end",
        )
    if control.preprocessor in ABSENT:
        raise MissingWeights(
            f"{field}: preprocessor {control.preprocessor} needs the weights of {ABSENT[control.preprocessor]}, which "
            "are not here: send a picture that is preprocessed already with preprocessor none, or use canny",
            field=f"{field}.preprocessor",
        )


async def _found(shelf: Shelf, control: ControlAsked, number: int, model: ModelRow, absent: Absent | None) -> LoraRow:
    field, name = f"controls.{number}.model", control.model
    row = await shelf.lora(name)
    if row is None and absent is not None:
        coming = await absent.find("controlnet", name)
        row = coming if isinstance(coming, LoraRow) else None
    if row is None:
        raise unknown("ControlNet", name, [each.name for each in await shelf.loras() if is_controlnet(each)], field)
    if not is_controlnet(row):
        raise InvalidRequest(f"{row.name} is no ControlNet: name it in loras or in the text", field=field)
    if row.family != model.family:
        raise Unfit(
            f"ControlNet {row.name} fits models of family {row.family}, and {model.name} is of {model.family}",
            field=field,
        )
    modes = int(row.traits.get("modes", 0))
    if modes and (control.mode is None or control.mode >= modes):
        raise InvalidRequest(
            f"{row.name} is a union of ControlNets: say its mode, 0 to {modes - 1}", field=f"controls.{number}.mode"
        )
    quarantine.refuse(row)
    if row.traits.get(EVICTED):
        (absent or Absent()).add(row)
    return row


async def control_refs(parts: Parts, asked: Sequence[ControlAsked], rows: Sequence[LoraRow]) -> tuple[ControlRef, ...]:
    """The controls of a task, their pictures kept here.

    Raises:
        InvalidRequest, TooLarge: see :func:`streamapp.submit.inputs.taken`.
    """
    return tuple(
        [
            ControlRef(
                name=row.name,
                image=await taken(parts, control.image, f"controls.{number}.image"),
                scale=control.scale,
                start=control.start,
                end=control.end,
                preprocessor=control.preprocessor,  # type: ignore[arg-type] # the others are refused before
                mode=control.mode if row.traits.get("modes") else None,
            )
            for number, (control, row) in enumerate(zip(asked, rows, strict=True))
        ]
    )
