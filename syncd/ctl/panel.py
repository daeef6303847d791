"""What `syncctl status` shows: one screen, the daemon on the first line, then one subject a line."""

from __future__ import annotations

from datetime import datetime

from syncd import text
from syncd.ctl.http import config_option
from syncd.text import Json, count, format_duration, plain

UNIT = "syncd"
HINTS = {
    "doubted": "`syncctl doubts` shows what is absent, `syncctl accept` says it is gone",
    "database": "`syncd check CONFIG` tells what is wrong with the database",
    "restricted": "give the key the right to all events, on Billetweb's API page",
    "timeout": "raise sync.run_timeout, then `syncctl reload`",
}
"""What helps after a run that did not end well, by the kind of its first error.

CONFIG: the option that gives `syncd` the daemon's settings, if these are not the usual ones. With the usual
ones each fits 80 columns.
"""


def status_panel(
    status: Json, now: datetime, width: int | None = text.USUAL_WIDTH, unit: str | None = UNIT
) -> str:
    """Return a Status as a panel, no line wider than `width` except reason and hint.

    `unit` is what syncd runs as under systemd; None if it runs otherwise.
    """
    rows = subjects(status, now)
    lines = [f"{name:13}{value}" for name, value in rows.items() if value]
    # Coloured lines are short, and their colour codes would count as columns.
    return "\n".join(
        _head(status, width, unit) + [line if "\x1b" in line else text.clip(line, width) for line in lines]
    )


def subjects(status: Json, now: datetime) -> dict[str, str]:
    """Return what there is to say on each subject, "" if nothing."""
    return {
        "last run": _last_run(status, now),
        "last error": plain(status["last_error"] or ""),
        "latest runs": " ".join(
            text.paint(outcome, text.mark(outcome)) for outcome in reversed(status.get("latest_outcomes", []))
        ),
        "next run": next_run(status, now),
        "running": _running(status["current_run"], now),
        "queued": count(status["queued_runs"], "run") if status["queued_runs"] else "",
        "skipped": _skipped(status),
        "events": _events(status),
        "freshness": _freshness(status),
        "sales": _sales(status),
        "doubts": _doubts(status),
        "publish": _publish(status),
        "webhooks": _webhooks(status),
        "feeds": _feeds(status),
        "database": _database(status),
    }


def in_trouble(status: Json) -> list[str]:
    """Return the subjects, besides runs, that somebody should look at."""
    found = {"doubts": status.get("doubts")}
    for name, bad in (("publish", "failing"), ("webhooks", "parked"), ("feeds", "failing")):
        found[name] = (status.get(name) or {}).get(bad)
    return [name for name, number in found.items() if number]


def title(status: Json) -> str:
    """Return what runs, for how long, and how often it synchronises."""
    up, every = format_duration(status["uptime_s"]), format_duration(status["interval_s"])
    return f"syncd {plain(status['version'])}, up {up}, a run every {every}"


def _head(status: Json, width: int | None, unit: str | None) -> list[str]:
    """Return the daemon on one line; if health is not ok, also the reason and what helps."""
    health = status["health"]
    marked = f"{text.mark(health)} {health}"
    line = text.clip(f"{marked}  {title(status)}", width)
    head = [line.replace(marked, text.paint(health, marked), 1)]
    if status["health_reason"]:
        head.append(f"  {plain(status['health_reason'])}")
    if found := hint(status, unit):
        head.append(f"  hint: {found}")
    return [*head, ""]


def hint(status: Json, unit: str | None = UNIT) -> str:
    """Return what helps if health is not ok, "" if it is."""
    if status["health"] == "ok":
        return ""
    journal = f"`journalctl -u {unit} -p warning`" if unit else "syncd's log"
    config = config_option(unit)
    if status.get("skipping") == "credentials":
        anew = f"systemctl restart {unit}" if unit else "syncctl reload"
        return f"`syncd setup --overwrite{config}`, then `{anew}`"
    if status["state"] == "paused":
        return "`syncctl resume` starts scheduled runs again"
    run = status["last_run"]
    if run and run["outcome"] in ("partial", "failed"):
        kind = run["errors"][0]["kind"] if run["errors"] else ""
        found = HINTS.get(kind, f"`syncctl history` and {journal} tell more")
        return found.replace(" CONFIG", config)
    if status["current_run"]:
        return "a run is in progress"
    more = "asks for a run now" if run else f"tries now, {journal} tells more"
    return f"`syncctl run-now` {more}"


def answer(command: str, status: Json, now: datetime, unit: str | None = UNIT) -> str:
    """Return the result of `pause`, `resume` or `reload`."""
    changed, late = status.get("changed", []), status.get("needs_restart", [])
    if command == "reload":
        told = f"The configuration was read again; {', '.join(map(plain, changed)) or 'nothing'} changed."
        how = f"`systemctl restart {unit}`" if unit else "A restart"
        restart = f"\n{how} is needed for {', '.join(map(plain, late))}." if late else ""
        failing = (status.get("publish") or {}).get("failing")
        publish = f"\nPublish: {_publish(status)}." if failing else ""
        again = "\n`syncctl run-now` tries the key." if {"API key", "billetweb.user"} & {*changed} else ""
        return told + restart + publish + again
    if command == "resume":
        on = "on again" if changed else "on already"
        return f"Scheduled runs are {on}; the next one {next_run(status, now)}."
    if not changed:
        return f"Scheduled runs were paused already,{_since(status, now)}; `syncctl resume`."
    return "Scheduled runs are paused, also over a restart; `syncctl resume` starts them again."


