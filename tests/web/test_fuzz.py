"""Whatever is sent, the answer is one of ours: never a defect, never a task that was not meant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.web.conftest import Api, Serve
from web.fields import Generate, Params

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
VALUES = JSON | st.sampled_from(["512x512", "pocket", "DDIM", "P1", 128, 7, 0.5, "a red apple"])
# What a recipe says of its origin, and things that only look like it.
ORIGINS = st.dictionaries(st.sampled_from(["model", "loras", "prompt", "drawn_at"]), JSON, max_size=4)
PARAMS = st.dictionaries(st.sampled_from([*Params.model_fields, "postprocess", "Ω"]), VALUES, max_size=5)
BODIES = st.dictionaries(
    st.sampled_from([*Generate.model_fields, "seed", "prompt"]), VALUES, max_size=4
) | st.fixed_dictionaries(
    {"text": st.text(max_size=60)}, optional={"params": PARAMS, "priority": VALUES, "provenance": ORIGINS}
)


async def judge(api: Api, body: bytes) -> None:
    answer = await api.generate(body)
    assert answer.status in {200, 400, 409, 413}, (body, answer.body)
    if answer.status == 200:
        task_id = answer.data["task_id"]
        assert (await api.get(f"/api/v1/image/task/{task_id}")).data["text"] == orjson.loads(body)["text"]
    else:
        assert answer.json["message"]
        assert answer.json["code"] not in {0, "internal_error"}


async def run(serve: Serve, bodies: list[bytes]) -> None:
    async with serve() as api:
        await asyncio.gather(*(judge(api, body) for body in bodies))


@pytest.fixture
def fresh(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def anew() -> Any:
        folder: Path = tmp_path_factory.mktemp("fuzz")
        return lambda: serve(data_dir=folder)

    return anew


# One service per example is slow, so an example is many bodies.
SETTINGS = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(st.lists(BODIES, min_size=10, max_size=40))
def test_any_body_is_accepted_or_refused(fresh: Any, bodies: list[Any]) -> None:
    asyncio.run(run(fresh(), [orjson.dumps(body) for body in bodies]))


@SETTINGS
@given(st.lists(st.binary(max_size=200), min_size=10, max_size=40))
def test_any_bytes_are_refused(fresh: Any, bodies: list[bytes]) -> None:
    asyncio.run(run(fresh(), bodies))


async def ask(serve: Serve, queries: list[dict[str, str]]) -> None:
    async with serve() as api:
        for path in ("/api/v1/image/tasks", "/api/v1/status", "/files/images/x.png", "/api/v1/image/task/x"):
            for query in queries:
                answer = await api.get(path, params=query)
                assert answer.status in {200, 400, 403, 404}, (path, query, answer.body)


@SETTINGS
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["status", "limit", "before", "minutes", "exp", "sig"]), st.text(max_size=30)),
        min_size=5,
        max_size=10,
    )
)
def test_any_query_is_answered(fresh: Any, queries: list[dict[str, str]]) -> None:
    asyncio.run(ask(fresh(), queries))
