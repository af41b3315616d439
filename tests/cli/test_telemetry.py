"""Logging: one line per event, repeats counted, secrets never shown."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator

import orjson
import pytest

from streamapp.settings import load_settings
from streamapp.telemetry import Repeats, bind, configure_logging, get_logger, scrub

SETTINGS = load_settings(
    log_format="json", kafka_password="hunter-22", database="mysql+aiomysql://me:p%40ssword@db/streamapp"
)


Read = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines() -> Iterator[Read]:
    """Logging as configured, into memory; call it for what was written."""
    kept, level = logging.root.handlers[:], logging.root.level
    configure_logging(SETTINGS)
    (handler,) = logging.root.handlers
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    handler.setStream(written)
    yield lambda: [orjson.loads(line) for line in written.getvalue().splitlines()]
    logging.root.handlers[:] = kept
    logging.root.setLevel(level)


def test_own_and_foreign_lines_read_the_same_and_carry_what_is_bound(lines: Read) -> None:
    with bind(task_id="img-1"):
        get_logger("streamapp.worker").info("drawn", action="finished", images=4)
        logging.getLogger("aiohttp.server").warning("odd %s", "request", extra={"action": "http"})
    ours, foreign = lines()
    assert (ours["action"], ours["task_id"], ours["images"]) == ("finished", "img-1", 4)
    assert (foreign["action"], foreign["task_id"], foreign["message"]) == ("http", "img-1", "odd request")


def test_no_secret_is_written_wherever_it_hides(lines: Read) -> None:
    log = get_logger("streamapp.db")
    try:
        raise ConnectionError("mysql+aiomysql://me:p%40ssword@db: p@ssword refused")
    except ConnectionError:
        log.exception("failed with %s", SETTINGS, authorization="Bearer abc", nested={"key": ["hunter-22"]})
    text = str(lines())
    assert "refused" in text
    for secret in ("p%40ssword", "p@ssword", "hunter-22", "Bearer abc"):
        assert secret not in text


def test_services_of_faust_start_and_stop_in_silence(lines: Read) -> None:
    logging.getLogger("streamapp.app").info("[^StreamApp]: Starting...")
    logging.getLogger("streamapp.app").warning("[^StreamApp]: partitions are moving")
    assert [line["level"] for line in lines()] == ["warning"]


def test_signed_addresses_lose_their_signature() -> None:
    assert scrub("http://h/files/a?exp=5&sig=abc") == "http://h/files/a?exp=5&sig=***"


def test_a_foreign_warning_is_written_a_few_times_and_then_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("streamapp.telemetry.time.monotonic", lambda: clock[0])
    repeats = Repeats()

    def passes(name: str = "aiokafka.conn") -> logging.LogRecord | None:
        record = logging.LogRecord(name, logging.ERROR, "", 0, "cannot connect to %s", (1,), None)
        return record if repeats.filter(record) else None

    assert sum(passes() is not None for _ in range(100)) == Repeats.BURST
    clock[0] = Repeats.PERIOD
    again = passes()
    assert again is not None
    assert again.__dict__["suppressed"] == 97
    assert all(passes("streamapp.worker") for _ in range(100))
