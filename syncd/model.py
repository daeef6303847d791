"""The records that travel through syncd, and its words. Imports nothing of syncd.

*Run*: one synchronisation. *Trigger*: why it ran. *Live event*: not yet ended, or ended less than
`sync.keep_past` ago. *Gauge*: a Billetweb availability row. *Scope*: what one read is complete for (the
account's events; one event's gauges, tickets, sessions or attendees). *Vanished*: no longer returned by reads
that were complete in scope. *Change*: one row that appeared, changed, vanished or returned. *Absence*: a row
that a complete read lacked and that has not vanished. *Doubt*: an absence too large to be believed soon.

The field names of `Event`, `Gauge`, `Ticket`, `Session` and `Attendee` are the column names of the mirrored
tables. Instants end in `_at` and are aware UTC; money is Decimal; `_s` is seconds.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypedDict

from msgspec import Struct, field, structs

Json = dict[str, object]
EVENTS, GAUGES = "billetweb_events", "billetweb_gauges"
TICKETS, SESSIONS = "billetweb_tickets", "billetweb_sessions"
ATTENDEES = "billetweb_attendees"
"""The mirrored tables."""
Trigger = Literal["startup", "interval", "manual", "once"]
RunState = Literal["queued", "running", "done"]
Outcome = Literal["ok", "partial", "failed", "cancelled"]
SaleStatus = Literal["coming", "on_sale", "full", "ended", "unknown"]
AttendeeMode = Literal["none", "minimal", "full"]
FeedFormat = Literal["json", "jsonld", "ics", "csv"]
QuietKind = Literal["rate_limited", "challenge", "credentials"]


def joined(key: Sequence[str]) -> str:
    """Return the parts of a key joined by `/`, one inside a part written %2F: no two keys are alike."""
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in key)


class Event(Struct, frozen=True, kw_only=True):
    """One event. `places_*` to `sale_status` are derived (see `availability.py`), the rest is `/events`."""

    id: str
    account: str
    ext_id: str | None = None
    name: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    multiple: bool = False
    place: str | None = None
    shop_url: str | None = None
    online: bool | None = None
    tax_rate: Decimal | None = None
    tags: list[str] = field(default_factory=list)
    image_url: str | None = None
    cover_url: str | None = None
    description: str | None = None
    confirmation_message: str | None = None
    places_total: int | None = None
    places_left: int | None = None
    unlimited: bool = False
    is_full: bool = False
    sale_status: SaleStatus = "unknown"
    extra: Json = field(default_factory=dict)

    @property
    def end(self) -> datetime | None:
        """When it is over: as its start, where it has no end."""
        return self.ends_at or self.starts_at


class Gauge(Struct, frozen=True, kw_only=True):
    """One row of `/event/:id/avail`. Limited: `places_left` is a number; unlimited; else unknown."""

    event_id: str
    session_id: str
    type: str
    gauge_id: str
    name: str | None = None
    places_total: int | None = None
    places_left: int | None = None
    unlimited: bool = False
    status: str | None = None
    extra: Json = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its key as one text."""
        return joined((self.event_id, self.session_id, self.type, self.gauge_id))


class Ticket(Struct, frozen=True, kw_only=True):
    """One tariff. `position` is its place in Billetweb's display order, from 1.

    `is_place`: whether it sells a place, and not a meal or an insurance (`sync.not_places`).
    """

    id: str
    event_id: str
    position: int
    name: str | None = None
    full_name: str | None = None
    category: str | None = None
    price: Decimal | None = None
    commission: Decimal | None = None
    tax: Decimal | None = None
    places_total: int | None = None
    places_left: int | None = None
    unlimited: bool = False
    is_full: bool = False
    visibility: str | None = None
    label: str | None = None
    description: str | None = None
    instructions: str | None = None
    sale_starts_at: datetime | None = None
    sale_ends_at: datetime | None = None
    form: str | None = None
    is_place: bool = True
    extra: Json = field(default_factory=dict)


class Session(Struct, frozen=True, kw_only=True):
    """One date of an event in session mode."""

    id: str
    event_id: str
    name: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    place: str | None = None
    description: str | None = None
    instructions: str | None = None
    visibility: str | None = None
    places_total: int | None = None
    places_sold: int | None = None
    places_left: int | None = None
    unlimited: bool = False
    is_full: bool = False
    tickets: Json = field(default_factory=dict)
    last_update_at: datetime | None = None
    extra: Json = field(default_factory=dict)


class Attendee(Struct, frozen=True):
    """One sold place. `disabled`: refunded. `order_price` is the whole order's, repeated on each place."""

    id: str
    event_id: str
    ticket_id: str | None = None
    session_id: str | None = None
    order_id: str | None = None
    order_ext_id: str | None = None
    ext_id: str | None = None
    barcode: str | None = None
    category: str | None = None
    price: Decimal | None = None
    order_price: Decimal | None = None
    used: int | None = None
    used_at: datetime | None = None
    disabled: bool | None = None
    order_paid: bool | None = None
    order_payment_type: str | None = None
    order_origin: str | None = None
    order_accreditation: str | None = None
    pass_id: str | None = None
    seating_location: str | None = None
    ordered_at: datetime | None = None
    paid_at: datetime | None = None
    last_update_at: datetime | None = None
    firstname: str | None = None
    name: str | None = None
    email: str | None = None
    order_firstname: str | None = None
    order_name: str | None = None
    order_email: str | None = None
    order_language: str | None = None
    reduction_code: str | None = None
    authorization_code: str | None = None
    custom: Json | None = None
    custom_order: Json | None = None
    extra: Json = field(default_factory=dict)


