"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def instant() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def money() -> sa.Numeric[Any]:
    return sa.Numeric(12, 4)


def json() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(JSONB(), "postgresql")


def wide() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def bookkeeping() -> list[sa.Column[Any]]:
    return [
        sa.Column("extra", json(), nullable=False),
        sa.Column("first_seen_at", instant(), nullable=False),
        sa.Column("changed_at", instant(), nullable=False),
        sa.Column("vanished_at", instant()),
    ]


def upgrade() -> None:
    op.create_table(
        "billetweb_attendees",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("ticket_id", sa.Text()),
        sa.Column("session_id", sa.Text()),
        sa.Column("order_id", sa.Text()),
        sa.Column("ext_id", sa.Text()),
        sa.Column("barcode", sa.Text()),
        sa.Column("category", sa.Text()),
        sa.Column("price", money()),
        sa.Column("order_price", money()),
        sa.Column("used", wide()),
        sa.Column("used_at", instant()),
        sa.Column("disabled", sa.Boolean()),
        sa.Column("order_paid", sa.Boolean()),
        sa.Column("order_payment_type", sa.Text()),
        sa.Column("order_origin", sa.Text()),
        sa.Column("order_accreditation", sa.Text()),
        sa.Column("pass_id", sa.Text()),
        sa.Column("seating_location", sa.Text()),
        sa.Column("ordered_at", instant()),
        sa.Column("paid_at", instant()),
        sa.Column("last_update_at", instant()),
        sa.Column("firstname", sa.Text()),
        sa.Column("name", sa.Text()),
        sa.Column("email", sa.Text()),
        sa.Column("order_firstname", sa.Text()),
        sa.Column("order_name", sa.Text()),
        sa.Column("order_email", sa.Text()),
        sa.Column("order_language", sa.Text()),
        sa.Column("reduction_code", sa.Text()),
        sa.Column("authorization_code", sa.Text()),
        sa.Column("custom", json()),
        sa.Column("custom_order", json()),
        *bookkeeping(),
    )
    op.create_index("ix_billetweb_attendees_event_id", "billetweb_attendees", ["event_id"])
    op.create_table(
        "billetweb_events",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("ext_id", sa.Text()),
        sa.Column("name", sa.Text()),
        sa.Column("starts_at", instant()),
        sa.Column("ends_at", instant()),
        sa.Column("multiple", sa.Boolean(), nullable=False),
        sa.Column("place", sa.Text()),
        sa.Column("shop_url", sa.Text()),
        sa.Column("online", sa.Boolean()),
        sa.Column("tax_rate", money()),
        sa.Column("tags", json(), nullable=False),
        sa.Column("image_url", sa.Text()),
        sa.Column("cover_url", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("confirmation_message", sa.Text()),
        sa.Column("places_total", sa.BigInteger()),
        sa.Column("places_left", sa.BigInteger()),
        sa.Column("unlimited", sa.Boolean(), nullable=False),
        sa.Column("is_full", sa.Boolean(), nullable=False),
        sa.Column("availability_at", instant()),
        *bookkeeping(),
    )
    op.create_table(
        "billetweb_gauges",
        sa.Column("event_id", sa.Text(), primary_key=True),
        sa.Column("session_id", sa.Text(), primary_key=True),
        sa.Column("type", sa.Text(), primary_key=True),
        sa.Column("gauge_id", sa.Text(), primary_key=True),
        sa.Column("name", sa.Text()),
        sa.Column("places_total", sa.BigInteger()),
        sa.Column("places_left", sa.BigInteger()),
        sa.Column("unlimited", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text()),
        *bookkeeping(),
    )
    op.create_table(
        "billetweb_sessions",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("starts_at", instant()),
        sa.Column("ends_at", instant()),
        sa.Column("place", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("instructions", sa.Text()),
        sa.Column("visibility", sa.Text()),
        sa.Column("places_total", sa.BigInteger()),
        sa.Column("places_left", sa.BigInteger()),
        sa.Column("unlimited", sa.Boolean(), nullable=False),
        sa.Column("places_sold", sa.BigInteger()),
        sa.Column("is_full", sa.Boolean(), nullable=False),
        sa.Column("tickets", json(), nullable=False),
        sa.Column("last_update_at", instant()),
        *bookkeeping(),
    )
    op.create_index("ix_billetweb_sessions_event_id", "billetweb_sessions", ["event_id"])
    op.create_table(
        "billetweb_tickets",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("full_name", sa.Text()),
        sa.Column("category", sa.Text()),
        sa.Column("price", money()),
        sa.Column("commission", money()),
        sa.Column("tax", money()),
        sa.Column("places_total", sa.BigInteger()),
        sa.Column("places_left", sa.BigInteger()),
        sa.Column("unlimited", sa.Boolean(), nullable=False),
        sa.Column("is_full", sa.Boolean(), nullable=False),
        sa.Column("visibility", sa.Text()),
        sa.Column("label", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("instructions", sa.Text()),
        sa.Column("sale_starts_at", instant()),
        sa.Column("sale_ends_at", instant()),
        sa.Column("form", sa.Text()),
        *bookkeeping(),
    )
    op.create_index("ix_billetweb_tickets_event_id", "billetweb_tickets", ["event_id"])
    op.create_table(
        "syncd_changes",
        sa.Column("seq", wide(), primary_key=True, autoincrement=True),
        sa.Column("run_id", wide(), nullable=False),
        sa.Column("seen_at", instant(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("diff", json(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_syncd_changes_event_id", "syncd_changes", ["event_id"])
    op.create_table(
        "syncd_cursors",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("value", json(), nullable=False),
        sa.Column("updated_at", instant(), nullable=False),
    )
    op.create_table(
        "syncd_requests",
        sa.Column("sent_at", sa.Float(), primary_key=True),
    )
    op.create_table(
        "syncd_runs",
        sa.Column("id", wide(), primary_key=True, autoincrement=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("requested_by", json()),
        sa.Column("full", sa.Boolean(), nullable=False),
        sa.Column("events", json(), nullable=False),
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text()),
        sa.Column("started_at", instant()),
        sa.Column("finished_at", instant()),
        sa.Column("duration_s", sa.Float()),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("synced", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("inserted", sa.Integer(), nullable=False),
        sa.Column("updated", sa.Integer(), nullable=False),
        sa.Column("unchanged", sa.Integer(), nullable=False),
        sa.Column("vanished", sa.Integer(), nullable=False),
        sa.Column("returned", sa.Integer(), nullable=False),
        sa.Column("errors", json(), nullable=False),
        sa.Column("errors_total", sa.Integer(), nullable=False),
    )
    op.create_table(
        "syncd_state",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("value", json(), nullable=False),
    )
    op.create_table(
        "syncd_suspects",
        sa.Column("table_name", sa.Text(), primary_key=True),
        sa.Column("row_id", sa.Text(), primary_key=True),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("doubted", sa.Boolean(), nullable=False),
        sa.Column("by_hand", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_syncd_suspects_event_id", "syncd_suspects", ["event_id"])
