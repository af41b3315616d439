"""``/openapi.json`` (OpenAPI 3.1) from the very models that check requests."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from streamapp import __version__
from streamapp.db import State
from web.answers import API, raw
from web.fields import Generate
from web.operations import REFS, in_data, inputs, operation, record, ref
from web.weights_document import weights

TASK = {"name": "task_id", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 64}}
ADDRESS = {"type": "string", "format": "uri-reference"}
TIME = {"type": ["string", "null"], "format": "date-time"}


def attach(app: Any) -> None:
    """Add the route."""
    document = build()

    async def openapi(_: web.Request) -> web.Response:
        return raw(document)

    app.web.web_app.router.add_get("/openapi.json", openapi)


def build() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamapp",
            "version": __version__,
            "summary": "Pictures from words, on as many GPUs as there are.",
            "description": "Submit a task, follow it, fetch its pictures. Fields that are unknown are refused by name.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"key": []}],
        "tags": [
            {"name": "tasks", "description": "Submit, look, follow, cancel."},
            {"name": "dead letters", "description": "What could not be worked off: look, replay, drop."},
            {"name": "models", "description": "What can be drawn with: look, fetch, upload, delete."},
            {"name": "service", "description": "Workers, pictures, health."},
        ],
        "paths": {**_tasks(), **_letters(), **weights(), **_service()},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": _schemas(),
        },
    }


def _tasks() -> dict[str, Any]:
    events = operation("tasks", "Follow a task", "Server-sent events until it has ended; `Last-Event-ID` resumes.", {})
    events["responses"]["200"] = {
        "description": "Events of type `task`; the last one is the whole task.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    events["responses"]["204"] = {"description": "It had ended at the event that was seen last."}
    events["parameters"] = [{"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}]
    submit = operation(
        "tasks",
        "Submit a task",
        "Answers when the task is stored, before it is drawn.",
        _data("Accepted"),
        *(400, 403, 404, 409, 413, 422, 429, 502, 507),
    )
    submit["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref("Generate")}}}
    submit["parameters"] = [{"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 200}}]
    many = operation("tasks", "List the newest tasks", "Newest first.", _data("Tasks"), 400)
    many["parameters"] = [
        {"name": "status", "in": "query", "schema": ref("Status")},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 20}},
        {"name": "before", "in": "query", "description": "`next_before` of a page.", "schema": {"type": "string"}},
    ]
    one = operation("tasks", "Show a task", "State, pictures, timings and the exact recipe.", _data("Task"), 404)
    cancel = operation(
        "tasks", "Cancel a task", "At once, or between two steps of its drawing.", _data("Cancelled"), 404, 409
    )
    path = f"{API}/image/task/{{task_id}}"
    return {
        f"{API}/image/generate": {"post": submit},
        f"{API}/image/inputs": {"post": inputs()},
        f"{API}/image/tasks": {"get": many},
        path: {"parameters": [TASK], "get": one, "delete": cancel},
        f"{path}/events": {"parameters": [TASK], "get": events},
    }


def _letters() -> dict[str, Any]:
    path = f"{API}/dead_letters"
    item = {"name": "letter_id", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 200}}
    text, loose = {"type": "string"}, {"type": "object"}
    letter = record({"id": text, "state": {"enum": ["open", "replayed", "dropped"]}, "reason": text, "message": text})
    page = record({"letters": {"type": "array", "items": letter}, "next_before": {"type": ["string", "null"]}})
    many = operation(
        "dead letters", "List dead letters", "Newest first; without the bytes of messages.", in_data(page), 400
    )
    states = {"enum": ["open", "replayed", "dropped", "all"], "default": "open"}
    many["parameters"] = [
        {"name": "state", "in": "query", "schema": states},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}},
        {"name": "before", "in": "query", "description": "`next_before` of a page.", "schema": text},
    ]
    one = operation(
        "dead letters", "Show a dead letter", "With its history, or its bytes in base64.", in_data(letter), 404
    )
    done = in_data(record({"id": text, "outcome": {"enum": ["replayed", "dropped"]}}))
    again = operation(
        "dead letters", "Replay a dead letter", "The same task id, attempts counted from zero.", done, 404, 409
    )
    drop = operation("dead letters", "Drop a dead letter", "Its task stays failed, and says so.", done, 404, 409)
    counts = "Read topics again and queue tasks that failed or expired; the answer counts."
    walk = operation("dead letters", "Replay topics", counts, in_data(loose), 400, 403)
    fields = {
        "since": {"type": "string", "examples": ["2026-11-23T08:30:00Z", "2h"]},
        "topics": {"type": "array", "items": text},
        "cancelled": {"type": "boolean", "default": False},
        "dry_run": {"type": "boolean", "default": False},
    }
    body = {"type": "object", "properties": fields, "required": ["since"], "additionalProperties": False}
    walk["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return {
        path: {"get": many},
        f"{path}/{{letter_id}}": {"parameters": [item], "get": one, "delete": drop},
        f"{path}/{{letter_id}}/replay": {"parameters": [item], "post": again},
        f"{API}/replay": {"post": walk},
    }


def _service() -> dict[str, Any]:
    loose = {"type": "object"}
    file = operation("service", "Fetch a picture", "By the signed address that a task shows.", {}, 403, 404, 416)
    file["responses"]["200"] = {"description": "The picture.", "content": {"image/png": {}}}
    file["responses"]["206"] = {"description": "The range that was asked for.", "content": {"image/png": {}}}
    file["responses"]["304"] = {"description": "The client has it already."}
    key = {"name": "key", "in": "path", "required": True, "schema": {"type": "string"}}
    signed = [{"name": name, "in": "query", "required": True, "schema": {"type": "string"}} for name in ("exp", "sig")]
    status = operation(
        "service", "Workers, backlog, residents, throughput", "From every process the same.", in_data(loose)
    )
    minutes = {"type": "integer", "minimum": 1, "maximum": 1440, "default": 60}
    status["parameters"] = [{"name": "minutes", "in": "query", "schema": minutes}]
    return {
        f"{API}/status": {"get": status},
        "/files/{key}": {"parameters": [key, *signed], "get": file},
        "/healthz": {"get": _probe("Is the process alive", "Asks nobody.")},
        "/readyz": {
            "get": _probe("Can it work right now", "Asks all it depends on.", failing="Something is not ready.")
        },
    }


def _probe(summary: str, description: str, *, failing: str | None = None) -> dict[str, Any]:
    """A question of load balancers, who send no key and read the status only."""
    checks = record({"status": {"type": "string"}}) | {"additionalProperties": True}
    probe = operation("service", summary, description, checks)
    answer = probe["responses"]["200"]
    probe["responses"] = {"200": answer} | ({"503": {**answer, "description": failing}} if failing else {})
    return {**probe, "security": []}


def _data(name: str) -> dict[str, Any]:
    return in_data(ref(name))


def _schemas() -> dict[str, Any]:
    body = Generate.model_json_schema(ref_template=REFS)
    schemas: dict[str, Any] = body.pop("$defs", {})
    text, number = {"type": "string"}, {"type": "number"}
    loose, whole = {"type": "object"}, {"type": "integer"}
    state = {"task_id": text, "status": ref("Status"), "progress": {"type": "number", "minimum": 0, "maximum": 100}}
    drawn = {"drawn_at": text, "delivered_at": text, "notes": {"type": "array", "items": text}}
    links = {"query_url": ADDRESS, "events_url": ADDRESS}
    image = {
        "index": whole, "url": ADDRESS, "content_type": text, "bytes": whole, "width": whole, "height": whole,
        "seed": whole, "digest": text, "recipe": loose,
    }  # fmt: skip
    callback = {
        "type": ["object", "null"],
        "properties": {
            "state": {"enum": ["pending", "delivered", "failed"]}, "attempts": whole, "next_at": TIME,
            "ended_at": TIME, "last_error": {"type": ["string", "null"]},
        },
    }  # fmt: skip
    task = {
        **state, "text": text, "model": text, "fallback_model": {"type": ["string", "null"]},
        "instead_of": {"type": ["object", "null"]}, "family": text, "priority": text, "batch_size": whole, **drawn,
        "submitted_at": TIME, "started_at": TIME, "ended_at": TIME, "attempts": whole, "max_attempts": whole,
        "worker_id": {"type": ["string", "null"]}, "images": {"type": "array", "items": ref("Image")},
        "error": {"type": ["object", "null"]}, **links, "queue_position": {"type": ["integer", "null"]},
        "estimated_time": number, "recipe": ref("Generate"), "timings": loose,
        "history": {"type": "array", "items": loose}, "cancel_requested": {"type": "boolean"}, "deadline_at": TIME,
        "callback_url": {"type": ["string", "null"]}, "callback": callback,
        "idempotency_key": {"type": ["string", "null"]}, "version": whole,
    }  # fmt: skip
    tasks = {"tasks": {"type": "array", "items": ref("Task")}, "next_before": {"type": ["string", "null"]}}
    outcome = {"enum": ["cancelled", "cancelling"]}
    return {
        **schemas,
        "Generate": body,
        "Status": {"type": "string", "enum": [item.value for item in State]},
        "Accepted": record({**state, "estimated_time": number, **links, **drawn, "seed": whole}),
        "Task": {"type": "object", "properties": task, "required": [*state, "text", "images"]},
        "Tasks": record(tasks),
        "Image": {"type": "object", "properties": image, "required": ["index", "url"]},
        "Cancelled": record({**state, "outcome": outcome}),
        "Error": {"type": "object", "properties": {"code": text, "message": text}, "required": ["code", "message"]},
    }