class Peer(Struct, frozen=True):
    """Who asked for a run, by the kernel's word (SO_PEERCRED)."""

    uid: int
    user: str
    pid: int


class Wish(TypedDict, total=False):
    """What somebody wants of a run; `join`: the one in progress will do. No `events` are all of them."""

    full: bool
    accept: bool
    events: Sequence[str]
    join: bool
    requested_by: Peer | None


class RunError(Struct, frozen=True, omit_defaults=True):
    """One thing that went wrong in a run: what it concerns, the stable word for it, a sentence.

    `status`: the HTTP status of the answer that told so.
    """

    subject: str
    kind: str
    message: str
    status: int | None = None

    def spelled_out(self) -> "RunError":
        """Return this in ASCII, what is beyond it by its number, as in a Python string."""
        return structs.replace(self, message=self.message.encode("ascii", "backslashreplace").decode())


class Counts(Struct):
    """Rows of the mirrored tables by what became of them in a run."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    vanished: int = 0
    returned: int = 0

    def add(self, other: "Counts") -> None:
        """Add another event's counts to these."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def changed(self) -> int:
        """How many rows were changed."""
        return self.inserted + self.updated + self.vanished + self.returned


class Unreadable(Struct):
    """Values that could not be read: how many, and the first of them for a person to look at."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, table: str, columns: Mapping[str, Sequence[str]]) -> None:
        """Note those of an answer, by row id."""
        for row, names in columns.items():
            self.add(Unreadable(len(names), [f"{table} {row}: {', '.join(names)}"]))

    def add(self, other: "Unreadable") -> None:
        """Note those of another answer too."""
        self.count += other.count
        self.examples += other.examples[: UNREADABLE_SHOWN - len(self.examples)]


class Progress(Struct, frozen=True):
    """How far a run is: `done` of the `total` events that it reads, 0 until the list of events is read.

    `waits_until` is when the next request may be sent, and `waits_for` why not before; None while none waits.
    """

    phase: str
    done: int = 0
    total: int = 0
    waits_until: datetime | None = None
    waits_for: str | None = None


class Run(Struct, kw_only=True):
    """One synchronisation, from queued to done; the JSON of the control API and a row of `syncd_runs`.

    `id` is negative until the run is on record. `whole`: all live events are read, and those that `events`
    names; else those that it names alone. `accept`: somebody says that what is absent is gone, in the events
    of `accepted`, where there are any, else everywhere. `errors` holds at most MAX_ERRORS of all the
    `errors_total`. `unreadable`: how many values could not be read, of which one of the errors tells.
    """

    id: int
    trigger: Trigger
    requested_by: Peer | None = None
    full: bool = False
    events: list[str] = field(default_factory=list)
    whole: bool = True
    accept: bool = False
    accepted: list[str] = field(default_factory=list)
    state: RunState = "queued"
    outcome: Outcome | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration_s: float | None = None
    requests: int = 0
    synced: int = 0
    failed: int = 0
    counts: Counts = field(default_factory=Counts)
    errors: list[RunError] = field(default_factory=list)
    errors_total: int = 0
    unreadable: int = 0
    progress: Progress | None = None

    @property
    def is_slip(self) -> bool:
        """Whether it failed for nothing but ids that Billetweb does not know: a typing error, and no fault.

        Whoever names more of them than are kept is no person who mistyped.
        """
        kinds = {error.kind for error in self.errors} - {"unreadable"}  # which fails nothing
        are_all_kept = self.errors_total == len(self.errors)
        return self.outcome == "failed" and not self.whole and are_all_kept and kinds == {UNKNOWN_EVENT}

    def add_error(self, error: RunError, times: int = 1) -> None:
        """Count an error, as so many, and keep it while there is room."""
        self.errors_total += times
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(error)


class Quiet(Struct, frozen=True, kw_only=True):
    """A time in which Billetweb is asked nothing: for the refusal of this kind, with this HTTP status.

    `key` is the digest of the credentials that were refused, "" where it was not these.
    """

    kind: QuietKind
    since: datetime
    until: datetime
    status: int | None = None
    key: str = ""

    def lasts_s(self, now: datetime) -> float:
        """Return for how long it still lasts: never longer than it was meant to, whatever the clock says."""
        return max(min(self.until - now, self.until - self.since).total_seconds(), 0.0)


class Doubt(Struct, frozen=True, kw_only=True):
    """An absence too large to be believed soon, of rows of one scope; `GET /v1/doubts`.

    `event_id` is None for the list of events. `absent` of the scope's `of` rows have been lacking `since`, in
    `reads` reads in a row. `until` is when they may vanish, None where that waits for a person.
    """

    table: str
    event_id: str | None
    absent: int
    of: int
    since: datetime
    reads: int
    examples: list[str]
    waits_for: Literal["time", "accept"]
    until: datetime | None


UNKNOWN_EVENT = "unknown_event"
"""The kind of error of an id that somebody named and Billetweb does not know."""
UNREADABLE_SHOWN = 3
"""So many show what kind of value it is, and still fit a line."""
MAX_ERRORS = 20
"""So many a person reads, and a fault of all events makes no record of megabytes."""
PERSONAL = frozenset(
    {
        *("firstname", "name", "email", "order_firstname", "order_name", "order_email", "order_language"),
        *("reduction_code", "authorization_code", "custom", "custom_order", "extra"),
    }
)
"""The columns of an attendee that are filled where `sync.attendees` is `full` alone."""
