"""Which pictures were sent in, and when each was last asked for; the files themselves are in the storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from streamapp.db.database import Database
from streamapp.db.schema import inputs, now_ms, tasks
from streamapp.db.states import ENDED, State

#: A picture is noted before the task that uses it; this is longer than that ever takes, in milliseconds.
BEFORE_TASK = 3_600_000


@dataclass(frozen=True, slots=True)
class InputRow:
    """A picture: SHA-256 of its file (hex), content type, bytes, and pixels across and down."""

    digest: str
    content_type: str
    bytes: int
    width: int
    height: int


class Inputs:
    """The ``inputs`` table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(self, row: InputRow) -> None:
        """Note a picture, or that a known one was sent again."""
        facts = {name: getattr(row, name) for name in InputRow.__dataclass_fields__}

        def work(connection: Connection) -> None:
            if not _touch(connection, row.digest):
                connection.execute(insert(inputs).values(**facts, used_at=now_ms()))

        try:
            await self._database.write(work)
        except IntegrityError:  # somebody sent the same one at this moment
            await self._database.write(work)

    async def use(self, digest: str) -> InputRow | None:
        """A known picture, noted as used now."""

        def work(connection: Connection) -> InputRow | None:
            if not _touch(connection, digest):
                return None
            found = connection.execute(select(inputs).where(inputs.c.digest == digest)).one()
            return InputRow(found.digest, found.content_type, found.bytes, found.width, found.height)

        return await self._database.write(work)

    async def unused(self, age_s: float, limit: int) -> list[str]:
        """Digests that nobody asked for in ``age_s`` seconds, nor any task that has not ended."""

        def work(connection: Connection) -> Sequence[str]:
            cutoff = _cutoff(connection, age_s)
            oldest = select(inputs.c.digest).where(inputs.c.used_at < cutoff).order_by(inputs.c.used_at)
            return connection.scalars(oldest.limit(limit)).all()

        return list(await self._database.read(work))

    async def forget(self, digest: str, age_s: float) -> bool:
        """Delete the row, if it is still as old; then its file may go."""

        def work(connection: Connection) -> bool:
            old = (inputs.c.digest == digest, inputs.c.used_at < _cutoff(connection, age_s))
            return connection.execute(delete(inputs).where(*old)).rowcount > 0

        return await self._database.write(work)


def _touch(connection: Connection, digest: str) -> bool:
    return connection.execute(update(inputs).where(inputs.c.digest == digest).values(used_at=now_ms())).rowcount > 0


def _cutoff(connection: Connection, age_s: float) -> int:
    """A picture last used before this moment may go: the oldest task that has not ended still needs its own."""
    now = int(connection.scalar(select(now_ms())) or 0)
    moments = [now - int(age_s * 1000)]
    for state in sorted(set(State) - ENDED):
        # Ids sort by time: the first of a state is found in the index.
        first = select(tasks.c.submitted_at).where(tasks.c.state == state.value).order_by(tasks.c.id).limit(1)
        submitted = connection.scalar(first)
        if submitted is not None:
            moments.append(int(submitted) - BEFORE_TASK)
    return min(moments)
