"""The page as it is served: what it shows, in which words, and what it lets a browser do."""

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from support.control_stub import SECRET, Client, Stub, ask, refused
from support.processes import short_folder

from syncd.account.status import Status
from syncd.control import page
from syncd.errors import StoreError
from syncd.feed.files import FeedsStatus
from syncd.feed.publish import TargetState
from syncd.model import Doubt, Json, Progress, Run

NOW = datetime.now(UTC)
EVENT: Json = {
    "id": "900001",
    "ext_id": "pain",
    "name": "Fête du pain",
    "starts_at": NOW + timedelta(days=9),
    "ends_at": NOW + timedelta(days=9, hours=3),
    "place": "Le Moulin",
    "online": True,
    "shop_url": "https://www.billetweb.fr/pain",
    "places_total": 50,
    "places_left": 12,
    "unlimited": False,
    "is_full": False,
    "sale_status": "on_sale",
    "availability_at": NOW,
    "age_s": 61.5,
    "vanished_at": None,
}
MARKUP = "</style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}"


class Shown(Stub):
    """A daemon of a few lines with these events, doubts and targets; `change` changes its status."""

    def __init__(
        self,
        *events: Mapping[str, object],
        doubts: list[Doubt] | None = None,
        targets: list[TargetState] | None = None,
        change: Callable[[Any], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._shown = [{**EVENT, **event} for event in events]
        self._doubts = doubts or []
        self._targets = targets or []
        self._change = change

    def status(self) -> Status:
        status = super().status()
        self._change(status)
        return status

    async def events(self, *, ended_too: bool) -> list[Json]:
        self._note("events", ended_too)
        return self._shown

    async def doubts(self) -> list[Doubt]:
        return self._doubts

    def targets(self) -> list[TargetState]:
        return self._targets


class Reader(HTMLParser):
    """Collects what a document holds: its text, its elements, the addresses that it leads to or loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.text = " ".join("".join(self.words).split())
        self.links = [attributes["href"] for tag, attributes in self.elements if tag == "a"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def got(stub: Stub, target: str = "/") -> tuple[Reader, Any]:
    """Return the page of this daemon, read, and its answer."""
    answers = []

    async def use(client: Client) -> None:
        answers.append(await client.get(target))

    with short_folder() as folder:
        ask(folder / "syncd.sock", stub, use)
    answer = answers[0]
    assert answer.status_code == 200
    return Reader(answer.text), answer


def test_a_page_that_loads_or_runs_what_is_not_its_own() -> None:
    """The policy allows the page's own style and script, to the letter, and nothing else, nor any frame."""
    read, answer = got(Shown({}))
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["form-action"] == policy["connect-src"] == "'self'"
    assert re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])
    assert re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", policy["style-src"])
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["syncd-version"]
    loaded = [
        value
        for tag, attributes in read.elements
        for name, value in attributes.items()
        if tag != "a" and name in ("src", "href", "data", "action", "formaction", "style")
    ]
    assert [each[:19] for each in loaded if each] == ["data:image/svg+xml,"]
    assert not [name for _, each in read.elements for name in each if name.startswith("on")]


@pytest.mark.parametrize("field", ["name", "place", "id"])
def test_a_name_is_markup(field: str) -> None:
    """What Billetweb says is text, whatever it says; what turns the direction of writing is spelled out."""
    plain, _ = got(Shown({}))
    read, answer = got(
        Shown({field: MARKUP + "\u202egnp.exe", "shop_url": None} | ({"name": None} if field == "id" else {}))
    )
    tags = [tag for tag, _ in plain.elements]
    tags.remove("a")
    assert [tag for tag, _ in read.elements] == tags
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}" in read.text
    assert "\u202e" not in answer.text


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        " javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "file:///etc/passwd",
        "//evil.example",
        "https:",
        "http://[",
        "",
        None,
    ],
)
def test_a_link_that_is_no_web_address(url: str | None) -> None:
    """Only http and https become links."""
    assert got(Shown({"shop_url": url}))[0].links == []


@pytest.mark.parametrize("url", ["https://www.billetweb.fr/pain", "http://x.example/?a=1&b='\"<>"])
def test_a_web_address_is_no_link(url: str) -> None:
    """It is, letter for letter."""
    assert got(Shown({"shop_url": url}))[0].links == [url]


PLACES: dict[str, Json] = {
    "12 of 50 left": {},
    "full 0 of 50 left": {"places_left": 0, "is_full": True},
    "full full": {"places_left": 0, "places_total": None, "is_full": True},
    "unlimited": {"places_left": None, "places_total": None, "unlimited": True},
    "unknown": {"places_left": None, "places_total": None},
    "7 left": {"places_left": 7, "places_total": None},
    "60 left": {"places_left": 60},  # more than there are in all: no bar for that
}


