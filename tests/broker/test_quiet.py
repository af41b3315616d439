"""Rate-limited logs."""

from __future__ import annotations

import logging

import pytest

from streamapp.broker.quiet import RateLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logger(clock: Clock) -> logging.Logger:
    one = logging.Logger("client")  # noqa: LOG001 - one that nobody else has
    one.addFilter(RateLimit(10, clock))
    return one


def test_repeats_are_counted_instead_of_logged(
    logger: logging.Logger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    logger.addHandler(caplog.handler)
    for port in range(5):
        logger.error("no connection to %s", port)
    clock.now = 11
    logger.error("no connection to %s", 99)
    assert caplog.messages == ["no connection to 0", "no connection to 99 (4 more like this in 10 s)"]


def test_other_messages_and_lower_levels_pass(logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    logger.addHandler(caplog.handler)
    logger.error("one")
    logger.error("two")
    logger.info("three")
    logger.info("three")
    assert caplog.messages == ["one", "two", "three", "three"]
