"""What the environment says of proxies and certificates, and the clients that are made by it."""

import json
import shutil
import sys
from pathlib import Path

import certifi
import httpx
import pytest
from support.processes import DaemonProcess, Tables, syncd, write_config
from support.variants import mostly_slow

from syncd import web
from syncd.errors import ConfigError
from syncd.standin.server import StandIn

PROXY = "http://user:pass-canary@192.0.2.1:3128"
REMOTE = "https://www.billetweb.fr/api"
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
OURS = (*NAMES, *map(str.lower, NAMES), "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "is_loopback"),
    [
        ("http://localhost:8000/api", True),
        ("http://127.8.9.1/api", True),
        ("http://[::1]:8000/api", True),
        ("https://LOCALHOST./api", True),
        ("https://monitor.localhost/", True),
        ("https://www.billetweb.fr/api", False),
        ("https://localhost.example.org/api", False),
        ("https://127.0.0.1.example.org/api", False),
        ("https://192.0.2.1/api", False),
    ],
)
def test_host_would_be_taken_for_loopback(url: str, is_loopback: bool) -> None:
    """Loopback is an address of this machine or its one name, and nothing that looks like it."""
    assert web.is_loopback(httpx.URL(url).host) is is_loopback


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_direct"),
    [
        ("localhost,fd00::/8", "www.billetweb.fr", False),
        ("localhost,fd00::/8", "[fd00::7]", True),
        ("localhost, 10.0.0.0/8 192.168.1.1", "10.200.3.4", True),
        ("localhost, 10.0.0.0/8 192.168.1.1", "192.168.1.1", True),
        ("localhost, 10.0.0.0/8 192.168.1.1", "192.168.1.2", False),
        ("10.1.2.3/8", "10.9.9.9", True),
        ("[2001:db8::1]", "[2001:db8::1]", True),
        ("2001:db8::1", "[2001:db8:0::1]", True),
        ("billetweb.fr", "www.billetweb.fr", True),
        (".billetweb.fr", "www.billetweb.fr", True),
        ("*.billetweb.fr", "www.billetweb.fr", True),
        ("WWW.Billetweb.FR.", "www.billetweb.fr", True),
        ("www.billetweb.fr:443", "www.billetweb.fr", True),
        ("www.billetweb.fr:8443", "www.billetweb.fr", False),
        ("illetweb.fr", "www.billetweb.fr", False),
        ("*", "www.billetweb.fr", True),
        ("192.0.*", "192.0.2.7", True),
        ("", "www.billetweb.fr", False),
        (",, ,", "www.billetweb.fr", False),
        ("fd00::/999,[,:::,<local>,http://x,10.0.0.0/99", "www.billetweb.fr", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_exception_of_the_proxy_is_misread(
    monkeypatch: pytest.MonkeyPatch, name: str, no_proxy: str, host: str, is_direct: bool
) -> None:
    """$NO_PROXY names hosts, domains and networks, a port with them; what is none of these means nobody."""
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv(name, no_proxy)
    assert web.problems([f"https://{host}/api"]) == []
    assert (web._proxy_for(httpx.URL(f"https://{host}/api")) is None) is is_direct


@pytest.mark.parametrize(
    ("environ", "scheme", "port"),
    [
        ({"HTTPS_PROXY": "192.0.2.1:1"}, "https", 1),
        ({"HTTPS_PROXY": "http://192.0.2.1:1", "https_proxy": "http://192.0.2.1:2"}, "https", 2),
        ({"ALL_PROXY": "https://[2001:db8::1]:3/"}, "https", 3),
        ({"ALL_PROXY": "http://192.0.2.1:3", "HTTP_PROXY": "http://192.0.2.1:4"}, "http", 4),
        ({"HTTP_PROXY": "http://192.0.2.1:4"}, "https", None),
        ({"HTTPS_PROXY": "http://192.0.2.1:4", "https_proxy": ""}, "https", None),
        ({"FTP_PROXY": "gopher://nobody"}, "https", None),
    ],
)
def test_wrong_proxy_is_taken(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], scheme: str, port: int | None
) -> None:
    """The proxy is the one for the scheme, else the one for all; a variable in lower case goes before."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert web.problems([f"{scheme}://www.billetweb.fr/api"]) == []
    found = web._proxy_for(httpx.URL(f"{scheme}://www.billetweb.fr/api"))
    assert (found[1].url.port if found else None) == port


UNUSABLE = [
    *("::::", "not a proxy", "http://", "//x", "http:/x", "gopher://h:1", "http://h:99999", "http://h:0"),
    *(
        "http://user:pass-canary@",
        "http://user:pass-canary#1@h:1",
        "http://user:pass-canary/2@h:1",
        "fd00::1",
    ),
]


@pytest.mark.parametrize("value", UNUSABLE)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY", "https_proxy"])
def test_unusable_proxy_is_a_riddle(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """What is no proxy's address is named by its variable, and not shown; for this machine it matters not."""
    monkeypatch.setenv(name, value)
    (problem,) = web.problems([REMOTE])
    assert problem.startswith(f"${name}: is no address of a proxy: ")
    assert "canary" not in problem
    with pytest.raises(ConfigError, match=name):
        web.client(REMOTE)
    assert web.problems(["http://127.0.0.1:1/api", "https://localhost/"]) == []
    monkeypatch.setenv("NO_PROXY", "billetweb.fr")
    assert web.problems([REMOTE]) == []


def test_proxy_that_nothing_goes_through_refuses_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable for another scheme, or one that another goes before, may hold what it likes."""
    monkeypatch.setenv("HTTP_PROXY", "not a proxy")
    assert web.problems([REMOTE]) == []
    monkeypatch.setenv("ALL_PROXY", "not a proxy")
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    assert web.problems([REMOTE]) == []


def test_socks_proxy_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy without the package for it is named where it would be used, and nowhere else."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5h://192.0.2.1:1080")
    (problem,) = web.problems([REMOTE])
    assert problem.startswith("$ALL_PROXY: ")
    assert "socksio" in problem
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    assert web.problems([REMOTE]) == []


def unusable_certificates(folder: Path) -> dict[str, dict[str, str]]:
    """Return environments whose certificates cannot be used."""
    (folder / "letter.pem").write_text("Dear aunt,\n")
    (folder / "empty.pem").touch()
    return {
        "file gone": {"SSL_CERT_FILE": f"{folder}/gone.pem"},
        "file that is a folder": {"SSL_CERT_FILE": f"{folder}"},
        "file that never ends": {"SSL_CERT_FILE": "/dev/zero"},
        "file of something else": {"SSL_CERT_FILE": f"{folder}/letter.pem"},
        "file of nothing": {"SSL_CERT_FILE": f"{folder}/empty.pem"},
        "folder gone": {"SSL_CERT_DIR": f"{folder}/gone"},
        "folder that is a file": {"SSL_CERT_DIR": f"{folder}/letter.pem"},
        "log of keys in no folder": {"SSLKEYLOGFILE": f"{folder}/gone/keys"},
    }


@pytest.mark.parametrize("case", unusable_certificates(Path("/tmp")))
def test_unusable_certificates_are_a_riddle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """What cannot be used to know servers by is named by its variable; without TLS it matters not."""
    ((name, value),) = unusable_certificates(tmp_path)[case].items()
    monkeypatch.setenv(name, value)
    (problem,) = web.problems([REMOTE])
    assert problem.startswith(f"${name}: {value}")
    with pytest.raises(ConfigError, match=name):
        web.client(REMOTE)
    assert web.problems(["http://127.0.0.1:1/api"]) == []


def test_good_certificates_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of certificates, and a list of folders of which one is there, are taken."""
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    assert web.problems([REMOTE]) == []
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}/gone:{tmp_path}")
    assert web.problems([REMOTE]) == []


