"""Feeds of an account: true after each run, and never in the way of one."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import WAIT_S, LogLines, MakeConfig, Rig, rig_on
from msgspec import structs
from support import faults as fault
from support.disk import Watched

from syncd.config import Config, FeedConfig
from syncd.database import rows
from syncd.feed import files
from syncd.feed.files import FeedsStatus
from syncd.feed.rendering import render
from syncd.model import FeedFormat
from syncd.standin.server import StandIn

CONCERT = "900006"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for the files."""
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def config(make_config: MakeConfig, folder: Path) -> Config:
    """Return a configuration with a feed of each format."""
    formats: tuple[FeedFormat, ...] = ("json", "jsonld", "ics", "csv")
    feeds = tuple(FeedConfig(path=folder / f"events.{form}", format=form) for form in formats)
    return structs.replace(make_config(), feeds=feeds)


@pytest.fixture
def rig(config: Config, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig that writes them."""
    with rig_on(config) as rig:
        yield rig


def shown(folder: Path) -> dict[str, dict[str, object]]:
    """Return the events in the JSON file."""
    return {event["id"]: event for event in json.loads((folder / "events.json").read_bytes())["events"]}


def stats(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what tells of each file whether it was written again."""
    return {each.name: (each.stat().st_ino, each.stat().st_mtime_ns) for each in folder.iterdir()}


def test_a_file_says_another_thing_than_the_mirror(rig: Rig, folder: Path, standin: StandIn) -> None:
    """When a run is over every file holds what it left: a last place sold, an event renamed or taken back."""
    assert rig.run().outcome == "ok"
    assert len(shown(folder)) == 6
    standin.sell(CONCERT, 3)
    rig.run()
    assert (shown(folder)[CONCERT]["is_full"], shown(folder)[CONCERT]["places_left"]) == (True, 0)
    assert b"SoldOut" in (folder / "events.jsonld").read_bytes()
    standin.refund(CONCERT, 1)
    standin.events[CONCERT].row["name"] = "Autre concert"
    standin.events["900001"].row["online"] = "0"
    rig.run(full=True)
    assert b"SoldOut" not in (folder / "events.jsonld").read_bytes()
    assert (shown(folder)[CONCERT]["is_full"], shown(folder)[CONCERT]["name"]) == (False, "Autre concert")
    assert "900001" not in shown(folder)
    public = rig.query(rows.public_events, rig.clock.now())
    for feed in rig.config.feeds:
        assert feed.path.read_bytes() == render(feed.format, public)


def test_a_file_is_written_in_every_run(rig: Rig, folder: Path, standin: StandIn) -> None:
    """Without news no file is touched: not by a full run, a failed one, or another process."""
    rig.run()
    before = stats(folder)
    assert len(before) == 4
    rig.run(full=True)
    standin.fail("/events", fault.status(503), times=None)
    assert rig.run().outcome == "failed"
    standin.heal()
    rig.restart()
    rig.run()
    assert stats(folder) == before


def test_a_calendar_is_written_for_what_it_does_not_show(rig: Rig, folder: Path, standin: StandIn) -> None:
    """What changes in an event, and stands in no entry, leaves it as it was."""
    rig.run()
    before = stats(folder)["events.ics"]
    standin.events[CONCERT].row["confirmation_message"] = "À bientôt"
    standin.events[CONCERT].row["views"] = "12"
    assert rig.run().counts.updated == 1
    assert stats(folder)["events.ics"] == before
    standin.events[CONCERT].row["place"] = "Halle"
    rig.run()
    assert stats(folder)["events.ics"] != before
    assert b"LOCATION:Halle" in (folder / "events.ics").read_bytes()


def test_an_event_that_is_over_stays_while_runs_fail(rig: Rig, folder: Path, standin: StandIn) -> None:
    """An event leaves the files when it is over, though Billetweb does not answer."""
    rig.run()
    standin.fail("/events", fault.status(503), times=None)
    rig.clock.now_s += 40 * 86_400
    assert rig.run().outcome == "failed"
    assert shown(folder) == {}


def test_a_young_mirror_overwrites_a_good_file(rig: Rig, folder: Path, standin: StandIn) -> None:
    """What another mirror left stays until this one has read every event; then the file is its own."""
    (folder / "events.json").write_text("of another mirror")
    standin.fail("/events", fault.unauthorized, times=None)
    assert rig.run("manual").outcome == "failed"
    standin.heal()
    standin.fail(f"/event/{CONCERT}/avail", fault.status(503), times=None)
    assert rig.run("manual").outcome == "partial"
    assert (folder / "events.json").read_text() == "of another mirror"
    why = f"{folder}/events.json: the file that is there stays until every event was read"
    assert rig.account.status().feeds.error == why
    standin.heal()
    rig.run()
    assert len(shown(folder)) == 6
    standin.fail(f"/event/{CONCERT}/avail", fault.status(503), times=None)
    standin.sell("900001", 1)
    rig.restart()
    assert rig.run().outcome == "partial"
    assert shown(folder)["900001"]["places_left"] == 72


@pytest.mark.sqlite_only("a database that is removed while it is open")
def test_a_mirror_made_anew_overwrites_a_good_file(rig: Rig, folder: Path, standin: StandIn) -> None:
    """What a database that is lost had written is another mirror's: it stays until all was read again."""
    rig.run()
    whole = shown(folder)
    standin.fail(f"/event/{CONCERT}/avail", fault.status(503), times=None)
    for name in ("", "-wal", "-shm"):
        Path(f"{rig.url.removeprefix('sqlite:///')}{name}").unlink()
    assert rig.run("manual").outcome == "partial"
    assert shown(folder) == whole
    standin.heal()
    standin.sell(CONCERT, 3)
    rig.run()
    assert shown(folder)[CONCERT]["is_full"] is True


def test_an_event_that_always_fails_keeps_a_file_for_ever(rig: Rig, folder: Path, standin: StandIn) -> None:
    """One that was tried in vain three times, and never read before, is no more waited for."""
    (folder / "events.json").write_text("of another mirror")
    standin.fail(f"/event/{CONCERT}/avail", fault.status(503), times=None)
    for _ in range(2):
        assert rig.run().outcome == "partial"
        assert (folder / "events.json").read_text() == "of another mirror"
    assert rig.run().outcome == "partial"
    assert len(shown(folder)) == 5


def test_an_old_event_that_failed_stands_for_a_new_one(rig: Rig, standin: StandIn) -> None:
    """An event that was tried in vain counts only as long as it is tried: another one is still waited for."""
    standin.fail(f"/event/{CONCERT}/avail", fault.status(503), times=None)
    for _ in range(3):
        rig.run()
    now, a_while = rig.clock.now(), timedelta(days=3)
    assert rig.query(rows.never_read, files.PATIENCE, now - files.LATELY) == 1
    assert rig.query(rows.never_read, files.PATIENCE, now + a_while - files.LATELY) == 0


def test_a_first_import_stands_still_in_a_file(rig: Rig, folder: Path, standin: StandIn) -> None:
    """A file that this mirror made is brought up to date while it does not hold every event yet."""
    standin.fail(f"/event/{CONCERT}/avail", fault.status(503), times=None)
    rig.run()
    assert len(shown(folder)) == 5
    standin.sell("900001", 1)
    rig.restart()
    rig.run()
    assert shown(folder)["900001"]["places_left"] == 72


def test_a_start_without_a_run_empties_a_file(rig: Rig, folder: Path) -> None:
    """An account that waits for its slot, with nothing mirrored yet, leaves what it finds."""
    (folder / "events.json").write_text("of another mirror")
    rig.config = structs.replace(rig.config, sync=structs.replace(rig.config.sync, run_on_start=False))
    rig.restart()
    rig.portal.call(rig.account.start)
    rig.until(lambda: not len(rig.account._background))
    assert rig.account.status().feeds.written == 3
    assert (folder / "events.json").read_text() == "of another mirror"
    rig.portal.call(rig.account.schedule.stop)


def test_a_feed_that_fails_fails_the_run(rig: Rig, folder: Path, log_lines: LogLines) -> None:
    """It is in the status alone, with its reason, until it can be written; run and health are not touched."""
    (folder / "events.csv").mkdir()
    runs = [rig.run(), rig.run()]
    assert [(run.outcome, run.errors) for run in runs] == [("ok", []), ("ok", [])]
    status = rig.account.status()
    reason = f"{folder}/events.csv: what stands there is no regular file"
    assert (status.health, status.feeds) == (
        "ok",
        FeedsStatus(files=4, failing=1, error=reason, written=3, errors=2),
    )
    assert len(log_lines.of("feed.failed")) == 1
    assert len(shown(folder)) == 6
    (folder / "events.csv").rmdir()
    rig.run()
    assert rig.account.status().feeds == FeedsStatus(files=4, written=4, errors=2)
    assert len(log_lines.of("feed.recovered")) == 1


def test_a_feed_taken_back_still_fails(rig: Rig, folder: Path) -> None:
    """After a reload the status speaks of the feeds that there are now, and the next run writes those."""
    (folder / "events.json").mkdir()
    rig.run()
    assert rig.account.status().feeds.failing == 1
    new = FeedConfig(path=folder / "new.json", format="json", tags=("nobody-has-it",))
    rig.portal.call(rig.account.configure, structs.replace(rig.config, feeds=(new,)))
    assert rig.account.status().feeds == FeedsStatus(files=1, written=3, errors=1)
    rig.run()
    assert json.loads(new.path.read_bytes()) == {"events": []}


def test_the_loop_waits_for_the_disk(rig: Rig) -> None:
    """The files are written beside the loop, which answers meanwhile."""
    threads = []
    forms = [feed.format for feed in rig.config.feeds]
    watch(rig, *forms, meanwhile=lambda: threads.append(threading.current_thread()))

    async def loop_thread() -> threading.Thread:
        return threading.current_thread()

    rig.run()
    assert len(threads) == 4
    assert rig.portal.call(loop_thread) not in threads


def watch(rig: Rig, *forms: FeedFormat, meanwhile: Callable[[], Any]) -> None:
    """Have this called, and waited for, whenever somebody looks what stands at the path of these feeds."""
    feeds = []
    for feed in rig.config.feeds:
        path = Watched(feed.path)
        if feed.format in forms:
            path.meanwhile = meanwhile
        feeds.append(structs.replace(feed, path=path))
    rig.portal.call(rig.account.configure, structs.replace(rig.config, feeds=tuple(feeds)))


def test_a_disk_that_hangs_holds_the_runs(
    rig: Rig, folder: Path, standin: StandIn, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs go on while a file cannot be written, and the others are; none is written twice at once."""
    go_on, begun = threading.Event(), []
    for feed in rig.config.feeds:
        render(feed.format, [])  # the first time takes longer
    monkeypatch.setattr(files, "WAIT_S", 0.5)

    def hang() -> None:
        begun.append(threading.current_thread())
        assert go_on.wait(WAIT_S)

    watch(rig, "json", meanwhile=hang)
    try:
        assert [rig.run().outcome for _ in range(3)] == ["ok"] * 3
        assert len(begun) == 1
        assert len([*folder.glob("events.*")]) == 3
        assert len(log_lines.of("feed.failed")) == 1
        status = rig.account.status().feeds
        why = "it takes longer than 0.5 s; runs go on meanwhile"
        assert (status.failing, status.error) == (1, f"{folder}/events.json: {why}")
    finally:
        go_on.set()
    rig.until(lambda: len([*folder.glob("events.*")]) == 4)
    standin.sell(CONCERT, 3)
    assert rig.run().outcome == "ok"
    rig.until(lambda: shown(folder)[CONCERT]["is_full"] is True)
