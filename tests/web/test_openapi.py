"""The description says what the service does: every route, and the form of every answer."""

from __future__ import annotations

from typing import Any, cast

import jsonschema  # type: ignore[import-untyped]
import pytest
from aiohttp.web import Application
from faust.web.drivers.aiohttp import Web
from openapi_spec_validator import OpenAPIV31SpecValidator

from streamapp.db import State
from tests.web.conftest import Answer, Api
from web.openapi import build

#: Pages and their parts are for browsers.
PAGES = ("/static/", "/docs", "/openapi.json")


def routes(app: Application) -> set[tuple[str, str]]:
    """Method and path of everything that is served."""
    found = set()
    for route in app.router.routes():
        path = route.resource.canonical if route.resource else ""
        if route.method not in {"HEAD", "*"} and path != "/" and not path.startswith(PAGES):
            found.add((route.method, path))
    return found


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(build()).validate()


async def test_what_is_served_is_described_and_the_reverse(api: Api) -> None:
    document = (await api.get("/openapi.json")).json
    described = {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method in {"get", "post", "put", "delete", "patch"}
    }
    assert described == routes(cast("Web", api.app.web).web_app)
    assert document == build()


def check(document: dict[str, Any], method: str, path: str, answer: Answer) -> None:
    """The answer fits what the document says of it."""
    described = document["paths"][path][method]["responses"][str(answer.status)]
    schema = described["content"]["application/json"]["schema"]
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(answer.json)


@pytest.fixture
async def filled(api: Api) -> list[str]:
    """A task of each kind: waiting, running, succeeded, failed."""
    ids = [await api.submitted() for _ in range(4)]
    await api.claimed(ids[1])
    await api.ended(ids[2])
    await api.ended(ids[3], State.FAILED, error={"code": "engine_crashed", "message": "it died"})
    return ids


async def test_answers_have_the_form_that_is_described(api: Api, filled: list[str]) -> None:
    document = build()
    task = "/api/v1/image/task/{task_id}"
    for task_id in filled:
        check(document, "get", task, await api.get(task.format(task_id=task_id)))
        check(document, "delete", task, await api.call("DELETE", task.format(task_id=task_id)))
    check(document, "get", task, await api.get(task.format(task_id="nothing")))
    generate = "/api/v1/image/generate"
    for body in ({"text": "a"}, {}, {"text": "a", "params": {"n": 1}}):
        check(document, "post", generate, await api.generate(body))
    for path in ("/api/v1/image/tasks", "/api/v1/status", "/api/v1/models", "/healthz"):
        check(document, "get", path, await api.get(path))
    check(document, "get", "/api/v1/image/tasks", await api.get("/api/v1/image/tasks?limit=0"))
    check(document, "get", "/readyz", await api.get("/readyz"))
