"""An index by the slug of an event: a site's rows are found by it with each event that changed."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # PostgreSQL's usual index would take no slug of some thousand letters, nor its event.
    op.create_index("ix_billetweb_events_ext_id", "billetweb_events", ["ext_id"], postgresql_using="hash")
