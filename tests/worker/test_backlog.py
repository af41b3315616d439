"""The jobs a worker holds."""

from __future__ import annotations

from streamapp.broker.record import TP
from streamapp.worker.backlog import LOW_MARK, Backlog, Phase
from tests.worker.support import Acks, message


def test_a_second_event_for_a_held_job_replaces_the_event_to_ack() -> None:
    backlog, acks = Backlog(10), Acks()
    assert backlog.add(message("t1"), acks.receipt(offset=3), 0.0) is True
    again = Acks()
    assert backlog.add(message("t1"), again.receipt(offset=3), 1.0) is False
    job = backlog.get("t1")
    assert job is not None
    backlog.done(job)
    backlog.done(job)
    assert (acks.acked, again.acked) == ([], [(TP("sd15_tasks", 0), 3)])
    assert len(backlog) == 0


def test_above_the_mark_partitions_are_held_and_released_below_the_low_mark() -> None:
    released: list[TP] = []
    backlog, acks = Backlog(8, released.append), Acks()
    for number in range(8):
        backlog.add(message(f"t{number}"), acks.receipt(), 0.0)
    assert backlog.full("sd15_tasks")
    assert not backlog.full("sd15_tasks_urgent")
    backlog.mark(TP("sd15_tasks", 0))
    assert backlog.under_pressure
    for job in list(backlog)[: 8 - int(8 * LOW_MARK) - 1]:
        backlog.done(job)
    assert released == []
    backlog.done(next(iter(backlog)))
    assert released == [TP("sd15_tasks", 0)]
    assert not backlog.under_pressure


def test_urgent_topics_have_their_own_share() -> None:
    backlog, acks = Backlog(4), Acks()
    for number in range(20):
        backlog.add(message(f"t{number}"), acks.receipt(), 0.0)
    backlog.add(message("u", priority=0), acks.receipt("sd15_tasks_urgent"), 0.0)
    assert backlog.full("sd15_tasks")
    assert not backlog.full("sd15_tasks_urgent")


def test_unstarted_jobs_of_lost_partitions_leave_and_running_ones_stay() -> None:
    backlog, acks = Backlog(10), Acks()
    for number in range(6):
        backlog.add(message(f"t{number}"), acks.receipt(partition=number % 2), 0.0)
    running, held = backlog.get("t1"), backlog.get("t3")
    assert running is not None
    assert held is not None
    backlog.start(running, 0.0)
    backlog.hold(held, 5.0)
    assert backlog.drop_partitions({TP("sd15_tasks", 0)}) == 2
    assert sorted(job.task_id for job in backlog) == ["t0", "t1", "t2", "t4"]
    assert backlog.due(10.0) == []
    assert acks.acked == []
    assert backlog.loads()["pocket"].jobs == 4


def test_held_jobs_come_back_once_when_due_and_do_not_wait_meanwhile() -> None:
    backlog, acks = Backlog(10), Acks()
    backlog.add(message("t1"), acks.receipt(), 0.0)
    job = backlog.get("t1")
    assert job is not None
    backlog.hold(job, 5.0)
    assert backlog.waiting.next(1.0) is None
    assert backlog.due(4.9) == []
    assert backlog.due(5.0) == [job]
    assert backlog.due(6.0) == []
    backlog.wait(job)
    assert job.phase is Phase.WAITING
    chosen = backlog.waiting.next(6.0)
    assert chosen is not None
    assert chosen.task_id == "t1"


def test_jobs_past_their_deadline_are_told_once_and_running_ones_never() -> None:
    backlog, acks = Backlog(10), Acks()
    for name, deadline in (("soon", 100), ("later", 200), ("running", 50), ("never", None)):
        backlog.add(message(name, deadline_at=deadline), acks.receipt(), 0.0)
    running = backlog.get("running")
    assert running is not None
    backlog.start(running, 0.0)
    assert [job.task_id for job in backlog.overdue(150)] == ["soon"]
    assert [job.task_id for job in backlog.overdue(150)] == []
    assert [job.task_id for job in backlog.overdue(300)] == ["later"]


def test_fresh_jobs_are_given_out_once_and_only_while_they_wait() -> None:
    backlog, acks = Backlog(10), Acks()
    for number in range(5):
        backlog.add(message(f"t{number}"), acks.receipt(), 0.0)
    first = backlog.get("t0")
    assert first is not None
    backlog.start(first, 0.0)
    assert [job.task_id for job in backlog.fresh(2)] == ["t1", "t2"]
    assert [job.task_id for job in backlog.fresh(10)] == ["t3", "t4"]
    assert backlog.fresh(10) == []


def test_loads_sum_jobs_and_corrected_seconds_per_model() -> None:
    backlog, acks = Backlog(10), Acks()
    for number in range(3):
        backlog.add(message(f"a{number}", model="a", cost=2.0), acks.receipt(), 0.0)
    backlog.add(message("b", model="b", cost=5.0), acks.receipt(), 0.0)
    loads = backlog.loads({"a": 0.5, "b": 1.0}.__getitem__)
    assert {model: (load.jobs, load.seconds) for model, load in loads.items()} == {"a": (3, 3.0), "b": (1, 5.0)}


def test_a_foreign_priority_does_not_break_the_order() -> None:
    backlog, acks = Backlog(10), Acks()
    backlog.add(message("low", priority=99), acks.receipt(), 0.0)
    backlog.add(message("high", priority=-5), acks.receipt(), 0.0)
    chosen = backlog.waiting.next(0.0)
    assert chosen is not None
    assert chosen.task_id == "high"


def test_of_two_messages_of_one_task_the_newer_stands_for_it_and_the_older_is_acked() -> None:
    """As when an outbox produced twice: un-acked for ever, the older would stop the commits of its partition."""
    backlog, acks = Backlog(10), Acks()
    backlog.add(message("t"), acks.receipt(partition=0, offset=4), 0.0)
    assert not backlog.add(message("t"), acks.receipt(partition=1, offset=2), 0.0)
    assert acks.acked == [(TP("sd15_tasks", 0), 4)]
    job = backlog.get("t")
    assert job is not None
    backlog.done(job)
    assert acks.acked[1:] == [(TP("sd15_tasks", 1), 2)]


def test_the_same_message_again_is_not_acked_before_its_task_is_done() -> None:
    backlog, acks = Backlog(10), Acks()
    for _ in range(2):
        backlog.add(message("t"), acks.receipt(offset=4), 0.0)
    assert acks.acked == []
