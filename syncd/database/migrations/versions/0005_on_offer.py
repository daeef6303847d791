"""What the public can buy: an event's sale, which tariffs are places; and the reference of an order.

New columns of views come last: so PostgreSQL replaces a view in place, and who may read it still may.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

AVAILABILITY = """
VIEW syncd_availability AS
SELECT id, name, starts_at, ends_at, place, shop_url,
    places_total, places_left, unlimited, is_full, availability_at, sale_status, ext_id
FROM billetweb_events
WHERE vanished_at IS NULL
"""
# A tariff that is no place counts in no order; one that is not known is a place.
ORDERS = """
VIEW syncd_orders AS
SELECT order_id, billetweb_attendees.event_id,
    COUNT(*) FILTER (WHERE disabled IS NOT TRUE AND is_place IS NOT FALSE) AS places,
    COUNT(*) FILTER (WHERE disabled IS TRUE AND is_place IS NOT FALSE) AS refunded,
    MAX(order_price) AS order_price,
    MAX(CASE WHEN order_paid THEN 1 WHEN NOT order_paid THEN 0 END) = 1 AS paid,
    MIN(ordered_at) AS ordered_at,
    MAX(paid_at) AS paid_at,
    MAX(order_ext_id) AS order_ext_id
FROM billetweb_attendees LEFT JOIN billetweb_tickets ON billetweb_tickets.id = ticket_id
WHERE billetweb_attendees.vanished_at IS NULL AND order_id IS NOT NULL
GROUP BY order_id, billetweb_attendees.event_id
"""


def upgrade() -> None:
    sale_status = sa.Column("sale_status", sa.Text(), nullable=False, server_default="unknown")
    op.add_column("billetweb_events", sale_status)
    is_place: sa.Column[bool] = sa.Column("is_place", sa.Boolean(), nullable=False, server_default=sa.true())
    op.add_column("billetweb_tickets", is_place)
    op.add_column("billetweb_attendees", sa.Column("order_ext_id", sa.Text()))
    unreadable = sa.Column("unreadable", sa.Integer(), nullable=False, server_default="0")
    op.add_column("syncd_runs", unreadable)
    for name, view in (("syncd_availability", AVAILABILITY), ("syncd_orders", ORDERS)):
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"CREATE OR REPLACE {view}")
        else:
            op.execute(f"DROP VIEW {name}")
            op.execute(f"CREATE {view}")
