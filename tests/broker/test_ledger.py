"""The arithmetic of the commit rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamapp.broker.commit import Ledger


def test_nothing_is_committable_before_the_base_is_known() -> None:
    assert Ledger().settle({4, 5, 6}) is None


def test_the_first_offset_fetched_is_the_base_of_a_fresh_group() -> None:
    ledger = Ledger()
    ledger.fetched([7, 8, 9])
    assert ledger.base == 7
    assert ledger.settle({8, 9}) is None
    assert ledger.settle({7, 8, 9}) == 10


def test_nothing_is_committable_while_the_lowest_fetched_is_held() -> None:
    ledger = Ledger(10)
    ledger.fetched(range(10, 20))
    acked = set(range(11, 20))
    assert ledger.settle(acked) is None
    acked.add(10)
    assert ledger.settle(acked) == 20
    assert acked == set()


def test_the_commit_point_stops_before_a_held_offset_and_stays_there() -> None:
    ledger = Ledger(0)
    ledger.fetched(range(6))
    acked = {0, 1, 3, 4}
    assert ledger.settle(acked) == 2
    assert ledger.settle(acked) == 2
    assert acked == {3, 4}


def test_a_record_behind_a_hole_is_not_taken_for_part_of_it() -> None:
    ledger = Ledger(10)
    ledger.fetched([12, 15])  # compaction took 10, 11, 13 and 14
    assert ledger.settle(set()) is None
    assert ledger.settle({12}) == 13
    assert ledger.settle({15}) == 16


def test_acks_of_a_former_assignment_do_not_move_the_base() -> None:
    ledger = Ledger(10)
    assert ledger.settle({15, 16}) is None
    ledger.fetched(range(10, 17))
    assert ledger.settle({15, 16}) is None


def test_records_read_again_after_a_seek_back_count_once() -> None:
    ledger = Ledger(5)
    ledger.fetched([5, 6, 7])
    assert ledger.settle({5}) == 6
    ledger.fetched([5, 6, 7, 8])
    assert ledger.settle({6, 7, 8}) == 9


@given(base=st.integers(0, 50), batches=st.lists(st.integers(1, 5), max_size=8), data=st.data())
def test_no_order_of_acks_commits_past_a_held_offset(base: int, batches: list[int], data: st.DataObject) -> None:
    ledger, acked, held, at = Ledger(base), set[int](), list[int](), base
    for size in batches:
        gap = data.draw(st.integers(0, 2))
        fresh = list(range(at + gap, at + gap + size))
        at = fresh[-1] + 1
        ledger.fetched(fresh)
        held += fresh
        for offset in data.draw(st.permutations(held))[: data.draw(st.integers(0, len(held)))]:
            held.remove(offset)
            acked.add(offset)
        committed = ledger.settle(acked)
        assert committed is None or committed <= min(held, default=at)
    acked.update(held)
    assert ledger.settle(acked) == (at if batches else None)
