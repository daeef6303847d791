"""What the log says of runs: a line at the start, a line per error, a line at the end.

An error that the previous run had too is logged again only after an hour, and then with its count: a night
without Billetweb must not bury what came before it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime

from loguru import logger
from msgspec import Struct, structs

from syncd.database.state import Reads, Try
from syncd.errors import SyncdError
from syncd.log import repeats
from syncd.mirror.absence import Size
from syncd.mirror.agenda import Pace
from syncd.mirror.diff import FIELDS, Change
from syncd.model import EVENTS, MAX_ERRORS, Json, Progress, Run, RunError, Unreadable
from syncd.text import about, clip, count, format_duration, plain, run_name

ALIKE_AT_MOST = 3
"""A run logs this many errors of one kind and status one by one, then the others in one line."""

NEXT = {
    "transport": "the old availability stays, the next run asks again",
    "rate_limited": "the old availability stays, the next run asks again",
    "challenge": "no request is sent for some minutes, the old availability stays",
    "credentials": (
        "nothing is asked for a day, or until there is a new key (`syncctl status` says how to set it), or"
        " somebody says that this one is good: `syncctl run-now`, without a daemon `syncd once --full`"
    ),
    "restricted": "the old availability stays; give the key the right to all events, in Billetweb",
    "refused": "the old availability stays, the next run asks again",
    "malformed": "nothing of that was used, the old availability stays, the next run asks again",
    "too_large": "nothing of this answer was used, the old availability stays, the next run asks again",
    "unreadable": "these columns keep what they had, and `extra` holds what came",
    "doubted": "`syncctl doubts` shows all that is absent",
    "unknown_event": "nothing was changed",
    "value": "nothing of that was written, the old availability stays, the next run tries again",
    "database": "the run was given up, the next run tries again",
    "cancelled": "nothing was changed",
    "timeout": "the next run begins with what is oldest",
    "internal": "the next run tries again; please report this",
}
"""What happens next, by kind of error."""


NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)?(?: (?:d|h|min|s)\b)?(?: (?=[0-9]))?")
"""What differs in an error from run to run: the number of rows, the time left."""
NAME_COLUMNS = 60
"""The length of an event's name in a log line: enough to recognise it."""


class UnreadableValues(SyncdError):
    """Values that could not be read: their columns keep what they had."""

    kind = "unreadable"


