"""Views for those who only query."""

from alembic import op

revision = "0002"
down_revision = "0001"

# Both in words that SQLite and PostgreSQL take alike.
AVAILABILITY = """
CREATE VIEW syncd_availability AS
SELECT id, name, starts_at, ends_at, place, shop_url,
    places_total, places_left, unlimited, is_full, availability_at
FROM billetweb_events
WHERE vanished_at IS NULL
"""
# Price and payment are the order's own, and each of its places repeats them. `paid` is null where unknown.
ORDERS = """
CREATE VIEW syncd_orders AS
SELECT order_id, event_id,
    COUNT(*) FILTER (WHERE disabled IS NOT TRUE) AS places,
    COUNT(*) FILTER (WHERE disabled IS TRUE) AS refunded,
    MAX(order_price) AS order_price,
    MAX(CASE WHEN order_paid THEN 1 WHEN NOT order_paid THEN 0 END) = 1 AS paid,
    MIN(ordered_at) AS ordered_at,
    MAX(paid_at) AS paid_at
FROM billetweb_attendees
WHERE vanished_at IS NULL AND order_id IS NOT NULL
GROUP BY order_id, event_id
"""


def upgrade() -> None:
    op.execute(AVAILABILITY)
    op.execute(ORDERS)
