"""psycopg's connection, for whose server syncd does not wait without end.

Imported only where a URL needs psycopg, which is optional.
"""

from typing import Any

from psycopg import Connection, OperationalError
from psycopg.errors import _WaitTimeout

ON_THE_WAY_S = 15.0
"""How long an answer may be on its way, beyond the time that the server may work on it: as long as what is
sent may stay without acknowledgement (`tcp_user_timeout`)."""
PING_S = 3.0
"""How long a connection that was not in use may take to show that it still works. That and a new connection,
to a server with one address, take less than syncctl waits for an answer."""
GREETING_S = 5.0
"""How long the first answer on a new connection may take: as long as connecting. Behind a pooler it is this
that a server which hangs leaves open."""
LIMIT = "SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'statement_timeout'"


class PatientConnection(Connection[Any]):
    """A connection that is given up once an answer is overdue.

    The server's own limit, `statement_timeout`, helps only while the server works; TCP's only while nothing
    acknowledges what is sent. A frozen server, or a proxy that forwards nothing, would keep a run for ever.
    All statements of an `executemany` are one answer.
    """

    is_unhurried = False
    """Whether the statements of this transaction take as long as they need."""
    _answer_s: float | None = GREETING_S  # until `limit` has asked for the session's own

    def limit(self) -> None:
        """Learn how long an answer may take: `statement_timeout` and its way; without that, any time."""
        [(limit_s,)] = self.execute(LIMIT)
        super().commit()
        self._answer_s = float(limit_s) + ON_THE_WAY_S if limit_s else None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Return what the server answers, as psycopg does. Raises OperationalError if that is overdue."""
        if timeout is None and self.autocommit:  # as only SQLAlchemy's ping has it
            timeout = PING_S
        elif timeout is None and not self.is_unhurried:
            timeout = self._answer_s
        try:
            return super().wait(gen, interval, timeout)
        except _WaitTimeout:
            self.pgconn.finish()  # whatever comes on it now would be taken for the next answer
            raise OperationalError(f"the server gave no answer for {timeout:g} s") from None

    def commit(self) -> None:
        """Commit; the next transaction has a limit again."""
        super().commit()
        self.is_unhurried = False

    def rollback(self) -> None:
        """Roll back; the next transaction has a limit again."""
        super().rollback()
        self.is_unhurried = False