# -- the programs

AWAY: Tables = {"billetweb": {"base_url": "https://127.0.0.1:1/api"}, "sync": {"run_on_start": False}}
"""Nobody answers there, and certificates are needed to ask."""


@pytest.mark.sqlite_only("about proxies")
@pytest.mark.parametrize("command", mostly_slow(["check", "once", "run"], "each starts a process"))
@pytest.mark.parametrize(
    ("tables", "environ"),
    [
        (AWAY, {"SSL_CERT_FILE": "/none/ca.pem"}),
        ({"billetweb": {"base_url": REMOTE}}, {"HTTPS_PROXY": "gopher://h"}),
        ({"heartbeat": {"url": "https://monitor.example.org/x"}}, {"ALL_PROXY": "http://h:99999"}),
    ],
)
def test_environment_is_a_fault_of_syncd(
    home: Path, base_url: str, command: str, tables: Tables, environ: dict[str, str]
) -> None:
    """What of the environment cannot be used is told by its name in one line: exit code 78."""
    done = syncd(command, "--config", write_config(home, base_url, tables), **environ)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (78, "")
    assert f"${next(iter(environ))}: " in line


@pytest.mark.sqlite_only("about proxies")
def test_odd_exceptions_of_the_proxy_stop_everything(home: Path, standin: StandIn, base_url: str) -> None:
    """A list of exceptions with networks in it is no obstacle: to `check --online`, nor to `once`."""
    environ = {"NO_PROXY": "localhost,fd00::/8,10.0.0.0/8", "HTTP_PROXY": "http://192.0.2.1:1"}
    path = write_config(home, base_url, {"heartbeat": {"url": f"{base_url}/monitor"}})
    assert syncd("check", "--online", "--config", path, **environ).returncode == 0
    assert syncd("once", "--config", path, **environ).returncode == 0
    assert standin.requests[-1].path == "/monitor"


@pytest.mark.sqlite_only("about settings")
def test_reload_takes_half_of_the_settings(home: Path, base_url: str) -> None:
    """Certificates that are gone since the start refuse a reload by their variable; nothing has changed."""
    certificates = home / "ca.pem"
    shutil.copy(certifi.where(), certificates)
    with DaemonProcess(home, base_url, AWAY, environ={"SSL_CERT_FILE": str(certificates)}) as daemon:
        before = daemon.status()
        certificates.unlink()
        write_config(home, base_url, {**AWAY, "sync": {"run_on_start": False, "interval": "20m"}})
        status, body = daemon.ask("POST", "/v1/reload")
        assert status == 422
        assert f"$SSL_CERT_FILE: {certificates}: No such file" in json.loads(body)["error"]["message"]
        after = daemon.status()
        for name in ("interval_s", "next_run_at", "pid"):
            assert after[name] == before[name]
        shutil.copy(certifi.where(), certificates)
        assert daemon.ask("POST", "/v1/reload")[0] == 200
        assert daemon.status()["interval_s"] == 1200
