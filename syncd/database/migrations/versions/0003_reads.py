"""What is remembered of each event's reads, so that they can take turns."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "syncd_reads",
        sa.Column("event_id", sa.Text(), primary_key=True),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("attendees_at", sa.DateTime(timezone=True)),
        sa.Column("attendees_full_at", sa.DateTime(timezone=True)),
    )
