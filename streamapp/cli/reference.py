"""The settings in words: what is in force, and the reference page that docs/settings.md is generated from."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from streamapp.settings import PREFIX, Settings
from streamapp.telemetry import HIDDEN, SECRET_NAME, scrub

#: Section, then setting and what it means. A test holds this to the fields of `Settings`.
MEANING: dict[str, dict[str, str]] = {
    "Where things are": {
        "broker": "`embedded://` keeps the log in a file of this one process; `kafka://host:port,…` is a cluster.",
        "database": "`sqlite+aiosqlite:///PATH` or `mysql+aiomysql://user:password@host/name`. "
        "Not set: SQLite in the data folder.",
        "storage": "`file:///FOLDER` or `s3://bucket/prefix`. Not set: a folder in the data folder.",
        "data_dir": "Everything that this process keeps: embedded log, SQLite, pictures, models, table state.",
        "s3_endpoint": "Address of an S3 server that is not AWS. Keys and region come from the usual AWS variables.",
        "host": "Address to bind to. A public one requires `STREAMAPP_API_KEYS`.",
        "port": "Port of the API and the views; 0 takes a free one.",
        "public_url": "Address under which users reach the API, when it is not host and port (a proxy in front).",
    },
    "Who this process is and what it serves": {
        "app_id": "The Faust app id, which is the Kafka consumer group: workers that share it share the work.",
        "worker_id": "Name of this worker; must differ from every other. Default: host name and four random digits.",
        "families": "Families of models that this worker serves, separated by commas.",
        "engine": "`process`: a child process (production). `inline`: a thread of this process. "
        "`fake`, `fake-process`: the same two drawing nothing real, for load tests.",
        "device": "Where the engine computes; one GPU per worker.",
        "engine_threads": "CPU threads of the engine.",
        "strict_precision": "Refuse to load a model in less precision than its own where memory is short (above 90 %).",
        "max_batch_rows": "Most samples in one denoiser call. Not set: chosen by the engine for its device.",
    },
    "Topics": {
        "partitions": "Partitions of every task topic and of `task_events`: the most workers that can share a family. "
        "Not set: 24 on Kafka, 4 embedded.",
        "replication": "Copies of each partition on Kafka; 3 advised, 1 for a single broker.",
        "retention_days": "How long Kafka keeps delivered records.",
        "embedded_max_bytes": "Largest size of the embedded log; above it producing waits.",
    },
    "Kafka security": {
        "kafka_security_protocol": "Handed to the driver as it is.",
        "kafka_sasl_mechanism": "Handed to the driver as it is.",
        "kafka_username": "SASL user.",
        "kafka_password": "SASL password.",
        "kafka_ca_file": "Certificate authority of the brokers (PEM).",
        "kafka_compression": "Compression of what is produced.",
    },
    "Time-outs and periods, in seconds": {
        "lease": "How long a claimed task stays with a worker that says nothing.",
        "lease_renewal": "How often leases are renewed, in bulk; at most half of `STREAMAPP_LEASE`.",
        "session_timeout": "After this silence Kafka gives a worker's partitions to others.",
        "heartbeat_interval": "How often the group hears from this process.",
        "commit_interval": "How often offsets are committed.",
        "drain": "How long a stopping worker may finish what it draws; the rest is handed back.",
        "window": "How long a worker gathers tasks for one batch when the engine has no room at once.",
        "status_interval": "Shortest pause between two status records of a worker.",
        "status_keepalive": "Longest pause between two status records of a worker.",
        "worker_silence": "A worker silent for this long leaves the status tables.",
        "engine_start": "How long the engine may take to become ready.",
        "reconcile_interval": "How often rows whose message got lost are looked for.",
    },
    "Limits": {
        "lookahead": "Most jobs that one worker holds; priorities and fairness end where it ends.",
        "max_queued": "Above this many waiting tasks a submit is answered 429.",
        "spool_bytes": "Finished pictures that one worker keeps while the storage is away; above it, nothing is drawn.",
        "keep_days": "How long an ended task is kept, with its pictures, webhooks and dead letter, and a picture that "
        "was sent in after its last use; then all of them are deleted. 0 keeps them for ever.",
        "max_attempts": "After this many failed attempts a task goes to the dead letters.",
        "fallback_models": "What draws a task of a family after its model failed for good: `FAMILY=MODEL`, separated "
        "by commas. A request may name another, or `none`; answer and recipe say what was drawn.",
        "max_images": "Most pictures of one task.",
        "max_prompt_chars": "Longest prompt.",
        "max_request_bytes": "Largest request body, pictures in it not counted.",
        "max_input_bytes": "Largest picture that a request may start from, or its mask, as a file.",
        "max_input_pixels": "Most pixels of such a picture.",
        "allow_private_inputs": "Allow `init_image` and `mask` to be fetched from private addresses.",
        "max_message_bytes": "Largest record on a topic.",
        "deadline_urgent": "A P0 or P1 task that has not started after this long expires.",
        "deadline_normal": "The same for P2 and P3.",
    },
    "Webhooks": {
        "webhook_secret": "Secret that signs what is sent to a `callback_url`: `whsec_` and 24 to 64 bytes in base64. "
        "Several, separated by commas, each sign, for a change of secrets. Not set: in embedded mode made up and kept "
        "in `webhook-secret` of the data folder; elsewhere a `callback_url` is refused.",
        "webhook_attempts": "How often delivery is tried, over 14 hours by default, before it is given up.",
        "webhook_timeout": "Seconds that a receiver may take to answer.",
        "allow_private_callbacks": "Allow `callback_url` to point at private addresses.",
    },
    "Sources of models": {
        "civitai_url": "Civitai, or a mirror that speaks its API.",
        "civitai_token": "API key of a Civitai account, for what only known people are shown; sent to that host alone.",
        "hub_url": "The Hugging Face Hub, or a mirror that speaks its API.",
        "hub_token": "Access token of a Hub account, for gated and private repositories; sent to that host alone.",
        "allow_private_sources": "Allow mirrors, and what they redirect to, at private addresses.",
        "fetch": "What requests may have fetched: `off` nothing; `registered` what the registry knows and made room; "
        "`civitai`, `hub` or `any` of both also what a request names by a reference. Not set: `any`, but `registered` "
        "where there are API keys and no `STREAMAPP_MODELS_MAX_BYTES`.",
        "models_max_bytes": "Bytes that weights may take in the data folder's `models`: before more are fetched, those "
        "that were fetched and not used for longest make room, unless they are pinned, in use or waited for. Not set: "
        "no limit.",
        "ram_max_bytes": "Bytes of host memory for copies of weights, which a worker loads without the disk; the least "
        "recently used go. Not set: half of the memory beside a CUDA device, an eighth without one. 0: none.",
        "vram_max_bytes": "Bytes of weights that a worker draws with, on its device; what fits stays loaded, the least "
        "recently used make room. Not set: 85 % of a CUDA device's memory, half of the host's without one.",
        "verify": "When a load reads every byte of the weights: `changed` (first time, and when a file looks touched), "
        "`always`, `never`.",
        "max_upload_bytes": "Largest LoRA that may be uploaded.",
        "ensure": "Models and LoRAs, by name or reference, that must be on a worker's disk before it says that it is "
        "ready; what is missing is pulled, again and again until it is here.",
        "preload": "Models that a worker loads before it says that it is ready, so that the first request waits for no "
        "load: names, or `top:N` for the N used last (at first the model that ships). At most two are loaded. What "
        "cannot be loaded is logged and skipped.",
    },
    "Web and logs": {
        "api_keys": "Keys that the API accepts, separated by commas. Required when `STREAMAPP_HOST` is public.",
        "operators": "Names of the API keys (`NAME:SECRET`) that see everybody's dead letters and unreadable messages, "
        "may replay topics, and fetch and delete models. Without keys everybody may.",
        "log_level": "Least severe line that is written; `debug` also lets Faust and the drivers speak.",
        "log_format": "`text` for people, `json` for a log store.",
    },
}

HEAD = f"""# Settings

