"""Feedback on predictions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "feedback",
        sa.Column("nonce", sa.LargeBinary, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("alias", sa.Text),
        sa.Column("predicted_ms", sa.BigInteger, nullable=False),
        sa.Column("received_ms", sa.BigInteger, nullable=False),
        sa.Column("top", sa.Text),
        sa.Column("confidence", sa.Double),
        sa.Column("actual", sa.BigInteger),
        sa.Column("predicted_value", sa.Double),
        sa.Column("actual_value", sa.Double),
        sa.Column("rating", sa.SmallInteger),
        sa.CheckConstraint("length(nonce) = 10", name="feedback_nonce_length"),
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name="feedback_rating_range"),
    )
    op.create_index("feedback_by_model", "feedback", ["model", "received_ms"])
    op.create_index("feedback_by_version", "feedback", ["model", "version", "received_ms"])
    op.create_index("feedback_by_alias", "feedback", ["model", "version", "alias", "received_ms"])
    op.create_index("feedback_by_time", "feedback", ["received_ms"])
