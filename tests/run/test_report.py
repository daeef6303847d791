"""What is told of runs: each thing once, with what comes next, and a bad night in few lines."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import LogLines, WaitedFor

from syncd.database.state import Reads, Try
from syncd.errors import DecodeError, StoreError
from syncd.log.redact import Redactor
from syncd.model import MAX_ERRORS, Counts, Peer, Progress, Run, RunError
from syncd.run.report import Report, RunLog

KEY = "canary-0123456789"


@pytest.fixture
def clock() -> WaitedFor:
    return WaitedFor()


@pytest.fixture
def run_log(clock: WaitedFor, log_lines: LogLines) -> RunLog:
    return RunLog(clock.running_s)


def failure(
    subject: str = "event 7", kind: str = "transport", status: int | None = 503, message: str = "no answer"
) -> RunError:
    return RunError(subject, kind, message, status)


def ended(run_id: int = 1, *failures: RunError, **fields: Any) -> Run:
    run = Run(id=run_id, trigger="interval", state="done", duration_s=2.5, **fields)
    for one in failures:
        run.add_error(one)
    run.outcome = run.outcome or ("partial" if failures else "ok")
    return run


def finish(run_log: RunLog, run_id: int, *failures: RunError, **fields: Any) -> None:
    run_log.finished(ended(run_id, *failures, **fields), failures)


# --- the log


def test_a_start_is_not_told(run_log: RunLog, log_lines: LogLines) -> None:
    """One line says what runs, why, and for whom."""
    run_log.started(Run(id=7, trigger="interval"))
    run_log.started(Run(id=8, trigger="interval", full=True))
    peer = Peer(uid=0, user="root", pid=1)
    run_log.started(Run(id=9, trigger="manual", events=["900001", "900002"], whole=False, requested_by=peer))
    assert [line["message"] for line in log_lines.of("run.started")] == [
        "run 7 started (interval)",
        "run 8 in full started (interval)",
        "run 9 of 900001, 900002 started (asked for by root)",
    ]
    assert {line["level"] for line in log_lines.of()} == {"INFO"}
    last = log_lines.of()[-1]
    assert (last["run"], last["trigger"]) == (9, "manual")


def test_one_is_told_as_many(run_log: RunLog, log_lines: LogLines) -> None:
    """What there is one of stands in the singular, and a run without a number has none."""
    finish(run_log, -1234567890, synced=1, requests=1, counts=Counts(updated=1))
    assert log_lines.of()[-1]["message"] == (
        "a new run ok in 2.5 s (interval): 1 event synced, 0 failed; 1 row changed (1 updated); 1 request"
    )


def test_an_end_is_told_without_its_figures(run_log: RunLog, log_lines: LogLines) -> None:
    """One line has trigger, duration, events synced and failed, changes and requests, also as fields."""
    counts = Counts(inserted=1, updated=2, unchanged=50, vanished=3, returned=4)
    finish(run_log, 7, synced=6, requests=14, counts=counts)
    (line,) = log_lines.of()
    assert line["message"] == (
        "run 7 ok in 2.5 s (interval): 6 events synced, 0 failed;"
        " 10 rows changed (1 inserted, 2 updated, 3 vanished, 4 returned); 14 requests"
    )
    fields = {"event": "run.finished", "level": "INFO", "run": 7, "trigger": "interval", "outcome": "ok"}
    fields |= {"duration_s": 2.5, "synced": 6, "failed": 0, "requests": 14, "errors": 0, "updated": 2}
    assert fields.items() <= line.items()


@pytest.mark.parametrize(
    ("outcome", "level"),
    [("ok", "INFO"), ("cancelled", "INFO"), ("partial", "WARNING"), ("failed", "ERROR")],
)
def test_a_bad_end_looks_like_a_good_one(
    run_log: RunLog, log_lines: LogLines, outcome: str, level: str
) -> None:
    """The level follows the outcome, so that a journal filtered by priority shows what matters."""
    finish(run_log, 1, outcome=outcome)
    assert log_lines.of()[-1]["level"] == level


def test_an_error_is_told_without_what_it_concerns(run_log: RunLog, log_lines: LogLines) -> None:
    """One line per error has its subject, kind, status and what happens next, before the end's line."""
    finish(run_log, 3, failure(), failure("run", "database", None, "the disk is full"))
    event, run, end = log_lines.of()
    assert event["message"] == (
        "run 3: event 7: no answer [transport, HTTP 503]; the old availability stays, the next run asks again"
    )
    fields = {"event": "error.transport", "level": "WARNING", "run": 3, "subject": "event 7"}
    fields |= {"event_id": "7", "kind": "transport", "status": 503}
    assert fields.items() <= event.items()
    assert run["message"] == (
        "run 3: the disk is full [database]; the run was given up, the next run tries again"
    )
    assert "event_id" not in run
    assert "status" not in run
    assert end["event"] == "run.finished"