def next_run(status: Json, now: datetime) -> str:
    """Return when the next scheduled run is, or why there will be none."""
    if status["state"] == "paused" or status.get("skipping") == "paused":
        return f"paused{_since(status, now)}; `syncctl resume`"
    if status.get("skipping") == "credentials":
        return "skipped, as all are while Billetweb refuses the user or the key"
    return text.moment(status["next_run_at"], now) if status["next_run_at"] else "not scheduled"


def _since(status: Json, now: datetime) -> str:
    since, by = status.get("paused_since"), status.get("paused_by")
    return (f" {text.moment(since, now)}" if since else "") + (f" by {plain(by)}" if by else "")


def _last_run(status: Json, now: datetime) -> str:
    run = status["last_run"]
    if not run:
        return "none yet"
    failed = f", {run['failed']} failed" if run["failed"] else ""
    synced, changes = count(run["synced"], "event"), count(text.changed_rows(run), "change")
    name = text.run_name(run["id"], "#{}")
    told = f"{name} {run['outcome']}, {text.ago(run['finished_at'], now)}: {synced}{failed}"
    return f"{told}, {changes}, in {format_duration(run['duration_s'])}"


def _running(run: Json | None, now: datetime) -> str:
    """Return why a run is in progress and how far it is, "" if none is."""
    if not run:
        return ""
    progress = run["progress"] or {"phase": "begins", "done": 0, "total": 0}
    far = f" {progress['done']}/{progress['total']}" if progress["total"] else ""
    took = text.ago(run["started_at"], now, "")
    wait = f", {told}" if (told := text.waits(progress, now)) else ""
    return f"{named(run)}, for {took}: {plain(progress['phase'])}{far}{wait}"


def named(run: Json) -> str:
    """Return a run's number, and why it runs."""
    return f"{text.run_name(run['id'], '#{}')} {run['trigger']}{text.asked_by(run)}"


def _skipped(status: Json) -> str:
    skipped: dict[str, int] = status["slots_skipped"]
    told = [f"{count(number, 'scheduled run')} ({plain(why)})" for why, number in skipped.items() if number]
    missed = status["slots_missed"]
    return ", ".join(told + ([f"{missed} missed while asleep"] if missed else []))


def _events(status: Json) -> str:
    """Return how many events there are, "" until a database was read."""
    live, nearly = status["events_live"], status.get("events_nearly_full")
    if live is None:
        return ""
    return f"{live} live, {status['events_full']} full" + (f", {nearly} nearly full" if nearly else "")


def _freshness(status: Json) -> str:
    """Return how old places left are and may get, "" while none was read, or if the daemon is older."""
    age_s, budget = status.get("oldest_figure_age_s"), status.get("budget")
    if age_s is None:
        return ""
    unread = status.get("events_unread")
    told = f"{count(unread, 'event')} never read; " if unread else ""
    told += f"oldest availability {format_duration(age_s)} old"
    if budget:
        told += f", read every {format_duration(budget['refresh_s'])}"
        told += f"; {budget['waiting']} more to read" if budget["waiting"] and not unread else ""
    return told


def _sales(status: Json) -> str:
    """Return why sales are seen only by reading each event, "" if they are seen sooner."""
    increment = (status.get("budget") or {"increment": ""})["increment"]
    if increment == "not permitted":
        return "seen in the event's turn: the key may not read the account's attendees"
    cannot = "seen in the event's turn: the account's attendees cannot be read now"
    return cannot if increment == "failed" else ""


def _doubts(status: Json) -> str:
    number = status.get("doubts")
    return f"{number}, shown by `syncctl doubts`" if number else ""


def _publish(status: Json) -> str:
    publish = status.get("publish") or {"targets": 0, "failing": 0}
    failing = f", {publish['failing']} failing: see `syncctl publish`" if publish["failing"] else ""
    return f"{count(publish['targets'], 'target')}{failing}" if publish["targets"] else ""


def _webhooks(status: Json) -> str:
    webhooks = status.get("webhooks") or {"endpoints": 0}
    if not webhooks["endpoints"]:
        return ""
    parked = f", {webhooks['parked']} parked: see `syncctl webhooks`" if webhooks["parked"] else ""
    waiting = f", {webhooks['pending']} waiting" if webhooks["pending"] else ""
    return f"{count(webhooks['endpoints'], 'endpoint')}{waiting}{parked}"


def _feeds(status: Json) -> str:
    feeds = status.get("feeds") or {"failing": 0, "files": 0}
    if not feeds["failing"]:
        return count(feeds["files"], "file") if feeds["files"] else ""
    return f"{feeds['failing']} of {feeds['files']} not written: {plain(feeds['error'])}"


def _database(status: Json) -> str:
    size = status.get("database_bytes")
    return plain(status["database"]) + (f", {text.format_size(size)}" if size else "")
