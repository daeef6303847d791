"""Resolves names and decides which addresses are allowed: an endpoint must give no access to a private net.

A request goes to the very address that was checked here, so a name that resolves differently a moment later
changes nothing. Uses the tables of `ipaddress`.
"""

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from syncd import web
from syncd.config import Config
from syncd.threads import getaddrinfo

Address = IPv4Address | IPv6Address
NAT64 = IPv6Network("64:ff9b::/96")
"""Its addresses stand for IPv4 addresses (RFC 6052)."""


class Unreachable(Exception):
    """A name that resolves to nothing, or only to addresses that are not allowed."""


def meant(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, any other address unchanged."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def is_public(address: Address) -> bool:
    """Return whether an address is public and belongs to a single machine."""
    address = meant(address)
    if isinstance(address, IPv6Address) and address.is_site_local:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


async def allowed_addresses(host: str, port: int, *, private: bool, loopback: bool) -> list[Address]:
    """Return the allowed addresses of a host, in the resolver's order.

    These are public ones; with `private` all; with `loopback` only this machine's. Raises Unreachable.
    """
    found = list(dict.fromkeys(await resolve(host, port)))
    if loopback:
        allowed = [address for address in found if meant(address).is_loopback]
    else:
        allowed = [address for address in found if private or is_public(address)]
    if allowed:
        return allowed
    shown = f"{host} is at {found[0]}" if str(found[0]) != host else host
    if loopback:
        raise Unreachable(f"{shown}, which is not this machine")
    raise Unreachable(f"{shown}, which is no address of the public internet; `private = true` allows it")


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a host. Raises Unreachable.

    A resolver may take half a minute; the caller gives up earlier.
    """
    with suppress(ValueError):
        return [ip_address(host)]
    try:
        infos = await getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = [ip_address(str(info[4][0]).partition("%")[0]) for info in infos]
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise Unreachable(f"there is no address for {host}")
    return found


def check(config: Config) -> list[str]:
    """Return what is wrong with the addresses of endpoints, as far as that shows without a resolver."""
    problems = []
    for each in config.webhooks:
        host = urlsplit(each.url).hostname or ""
        with suppress(ValueError):  # a name, which is resolved when it is used
            if not (each.private or web.is_loopback(host) or is_public(ip_address(host))):
                problems.append(
                    f"webhooks {each.name}: {host} is no address of the public internet;"
                    " `private = true` allows it"
                )
    return problems
