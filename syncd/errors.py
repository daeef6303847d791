"""The exceptions that more than one room knows, in one tree. Imports nothing of syncd.

A room's own stand beside what raises them.

    SyncdError
    ├─ ConfigError           problems: one line each, with key path and line number
    ├─ BilletwebError
    │   ├─ TransportError    retry: connection, time-outs, 5xx
    │   ├─ RateLimited       retry, after a minute where the answer does not say
    │   ├─ ChallengeError    the protection page; ask again in minutes
    │   ├─ AuthError         credentials refused; ask again only when somebody says so
    │   ├─ RestrictedError   the key may not read this event
    │   ├─ StatusError       any other refusal
    │   └─ DecodeError       an answer that is not what was asked for
    │       └─ TooLargeError one that is too large to be read; ask for less
    │           └─ TooManyRows of rows that are each small enough
    ├─ StoreError            the database cannot be read or written now
    │   ├─ ValueRefused      it works, and will not hold this value: that item's error, no outage
    │   └─ TransactionLost   it gave a transaction up in the middle: what follows would stand alone
    ├─ RunCancelled          a run that is not to be after all
    └─ AlreadyRunning        another syncd holds this database or this socket

`kind` is the stable word for logs, `syncd_runs.errors` and status; `retry` says whether asking again
at once makes sense. Messages say what happened, to what, and what happens next or what to do.
"""


class SyncdError(Exception):
    """Root of the tree; `status` is the HTTP status of the answer that it is about, where there was one."""

    kind = "internal"
    retry = False
    status: int | None = None


class ConfigError(SyncdError):
    """The configuration or the credentials are unusable; `problems` holds one line of text each."""

    kind = "configuration"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BilletwebError(SyncdError):
    """A request to Billetweb that gave no usable answer; `wait_s` is how long one asked to wait.

    `is_sent`: whether it was asked at all; where that is pointless for now it is not.
    """

    kind = "billetweb"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        wait_s: float | None = None,
        is_sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.wait_s = wait_s
        self.is_sent = is_sent


class TransportError(BilletwebError):
    """No answer, or a server error: connection, time-out, 5xx."""

    kind = "transport"
    retry = True


class RateLimited(BilletwebError):
    """Billetweb refused for too many requests."""

    kind = "rate_limited"
    retry = True


class ChallengeError(BilletwebError):
    """The protection in front of Billetweb answered with a page for browsers."""

    kind = "challenge"


class AuthError(BilletwebError):
    """User or key were refused."""

    kind = "credentials"


class RestrictedError(BilletwebError):
    """The key is good but may not read what was asked."""

    kind = "restricted"


class StatusError(BilletwebError):
    """An error object or a status that no other class stands for."""

    kind = "refused"


class DecodeError(BilletwebError):
    """The answer is not of the expected shape."""

    kind = "malformed"


class TooLargeError(DecodeError):
    """The answer is larger than is read at once. Part of it may be asked for."""

    kind = "too_large"


class TooManyRows(TooLargeError):
    """The answer has more rows than are read at once. The same rows with less in each are as many."""


class StoreError(SyncdError):
    """The database cannot be opened, read or written now."""

    kind = "database"


class ValueRefused(StoreError):
    """The database works, and will not hold a value: one that is too large, or of another alphabet."""

    kind = "value"


class TransactionLost(StoreError):
    """The database gave a transaction up in the middle: what was written is gone, what follows has no end."""


class RunCancelled(SyncdError):
    """A run that is not to be after all."""

    kind = "cancelled"


class AlreadyRunning(SyncdError):
    """Another syncd holds this database or this socket."""

    kind = "already_running"


class UnknownDelivery(SyncdError):
    """A delivery or an endpoint that somebody named and that is not there."""

    kind = "unknown_delivery"


def reason(error: Exception) -> str:
    """Return what went wrong, without the path that OSError adds: a key may stand there by mistake."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
