"""What a query shows of the invented account: the filters that Billetweb documents, for each operation."""

from datetime import datetime, timedelta

from syncd.standin.world import Row, StandInEvent, World, instant, number

Query = dict[str, str]


class Shown(World):
    """A world that answers queries; what they do not name is not narrowed."""

    def events_shown(self, query: Query) -> list[Row]:
        """Return the events asked for."""
        rows = [event.row for event in list(self.events.values())]
        if "id" in query:
            rows = [row for row in rows if str(row["id"]) == query["id"]]
        elif query.get("past") != "1":
            rows = [row for row in rows if not self.is_over(row)]
        if query.get("online") == "1":
            rows = [row for row in rows if row["online"] in (1, "1")]
        if query.get("description") != "1":
            rows = [{name: value for name, value in row.items() if name != "description"} for row in rows]
        return rows

    def event_rows(self, event: StandInEvent, what: str, query: Query) -> list[Row]:
        """Return the rows of an event that one of its operations shows."""
        match what:
            case "avail":
                return self._gauge_rows(event, query)
            case "tickets":
                return event.tickets
            case "dates":
                return self._session_rows(event, query)
            case _:
                return self._attendee_rows(event, query)

    def _gauge_rows(self, event: StandInEvent, query: Query) -> list[Row]:
        if query.get("temp") == "1":
            event = self.with_carts(event)
        asked = query.get("session")
        shown = {
            str(row["id"])
            for row in self._session_rows(event, query)
            if asked in (None, str(row["id"]), row["start"])
        }
        return [row for row in event.gauges if row.get("type") != "session" or str(row.get("id")) in shown]

    def _session_rows(self, event: StandInEvent, query: Query) -> list[Row]:
        """Return the sessions asked for; hidden ones are among them, whatever `disabled` says of others."""
        return [row for row in event.sessions if self._is_shown(row, query)]

    def _is_shown(self, session: Row, query: Query) -> bool:
        starts, ends, changed = (instant(session[name]) for name in ("start", "end", "last_update"))
        days = number(query.get("past_by"))
        is_recent = days is not None and ends is not None and ends >= self.now - timedelta(days=days)
        return (
            (query.get("past") == "1" or is_recent or not self.is_over(session))
            and _is_between(starts, query.get("start_from"), query.get("start_to"))
            and _is_between(changed, query.get("last_update"), None)
            and query.get("disabled") in (None, str(session["disabled"]))
        )

    def _attendee_rows(self, event: StandInEvent, query: Query) -> list[Row]:
        rows = self.attendance[str(event.row["id"])].asked(query, self.present)
        if query.get("futur_sessions") == "1":
            coming = {str(row["id"]) for row in event.sessions if not self.is_over(row)}
            if not event.sessions and not self.is_over(event.row):
                coming.add("0")
            rows = [row for row in rows if row["order_session"] in coming]
        return rows

    def account_attendees(self, query: Query) -> list[Row]:
        """Return the attendees asked for, with what rows of the account tell of their event."""
        found: list[Row] = []
        for event_id, event in self.events.items():
            if query.get("futur") == "1" and self.is_over(event.row):
                continue
            if "tag" in query and query["tag"] not in event.row["tags"]:
                continue
            of_event = {
                "event": event_id,
                "event_name": event.row["name"],
                "event_start": event.row["start"],
                "event_tags": ",".join(filter(None, event.row["tags"])),
            }
            found += [row | of_event for row in self._attendee_rows(event, query)]
        return found


def _is_between(at: datetime | None, earliest: str | None, before: str | None) -> bool:
    """Tell whether an instant is in a span of Unix seconds; what has none is in every span without limits."""
    limits = number(earliest), number(before)
    if at is None:
        return limits == (None, None)
    seconds = int(at.timestamp())
    return (limits[0] is None or limits[0] <= seconds) and (limits[1] is None or seconds < limits[1])
