"""Which waiting job joins next."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from streamapp.worker.policy import CEILINGS, Ticket, Waiting


def ticket(
    name: str,
    *,
    model: str = "a",
    user: str = "u",
    priority: int = 2,
    cost: float = 1.0,
    since: float = 0.0,
    order: int = 0,
) -> Ticket:
    return Ticket(name, model, user, priority, cost, order, since)


def drain(waiting: Waiting, now: float = 0.0, switch: float = 2.0, limit: int = 10_000) -> list[Ticket]:
    taken: list[Ticket] = []
    while (chosen := waiting.next(now, lambda model: switch)) is not None and len(taken) < limit:
        waiting.take(chosen, now)
        taken.append(chosen)
    return taken


def test_higher_priority_goes_first_and_inside_it_the_oldest() -> None:
    waiting = Waiting()
    for name, priority, order in (("batch", 3, 1), ("late", 1, 9), ("early", 1, 2), ("now", 0, 5), ("normal", 2, 3)):
        waiting.add(ticket(name, priority=priority, order=order))
    assert [t.task_id for t in drain(waiting)] == ["now", "early", "late", "normal", "batch"]


def test_users_share_a_priority_by_cost_and_not_by_number_of_jobs() -> None:
    """One user's thousand jobs do not hold up another's ten; dear jobs count for more."""
    waiting = Waiting()
    for number in range(1000):
        waiting.add(ticket(f"many-{number}", user="many", order=number))
    for number in range(10):
        waiting.add(ticket(f"few-{number}", user="few", order=5000 + number))
        waiting.add(ticket(f"dear-{number}", user="dear", cost=4.0, order=6000 + number))
    first = Counter(t.user for t in drain(waiting, limit=18))
    assert first["many"] == first["few"] == 8
    assert first["dear"] == 2


def test_who_was_away_does_not_collect_credit() -> None:
    waiting = Waiting()
    for number in range(100):
        waiting.add(ticket(f"a-{number}", user="steady", order=number))
    drain(waiting, limit=50)
    for number in range(50):
        waiting.add(ticket(f"b-{number}", user="new", order=number))
    assert Counter(t.user for t in drain(waiting, limit=20)) == {"steady": 10, "new": 10}


def test_the_current_checkpoint_is_kept_while_that_is_cheapest() -> None:
    """Jobs of two models in turn: drawn in long runs, not in turn."""
    waiting = Waiting()
    for number in range(40):
        waiting.add(ticket(f"{number}", model="ab"[number % 2], order=number))
    models = [t.model for t in drain(waiting, now=1.0)]
    assert sum(a != b for a, b in pairwise(models)) == 1


def test_a_waiting_model_gets_its_turn_when_its_waiting_costs_more_than_the_switch() -> None:
    """With a switch of 2 s and equal queues that never end, no model waits longer than some switch times."""
    waiting = Waiting()
    for number in range(2000):
        waiting.add(ticket(f"{number}", model="ab"[number % 2], order=number))
    now, runs, last = 0.0, [], None
    for _ in range(600):
        chosen = waiting.next(now, lambda model: 2.0)
        assert chosen is not None
        if chosen.model != last:
            runs.append(now)
            last = chosen.model
            now += 2.0
        waiting.take(chosen, now)
        now += 0.5
    lengths = [b - a for a, b in pairwise(runs)]
    assert lengths
    assert min(lengths) >= 8.0  # at least PATIENCE switch times: the share of time lost to switching is bounded
    assert max(lengths) <= 40.0


def test_a_p0_of_another_checkpoint_does_not_wait_for_the_current_one() -> None:
    waiting = Waiting()
    for number in range(100):
        waiting.add(ticket(f"{number}", model="a", order=number))
    drain(waiting, limit=5)
    waiting.add(ticket("now", model="b", priority=0, since=1.0))
    assert [t.task_id for t in drain(waiting, now=1.0, limit=1)] == ["now"]


def test_overdue_batch_work_gets_a_share_under_endless_urgent_work() -> None:
    waiting = Waiting()
    for number in range(10):
        waiting.add(ticket(f"old-{number}", priority=3, order=number, since=0.0))
    now = CEILINGS[3] + 1
    for number in range(200):
        waiting.add(ticket(f"new-{number}", priority=1, order=number, since=now))
    first = Counter(t.priority for t in drain(waiting, now=now, limit=20))
    assert first == {3: 5, 1: 15}


def test_removed_jobs_are_never_chosen_and_models_without_jobs_are_forgotten() -> None:
    waiting = Waiting()
    for number in range(50):
        waiting.add(ticket(f"{number}", model=f"m{number % 5}"))
    for number in range(0, 50, 2):
        waiting.remove(str(number))
    assert sorted(int(t.task_id) for t in drain(waiting)) == list(range(1, 50, 2))
    assert list(waiting.models()) == []


def test_a_decision_costs_the_same_with_a_hundred_times_more_jobs() -> None:
    """Counted in calls of the switch cost and heap growth, not in time: a decision looks at models, not jobs."""
    calls: list[str] = []

    def switch(model: str) -> float:
        calls.append(model)
        return 2.0

    waiting = Waiting()
    for number in range(20_000):
        waiting.add(ticket(f"{number}", model=f"m{number % 4}", user=f"u{number % 50}", order=number))
    for _ in range(100):
        chosen = waiting.next(1.0, switch)
        assert chosen is not None
        waiting.take(chosen, 1.0)
    assert len(calls) <= 100 * 3 + 4


jobs = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from("uvw"), st.integers(0, 3), st.floats(0.1, 10), st.integers(0, 100)
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(jobs, st.lists(st.integers(0, 59), max_size=30), st.floats(0, 5000))
def test_every_job_is_chosen_exactly_once_unless_removed(
    given_jobs: list[tuple[str, str, int, float, int]], removed: list[int], now: float
) -> None:
    """Whatever the mix: nothing is lost, nothing comes twice, and P0 is never behind a job that is not overdue."""
    waiting = Waiting()
    for number, (model, user, priority, cost, order) in enumerate(given_jobs):
        waiting.add(ticket(str(number), model=model, user=user, priority=priority, cost=cost, order=order))
    gone = {str(number) for number in removed if number < len(given_jobs)}
    for name in gone:
        waiting.remove(name)
    taken = drain(waiting, now=now)
    assert sorted(t.task_id for t in taken) == sorted({str(n) for n in range(len(given_jobs))} - gone)
    assert len(waiting) == 0
    if now < CEILINGS[0]:
        urgent = [t.priority == 0 for t in taken]
        assert urgent == sorted(urgent, reverse=True)


@settings(max_examples=40, deadline=None)
@given(jobs)
def test_inside_a_user_model_and_priority_the_order_of_submission_holds(
    given_jobs: list[tuple[str, str, int, float, int]],
) -> None:
    waiting = Waiting()
    for number, (model, user, priority, cost, order) in enumerate(given_jobs):
        waiting.add(ticket(str(number), model=model, user=user, priority=priority, cost=cost, order=order))
    seen: dict[tuple[str, str, int], int] = {}
    for chosen in drain(waiting):
        key = (chosen.model, chosen.user, chosen.priority)
        assert seen.get(key, -1) <= chosen.order
        seen[key] = chosen.order


def test_monotonic_clock_is_the_callers() -> None:
    """Times far from zero, as a monotonic clock gives them, behave the same."""
    waiting, now = Waiting(), time.monotonic()
    waiting.add(ticket("x", since=now))
    assert [t.task_id for t in drain(waiting, now=now)] == ["x"]
