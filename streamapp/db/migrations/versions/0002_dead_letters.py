"""A list of what could not be worked off."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
INDICES = (("task_id",), ("state", "at", "id"))


def upgrade() -> None:
    """Create the table, and a letter for every task that failed before there was one."""
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("task_id", sa.String(64)),
        sa.Column("user_id", sa.String(200)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("message", sa.Text()),
        sa.Column("topic", sa.String(200)),
        sa.Column("partition", sa.Integer()),
        sa.Column("offset", sa.BigInteger()),
        sa.Column("raw", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")),
        sa.Column("size", sa.BigInteger()),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_dead_letters_task_id_tasks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letters"),
        if_not_exists=True,
        **OPTIONS,
    )
    known = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes("dead_letters")}
    for columns in INDICES:
        name = f"ix_dead_letters_{'_'.join(columns)}"
        if name not in known:
            op.create_index(name, "dead_letters", list(columns))
    op.execute(
        "INSERT INTO dead_letters (id, task_id, user_id, state, reason, at) "
        "SELECT id, id, user_id, 'open', 'failed before the upgrade', COALESCE(ended_at, submitted_at) FROM tasks "
        "WHERE state = 'failed' AND id NOT IN (SELECT id FROM dead_letters)"
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("dead_letters")
