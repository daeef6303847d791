"""Second boot: the service through starts, stops, reloads, a kill, bad settings and a long silence."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside import (
    CONFIG,
    GOOD,
    KEY,
    KEY_FILE,
    PROJECT,
    SOCKET,
    USER,
    busy,
    configured,
    cursor,
    eventually,
    fault,
    graver,
    idle,
    journal,
    make_user,
    next_run,
    pid,
    query,
    run,
    run_as,
    shown,
    shown_instant,
    status,
    systemctl,
)

IMPORTED_US = time.monotonic_ns() // 1000
TOKEN = base64.b64encode(f"{USER}:{KEY}".encode()).decode()


@pytest.fixture
def service() -> Iterator[None]:
    """Give a service that was started anew with good settings, and whose first run is over."""
    CONFIG.write_text(GOOD)
    systemctl("reset-failed")
    systemctl("restart", "billetweb", "syncd")
    assert idle()["last_run"]["outcome"] == "ok"
    yield
    CONFIG.write_text(GOOD)


def test_not_started_on_boot() -> None:
    """It came up with the machine, before these tests began, and at the first attempt."""
    assert shown("ActiveState") == "active"
    assert 0 < int(shown("ActiveEnterTimestampMonotonic")) < IMPORTED_US
    assert shown("NRestarts") == "0"
    assert idle()["last_run"]["trigger"] in ("startup", "interval")


@pytest.mark.usefixtures("service")
def test_ready_too_early() -> None:
    """Whoever asks in the instant in which the start is over gets an answer, each time."""
    for _ in range(5):
        systemctl("reset-failed", "syncd")  # forgets the earlier starts: ten in ten minutes are the limit
        systemctl("restart", "syncd")
        assert status()["pid"] == pid()
        assert SOCKET.stat().st_ctime < shown_instant("ActiveEnterTimestamp").timestamp()


@pytest.mark.usefixtures("service")
def test_group_left_out_or_others_let_in() -> None:
    """Who is in the group syncd may do all, anybody else gets exit code 4 and hears what to do."""
    make_user("marie", "syncd")
    make_user("eve")
    done = run_as("marie", "syncctl", "run-now", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"user":"marie"' in done.stdout.replace(" ", "")
    for command in ("status", "run-now", "reload"):
        done = run_as("eve", "syncctl", command)
        assert (done.returncode, done.stdout) == (4, "")
        assert "join the group syncd" in done.stderr


@pytest.mark.usefixtures("service")
def test_key_leaks() -> None:
    """The key reaches Billetweb, and is seen in no property, process, answer, journal or file."""
    with fault("unauthorized"):
        assert next_run()["outcome"] == "failed"
    assert next_run()["outcome"] == "ok"
    assert Path("/run/credentials/syncd.service/billetweb-key").read_text().strip() == KEY
    run("journalctl", "--sync")
    places = {
        "unit": run("systemctl", "show", "syncd").stdout + run("systemctl", "cat", "syncd").stdout,
        "status": run("systemctl", "status", "syncd").stdout + run("syncctl", "status", "--json").stdout,
        "history": run("syncctl", "history", "--json").stdout + run("syncctl", "metrics").stdout,
        "process": "".join(Path(f"/proc/{pid()}/{name}").read_text() for name in ("environ", "cmdline")),
        "journal": run("journalctl", "--output=export", "--all", "--no-pager").stdout,
    }
    for folder in (Path("/var/lib/syncd"), Path("/run/syncd"), Path("/tmp")):
        files = [path for path in folder.rglob("*") if path.is_file()]
        places |= {str(path): path.read_bytes().decode("latin-1") for path in files}
    assert "refused" in places["journal"]
    assert "/var/lib/syncd/syncd.db" in places
    assert [place for place, text in places.items() if KEY in text or TOKEN in text] == []


@pytest.mark.usefixtures("service")
def test_killed_service_stays_down_or_torn() -> None:
    """Killed in mid-run, it is started again; the run that was cut says so, and the next one is good."""
    before = pid()
    with fault("hang", "/event/900002/*"):
        run("syncctl", "run-now", "--no-wait")
        cut = busy()["id"]
        systemctl("kill", "--signal=SIGKILL", "syncd")
    eventually(lambda: shown("NRestarts") == "1" and shown("ActiveState") == "active")
    assert pid() != before
    last = idle(run_count=cut + 1)
    assert (last["last_run"]["outcome"], last["health"]) == ("ok", "ok")
    assert query(
        f"SELECT trigger, outcome, errors LIKE '%interrupted%' FROM syncd_runs WHERE id = {cut}"
    ) == [("manual", "failed", 1)]
    # Its end is told a moment before it is on record.
    eventually(lambda: query("SELECT count(*) FROM syncd_runs WHERE finished_at IS NULL") == [(0,)])
    assert query("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.usefixtures("service")
def test_stop_waits_for_billetweb() -> None:
    """A stop while Billetweb hangs takes less than 5 s, succeeds, and the run counts as cancelled."""
    with fault("hang"):
        run("syncctl", "run-now", "--no-wait")
        cut = busy()["id"]
        systemctl("stop", "syncd")
    assert (shown("ActiveState"), shown("Result"), shown("ExecMainStatus")) == ("inactive", "success", "0")
    assert (
        shown_instant("InactiveEnterTimestamp") - shown_instant("ActiveExitTimestamp")
    ).total_seconds() < 5
    assert query(f"SELECT outcome FROM syncd_runs WHERE id = {cut}") == [("cancelled",)]


@pytest.mark.usefixtures("service")
def test_reload_without_effect() -> None:
    """When `systemctl reload` is back, the new interval is in force, in the same process."""
    before = pid()
    CONFIG.write_text(configured(GOOD, interval='"20m"'))
    systemctl("reload", "syncd")
    assert (status()["interval_s"], pid(), shown("ActiveState")) == (1200, before, "active")


@pytest.mark.usefixtures("service")
def test_bad_reload_does_harm() -> None:
    """A bad file makes `systemctl reload` fail and the journal say why; the settings and the process stay."""
    before, end = pid(), cursor()
    CONFIG.write_text(configured(GOOD, interval='"soon"', concurrency="99"))
    assert run("systemctl", "reload", "syncd", check=False).returncode == 1
    assert (status()["interval_s"], pid(), shown("ActiveState")) == (3600, before, "active")
    # The daemon's own lines; ExecReload's syncctl says on stderr what it was told.
    errors = graver(journal(end, f"_PID={before}"))
    assert len(errors) == 2
    assert all(any(key in error for error in errors) for key in ("sync.interval", "billetweb.concurrency"))
    assert next_run()["outcome"] == "ok"


@pytest.mark.parametrize(
    ("mistakes", "told"),
    [
        pytest.param({"interval": '"5s"', "mode": '"0777"'}, ["sync.interval", "control.mode"], id="values"),
        pytest.param({"base_url": '"ftp://x"'}, ["billetweb.base_url"], id="address"),
        pytest.param({"requests_per_minute": "= ="}, ["cannot be read"], id="no-toml"),
    ],
)
@pytest.mark.usefixtures("service")
def test_bad_configuration_loops(mistakes: dict[str, str], told: list[str]) -> None:
    """Each mistake is one error in the journal; then the unit is failed, and stays so."""
    end = cursor()
    CONFIG.write_text(configured(GOOD, **mistakes))
    assert run("systemctl", "restart", "syncd", check=False).returncode == 1
    assert_stays_failed(end, told)


@pytest.mark.usefixtures("service")
def test_empty_key_loops() -> None:
    """With an empty key file it says so once, and does not try again and again."""
    end = cursor()
    try:
        KEY_FILE.write_text("\n")
        assert run("systemctl", "restart", "syncd", check=False).returncode == 1
        assert_stays_failed(end, ["billetweb-key"])
    finally:
        KEY_FILE.write_text(f"{KEY}\n")


def assert_stays_failed(since: str, told: list[str]) -> None:
    """Fail unless syncd ended for good with exit code 78, and one line for each of these subjects."""
    assert (shown("ActiveState"), shown("Result"), shown("ExecMainStatus")) == ("failed", "exit-code", "78")
    assert shown("NRestarts") == "0"
    errors = graver(journal(since))
    assert len(errors) == len(told), errors
    assert all(any(subject in error for error in errors) for subject in told), errors


@pytest.mark.usefixtures("service")
def test_long_silence_of_billetweb_ends_or_floods() -> None:
    """Nine runs without Billetweb, as many as two hours and a quarter have: the same process, few lines."""
    CONFIG.write_text(configured(GOOD, interval='"10s"'))
    systemctl("reload", "syncd")
    before, end = pid(), cursor()
    systemctl("stop", "billetweb")
    eventually(lambda: status()["consecutive_failures"] >= 9, within_s=150)
    assert (pid(), shown("NRestarts"), status()["health"]) == (before, "0", "failing")
    entries = journal(end)
    ended = [entry for entry in entries if entry.get("SYNCD_OUTCOME") == "failed"]
    assert len(ended) >= 9
    assert len(graver(entries)) == len(ended) + 1, "more than one line a run, and one that says why"
    assert len(entries) <= 5 * len(ended)
    systemctl("start", "billetweb")
    eventually(lambda: status()["health"] == "ok")
    assert pid() == before


@pytest.mark.usefixtures("service")
def test_error_is_not_explained() -> None:
    """`journalctl -x` adds to an error what systemd/README.md shows, which is what the catalog says."""
    end = cursor()
    with fault("503", "/event/900002/*"):
        assert next_run()["outcome"] == "partial"
    found = run("journalctl", "-x", "--cursor", end, "SYNCD_EVENT_ID=900002").stdout
    told, wanted = (
        [line.rstrip() for line in text.splitlines() if line.startswith("░░")]
        for text in (found, (PROJECT / "systemd/README.md").read_text("utf-8"))
    )
    assert told == wanted != []