class Report:
    """What is reported of a run in progress, and what is recorded at its end.

    `failures` holds every error; `pace` is how a run of the whole account shared out its requests. `read_at`:
    when unchanged events were read; `odd`: when events were read whose read lacked too much. `tries`: the
    tries of events that failed now or before. `sizes`: how many rows each scope that was read should have
    held. `unreadable`: the values that could not be read.
    """

    def __init__(
        self,
        run: Run,
        *,
        redact: Callable[[str], str],
        requests: Callable[[], int],
        on_progress: Callable[[Run], None] = lambda _: None,
        waits: Callable[[], tuple[datetime | None, str | None]] = lambda: (None, None),
    ) -> None:
        self.run = run
        self.failures: list[RunError] = []
        self.pace: Pace | None = None
        self.read_at: dict[str, datetime] = {}
        self.odd: dict[str, datetime] = {}
        self.tries: dict[str, Try] = {}
        self.sizes: dict[tuple[str, str | None], Size] = {}
        self.unreadable = Unreadable()
        self._redact = redact
        self._requests = requests
        self._requests_before = requests()
        self._on_progress = on_progress
        self._waits = waits

    def fail(self, subject: str, error: SyncdError, *, times: int = 1) -> None:
        """Record an error of a part of the run; it counts `times`."""
        told = RunError(plain(subject), error.kind, plain(self._redact(str(error))), error.status)
        self.run.add_error(told, times)
        self.failures.append(told)

    def tell_unreadable(self) -> None:
        """Record the values that could not be read: one error a run, however many they were."""
        if self.unreadable.count:
            self.run.unreadable = self.unreadable.count
            shown = "; ".join(self.unreadable.examples)
            more = "" if self.run.unreadable == len(self.unreadable.examples) else ", for example"
            self.fail(
                "run",
                UnreadableValues(f"{count(self.run.unreadable, 'value')} cannot be read{more}: {shown}"),
            )

    def tried(self, event_id: str, before: Reads, at: datetime | None, failures: int) -> None:
        """Note how an event was tried, unless that is already recorded."""
        if (at, failures) != (before.tried_at, before.failures):
            self.tries[event_id] = Try(at, failures)

    def settled(self, event_id: str) -> None:
        """Note that a read that lacked too much was right after all: its figures hold, and it succeeded."""
        self.read_at[event_id] = self.odd[event_id]
        self.tries[event_id] = Try()

    def advance(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Report the run's progress."""
        self.count_requests()
        self.run.progress = Progress(phase, done, total, *self._waits())
        self._on_progress(self.run)

    def step(self, by: int = 1) -> None:
        """Report that `by` more of the phase's total are done."""
        progress = self.run.progress
        if progress:
            self.advance(progress.phase, progress.done + by, progress.total)

    def count_requests(self) -> None:
        """Update the run's count of requests."""
        self.run.requests = self._requests() - self._requests_before


def tell_news(run: Run, changes: Iterable[Change]) -> None:
    """Log which events sold out, and which have places again, if their places were known before."""
    for change in changes:
        if change.table != EVENTS or change.kind == "vanished" or "is_full" not in change.diff:
            continue
        now = dict(zip(FIELDS[EVENTS], change.values, strict=True))
        before = now | {column: pair[0] for column, pair in change.diff.items()}
        if (had := _places(before)) is None or (has := _places(now)) is None:
            continue  # never read before, or unknown now
        name = f' "{clip(plain(now["name"]), NAME_COLUMNS)}"' if now["name"] else ""
        is_full = now["is_full"]
        what = "sold out" if is_full else "places again"
        log = logger.bind(
            event="event.full" if is_full else "event.reopened", run=run.id, event_id=change.row_id
        )
        log.info("event {}{}: {} ({} → {})", change.row_id, name, what, had, has)


def _places(event: Json) -> str | None:
    """Return how many places an event has left, None if unknown."""
    left = event["places_left"]
    return "unlimited" if event["unlimited"] else None if left is None else str(left)


class _Seen(Struct):
    told_at: float
    runs: int = 0


class RunLog:
    """Logs runs, and remembers which errors were logged. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, str, int | None, str], _Seen] = {}

    def started(self, run: Run) -> None:
        """Log that a run begins."""
        what = (" in full" if run.full else "") + ("" if run.whole else f" of {', '.join(run.events)}")
        why = f"asked for by {run.requested_by.user}" if run.requested_by else run.trigger
        consent = ", accepting what is absent" if run.accept else ""
        log = logger.bind(event="run.started", run=run.id, trigger=run.trigger)
        log.info("{}{} started ({}{})", run_name(run.id), what, why, consent)

    def finished(self, run: Run, failures: Iterable[RunError]) -> None:
        """Log what went wrong in a run, then how it ended."""
        known = self._tell_errors(run, list(failures))
        counts = run.counts
        fields = structs.asdict(counts)
        kinds = (f"{number} {kind}" for kind, number in fields.items() if number and kind != "unchanged")
        details = ", ".join(kinds)
        before = f"; {count(known, 'error')} as before" if known else ""
        text = (
            f"{run_name(run.id)} {run.outcome} in {format_duration(run.duration_s)} ({run.trigger}):"
            f" {count(run.synced, 'event')} synced, {run.failed} failed;"
            f" {count(counts.changed, 'row')} changed"
            f"{f' ({details})' if details else ''}; {count(run.requests, 'request')}{before}"
        )
        level = {"failed": "ERROR", "partial": "WARNING"}.get(run.outcome or "", "INFO")
        level = "WARNING" if run.is_slip else level
        fields |= {"requests": run.requests, "synced": run.synced, "failed": run.failed}
        logger.bind(
            event="run.finished",
            run=run.id,
            trigger=run.trigger,
            outcome=run.outcome,
            duration_s=run.duration_s,
            errors=run.errors_total,
            **fields,
        ).log(level, "{}", text)

    def _tell_errors(self, run: Run, failures: list[RunError]) -> int:
        """Log the errors that are new or due again; return the number of known ones, which are not."""
        now = self._clock()
        known = 0
        alike: Counter[tuple[str, int | None]] = Counter()
        still = set()
        before = dict(self._seen)  # without what this run logs
        for failure in failures:
            key = (failure.subject, failure.kind, failure.status, NUMBER.sub("", failure.message))
            seen = before.get(key)
            if seen and now - seen.told_at < repeats.EVERY_S:
                seen.runs += key not in still
                known += 1
            else:
                self._seen[key] = _Seen(now)
                alike[failure.kind, failure.status] += 1
                if alike[failure.kind, failure.status] <= ALIKE_AT_MOST:
                    self._tell(run, failure, seen.runs if seen else 0)
            still.add(key)
        for (kind, status), told in alike.items():
            if told > ALIKE_AT_MOST:
                self._tell_more(run, kind, status, told - ALIKE_AT_MOST)
        if run.whole:  # what still fails may alternate between texts
            failing = {key[:3] for key in still}
            self._seen = {
                key: seen
                for key, seen in self._seen.items()
                if key in still or (key[:3] in failing and now - seen.told_at < repeats.EVERY_S)
            }
        return known

    def _tell(self, run: Run, error: RunError, repeated: int) -> None:
        event_id = error.subject.removeprefix("event ") if error.subject.startswith("event ") else None
        log = logger.bind(
            event=f"error.{error.kind}",
            run=run.id,
            subject=error.subject,
            event_id=event_id,
            kind=error.kind,
            status=error.status,
        )
        log.warning(
            "{}: {}{} [{}{}]; {}{}",
            run_name(run.id),
            about(error.subject),
            error.message,
            error.kind,
            f", HTTP {error.status}" if error.status else "",
            NEXT.get(error.kind, "the next run tries again"),
            f" (the same in {count(repeated, 'more run')} since it was last told)" if repeated else "",
        )

    def _tell_more(self, run: Run, kind: str, status: int | None, more: int) -> None:
        told = f"{kind}, HTTP {status}" if status else kind
        log = logger.bind(event=f"error.{kind}", run=run.id, kind=kind, status=status)
        log.warning(
            "{}: {} alike [{}]; `syncctl history --json` holds the run's first {}",
            run_name(run.id),
            count(more, "more error"),
            told,
            MAX_ERRORS,
        )
