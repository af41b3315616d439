"""What happens after a failure."""

from __future__ import annotations

import pytest

from streamapp.errors import InvalidRequest, Unavailable
from streamapp.retry import FallBack, Park, Retry, Suspect, decide


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


FORGOTTEN = {"code": "unknown_model", "retryable": True}
CRASH = {"code": "engine_crashed", "retryable": True}


def test_weights_that_the_engine_forgot_are_loaded_again_at_once_but_not_for_ever() -> None:
    assert decide(FORGOTTEN, 1, 3) == Retry(0.0)
    assert decide(FORGOTTEN, 2, 3, chance=0.5) == Retry(10.0)


def test_of_several_in_a_crashed_engine_nobody_is_guilty_yet_whatever_the_attempt() -> None:
    assert decide(CRASH, 3, 3, company=2, fallback=True) == Suspect()
    assert decide(CRASH, 1, 3, company=1, chance=0.5) == Retry(5.0)


@pytest.mark.parametrize(
    "error",
    [
        {"code": "load_failed"},
        {"code": "not_finite"},
        {"code": "not_found", "field": "model"},
        {"code": "invalid_request", "field": "model"},
    ],
)
def test_where_another_model_is_named_it_draws_what_this_one_cannot(error: dict[str, str]) -> None:
    assert decide(error, 1, 3, fallback=True) == FallBack(f"{error['code']}: not retryable")
    assert isinstance(decide(error, 1, 3, fallback=False), Park)


def test_the_fallback_waits_until_the_attempts_are_used_up() -> None:
    assert isinstance(decide(CRASH, 2, 3, fallback=True), Retry)
    assert decide(CRASH, 3, 3, fallback=True) == FallBack("engine_crashed: failed 3 of 3 attempts")


def test_a_request_that_no_model_could_draw_is_no_case_for_another_model() -> None:
    assert isinstance(decide(InvalidRequest("no such sampler", field="sampler"), 1, 3, fallback=True), Park)
