"""Where webhooks may go: to the public internet, by what a name leads to, unless it is allowed otherwise."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
from conftest import MakeConfig, Rig, rig_on
from support.receiver import Receiver, receiving
from support.telling import ByHand, configure, sent, settled, telling
from support.variants import mostly_slow

from syncd.feed.addresses import Unreachable, allowed_addresses, is_public
from syncd.standin.server import StandIn

pytestmark = pytest.mark.sqlite_only("about names and addresses")
CONCERT = "900006"
PUBLIC = ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"]
REFUSED = [
    *("10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "0.0.0.0"),
    *("100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::1", "::", "fe80::1", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "64:ff9b::7f00:1"),
    *("2002:7f00:1::", "2002:a00:1::1"),
]

Resolver = Callable[..., None]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """Return a function that sets what names lead to, look-up by look-up; the last goes on."""

    def set_to(*answers: list[str] | OSError) -> None:
        left = [*answers]

        def look(host: str, port: int, **_: object) -> list[Any]:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, OSError):
                raise answer
            families = (socket.AF_INET6 if ":" in each else socket.AF_INET for each in answer)
            return [
                (family, socket.SOCK_STREAM, 6, "", (each, port))
                for family, each in zip(families, answer, strict=True)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", look)

    return set_to


def led_to(host: str, *, private: bool = False, loopback: bool = False) -> list[str]:
    """Return where a host leads."""
    found = asyncio.run(allowed_addresses(host, 443, private=private, loopback=loopback))
    return [str(address) for address in found]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_refused(address: str) -> None:
    """One of the public internet is taken, in whatever way it is written."""
    assert is_public(ip_address(address))
    assert led_to(address) == [str(ip_address(address))]


@pytest.mark.parametrize("address", REFUSED)
def test_a_request_gets_inside(address: str) -> None:
    """Private, local, link-local, multicast, reserved and unspecified ones are refused, in any disguise."""
    with pytest.raises(Unreachable, match="private = true"):
        led_to(address)
    assert led_to(address, private=True) == [str(ip_address(address))]


def test_a_name_gets_inside(resolver: Resolver) -> None:
    """What a name leads to counts, and of several addresses those that are public alone."""
    resolver(["10.0.0.1", "93.184.215.14", "::1", "fe80::1%eth0"])
    assert led_to("site.example") == ["93.184.215.14"]
    assert led_to("site.example", private=True) == ["10.0.0.1", "93.184.215.14", "::1", "fe80::1"]
    resolver(["10.0.0.1"])
    with pytest.raises(Unreachable, match=r"site\.example is at 10\.0\.0\.1, which is no address"):
        led_to("site.example")


def test_a_name_of_this_machine_leads_out(resolver: Resolver) -> None:
    """`localhost` is this machine, or nothing."""
    resolver(["10.0.0.1", "127.0.0.1"])
    assert led_to("localhost", loopback=True) == ["127.0.0.1"]
    resolver(["93.184.215.14"])
    with pytest.raises(Unreachable, match="is not this machine"):
        led_to("localhost", loopback=True)


@pytest.mark.parametrize("answer", [socket.gaierror(-2, "unknown"), OSError("no resolver"), []])
def test_a_name_without_an_address_is_a_traceback(resolver: Resolver, answer: Any) -> None:
    """It is told in words."""
    resolver(answer)
    with pytest.raises(Unreachable, match=r"there is no address for site\.example"):
        led_to("site.example")


def test_a_resolver_that_hangs_takes_the_threads_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gave up waiting for it leaves nothing behind that others wait for."""
    go_on = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        go_on.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def give_up() -> None:
        for _ in range(50):  # more than there are threads for all else
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(
                    allowed_addresses("site.example", 443, private=False, loopback=False), 0.001
                )
        assert await asyncio.to_thread(lambda: "work") == "work"

    try:
        asyncio.run(give_up())
    finally:
        go_on.set()


# --- under an account


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give a receiver that listens."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def rig(make_config: MakeConfig, instant_retries: None) -> Iterator[Rig]:
    """Give a rig that has mirrored all and tells nobody yet."""
    with rig_on(make_config(billetweb__concurrency=1), ByHand(datetime.now(UTC))) as rig:
        rig.run()
        rig.portal.call(rig.account.outputs.webhooks.start)
        yield rig


def test_a_name_that_changes_its_mind_gets_inside(
    rig: Rig, receiver: Receiver, standin: StandIn, resolver: Resolver
) -> None:
    """A request goes where the name led when it was looked at: it is looked up once."""
    resolver(["127.0.0.1"], ["127.0.0.2"])
    port = receiver.url.rpartition(":")[2]
    configure(rig, telling(rig.config, receiver, url=f"http://localhost:{port}", on=("event.full",)))
    standin.sell(CONCERT, 3)
    rig.run()
    settled(rig)
    assert receiver.types() == ["event.full"]
    assert receiver.got[0].headers["host"] == f"localhost:{port.partition('/')[0]}"


@pytest.mark.parametrize(
    "host", mostly_slow(["site.example", "10.9.8.7", "[::ffff:127.0.0.1]"], "each takes several attempts")
)
def test_a_private_address_is_connected_to(
    rig: Rig, receiver: Receiver, standin: StandIn, resolver: Resolver, host: str
) -> None:
    """Nothing is sent, nor is a connection made; what is wrong is on record, and tried again as ever."""
    resolver(["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = f"https://{host}:{listening.getsockname()[1]}/hook"
        configure(rig, telling(rig.config, receiver, url=url, on=("event.full",)))
        standin.sell(CONCERT, 3)
        rig.run()
        rig.until(lambda: sent(rig, "attempts") == [1])
        ((state, error),) = sent(rig, "state, error")
        assert state == "pending"
        assert error.endswith("which is no address of the public internet; `private = true` allows it")
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_a_private_network_cannot_be_told(
    rig: Rig, receiver: Receiver, standin: StandIn, resolver: Resolver
) -> None:
    """With `private = true` it is connected to."""
    resolver(["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        url = f"https://site.example:{listening.getsockname()[1]}/hook"
        configure(rig, telling(rig.config, receiver, url=url, on=("event.full",), private=True))
        standin.sell(CONCERT, 3)
        rig.run()
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(30)
            assert connection.recv(1) == b"\x16"  # the first byte of TLS
            hello = connection.recv(4096)
        assert b"site.example" in hello  # in the name of the endpoint's host
