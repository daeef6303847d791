"""Makes every HTTP client, for the environment is input too: what it says of proxies and of certificates.

httpx reads it by itself, but takes `NO_PROXY=fd00::/8` for a broken address, knows no networks, sends what is
for this machine through a proxy, and does not say which variable it stumbled over. An address's client goes
through the proxy for its scheme, if any; an address of this machine never does.
"""

import ipaddress
import os
import re
import ssl
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.request import getproxies_environment

import httpx

from syncd.errors import ConfigError

PORTS = range(1, 65_536)  # TCP has no others


def client(url: str, *, direct: bool = False, **options: Any) -> httpx.AsyncClient:
    """Return a client for one address. Raises ConfigError where the environment cannot be used for it.

    A direct one uses no proxy, whatever the environment says.

    It reads certificates, which takes its time, follows no redirect, and keeps no cookie: in a client that
    never ends they would only pile up.
    """
    if found := problems([] if direct else [url], direct=[url] if direct else []):
        raise ConfigError(found)
    _, proxy = (None if direct else _proxy_for(httpx.URL(url))) or ("", None)
    try:
        context = _context(url)
    except OSError as error:  # what was there a moment ago
        raise ConfigError([f"the certificates cannot be read: {error.strerror}"]) from None
    return httpx.AsyncClient(
        proxy=proxy,
        verify=context,
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        **options,
    )


def problems(urls: Iterable[str], *, direct: Iterable[str] = ()) -> list[str]:
    """Return what of the environment cannot be used for these addresses: each variable, with the reason.

    Those that are `direct` go through no proxy.
    """
    parsed = [httpx.URL(url) for url in urls]
    found = [*dict.fromkeys(problem for url in parsed for problem in _proxy_problems(url))]
    if any(url.scheme == "https" for url in [*parsed, *map(httpx.URL, direct)]):
        found += _certificate_problems()
    return found


def is_loopback(host: str) -> bool:
    """Tell whether the host in an address is this machine."""
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _goes_out(url: httpx.URL) -> bool:
    """Tell whether a proxy is for this address: one of another machine that $NO_PROXY does not name."""
    entries = re.split(r"[\s,]+", getproxies_environment().get("no", "").lower())
    return not is_loopback(url.host) and not any(_is_meant(entry, url) for entry in entries if entry)


def _is_meant(entry: str, url: httpx.URL) -> bool:
    """Tell whether an entry of $NO_PROXY means an address: a name, its domain, a network; a port with it."""
    host = url.host.rstrip(".")
    with suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    name, port = re.fullmatch(r"(.*?)(?::([0-9]+))?", entry, re.DOTALL).groups()  # type: ignore[union-attr]
    if port and int(port) != (url.port or {"http": 80, "https": 443}[url.scheme]):
        return False
    name = name.strip("[]").removeprefix("*.").strip(".")
    return bool(name) and (fnmatchcase(host, name) or fnmatchcase(host, f"*.{name}"))


def _proxy_for(url: httpx.URL) -> tuple[str, httpx.Proxy] | None:
    """Return the proxy for an address, with its variable. Raises ValueError where that is unreadable."""
    settings = getproxies_environment()
    scheme = next((each for each in (url.scheme, "all") if settings.get(each)), None)
    if scheme is None or not _goes_out(url):
        return None
    name = _variable(scheme)
    return name, _proxy(name, settings[scheme])


def _proxy(name: str, setting: str) -> httpx.Proxy:
    """Return a variable's proxy. Raises ValueError, which shows nothing of it: a password may stand there."""
    try:
        proxy = httpx.Proxy(setting if "://" in setting else f"http://{setting}")
    except (httpx.InvalidURL, ValueError):
        proxy = None
    if (
        proxy is None
        or not re.fullmatch(r"[\w.-]+|[0-9a-f:.]+", proxy.url.host)
        or proxy.url.port not in (None, *PORTS)
        or ("/" in setting.rstrip("/") and "://" not in setting)
    ):
        raise ValueError(
            f"${name}: is no address of a proxy: those are written http://host:3128, https:// or socks5:// "
            "likewise, with an / @ : or # in a password as %2F %40 %3A %23"
        )
    return proxy


def _proxy_problems(url: httpx.URL) -> Iterator[str]:
    """Yield what is wrong with the proxy for an address; of what no address goes through, nothing matters."""
    try:
        name, proxy = _proxy_for(url) or ("", None)
    except ValueError as error:
        yield str(error)
        return
    if proxy and proxy.url.scheme.startswith("socks"):
        try:
            import socksio  # type: ignore[import-not-found]  # noqa: F401, PLC0415 - httpx's, for this alone
        except ImportError:
            yield f"${name}: a SOCKS proxy needs the Python package socksio beside syncd"


def _variable(scheme: str) -> str:
    """Return the variable that counts, as it is spelled; the one in lower case goes before the other."""
    name = f"{scheme}_proxy"
    return name if name in os.environ else next(each for each in os.environ if each.lower() == name)


def _context(url: str) -> ssl.SSLContext:
    if not url.lower().startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which trusts nobody, and is made at once
    return httpx.create_ssl_context()


def _certificate_problems() -> Iterator[str]:
    """Yield what cannot be used of the variables by which OpenSSL and httpx look for certificates."""
    if file := os.environ.get("SSL_CERT_FILE"):
        yield from _file_problems(file)
    elif (folders := os.environ.get("SSL_CERT_DIR")) and not any(map(os.path.isdir, folders.split(":"))):
        yield f"$SSL_CERT_DIR: {folders} is no folder that is there"
    if log := os.environ.get("SSLKEYLOGFILE"):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = log
        except OSError as error:
            yield f"$SSLKEYLOGFILE: {log}: {error.strerror}"


def _file_problems(file: str) -> Iterator[str]:
    try:
        if not stat.S_ISREG(Path(file).stat().st_mode):  # a pipe would be waited for
            yield f"$SSL_CERT_FILE: {file} is no regular file"
            return
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        yield f"$SSL_CERT_FILE: {file} holds no certificates in PEM form"
    except OSError as error:
        yield f"$SSL_CERT_FILE: {file}: {error.strerror}"
