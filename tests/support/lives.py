"""Lives that went wrong once, by the id of their kind: they are always played.

A failing test prints its life in this spelling. Who mends what it found adds the life here.
"""

from support.account import Happening, Life, Planned, Round

EMPTIED = Life(
    [0],
    0,
    [
        Round([Happening("delete_places", 0, 0), Happening("check_in", 0, 11)], [], "full"),
        Round(
            [Happening("withdraw_all", 0, 0), Happening("bring_back_events", 0, 9)],
            [Planned("too large", "*", None, None)],
            "interval",
        ),
    ],
)
"""A run without an end: an answer without anybody in it is too large all the same."""


def moved(times: int) -> Life:
    """Return a life in which a ticket moves to another event while all events lack theirs."""
    unread = Round([], [Planned("[]", "tickets", None, times)], "interval")
    return Life([0, 1, 2, 3], 0, [unread, Round([Happening("move_ticket", 0, 0)], [], "interval")])


MOVED = [moved(2), moved(4)]
TWICE = Life(
    [2, 0, 3, 1],
    0,
    [
        Round([Happening("move_ticket", 0, 1)], [Planned("503", "/events", None, 3)], "interval"),
        Round([Happening("move_ticket", 0, 0)], [], "interval"),
    ],
)
"""Two tickets leave an event, one before that is read and one after: the later one still counts in it."""
ACCEPTED = Life([0, 1, 2, 3], 0, [Round([Happening("withdraw_most", 0, 0)], [], "interval")])
"""The figures of an event whose gauges are gone are as old as those, though somebody said that they are."""
FOUND = Life(
    [0, 5],
    0,
    [
        Round([Happening("withdraw_row", 0, 7)], [Planned("[]", "*", 1, 4)], "interval"),
        Round([Happening("move_ticket", 1, 0)], [], "interval"),
    ],
)
"""A ticket that is found under another event was taken for lacking, by the judge."""
SHORT = Life([0], 0, [Round([], [Planned("too large", "/events", None, 1)], "interval")])
"""Descriptions that a shorter list left out were taken for gone, by the judge."""
GROWN = Life(
    [0, 1, 5, 2],
    0,
    [Round([Happening("withdraw_most", 2, 0), Happening("publish", 0, 0)], [], "next day")],
)
"""A tariff kept the total of a gauge that was gone: its event passed for one that fails, and had to wait."""
PUBLISHED = Life(
    [0],
    0,
    [
        Round([Happening("delete_places", 0, 0)], [], "next day"),
        Round([], [], "next day"),
        Round([Happening("publish", 0, 0)], [], "interval"),
    ],
)
"""What a read brought was taken for evidence that all others are gone."""
ONCE_WRONG: dict[str, list[Life]] = {
    "1-0-none-100": [SHORT],
    "1-0-minimal-100": [PUBLISHED],
    "1-0-full-100": [EMPTIED],
    "2-0-full-100": [FOUND],
    "4-0-none-100": [*MOVED, TWICE],
    "4-0-full-100": MOVED,
    "4-0-none-5": [*MOVED, ACCEPTED, GROWN],
    "4-0-minimal-5": MOVED,
}