Generated by `streamapp settings --markdown`; do not edit by hand.

Every setting is an environment variable `{PREFIX}…`, or the same name in lower case without the prefix in a TOML
file: the one named by `{PREFIX}CONFIG`, else `./streamapp.toml`. The environment wins over the file. A variable that
is unknown or malformed stops the start with a sentence. `streamapp settings` shows what is in force.
"""


def reference() -> str:
    """The page as markdown, from the fields and defaults of :class:`Settings`."""
    parts = [HEAD]
    for section, settings in MEANING.items():
        parts.append(f"\n## {section}\n\n| setting | values | default | meaning |\n| --- | --- | --- | --- |\n")
        for name, meaning in settings.items():
            field = Settings.model_fields[name]
            cells = (f"`{PREFIX}{name.upper()}`", _values(field), _default(field), meaning)
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


def effective(settings: Settings) -> dict[str, tuple[Any, bool]]:
    """Every setting by its variable: value with secrets hidden, and whether it was given."""
    shown: dict[str, tuple[Any, bool]] = {}
    derived = {"database": settings.database_url, "storage": settings.storage_url, "data_dir": settings.data_path}
    for name in Settings.model_fields:
        value = derived.get(name, getattr(settings, name))
        secret = SECRET_NAME.search(name) or isinstance(value, SecretStr)
        shown[PREFIX + name.upper()] = (
            HIDDEN if secret and value else scrub(list(value) if isinstance(value, tuple) else value),
            name in settings.model_fields_set,
        )
    return shown


def _values(field: FieldInfo) -> str:
    """What may be given, in a word or two."""
    words = _words(field.annotation)
    limits = [f"{symbol} {_number(bound)}" for symbol, bound in _bounds(field) if bound is not None]
    return " or ".join(words) + (f", {', '.join(limits)}" if limits else "")


def _words(kind: Any) -> list[str]:
    if isinstance(kind, type):
        plain = {bool: "true/false", int: "whole number", float: "number", tuple: "list"}
        return [] if kind is type(None) else [plain.get(kind, "text")]
    arguments = get_args(kind)
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return [f"`{argument}`" for argument in arguments]
    if getattr(kind, "__origin__", None) is tuple:
        return ["list"]
    found = [word for argument in arguments if not _is_metadata(argument) for word in _words(argument)]
    return found or ["text"]


def _is_metadata(argument: Any) -> bool:
    return isinstance(argument, FieldInfo) or argument is type(None)


def _bounds(field: FieldInfo) -> list[tuple[str, Any]]:
    metadata = list(field.metadata)
    for argument in get_args(field.annotation):
        for inner in getattr(argument, "__metadata__", ()):
            metadata += inner.metadata if isinstance(inner, FieldInfo) else [inner]
    symbols = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
    return [
        (symbol, getattr(item, attribute))
        for item in metadata
        for attribute, symbol in symbols
        if hasattr(item, attribute)
    ]


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1_000_000 else str(value)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "made up"
    default = field.default
    if default is None or default in ("", ()):
        return "not set"
    text = ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)
    return f"`{text.lower() if isinstance(default, bool) else text}`"