def test_an_unknown_kind_of_error_breaks_the_log(run_log: RunLog, log_lines: LogLines) -> None:
    """A kind without a sentence of its own still has one."""
    finish(run_log, 1, failure(kind="novel"))
    assert log_lines.of("error.novel")[0]["message"].endswith("; the next run tries again")


def test_a_night_without_billetweb_buries_the_evening(
    run_log: RunLog, log_lines: LogLines, clock: WaitedFor
) -> None:
    """An error that goes on is told once an hour, with how often it was met; the end's line counts it."""
    for number in range(6):  # every quarter of an hour: 0, 15, 30, 45, 60, 75 minutes
        finish(run_log, number, failure())
        clock.now_s += 900
    first, again = log_lines.of("error.")
    assert (first["run"], again["run"]) == (0, 4)
    assert "more runs" not in first["message"]
    assert again["message"].endswith("(the same in 3 more runs since it was last told)")
    ends = log_lines.of("run.finished")
    assert [("1 error as before" in end["message"]) for end in ends] == [
        False,
        True,
        True,
        True,
        False,
        True,
    ]
    assert [end["errors"] for end in ends] == [1] * 6


def test_a_new_error_hides_behind_an_old_one(run_log: RunLog, log_lines: LogLines) -> None:
    """Another subject, kind, status or text is another error, and told at once; another number is not."""
    finish(run_log, 1, failure(message="no answer within 30 s"))
    others = [failure("event 8"), failure(status=500), failure(kind="malformed", status=None), failure()]
    finish(run_log, 2, failure(message="no answer within 10 s"), *others)
    told = [line for line in log_lines.of("error.") if line["run"] == 2]
    assert len(told) == 4
    assert log_lines.of("run.finished")[-1]["message"].endswith("; 1 error as before")


def test_two_texts_by_turns_bury_the_evening(run_log: RunLog, log_lines: LogLines, clock: WaitedFor) -> None:
    """Of one thing that fails now so, now so, each text is told once an hour, however long it is."""
    texts = ["no answer within 30 s", "connection reset; 1 h 45 min of rest", "connection reset; 2 h of rest"]
    for number in range(12):
        finish(run_log, number, failure(message=texts[number % 3]))
        clock.now_s += 300
    assert [line["run"] for line in log_lines.of("error.")] == [0, 1]


def test_an_error_that_comes_back_is_kept_quiet(
    run_log: RunLog, log_lines: LogLines, clock: WaitedFor
) -> None:
    """A good run in between makes it new, without an old count."""
    finish(run_log, 1, failure())
    finish(run_log, 2, failure())
    finish(run_log, 3)
    clock.now_s += 900
    finish(run_log, 4, failure())
    told = log_lines.of("error.")
    assert [line["run"] for line in told] == [1, 4]
    assert "more runs" not in told[-1]["message"]


def test_a_run_of_one_event_passes_for_a_healing(run_log: RunLog, log_lines: LogLines) -> None:
    """A good run of named events says nothing of the others: their errors stay told."""
    finish(run_log, 1, failure())
    finish(run_log, 2, events=["8"], whole=False)
    finish(run_log, 3, failure())
    assert [line["run"] for line in log_lines.of("error.")] == [1]


def test_an_error_hides_behind_another_of_its_run(
    run_log: RunLog, log_lines: LogLines, clock: WaitedFor
) -> None:
    """Several of one subject are told each, and later count as one run with the same error."""
    several = [failure("events", "malformed", None, f"events[{n}].id is missing") for n in range(3)]
    for number in range(3):
        finish(run_log, number, *several)
    assert [line["run"] for line in log_lines.of("error.")] == [0, 0, 0]
    ends = [end["message"] for end in log_lines.of("run.finished")]
    assert [end.endswith("; 3 errors as before") for end in ends] == [False, True, True]
    clock.now_s += 3600
    finish(run_log, 3, *several)
    for line in log_lines.of("error.")[3:]:
        assert line["message"].endswith("(the same in 2 more runs since it was last told)")


