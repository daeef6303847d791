"""Faults of the stand-in that only tests use: right rows, spelled as Billetweb is not known to spell them."""

from support.faults import with_rows
from syncd.standin.server import Answer
from syncd.standin.world import ZERO_DATE, Row

NUMBERS = {
    "id",
    "multiple",
    "online",
    "used",
    "disabled",
    "ticket_id",
    "order_id",
    "order_session",
    "order_paid",
}


def as_numbers(answer: Answer) -> Answer:
    """Return the right rows with numbers where Billetweb sends text: ids and flags."""

    def edited(row: Row) -> Row:
        return {
            name: int(value) if name in NUMBERS and str(value).isdecimal() else value
            for name, value in row.items()
        }

    return with_rows(lambda rows: list(map(edited, rows)))(answer)


def with_empty_lists(answer: Answer) -> Answer:
    """Return the right rows with `[]`, as PHP writes an empty map, where Billetweb leaves one out."""
    is_of_sessions = b'"total_sales"' in answer.body
    empty: Row = {"tickets": []} if is_of_sessions else {"custom": [], "custom_order": []}
    return with_rows(lambda rows: [empty | row for row in rows])(answer)


def without_dates(answer: Answer) -> Answer:
    """Return the right events with zero dates for start and end, as old series have them."""
    return with_rows(lambda rows: [row | {"start": ZERO_DATE, "end": ZERO_DATE} for row in rows])(answer)
