"""What the log says of runs: a line at the start, a line per error, a line at the end.

An error that the run before had too is not told again until an hour has passed, and then with its count: a
night without Billetweb must not bury what came before it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable

from loguru import logger
from msgspec import Struct

from syncd.model import MAX_ERRORS, Counts, Run
from syncd.sync import Failure
from syncd.text import format_duration

REPEAT_AFTER_S = 3600.0
ALIKE_AT_MOST = 3
"""So many errors of one kind and status are told one by one in a run, then the others in one line."""

NEXT = {
    "transport": "old figures stay, the next run asks again",
    "rate_limited": "old figures stay, the next run asks again",
    "challenge": "no request is sent for some minutes, old figures stay",
    "credentials": (
        "nothing is asked until somebody mends them: then `systemctl restart syncd` (a systemd credential is"
        " read at start), or `syncctl reload` for a key in a file"
    ),
    "restricted": "old figures stay; give the key the right to all events, in Billetweb",
    "refused": "old figures stay, the next run asks again",
    "malformed": "nothing of this answer was used, old figures stay, the next run asks again",
    "too_large": "nothing of this answer was used, old figures stay, the next run asks again",
    "doubted": "old rows stay until two full runs in a row agree",
    "unknown_event": "nothing was changed",
    "database": "the run was given up, the next run tries again",
    "cancelled": "nothing was changed",
    "timeout": "the next run begins with what is oldest",
    "internal": "the next run tries again; please report this",
}
"""What happens next, by kind of error."""


class _Seen(Struct):
    told_at: float
    runs: int = 0


class RunLog:
    """Tells of runs, and remembers which errors were told. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, str, int | None], _Seen] = {}

    def started(self, run: Run) -> None:
        """Tell that a run begins."""
        what = (" in full" if run.full else "") + ("" if run.whole else f" of {', '.join(run.events)}")
        who = f" for {run.requested_by.user}" if run.requested_by else ""
        log = logger.bind(event="run.started", run=run.id, trigger=run.trigger)
        log.info("run {}{} started ({}{})", run.id, what, run.trigger, who)

    def finished(self, run: Run, failures: Iterable[Failure]) -> None:
        """Tell what went wrong in a run, then how it ended."""
        known = self._tell_errors(run, list(failures))
        counts = run.counts
        changed = changed_rows(counts)
        details = ", ".join(f"{getattr(counts, kind)} {kind}" for kind in CHANGES if getattr(counts, kind))
        text = (
            f"run {run.id} {run.outcome} in {format_duration(run.duration_s)} ({run.trigger}):"
            f" {run.synced} events synced, {run.failed} failed; {changed} rows changed"
            f"{f' ({details})' if details else ''}; {run.requests} requests"
            f"{f'; {known} errors as before' if known else ''}"
        )
        level = {"failed": "ERROR", "partial": "WARNING"}.get(run.outcome or "", "INFO")
        fields = {name: getattr(counts, name) for name in counts.__struct_fields__}
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

    def _tell_errors(self, run: Run, failures: list[Failure]) -> int:
        """Tell the errors that are new or due again; return how many were told before and stay untold."""
        now = self._clock()
        known = 0
        alike: Counter[tuple[str, int | None]] = Counter()
        still = set()
        for failure in failures:
            key = (failure.error.subject, failure.error.kind, failure.status)
            still.add(key)
            seen = self._seen.get(key)
            if seen and now - seen.told_at < REPEAT_AFTER_S:
                seen.runs += 1
                known += 1
                continue
            self._seen[key] = _Seen(now)
            alike[key[1:]] += 1
            if alike[key[1:]] <= ALIKE_AT_MOST:
                self._tell(run, failure, seen.runs if seen else 0)
        for (kind, status), count in alike.items():
            if count > ALIKE_AT_MOST:
                self._tell_more(run, kind, status, count - ALIKE_AT_MOST)
        if run.whole:
            self._seen = {key: seen for key, seen in self._seen.items() if key in still}
        return known

    def _tell(self, run: Run, failure: Failure, repeated: int) -> None:
        error = failure.error
        event_id = error.subject.removeprefix("event ") if error.subject.startswith("event ") else None
        log = logger.bind(
            event=f"error.{error.kind}",
            run=run.id,
            subject=error.subject,
            event_id=event_id,
            kind=error.kind,
            status=failure.status,
        )
        log.warning(
            "run {}: {}{} [{}{}]; {}{}",
            run.id,
            "" if error.subject == "run" else f"{error.subject}: ",
            error.message,
            error.kind,
            f", HTTP {failure.status}" if failure.status else "",
            NEXT.get(error.kind, "the next run tries again"),
            f" (the same in {repeated} more runs since it was last told)" if repeated else "",
        )

    def _tell_more(self, run: Run, kind: str, status: int | None, count: int) -> None:
        told = f"{kind}, HTTP {status}" if status else kind
        log = logger.bind(event=f"error.{kind}", run=run.id, kind=kind, status=status)
        log.warning(
            "run {}: {} more errors alike [{}]; `syncctl history --json` holds the run's first {}",
            run.id,
            count,
            told,
            MAX_ERRORS,
        )


CHANGES = ("inserted", "updated", "vanished", "returned")


def changed_rows(counts: Counts) -> int:
    """Return how many rows a run changed."""
    return counts.inserted + counts.updated + counts.vanished + counts.returned
