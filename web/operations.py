"""The pieces that the description of the API is put together from."""

from __future__ import annotations

from typing import Any

REFS = "#/components/schemas/{model}"
#: Statuses that every part of the API may answer with.
ANYWHERE = {
    "401": "No API key, or an unknown one (only where keys are set).",
    "500": "A defect; the message names the request id to look for in the log.",
    "503": "Something this needs does not answer; come again after `Retry-After` seconds.",
}
REFUSALS = {
    400: "Something cannot be done as asked; the message says what to change.",
    403: "The address is not signed by this service or no longer valid, or this is for operators only.",
    404: "There is no such thing.",
    409: "It is not in a state that allows this, or a recipe's weights are others by now.",
    413: "The request is too large.",
    416: "The range lies behind the end.",
    422: "What is named cannot be used for this: a LoRA of another family, a pickled file, another kind of weights.",
    429: "The service is full; come again after `Retry-After` seconds.",
    502: "A site that the request leads to does not answer as it should.",
    507: "The disk, or what models may take of it, is full.",
}


def operation(tag: str, summary: str, description: str, answer: dict[str, Any], *refusals: int) -> dict[str, Any]:
    """One operation; ``answer`` is the schema of its JSON."""
    error = {"application/json": {"schema": ref("Error")}}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": {"application/json": {"schema": answer}}}}
    for status in refusals:
        responses[str(status)] = {"description": REFUSALS[status], "content": error}
    for code, description_ in ANYWHERE.items():
        responses[code] = {"description": description_, "content": error}
    name = "".join(word.capitalize() if number else word.lower() for number, word in enumerate(summary.split()))
    return {
        "tags": [tag],
        "operationId": "".join(char for char in name if char.isalnum()),
        "summary": summary,
        "description": description,
        "responses": responses,
    }


def inputs() -> dict[str, Any]:
    """Sending a picture ahead."""
    text, whole = {"type": "string"}, {"type": "integer"}
    shown = {"id": text, "width": whole, "height": whole, "bytes": whole, "content_type": text, "url": text}
    add = operation(
        "tasks",
        "Send a picture ahead",
        "A PNG, JPEG or WebP file; requests name it by its `id` as `init_image` or `mask`. The same file is kept once.",
        in_data(record(shown)),
        400,
        413,
    )
    binary: dict[str, Any] = {kind: {"schema": {}} for kind in ("image/png", "image/jpeg", "image/webp")}
    fields = {"file": {"type": "string", "contentMediaType": "application/octet-stream"}}
    form = {"type": "object", "properties": fields, "required": ["file"]}
    add["requestBody"] = {"required": True, "content": {**binary, "multipart/form-data": {"schema": form}}}
    return add


def ref(name: str) -> dict[str, Any]:
    """A schema of the document by its name."""
    return {"$ref": REFS.format(model=name)}


def in_data(schema: dict[str, Any]) -> dict[str, Any]:
    """The form of every answer around ``schema``."""
    properties = {"code": {"const": 0}, "message": {"type": "string"}, "data": schema}
    return {"type": "object", "required": ["code", "message", "data"], "properties": properties}


def record(properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}
