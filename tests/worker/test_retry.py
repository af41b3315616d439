"""What happens after a failure."""

from __future__ import annotations

import pytest

from streamapp.errors import InvalidRequest, Unavailable
from streamapp.retry import Park, Retry, decide


@pytest.mark.parametrize(("attempts", "delay"), [(1, 5.0), (2, 10.0), (3, 20.0), (7, 20.0)])
def test_the_delay_doubles_from_five_to_twenty_seconds(attempts: int, delay: float) -> None:
    assert decide(Unavailable("x"), attempts, 9, chance=0.5) == Retry(delay)


def test_jitter_spreads_by_a_fifth_to_both_sides() -> None:
    assert decide(Unavailable("x"), 1, 3, chance=0.0) == Retry(4.0)
    last = decide(Unavailable("x"), 1, 3, chance=0.999999)
    assert isinstance(last, Retry)
    assert 5.9 < last.delay_s < 6.0


def test_what_cannot_succeed_is_parked_at_once() -> None:
    assert isinstance(decide(InvalidRequest("no such sampler"), 1, 3), Park)
    assert isinstance(decide({"code": "x"}, 1, 3), Park)


def test_the_last_attempt_parks_and_says_how_many_there_were() -> None:
    verdict = decide({"code": "engine_crashed", "retryable": True}, 3, 3)
    assert verdict == Park("engine_crashed: failed 3 of 3 attempts")
