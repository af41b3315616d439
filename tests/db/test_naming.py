"""Which weights are named by tasks that have not ended."""

from __future__ import annotations

import pytest

from streamapp.db import Claims, State, Tasks
from streamapp.generation import Fallback, LoraRef, Size
from tests.db.support import claim, end, new, params

SIDE = Size(width=128, height=128)


async def test_queued_and_running_tasks_name_their_weights_and_ended_ones_do_not(tasks: Tasks, claims: Claims) -> None:
    drawn = params(model="dream_1", loras=(LoraRef(name="Brush é", weight=1.0),))
    await tasks.insert(new("t1", params=drawn, model="dream_1"))
    assert await tasks.naming("model", "dream_1")
    assert await tasks.naming("lora", "Brush é")
    [row] = await claim(claims, "t1")
    assert await tasks.naming("model", "dream_1")
    assert await tasks.naming("lora", "Brush é")
    assert (await claims.finish([end(row, State.SUCCEEDED)]))["t1"] is State.SUCCEEDED
    assert not await tasks.naming("model", "dream_1")
    assert not await tasks.naming("lora", "Brush é")


async def test_a_fallback_is_named(tasks: Tasks) -> None:
    other = Fallback(
        model="spare", family="sd15", delivered=SIDE, drawn=SIDE, steps=1, guidance=1.0, sampler="Euler", notes=()
    )
    await tasks.insert(new("t1", params=params(fallback=other)))
    assert await tasks.naming("model", "spare")


@pytest.mark.parametrize("name", ["dreamX1", "dream_", "DREAM_1", "%", "ream_1", "said"])
async def test_similar_names_and_words_of_prompts_are_not_meant(tasks: Tasks, name: str) -> None:
    drawn = params(model="dream_1", text='"model":"said" "name":"said"', loras=(LoraRef(name="dream_1", weight=1.0),))
    await tasks.insert(new("t1", params=drawn))
    assert not await tasks.naming("model", name)
    assert not await tasks.naming("lora", name)
