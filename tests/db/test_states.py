"""The state machine itself."""

from __future__ import annotations

from streamapp.db import ENDED, State, may
from streamapp.db.states import sources

LEGAL = {
    ("fetching", "queued"), ("fetching", "failed"), ("fetching", "cancelled"), ("fetching", "expired"),
    ("queued", "running"), ("queued", "cancelled"), ("queued", "expired"),
    ("running", "queued"), ("running", "running"),
    ("running", "succeeded"), ("running", "failed"), ("running", "cancelled"), ("running", "expired"),
    ("failed", "queued"), ("cancelled", "queued"), ("expired", "queued"),
    ("failed", "fetching"), ("cancelled", "fetching"), ("expired", "fetching"),
}  # fmt: skip


def test_exactly_these_transitions_are_legal() -> None:
    assert {(before.value, after.value) for before in State for after in State if may(before, after)} == LEGAL


def test_a_success_is_final() -> None:
    assert not any(may(State.SUCCEEDED, after) for after in State)


def test_sources_of_several_states_are_those_that_may_become_any_of_them() -> None:
    assert sources(State.SUCCEEDED) == ["running"]
    assert sources(State.CANCELLED) == ["fetching", "queued", "running"]
    assert sources({State.CANCELLED, State.SUCCEEDED}) == ["running"]
    assert sources(ENDED) == ["running"]
