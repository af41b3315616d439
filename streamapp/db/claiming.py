"""The claim itself: tasks change from queued to running in one UPDATE, whoever else wants them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, and_, bindparam, or_, select, update

from streamapp.db.endings import IDS, update_tasks
from streamapp.db.rows import TaskRow, task_row
from streamapp.db.schema import now_ms, tasks
from streamapp.db.states import State

_C: Final = tasks.c
LEASE: Final = now_ms() + bindparam("with_lease", type_=BigInteger())


def orphaned() -> ColumnElement[bool]:
    """Running by name only: the lease ran out."""
    return and_(tasks.c.state == State.RUNNING, tasks.c.lease_until < now_ms())


_CLAIM: Final[dict[Any, Any]] = {
    _C.state: State.RUNNING.value,
    _C.claim_token: bindparam("with_token"),
    _C.claimed_by: bindparam("with_worker"),
    _C.lease_until: LEASE,
    _C.started_at: now_ms(),
    _C.not_before: None,
    _C.attempts: _C.attempts + 1,
    _C.version: _C.version + 1,
}
_IN_TIME: Final = or_(_C.deadline_at.is_(None), _C.deadline_at > now_ms())
_CLAIM_ANY: Final = (
    update_tasks(IDS)
    .where(
        or_(and_(_C.state == State.QUEUED, or_(_C.not_before.is_(None), _C.not_before <= now_ms())), orphaned()),
        _IN_TIME,
    )
    .values(_CLAIM)
)
_CLAIMED: Final = select(tasks).where(_C.id.in_(IDS), _C.claim_token == bindparam("with_token")).order_by(_C.id)

#: What a worker reads of a claimed row, and a message says too.
_SAID: Final = ("user_id", "priority", "family", "model", "cost", "max_attempts", "submitted_at", "params")
_CLAIM_AS_SUBMITTED: Final = (
    update(tasks)
    .with_hint("FORCE INDEX (PRIMARY)", dialect_name="mysql")
    .where(
        _C.id == bindparam("with_id"),
        _C.state == State.QUEUED,
        _C.version == 1,
        _C.attempts == 0,
        _C.history == "[]",
        _C.not_before.is_(None),
        _C.cancel_requested == 0,
        _C.deadline_at.is_not_distinct_from(bindparam("with_deadline_at", type_=BigInteger())),
        *(_C[name] == bindparam(f"with_{name}", type_=_C[name].type) for name in _SAID),
        _IN_TIME,
    )
    .values(_CLAIM)
)


def claim_any(connection: Connection, ids: list[str], terms: dict[str, Any], *, again: bool) -> list[TaskRow]:
    """Claim those of ``ids`` that can be claimed; the rows, sorted by id.

    ``again``: an earlier try with the same token may have made the claim.
    """
    facts = {"with_ids": sorted(ids), "with_token": terms["with_token"]}
    if not connection.execute(_CLAIM_ANY, {**facts, **terms}).rowcount and not again:
        return []
    return [task_row(row) for row in connection.execute(_CLAIMED, facts)]


def claim_as_submitted(connection: Connection, known: TaskRow, terms: dict[str, Any]) -> TaskRow | None:
    """Claim one task if its row is what ``known`` says and was never changed; the row then, which is not read.

    Everything that a worker goes by is compared, so a message cannot say anything that the row does not.
    """
    said = {f"with_{name}": getattr(known, name) for name in _SAID}
    said |= {"with_params": known.params.model_dump_json(exclude_none=True), "with_deadline_at": known.deadline_at}
    if not connection.execute(_CLAIM_AS_SUBMITTED, {"with_id": known.id, **said, **terms}).rowcount:
        return None
    made = {"claim_token": terms["with_token"], "claimed_by": terms["with_worker"]}
    return replace(known, state=State.RUNNING, attempts=1, version=2, **made)
