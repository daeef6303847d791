"""What `syncctl watch` shows, as a function of what was seen, the time and the size. Uses rich."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from textwrap import wrap
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from syncd import text
from syncd.ctl import panel
from syncd.ctl.seen import Seen
from syncd.text import COLOURS, Json

WIDE = 140
"""From this width on, runs and events are side by side, each as wide as on a small terminal."""
RUN_ROWS = 4
"""How many runs are listed if they are above the events: the sparkline shows the others."""
SMALL = 19
"""The lines left for both on a screen of 24, with two for the daemon."""
FRAME, NAMED = 4, 14
"""The columns that the frame takes of a line on the daemon, and with the subject's name."""
BARRED = 90
"""From this width on, there is room for a bar of the places taken, of this length."""
BAR = 20
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"


def drawn(seen: Seen, now: datetime, width: int, height: int, *, unicode: bool) -> RenderableType:
    """Return the screen: the daemon above, then its runs and events, and the keys on the last line."""
    return _Drawing(seen, now, width, height, unicode=unicode).whole()


class _Drawing:
    def __init__(self, seen: Seen, now: datetime, width: int, height: int, *, unicode: bool) -> None:
        self.seen = seen
        self.status = seen.status
        self.now = now
        self.width = width
        self.height = height
        self.unicode = unicode
        self.is_wide = width >= WIDE

    def whole(self) -> RenderableType:
        """Return the screen: the daemon above, its runs and events beside or below each other, the keys."""
        head = self.head()
        left_over = self.height - len(head) - 3  # the head's frame, and the line of keys
        layout, body = Layout(), Layout(name="body")
        layout.split_column(
            Layout(self.framed(Group(*head), self.title()), size=len(head) + 2),
            body,
            Layout(self.foot(), size=1),
        )
        if self.is_wide:
            half = self.width // 2
            body.split_row(
                Layout(self.runs(left_over - 3, half), size=half),
                Layout(self.events(left_over - 3, self.width - half)),
            )
        else:
            without_events = left_over - max(len(self.seen.events), 1) - 6  # the frames, and two headings
            rows = max(RUN_ROWS + (left_over - SMALL) // 3, without_events)
            rows = max(min(rows, len(self.seen.runs)), 1)
            body.split_column(
                Layout(self.runs(rows, self.width), size=rows + 3),
                Layout(self.events(left_over - rows - 6, self.width)),
            )
        return layout

    def framed(self, content: RenderableType, title: Text) -> Panel:
        """Return a panel around something."""
        kind = box.ROUNDED if self.unicode else box.ASCII
        return Panel(content, title=title, title_align="left", box=kind, border_style="dim")

    # --- the daemon

    def title(self) -> Text:
        """Return the daemon's health, version and interval."""
        status = self.status
        if self.seen.trouble:
            return Text("no daemon answers", "bold red")
        health = status["health"]
        title = Text(f"{self.mark(health)} {health}", f"bold {COLOURS.get(health, '')}")
        return title.append(f"  {panel.title(status)}", "bold")

    def head(self) -> list[Text]:
        """Return the lines on the daemon, each cut if it does not fit."""
        status, lines = self.status, []
        if self.seen.trouble and self.seen.since:
            since = self.seen.since.astimezone().strftime("%H:%M:%S")
            age = text.format_duration(int((self.now - self.seen.since).total_seconds()))
            lines.append(self.line("silent", f"no daemon answers, since {since} ({age})", "bold red"))
            lines.append(self.line("", text.plain(self.seen.trouble)))
            lines.append(self.line("", "What follows is what it said last.", "dim"))
            return lines
        if status["health_reason"]:
            colour = COLOURS.get(status["health"], "")
            lines.append(self.line("health", text.plain(status["health_reason"]), colour))
        if found := panel.hint(status, self.seen.unit):
            parts = wrap(found, max(self.width - NAMED, 1))
            lines += [self.line("" if number else "hint", part) for number, part in enumerate(parts)]
        said = panel.subjects(status, self.now)
        is_coming = status["next_run_at"] and not status.get("skipping")
        lines.append(self.line("next run", said["next run"], "" if is_coming else "yellow"))
        if status["current_run"]:
            lines.append(self.running(status["current_run"]))
        else:
            last = status["last_run"]
            lines.append(self.line("last run", said["last run"], COLOURS[last["outcome"]] if last else ""))
        if said["last error"]:
            lines.append(self.line("error", said["last error"], "yellow"))
        return lines + [self.line(name, said[name], "yellow") for name in panel.in_trouble(status)]

    def line(self, name: str, said: str, style: str = "") -> Text:
        """Return a named line, cut if it does not fit."""
        line = Text.assemble((f"{name:10}", "dim"), (said, style), no_wrap=True)
        line.overflow = "ellipsis"
        return line

    def running(self, run: Json) -> Text:
        """Return the progress of the current run, with a bar, and what it waits for."""
        line = self.line("running", f"{panel.named(run)}: ")
        progress = run["progress"] or {"phase": "begins", "done": 0, "total": 0}
        took, room = text.ago(run["started_at"], self.now, ""), self.width - FRAME - line.cell_len
        line.append(text.progress_line(progress, took, self.now, room, unicode=self.unicode))
        line.highlight_regex("[━=]+", "green")
        return line

    # --- its runs

    def runs(self, rows: int, width: int) -> Panel:
        """Return the latest runs as a table, under their bars."""
        table = _table(("", 0), ("", 0), ("", 0), ("", 0), ("", 0), ("", 1))
        for run in self.seen.runs[: max(rows, 1)]:
            outcome = run["outcome"] or run["state"]
            table.add_row(
                Text(f"{self.mark(outcome)} #{run['id']}", COLOURS.get(outcome, "")),
                Text(text.ago(run["finished_at"], self.now)),
                Text(run["trigger"] + text.asked_by(run), "dim"),
                Text(text.format_duration(run["duration_s"]), justify="right"),
                Text(text.count(run["synced"], "event"), justify="right"),
                self.came_of(run),
            )
        return self.framed(Group(self.sparklines(width - 4), table), Text("latest runs", "bold"))

    def came_of(self, run: Json) -> Text:
        """Return how many rows a run changed, and its first error."""
        changes = text.changed_rows(run)
        said = Text(text.count(changes, "change"), "" if changes else "dim")
        if run["errors"]:
            error = run["errors"][0]
            said.append(f"; {text.plain(text.about(error['subject']) + error['message'])}", "yellow")
        return said

    def sparklines(self, width: int) -> Text:
        """Return the runs' durations and changes as two rows of bars on one line, the latest to the right."""
        length = max((width - len("duration    changes ")) // 2, 1)
        latest = self.seen.runs[:length][::-1]
        line = Text("duration ", "dim", no_wrap=True)
        self.spark(line, latest, lambda run: run["duration_s"] or 0.0)
        line.append("   changes ", "dim")
        self.spark(line, latest, text.changed_rows)
        return line

    def spark(self, line: Text, runs: Sequence[Json], value: Callable[[Json], float]) -> None:
        """Add a bar for each run to a line, in proportion to the largest value."""
        bars = BARS if self.unicode else PLAIN_BARS
        most = max(map(value, runs), default=0) or 1
        for run in runs:
            style = "cyan" if run["outcome"] == "ok" else COLOURS.get(run["outcome"], "")
            line.append(bars[round(value(run) / most * (len(bars) - 1))], style)

    # --- its events

    def events(self, rows: int, width: int) -> Panel:
        """Return the events, those with the fewest places first, as many as there are rows for."""
        status, events = self.status, sorted(self.seen.events, key=_scarcity)
        told = (
            ""
            if status["events_live"] is None
            else f": {status['events_live']} live, {status['events_full']} full"
        )
        title = Text(f"events{told}", "bold")
        if not events:
            return self.framed(Text("No events."), title)
        has_bar = width >= BARRED
        columns = [("event", 1), ("left", 0), ("of", 0), ("", 0), ("starts", 0)]
        table = _table(*columns[:3], *([("taken", 0)] if has_bar else []), *columns[3:], headers=True)
        shown = events if len(events) <= rows else events[: max(rows - 1, 1)]
        for event in shown:
            table.add_row(
                Text(text.plain(event["name"] or event["id"])),
                self.left(event),
                Text(str(event["places_total"] or ""), justify="right"),
                *([self.taken(event)] if has_bar else []),
                self.moved(event),
                Text(text.local_time(event["starts_at"]), "dim"),
            )
        if more := len(events) - len(shown):
            table.add_row(Text(f"and {more} more: `syncctl events`", "dim"))
        return self.framed(table, title)

    def left(self, event: Json) -> Text:
        """Return how many places an event has left, coloured if they are few."""
        left, total = text.places_left(event), event["places_total"]
        if isinstance(left, str):
            return Text(left, "bold red" if left == "full" else "dim", justify="right")
        return Text(str(left), "yellow" if text.is_nearly_full(left, total) else "", justify="right")

    def taken(self, event: Json) -> Text:
        """Return a bar of the places taken."""
        left, total = event["places_left"], event["places_total"]
        if left is None or not total:
            return Text("")
        return self.bar(min(max(total - left, 0), total), total, BAR, "red" if event["is_full"] else "cyan")

    def moved(self, event: Json) -> Text:
        """Return how many places came or went during the watch."""
        by = self.seen.moved.get(event["id"], 0)
        if not by:
            return Text("")
        down, up = "▼▲" if self.unicode else "-+"
        return Text(f"{down} {-by}", "bold magenta") if by < 0 else Text(f"{up} {by}", "bold green")

    # --- words

    def foot(self) -> Text:
        """Return the keys, and the time."""
        clock = self.now.astimezone().strftime("%H:%M:%S")
        said = " q quits" + (" · `syncctl run-now` asks for a run" if self.unicode else "")
        return Text(said + f"{clock} ".rjust(self.width - len(said)), "dim", no_wrap=True)

    def bar(self, done: int, total: int, length: int, style: str) -> Text:
        """Return a bar of which a part is done."""
        full = min(length * done // total, length)
        bar, rest = ("━", "─") if self.unicode else ("=", "-")
        return Text.assemble((bar * full, style), (rest * (length - full), "dim"))

    def mark(self, word: str) -> str:
        """Return the sign of a health or an outcome."""
        return text.MARKS[word][not self.unicode] if word in text.MARKS else " "


def _table(*columns: tuple[str, int], headers: bool = False) -> Table:
    """Return a table without lines, of columns by name; those with a ratio share the remaining width."""
    table = Table(box=None, expand=True, show_header=headers, padding=(0, 2, 0, 0), header_style="dim")
    for name, ratio in columns:
        justify: Any = "right" if name in ("left", "of") else "left"
        table.add_column(name, ratio=ratio or None, no_wrap=True, overflow="ellipsis", justify=justify)
    return table


def _scarcity(event: Json) -> tuple[bool, float, str]:
    """Return an event's sort key: fewest places left first, unlimited and vanished last."""
    left = event["places_left"]
    return event["vanished_at"] is not None, float("inf") if left is None else left, event["starts_at"] or ""