def test_a_hundred_errors_alike_take_a_hundred_lines(run_log: RunLog, log_lines: LogLines) -> None:
    """Three are told, the others counted in one line with where to find them; other kinds are told apart."""
    many = [failure(f"event {number}") for number in range(100)]
    finish(run_log, 1, *many, failure("event 200", "malformed", None))
    errors = log_lines.of("error.")
    assert [line.get("subject") for line in errors] == ["event 0", "event 1", "event 2", "event 200", None]
    assert errors[-1]["message"] == (
        "run 1: 97 more errors alike [transport, HTTP 503]; `syncctl history --json` holds the run's first 20"
    )
    assert (errors[-1]["kind"], errors[-1]["level"]) == ("transport", "WARNING")
    finish(run_log, 2, *many)
    assert not [line for line in log_lines.of("error.") if line["run"] == 2]
    assert log_lines.of("run.finished")[-1]["message"].endswith("; 100 errors as before")


# --- the report


class Asked:
    """A run's report, in a process that has sent requests before."""

    def __init__(self) -> None:
        self.requests = 40
        self.run = Run(id=7, trigger="interval")
        self.steps: list[tuple[int, Progress | None]] = []
        self.waits: tuple[datetime | None, str | None] = (None, None)
        self.report = Report(
            self.run,
            redact=Redactor([KEY]),
            requests=lambda: self.requests,
            on_progress=self._note,
            waits=lambda: self.waits,
        )

    def _note(self, run: Run) -> None:
        self.steps.append((run.requests, run.progress))


def test_an_error_loses_its_status_on_the_way_or_shows_the_key() -> None:
    """What is told of an error is made once: subject, kind, HTTP status, and the text without secrets."""
    asked = Asked()
    asked.report.fail("event 7", DecodeError(f"odd answer {KEY}", status=200))
    asked.report.fail("events", StoreError("the disk is full"))
    wanted = [
        RunError("event 7", "malformed", "odd answer ***", 200),
        RunError("events", "database", "the disk is full"),
    ]
    assert (asked.report.failures, asked.run.errors) == (wanted, wanted)


def test_foreign_text_reaches_record_and_screen() -> None:
    """An error's subject and sentence are one line, without what commands a terminal, and have an end."""
    asked = Asked()
    asked.report.fail("event 7\x9b2J\u202e", DecodeError(f"row 9\x1b[2J\n\u2028\ud800{'x' * 10**6}"))
    (error,) = asked.report.failures
    assert error.subject == r"event 7\x9b2J\u202e"
    assert error.message.startswith(r"row 9\x1b[2J \ud800xxx")
    assert len(error.message) < 5000
    assert asked.run.errors == [error]


def test_the_log_is_told_no_more_errors_than_the_record_keeps() -> None:
    """The run keeps its first errors and the number of all; the report has every one."""
    asked = Asked()
    for number in range(MAX_ERRORS + 5):
        asked.report.fail(f"event {number}", DecodeError("odd answer"))
    assert len(asked.report.failures) == asked.run.errors_total == MAX_ERRORS + 5
    assert asked.run.errors == asked.report.failures[:MAX_ERRORS]


def test_a_step_hides_that_a_request_waits() -> None:
    """While a request waits each step says until when and for what; its beginning and its end are told."""
    asked = Asked()
    waits = (datetime(2027, 5, 8, tzinfo=UTC), "60 requests a minute are spent")
    asked.report.step(0)  # before the first phase there is nobody to tell
    asked.report.advance("events", 0, 2)
    asked.waits = waits
    asked.report.step(0)
    asked.report.step()
    asked.waits = (None, None)
    asked.report.step(0)
    assert [step for _, step in asked.steps] == [
        Progress("events", 0, 2),
        Progress("events", 0, 2, *waits),
        Progress("events", 1, 2, *waits),
        Progress("events", 1, 2),
    ]


def test_a_run_counts_the_requests_of_those_before_it() -> None:
    """Each step tells the phase, how much of it is done, and the requests of this run alone."""
    asked = Asked()
    asked.report.advance("events", 0, 2)
    asked.requests += 3
    asked.report.step()
    asked.requests += 2
    asked.report.step()
    asked.report.count_requests()
    assert asked.steps == [
        (0, Progress("events", 0, 2)),
        (3, Progress("events", 1, 2)),
        (5, Progress("events", 2, 2)),
    ]


def test_every_event_is_written_with_every_run() -> None:
    """Only a try that differs from what is on record is to be put there; a good end forgets an earlier."""
    asked, at = Asked(), WaitedFor().now()
    asked.report.tried("1", Reads(), None, 0)
    asked.report.tried("2", Reads(tried_at=at, failures=2), at, 2)
    assert asked.report.tries == {}
    asked.report.tried("3", Reads(tried_at=at, failures=2), None, 0)
    asked.report.tried("4", Reads(), at, 1)
    later = at + timedelta(minutes=15)
    asked.report.tried("5", Reads(tried_at=at, failures=1), later, 2)
    assert asked.report.tries == {"3": Try(None, 0), "4": Try(at, 1), "5": Try(later, 2)}
