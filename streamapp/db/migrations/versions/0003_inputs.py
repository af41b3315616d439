"""Pictures that are sent in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "inputs",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("content_type", sa.String(100), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_inputs"),
        if_not_exists=True,
        **OPTIONS,
    )
    known = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes("inputs")}
    if "ix_inputs_used_at" not in known:
        op.create_index("ix_inputs_used_at", "inputs", ["used_at"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("inputs")
