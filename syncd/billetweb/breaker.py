"""A circuit breaker: when nothing is sent to Billetweb, because of what it answered, and for how long."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from syncd.billetweb.limiter import RateLimiter
from syncd.clock import Clock
from syncd.config import Secret
from syncd.errors import AuthError, BilletwebError, ChallengeError, RateLimited
from syncd.model import Quiet, QuietKind

RETRY_WITHIN_S = 180.0
"""Long enough for three time-outs with a wait for the ceiling between them. A rest that is longer is not
waited for: it is for a later run."""
CHALLENGE_WAIT_S = 300.0
"""Minutes, not seconds: others tell so users who are stopped by the protection."""
CHALLENGE_WAIT_MAX_S = 3600.0
"""A longer wait would not help, and somebody may have lifted the protection."""
REFUSED_S = 24 * 3600.0
"""A key may become valid again without notice: it is tried once a day."""


class Breaker:
    """Forbids requests of one client: `check` raises the same error at once, for each of them.

    After the list of events was refused to the credentials, for a day, or until `reset`; after a challenge
    page, for some minutes (twice as long each time, up to an hour); and for as long as Billetweb asks for a
    rest, if that is longer than RETRY_WITHIN_S.
    `quiet` is the latest such time; `on_quiet` is called with each that begins, and None when it is over.
    `is_noted`: whether it was called with one, by this breaker or an earlier, and not yet with None.
    """

    def __init__(
        self,
        credentials: Secret,
        limiter: RateLimiter,
        clock: Clock,
        on_quiet: Callable[[Quiet | None], Awaitable[None]] | None,
    ) -> None:
        self.quiet: Quiet | None = None
        self.is_noted = False
        self._credentials = credentials
        self._limiter = limiter
        self._clock = clock
        self._on_quiet = on_quiet
        self._until_s = 0.0

    def restore(self, quiet: Quiet | None) -> None:
        """Keep the rest that an earlier client was asked for; a refusal holds only for the refused key."""
        if quiet is None:
            return
        self.is_noted = True
        if quiet.key and not self._credentials.is_of(quiet.key):
            return
        self._begin(quiet)
        if quiet.kind == "rate_limited":
            self._limiter.pause(self._left_s)

    def succeed(self, before: "Breaker") -> None:
        """Continue from the one of earlier settings, but allow a key that was refused then."""
        self.is_noted = before.is_noted
        self.restore(before.quiet)
        self.reset()

    def reset(self) -> None:
        """Try the same credentials again: somebody says that they are valid now."""
        if self.refused:
            self.quiet = None

    @property
    def refused(self) -> bool:
        """Whether Billetweb refused the credentials, so that nothing is sent for a day, or until `reset`."""
        return self._lasting("credentials") is not None

    def check(self) -> None:
        """Raise BilletwebError if nothing may be sent now."""
        if self._limiter.paused_s > RETRY_WITHIN_S:
            minutes, asked = self._limiter.paused_s / 60, self._lasting("rate_limited")
            raise RateLimited(
                f"not sent: Billetweb asked for {minutes:.0f} min of rest",
                status=asked.status if asked else None,
                wait_s=self._limiter.paused_s,
                is_sent=False,
            )
        if refused := self._lasting("credentials"):
            raise AuthError(
                "not sent: Billetweb refused the user or the key before",
                status=refused.status,
                is_sent=False,
            )
        if challenge := self._lasting("challenge"):
            minutes = self._left_s / 60
            raise ChallengeError(
                f"not sent: Billetweb's protection asked for a browser; asked again in {minutes:.0f} min",
                status=challenge.status,
                is_sent=False,
            )

    async def failed(self, error: BilletwebError) -> None:
        """Forbid requests for a time if the error of one asks for that."""
        wait_s, before = error.wait_s or 0.0, self.quiet
        if isinstance(error, AuthError):
            await self._forbid("credentials", REFUSED_S, error)
        elif isinstance(error, ChallengeError):
            if self._lasting("challenge"):
                return  # simultaneous requests meet the same challenge: it counts once
            again = before if before and before.kind == "challenge" else None
            length_s = 2 * (again.until - again.since).total_seconds() if again else CHALLENGE_WAIT_S
            await self._forbid("challenge", min(length_s, CHALLENGE_WAIT_MAX_S), error)
        elif wait_s:
            self._limiter.pause(wait_s)
            await self._forbid("rate_limited", self._limiter.paused_s, error)

    async def answered(self) -> None:
        """Forget a time that is over, because an answer came; one that began meanwhile stays."""
        if self.is_noted and not self._left_s:
            self.quiet, self.is_noted = None, False
            if self._on_quiet:
                await self._on_quiet(None)

    async def _forbid(self, kind: QuietKind, seconds: float, error: BilletwebError) -> None:
        now = self._clock.now()
        if self._left_s >= seconds:
            return
        quiet = Quiet(
            kind=kind,
            since=now,
            until=now + timedelta(seconds=seconds),
            status=error.status,
            key=self._credentials.digest() if kind == "credentials" else "",
        )
        self._begin(quiet)
        self.is_noted = True
        if self._on_quiet:
            await self._on_quiet(quiet)

    def _begin(self, quiet: Quiet) -> None:
        self.quiet = quiet
        # By the monotonic clock: the wall clock is for the next process.
        self._until_s = self._clock.running_s() + quiet.lasts_s(self._clock.now())

    @property
    def _left_s(self) -> float:
        """How long nothing may be sent; 0 if sending is allowed."""
        return max(self._until_s - self._clock.running_s(), 0.0) if self.quiet else 0.0

    def _lasting(self, kind: QuietKind) -> Quiet | None:
        quiet = self.quiet
        return quiet if quiet and quiet.kind == kind and self._left_s else None