@pytest.mark.parametrize("words", PLACES)
def test_places_are_told_wrongly(words: str) -> None:
    """The words say how many places are left, of how many, and whether that is known or limited at all."""
    read, _ = got(Shown(PLACES[words] | {"availability_at": datetime.now(UTC)}))
    assert f" {words} read just now" in read.text
    kinds = {"full", "few", "some", "unlimited", "unknown"}
    (shown,) = [kind for tag, each in read.elements if tag == "li" and (kind := each.get("class")) in kinds]
    assert shown == (words.partition(" ")[0] if words.partition(" ")[0] in kinds else "some")


@pytest.mark.parametrize(
    ("left", "total", "kind", "taken"),
    [(50, 50, "some", 0), (6, 50, "some", 88), (5, 50, "few", 90), (1, 3, "some", 66.7)],
)
def test_a_bar_has_another_length(left: int, total: int, kind: str, taken: float) -> None:
    """A bar is as long as places are taken; the last tenth is marked."""
    assert page._places(EVENT | {"places_left": left, "places_total": total}) == page.Places(
        kind, f"{left} of {total} left", taken
    )


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(seconds=59), "read just now"),
        (-timedelta(hours=1), "read just now"),  # a clock that was set
        (timedelta(seconds=61), "read 1 min ago"),
        (timedelta(minutes=119), "read 1 h ago"),
        (timedelta(days=40), "read 40 d ago"),
        (None, "never read"),
    ],
)
def test_the_age_of_a_figure_is_told_wrongly(age: timedelta | None, words: str) -> None:
    """Each figure has its age, in one unit."""
    at = None if age is None else datetime.now(UTC) - age
    assert f"left {words}" in got(Shown({"availability_at": at}))[0].text


def test_events_that_are_over_stand_first() -> None:
    """What is to come stands first, by its start; what is over stands last, the latest of it first."""
    days = {"b": 2, "a": 1, "gone": -3, "just": -1, "sometime": None}
    events = [
        {"name": name, "starts_at": None if day is None else NOW + timedelta(days=day), "ends_at": None}
        for name, day in sorted(days.items(), key=lambda item: (item[1] is not None, item[1]))
    ]
    read, _ = got(Shown(*events))
    names = [word for word in read.words if word in days]
    assert names == ["sometime", "a", "b", "just", "gone"]
    assert read.text.count("· over") == 2


def test_a_thousand_events_are_one_page() -> None:
    """Some hundred are shown, and how many more there are."""
    read, answer = got(Shown(*({"id": str(number)} for number in range(1000))))
    assert len(read.links) == page.EVENTS_SHOWN
    assert "and 700 more" in read.text
    assert len(answer.content) < 512 * 1024


def test_trouble_is_not_on_the_page() -> None:
    """Bad health with its reason, doubts, failing targets, endpoints and files are all told."""
    doubts = [
        Doubt(
            table="billetweb_tickets",
            event_id="7",
            absent=3,
            of=4,
            since=NOW,
            reads=2,
            examples=[],
            waits_for="time",
            until=NOW,
        ),
        Doubt(
            table="billetweb_events",
            event_id=None,
            absent=5,
            of=6,
            since=NOW,
            reads=1,
            examples=[],
            waits_for="accept",
            until=None,
        ),
    ]
    targets = [
        TargetState(
            name="formation", table="Formation", database=None, matched=1, unmatched=2, warnings=["no index"]
        ),
        TargetState(name="stage", table="Stage", database=None, last_error='there is no table "Stage"'),
    ]

    def change(status: Status) -> None:
        status.health, status.health_reason = "failing", "3 runs in a row failed"
        status.consecutive_failures = 3
        status.feeds = FeedsStatus(files=2, failing=1, error="/srv/events.json: Permission denied")
        status.state, status.next_run_at = "paused", None

    read, _ = got(Shown({}, doubts=doubts, targets=targets, change=change))
    for told in (
        "failing 3 runs in a row failed",
        "paused every 15 min",
        "3 failures since",
        "3 of 4 missing from the tickets of event 7 since",
        "5 of 6 missing from the list of events since",
        "in 1 read; waits for you: syncctl accept",
        "ok formation 1 row, 2 keys of no event no index",
        'failing stage not read yet there is no table "Stage"',
        "failing 2 files, 1 not written /srv/events.json: Permission denied",
    ):
        assert told in read.text


def test_what_there_is_none_of_is_told() -> None:
    """Without doubts, targets, endpoints and files there is no word of them."""
    read, _ = got(Shown())
    for word in ("Doubted", "Published", "Webhooks", "Files", "cannot be read"):
        assert word not in read.text
    assert "Events None yet." in read.text


@pytest.mark.parametrize(("environ", "named"), [("Europe/Paris", "Europe/Paris"), ("Europe/Pariss", "UTC")])
@pytest.mark.usefixtures("paris")
def test_a_zone_is_named_that_is_not_used(monkeypatch: pytest.MonkeyPatch, environ: str, named: str) -> None:
    """Where no script adapts the times, the page names their zone."""
    monkeypatch.setenv("TZ", environ)
    time.tzset()
    read, _ = got(Shown())
    assert f"Times are in {named}." in read.text


