"""Logging: one line per event, for people or for a log store, and never a secret.

Everything goes through one standard-library handler on stderr, structlog's and foreign records alike, so
Faust, the drivers and our own code read the same. ``action`` is the stable word to filter on::

    log = get_logger(__name__)
    with bind(task_id=row.id):
        log.info("drawn and stored", action="finished", images=4)
"""

from __future__ import annotations

import logging
import logging.config
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import orjson
import structlog
from pydantic import SecretStr
from structlog.contextvars import bound_contextvars

from streamapp.settings import Settings

HIDDEN = "***"
#: Names whose values are never shown, whatever they hold. A claim token is not among them: it opens nothing.
SECRET_NAME = re.compile(r"passw|secret|authorization|cookie|api_?key|access_?key|credential", re.IGNORECASE)
URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):([^/@\s]+)@")
SIGNATURE = re.compile(r"([?&](?:sig|X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token)=)[^&\s\"']+")
#: Shorter values would blot out ordinary words.
SHORTEST_SECRET = 6

OWN = ("streamapp", "agents", "tables", "web")
#: Loggers that talk more than an operator can read, with what is kept of them at the default level.
TAMED = {
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    "aiokafka": logging.WARNING,
    "aiohttp.access": logging.WARNING,  # the web part writes its own line per request
    "aiobotocore": logging.WARNING,
    "botocore": logging.WARNING,
    "alembic": logging.WARNING,
    "sqlalchemy": logging.WARNING,
    "aiosqlite": logging.WARNING,
    "asyncio": logging.WARNING,
    "PIL": logging.WARNING,
    "diffusers": logging.ERROR,
    "transformers": logging.ERROR,
    "urllib3": logging.WARNING,
}

Event = MutableMapping[str, Any]


def configure_logging(settings: Settings) -> None:
    """Send all logging of this process to stderr, as ``settings.log_level`` and ``log_format`` say."""
    logging.config.dictConfig(logging_config(settings))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def logging_config(settings: Settings) -> dict[str, Any]:
    """The same as a ``dictConfig``; Faust's ``logging_config`` setting takes it, else Faust puts its own back."""
    level = settings.log_level.upper()
    quiet = {} if level == "DEBUG" else {name: {"level": keep} for name, keep in TAMED.items()}
    secrets = known_secrets(settings)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"repeats": {"()": Repeats}, "chatter": {"()": Chatter}},
        "formatters": {"line": {"()": _formatter, "style": settings.log_format, "secrets": secrets}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "line",
                "filters": ["repeats"] if level == "DEBUG" else ["chatter", "repeats"],
            }
        },
        "loggers": quiet,
        "root": {"level": level, "handlers": ["stderr"]},
    }


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module; keyword arguments of its calls become fields of the line."""
    return structlog.stdlib.get_logger(name)


def bind(**fields: Any) -> AbstractContextManager[None]:
    """Add ``fields`` to every line written inside the ``with`` block, by this task and those it starts."""
    return cast("AbstractContextManager[None]", bound_contextvars(**fields))


class Chatter(logging.Filter):
    """Drops what Faust's services say about starting and stopping, which also comes under our own names."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record is written."""
        return record.levelno > logging.INFO or not str(record.msg).startswith("[^")


class Repeats(logging.Filter):
    """Lets a foreign warning through a few times per period, then counts.

    A broker that is down for twenty seconds otherwise writes thousands of equal lines.
    """

    BURST, PERIOD, KEPT = 3, 10.0, 500

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record is written; the first one after a pause says how many were not."""
        if record.levelno < logging.WARNING or record.name.partition(".")[0] in OWN:
            return True
        key = (record.name, record.levelno, str(record.msg)[:200])
        now = time.monotonic()
        since, count = self._seen.get(key, (now, 0))
        if now - since >= self.PERIOD:
            if count > self.BURST:
                record.suppressed = count - self.BURST
            since, count = now, 0
        if key not in self._seen and len(self._seen) >= self.KEPT:
            self._seen.clear()
        self._seen[key] = (since, count + 1)
        return count < self.BURST


def known_secrets(settings: Settings) -> tuple[str, ...]:
    """Every secret value this process was given, the passwords inside URLs included; longest first."""
    found = [value.get_secret_value() for value in _secret_values(settings)]
    found += [os.environ.get(name, "") for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")]
    try:
        password = urlsplit(settings.database_url).password or ""
    except ValueError:
        password = ""
    found += [password, unquote(password)]
    return tuple(sorted({value for value in found if len(value) >= SHORTEST_SECRET}, key=len, reverse=True))


def scrub(value: Any, secrets: Iterable[str] = ()) -> Any:
    """``value`` with every URL password, signature and known secret replaced.

    Anything that is not JSON becomes its text first, so that an object cannot carry a secret through its ``repr``.
    """
    match value:
        case str():
            text = URL_PASSWORD.sub(rf"\1:{HIDDEN}@", value)
            text = SIGNATURE.sub(rf"\1{HIDDEN}", text)
            for secret in secrets:
                text = text.replace(secret, HIDDEN)
            return text
        case bool() | int() | float() | None:
            return value
        case Mapping():
            return {
                scrub(str(key), secrets): HIDDEN if SECRET_NAME.search(str(key)) and item else scrub(item, secrets)
                for key, item in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [scrub(item, secrets) for item in value]
        case _:
            return scrub(str(value), secrets)


def _secret_values(settings: Settings) -> Iterable[SecretStr]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, SecretStr):
                yield item


def _shared() -> list[Any]:
    """What every record passes, ours and foreign."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(style: str, secrets: tuple[str, ...]) -> logging.Formatter:
    """One formatter for all handlers; ``style`` is ``text`` or ``json``."""

    def hide(_logger: object, _method: str, event: Event) -> Event:
        return cast(Event, scrub(event, secrets))

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            hide,
            _json if style == "json" else _text(colours=sys.stderr.isatty()),
        ],
    )


def _json(_logger: object, _method: str, event: Event) -> str:
    """One JSON object a line; time, level, logger and action first."""
    head = {key: event.pop(key) for key in ("timestamp", "level", "logger", "action") if key in event}
    return orjson.dumps({**head, "message": event.pop("event", ""), **event}).decode()


def _text(*, colours: bool) -> Any:
    """A line for people: ``12:31:07.120 info  worker  finished  drawn and stored  task_id=… images=4``."""
    paint = {"debug": 2, "info": 32, "warning": 33, "error": 31, "critical": 31} if colours else {}

    def render(_logger: object, _method: str, event: Event) -> str:
        clock = str(event.pop("timestamp", ""))[11:23]
        level = str(event.pop("level", "info"))
        name = str(event.pop("logger", "")).removeprefix("streamapp.")
        action = str(event.pop("action", ""))
        message = str(event.pop("event", "")).strip()
        trace = event.pop("exception", None)
        fields = " ".join(f"{key}={_field(value)}" for key, value in event.items())
        mark = f"\x1b[{paint[level]}m{level:<8}\x1b[0m" if level in paint else f"{level:<8}"
        line = f"{clock} {mark} {name:<18} {action:<16} {message}".rstrip()
        line = f"{line}  {fields}" if fields else line
        return f"{line}\n{trace}" if trace else line

    return render


def _field(value: Any) -> str:
    """A field's value, quoted when it would not read as one word."""
    text = value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    return repr(text) if " " in text and isinstance(value, str) else text
