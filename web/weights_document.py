"""What ``/openapi.json`` says of models, LoRAs, uploads and fetches."""

from __future__ import annotations

from typing import Any

from web.answers import API
from web.operations import in_data, operation, record

TEXT: dict[str, Any] = {"type": "string"}
LOOSE: dict[str, Any] = {"type": "object"}
NUMBER = {"type": ["integer", "null"]}
NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 200}}


def weights() -> dict[str, Any]:
    """The paths."""
    every = operation(
        "models",
        "What can be drawn with",
        "Models, LoRAs, learned words, ControlNets, samplers, styles.",
        in_data(LOOSE),
    )
    loras = operation("models", "List the LoRAs", "Those of the families served.", in_data(record({"loras": _list()})))
    nets = operation(
        "models", "List the ControlNets", "Those of the families served.", in_data(record({"controlnets": _list()}))
    )
    fetches = operation(
        "models", "List the fetches of this process", "Newest first.", in_data(record({"fetches": _list(_fetch())}))
    )
    fetch = operation("models", "Show a fetch", "Its progress in bytes, or why it failed.", in_data(_fetch()), 404)
    item = {**NAME, "name": "fetch_id"}
    return {
        f"{API}/models": {"get": every},
        f"{API}/models/pull": {"post": _pull("model")},
        f"{API}/models/{{name}}": _one("model"),
        f"{API}/models/{{name}}/warm": _warm("model"),
        f"{API}/models/{{name}}/release": _release("model"),
        f"{API}/loras": {"get": loras, "post": _upload("Upload a LoRA")},
        f"{API}/loras/pull": {"post": _pull("LoRA")},
        f"{API}/loras/{{name}}": _one("LoRA"),
        f"{API}/loras/{{name}}/warm": _warm("LoRA"),
        f"{API}/loras/{{name}}/release": _release("LoRA"),
        f"{API}/controlnets": {"get": nets},
        f"{API}/controlnets/pull": {"post": _pull("ControlNet")},
        f"{API}/controlnets/{{name}}": _one("ControlNet"),
        f"{API}/controlnets/{{name}}/warm": _warm("ControlNet"),
        f"{API}/controlnets/{{name}}/release": _release("ControlNet"),
        f"{API}/lora/upload": {"post": _upload("Upload a LoRA here as well")},
        f"{API}/fetches": {"get": fetches},
        f"{API}/fetches/{{fetch_id}}": {"parameters": [item], "get": fetch},
    }


def _one(what: str) -> dict[str, Any]:
    states = {"enum": ["here", "missing", "evicted", "pending", "quarantined"]}
    shown = record({"name": TEXT, "state": states, "pinned": {"type": "boolean"}})
    show = operation(
        "models", f"Show a {what}", "Licence, page, digest, versions, whether it is here.", in_data(shown), 404
    )
    done = record({"name": TEXT, "versions": _list(TEXT), "freed": {"type": "integer"}})
    remove = operation(
        "models",
        f"Delete a {what}",
        "For operators. Its files go, too, unless another name has them; not while tasks use it.",
        in_data(done),
        400,
        403,
        404,
        409,
    )
    remove["parameters"] = [{"name": "version", "in": "query", "description": "Without it all.", "schema": TEXT}]
    return {"parameters": [NAME], "get": show, "delete": remove}


def _warm(what: str) -> dict[str, Any]:
    seconds = {"type": ["number", "null"]}
    done = record({"name": TEXT, "state": {"enum": ["ready", "on its way"]}, "seconds": seconds})
    warm = operation(
        "models",
        f"Make a {what} ready",
        "For operators, of a process with a worker: fetched when it is not here, then loaded (a LoRA or "
        "ControlNet: read). Ask again after 202.",
        in_data(done),
        *(400, 403, 404, 409, 502, 507),
    )
    warm["responses"]["202"] = {**warm["responses"]["200"], "description": "It takes longer; it goes on meanwhile."}
    return {"parameters": [NAME], "post": warm}


def _release(what: str) -> dict[str, Any]:
    done = record({"name": TEXT, "released": {"type": "boolean"}})
    release = operation("models", f"Release a {what}", "For operators: out of its quarantine.", in_data(done), 403, 404)
    return {"parameters": [NAME], "post": release}


def _pull(what: str) -> dict[str, Any]:
    pull = operation(
        "models",
        f"Fetch a {what}",
        "For operators. Answers at once; ask for the fetch. What it is, it is registered as.",
        in_data(_fetch()),
        400,
        403,
        413,
        429,
    )
    pull["responses"]["202"] = {**pull["responses"].pop("200"), "description": "It is being fetched."}
    fields = {"reference": {**TEXT, "examples": ["civitai:4384@128713", "OWNER/NAME:FILE.safetensors"]}, "name": TEXT}
    body = {"type": "object", "properties": fields, "required": ["reference"], "additionalProperties": False}
    pull["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return pull


def _upload(summary: str) -> dict[str, Any]:
    shown = record({"name": TEXT, "digest": TEXT, "family": TEXT, "created": {"type": "boolean"}})
    upload = operation(
        "models",
        summary,
        "A .safetensors file; the next request may name it. The same file again changes nothing.",
        in_data(shown),
        400,
        409,
        413,
        507,
    )
    fields = {"file": {"type": "string", "contentMediaType": "application/octet-stream"}, "name": TEXT, "family": TEXT}
    body = {"type": "object", "properties": fields, "required": ["file"]}
    upload["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": body}}}
    return upload


def _fetch() -> dict[str, Any]:
    states = {"enum": ["waiting", "fetching", "done", "failed"]}
    error = {"type": ["object", "null"]}
    return record({"id": TEXT, "reference": TEXT, "state": states, "bytes": NUMBER, "total": NUMBER, "error": error})


def _list(item: dict[str, Any] = LOOSE) -> dict[str, Any]:
    return {"type": "array", "items": item}