def test_parked_webhooks_are_not_told() -> None:
    """How many deliveries wait and are parked is told where there are endpoints."""
    context: Json = {
        "asked": None,
        "token": "",
        "whole": True,
        "trouble": None,
        "events": [],
        "status": {**_builtins(Shown().status()), "webhooks": {"endpoints": 2, "pending": 5, "parked": 1}},
    }
    read = Reader(page._render(context, NOW))
    assert "Webhooks 1 parked 2 endpoints, 5 to deliver; see syncctl webhooks" in read.text


def _builtins(value: object) -> Json:
    import msgspec

    builtins: Json = msgspec.to_builtins(value)
    return builtins


def test_the_page_is_down_with_the_database() -> None:
    """Without a database the page still tells the status, and what is wrong, with secrets masked."""
    stub = Shown({})
    stub.fault = StoreError(f"cannot open postgresql://syncd:{SECRET}@db/syncd")
    read, answer = got(stub)
    assert "The database cannot be read: cannot open postgresql://" in read.text
    assert SECRET not in answer.text
    assert "Next run" in read.text


def test_progress_reads_the_database() -> None:
    """What is asked for every second during a run comes from memory alone, and holds nothing else."""
    stub = Shown({}, change=lambda status: setattr(status, "current_run", RUNNING))
    read, _ = got(stub, "/?only=now")
    assert "Run 44 (manual) began" in read.text
    assert "events: 3 of 12" in read.text
    assert stub.asked == []
    assert "Fête" not in read.text
    assert not {"style", "script"} & {tag for tag, _ in read.elements}


RUNNING = Run(id=44, trigger="manual", state="running", started_at=NOW, progress=Progress("events", 3, 12))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("/?run=42", "partial Run 42: 0 events synced, 0 changed, in 1.5 s event 9: no « answer »"),
        ("/?run=43", "Your run begins at once."),
        ("/?run=-7", "Your run begins at once."),
    ],
)
def test_a_run_is_not_told_of_that_was_asked_for(target: str, told: str) -> None:
    """The page tells of the run that its form asked for, from queued to how it ended."""
    read, _ = got(Shown(), target)
    assert told in read.text


def test_a_run_is_told_of_for_ever() -> None:
    """Once a later run has ended the page tells of that alone, whatever its address asks for."""
    later = Run(id=44, trigger="interval", state="done", outcome="ok", finished_at=NOW + timedelta(days=900))
    read, _ = got(Shown(change=lambda status: setattr(status, "last_run", later)), "/?run=42")
    assert "Run 42" not in read.text


@pytest.mark.parametrize(
    "query", ["run=", "run=x", "run=9999", f"run={'9' * 40}", "run=1.5", "only=x", "run=<b>", "run=%ff"]
)
def test_an_odd_query_is_an_error(query: str) -> None:
    """What leads to no run shows the page as it is."""
    assert "Next run" in got(Shown(), f"/?{query}")[0].text


def test_the_form_needs_a_script() -> None:
    """The form posts to the page and is led back to it, relative to whatever address the browser knows."""

    async def use(client: Client) -> None:
        read = Reader((await client.get("/")).text)
        (form,) = [each for tag, each in read.elements if tag == "form"]
        assert (form["method"], form.get("action")) == ("post", None)
        (field,) = [each for tag, each in read.elements if tag == "input"]
        headers = {"Host": "example.org", "Origin": "https://example.org"}
        answer = await client.post("/", data={"token": field["value"]}, headers=headers)
        assert (answer.status_code, answer.headers["location"]) == (303, "?run=43")
        assert answer.headers["cache-control"] == "no-store"
        assert refused(await client.put("/")) == (405, "wrong_method")

    run(Stub(), use)


def test_the_page_looks_like_an_asset_of_another_version() -> None:
    """A head alone is answered like the page."""

    async def use(client: Client) -> None:
        answer = await client.head("/")
        assert (answer.status_code, answer.content) == (200, b"")

    run(Stub(), use)


def run(stub: Stub, use: Callable[[Client], Awaitable[None]]) -> None:
    with short_folder() as folder:
        ask(folder / "syncd.sock", stub, use)


def test_looking_keeps_others_waiting() -> None:
    """Many who look at once are all answered, and so is whoever asks while a page is written."""
    written, go_on = threading.Event(), threading.Event()

    class Slow(dict[str, object]):
        def __getitem__(self, name: str) -> object:
            written.set()
            assert go_on.wait(10)
            return super().__getitem__(name)

    class Large(Shown):
        async def events(self, *, ended_too: bool) -> list[Json]:
            return [Slow(EVENT)]

    async def use(client: Client) -> None:
        looking = asyncio.create_task(client.get("/"))
        assert await asyncio.to_thread(written.wait, 30)
        assert (await client.get("/v1/status")).status_code == 200
        assert not looking.done()
        go_on.set()
        answers = await asyncio.gather(looking, *(client.get("/") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}

    run(Large(), use)
