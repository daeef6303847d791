"""An index by the slug of an event: a site's rows are found by it with each event that changed."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_index("ix_billetweb_events_ext_id", "billetweb_events", ["ext_id"])
