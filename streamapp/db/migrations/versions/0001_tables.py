"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
TABLES = ("leases", "callbacks", "images", "outbox", "tasks", "loras", "models")


def upgrade() -> None:
    """Create every table; those that an interrupted upgrade on MySQL left behind are kept."""
    for name in ("models", "loras"):
        _weights(name)
    _tasks()
    _images()
    _delivery()


def downgrade() -> None:
    """Drop every table."""
    for name in TABLES:
        op.drop_table(name)


def _json() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def _index(table: str, *columns: str) -> None:
    name = f"ix_{table}_{'_'.join(columns)}"
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, list(columns))


def _weights(name: str) -> None:
    op.create_table(
        name,
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("version", sa.String(100), nullable=False),
        sa.Column("family", sa.String(64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("traits", _json(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name", "version", name=f"pk_{name}"),
        if_not_exists=True,
        **OPTIONS,
    )
    _index(name, "digest")


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(200), nullable=False),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("family", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("params", _json(), nullable=False),
        sa.Column("request", _json(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("claim_token", sa.String(64)),
        sa.Column("claimed_by", sa.String(200)),
        sa.Column("lease_until", sa.BigInteger()),
        sa.Column("not_before", sa.BigInteger()),
        sa.Column("cancel_requested", sa.SmallInteger(), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("error", _json()),
        sa.Column("history", _json(), nullable=False),
        sa.Column("timings", _json(), nullable=False),
        sa.Column("submitted_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("deadline_at", sa.BigInteger()),
        sa.Column("callback_url", sa.Text()),
        sa.Column("trace", sa.String(200)),
        sa.Column("produce_at", sa.BigInteger()),
        sa.Column("topic", sa.String(200)),
        sa.Column("partition", sa.Integer()),
        sa.Column("offset", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("user_id", "idempotency_key", name="uq_tasks_user_id_idempotency_key"),
        if_not_exists=True,
        **OPTIONS,
    )
    _index("tasks", "user_id", "id")
    _index("tasks", "state", "id")
    _index("tasks", "state", "family", "priority", "submitted_at", "model")
    _index("tasks", "priority", "produce_at")
    _index("tasks", "state", "deadline_at")


def _images() -> None:
    op.create_table(
        "images",
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(400), nullable=False),
        sa.Column("content_type", sa.String(100), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("recipe", _json(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_images_task_id_tasks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "idx", name="pk_images"),
        if_not_exists=True,
        **OPTIONS,
    )


def _delivery() -> None:
    op.create_table(
        "outbox",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("body", _json(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_outbox"),
        if_not_exists=True,
        sqlite_autoincrement=True,
        **OPTIONS,
    )
    op.create_table(
        "callbacks",
        sa.Column("event_id", sa.String(200), nullable=False),
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("body", _json(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("error", sa.Text()),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_callbacks_task_id_tasks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("event_id", name="pk_callbacks"),
        if_not_exists=True,
        **OPTIONS,
    )
    _index("callbacks", "task_id")
    _index("callbacks", "next_at")
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
        if_not_exists=True,
        **OPTIONS,
    )
