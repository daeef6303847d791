"""`syncd check`: lists every problem of configuration, database and environment, or what was found."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from loguru import logger
from msgspec import Struct, field

from syncd import threads, typed
from syncd.billetweb.client import Billetweb
from syncd.billetweb.limiter import RateLimiter
from syncd.config import KEY_VARIABLE, BilletwebConfig, Config, Secret
from syncd.control.server import socket_obstacle
from syncd.database import engine
from syncd.errors import AuthError, BilletwebError, ConfigError, StoreError, SyncdError
from syncd.feed import addresses, files, publish


class Checked(Struct):
    """The problems, a line each, and the kind that decides the exit code; if none, what was found."""

    problems: list[str] = field(default_factory=list)
    kind: type[SyncdError] | None = None
    good: list[str] = field(default_factory=list)

    def add(self, problems: list[str], kind: type[SyncdError]) -> None:
        """Note problems of a kind. ConfigError decides the exit code: a person must fix it."""
        self.problems += problems
        if problems and (self.kind is None or kind is ConfigError):
            self.kind = kind


def check(configured: Callable[[], Config], *, online: bool) -> Checked:
    """Check all that a start needs; create and change nothing. `online`: ask Billetweb too."""
    found = Checked()
    try:
        config = configured()
    except ConfigError as error:
        found.add(error.problems, ConfigError)
        return found
    if trouble := engine.check(config.database.url):
        found.add([trouble], StoreError)
    if obstacle := socket_obstacle(config.control.socket, config.control.group):
        found.add([obstacle], ConfigError)
    targets, warnings = publish.check(config)
    found.add(targets, ConfigError)
    for warning in warnings:
        logger.bind(event="publish.slow").warning("{}", warning)
    found.add([obstacle for feed in config.feeds if (obstacle := files.obstacle(feed))], ConfigError)
    found.add(addresses.check(config), ConfigError)
    if online and (refusal := threads.run(_ask_billetweb(config))):
        is_key = isinstance(refusal, AuthError)
        setup = f"`{typed.syncd('setup --overwrite', config.path)}` asks for another"
        is_of_a_file = config.key_from != KEY_VARIABLE
        anew = setup if is_of_a_file else f"the key is that in {KEY_VARIABLE}, which wins over any file"
        advice = f"; {anew}" if is_key else ""
        found.add([f"Billetweb: {refusal}{advice}"], ConfigError if is_key else type(refusal))
    if not found.problems:
        found.good = _told(config)
    return found


@asynccontextmanager
async def asking(account: BilletwebConfig, key: Secret) -> AsyncIterator[Billetweb]:
    """Yield a client for a few requests, of which nothing is remembered."""

    async def note() -> bool:
        return False

    client = Billetweb(account, key, RateLimiter(account.requests_per_minute, note=note))
    try:
        yield client
    finally:
        await client.aclose()


async def _ask_billetweb(config: Config) -> BilletwebError | None:
    try:
        async with asking(config.billetweb, config.key) as client:
            await client.events()
    except BilletwebError as error:
        return error
    return None


def _told(config: Config) -> list[str]:
    """Return what a good configuration means, a line each."""
    unit = typed.unit(config.path.absolute())
    service = f"`systemctl start {unit}` under systemd, else " if unit else ""
    starts = f"{service}`{typed.syncd('run', config.path)}`"
    holds = engine.contents(config.database.url) or "empty yet; the first run fills it"

    def source(name: str) -> str:
        return f" (credential {config.credentials[name]})" if name in config.credentials else ""

    parts = {
        "publish": [target.name + source(f"publish-{target.name}") for target in config.publish],
        "feeds": [f"{feed.path}" for feed in config.feeds],
        "webhooks": [endpoint.name + source(f"webhook-{endpoint.name}") for endpoint in config.webhooks],
    }
    return [
        f"account   {config.billetweb.user}, with the key from {config.key_from}",
        f"database  {engine.masked(config.database.url)}: {holds}{source('database-url')}",
        f"socket    {config.control.socket}",
        *(f"{kind:9} {', '.join(names)}" for kind, names in parts.items() if names),
        f"next      {starts}; then `{typed.syncctl('status', config.control.socket)}`",
    ]
