"""`syncd setup`: what a new user is asked, what is written, and what is left alone."""

import base64
import contextlib
import grp
import io
import os
import pty
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.processes import SYNCD, environment, forked_after, syncd
from support.project import ROOT

from syncd.cli.main import main
from syncd.standin.server import StandIn, restricted

KEY = "demo-key"
SAMPLE = ROOT / "config.toml"


@pytest.fixture
def standin() -> StandIn:
    return StandIn(events=3)


def setup(
    folder: Path, base_url: str, *options: str, key: str = KEY, user: str = "12345"
) -> subprocess.CompletedProcess[str]:
    """Run it without a terminal, with all answers as options."""
    where = ["--config", str(folder / "config.toml"), "--base-url", base_url]
    return syncd("setup", *where, "--user", user, "--key-file", "-", *options, stdin=f"{key}\n")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["x.db", "x.sock", "who?.toml", "100%41.toml", f"{'x' * 100}.toml"])
def test_a_name_leads_to_settings_that_check_refuses(tmp_path: Path, base_url: str, name: str) -> None:
    """A path that no database or socket can be beside is refused before anything is asked."""
    said = setup(tmp_path, base_url, "--config", f"{tmp_path}/{name}")
    assert said.returncode == 78
    assert said.stderr.startswith("--config: ")
    assert list(tmp_path.iterdir()) == []


WITHOUT_A_UMASK = forked_after("import os; os.umask(0)")


def test_what_setup_makes_is_for_all_to_change(tmp_path: Path, base_url: str) -> None:
    """Whatever the umask, no folder that it makes is writable for others, and none of those above it."""
    where = ["--config", str(tmp_path / "new/site.toml"), "--base-url", base_url]
    typed = [*where, "--user", "12345", "--key-file", "-"]
    said = syncd("setup", *typed, stdin=f"{KEY}\n", program=WITHOUT_A_UMASK)
    assert said.returncode == 0
    made = tmp_path / "new"
    assert [mode(path) & 0o022 for path in (made, made / "credentials", made / "credentials/site")] == [
        0,
        0,
        0,
    ]


def test_what_setup_writes_is_of_no_use(tmp_path: Path, base_url: str) -> None:
    """The key was tried, both files are there for the owner alone, `check` is content and a run works."""
    said = setup(tmp_path, base_url, "--attendees", "minimal")
    assert (said.returncode, said.stderr) == (0, "")
    assert "The key is good. The account has 3 events, 3 of them live.\nAttendees may be read" in said.stdout
    assert f"syncd run --config {tmp_path}/config.toml" in said.stdout
    assert KEY not in said.stdout
    config, key = tmp_path / "config.toml", tmp_path / "credentials/billetweb-key"
    assert (mode(config), mode(key), mode(key.parent)) == (0o600, 0o600, 0o700)
    assert key.read_text() == f"{KEY}\n"
    settings = tomllib.loads(config.read_text())
    assert (settings["billetweb"]["user"], settings["sync"]["attendees"]) == ("12345", "minimal")
    assert settings["database"]["url"] == f"sqlite:///{tmp_path}/config.db"

    checked = syncd("check", "--online", "--config", str(config))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.splitlines() == [
        f"{config} is good, and Billetweb answers",
        f"  account   12345, with the key from {key}",
        f"  database  sqlite:///{tmp_path}/config.db: empty yet; the first run fills it",
        f"  socket    {tmp_path}/config.sock",
        f"  next      `syncd run --config {config}`; then `syncctl --socket {tmp_path}/config.sock status`",
    ]
    assert syncd("once", "--config", str(config)).returncode == 0
    with config.open("a") as file:
        file.write(f'[[feeds]]\npath = "{tmp_path}/events.json"\nformat = "json"\n')
    again = syncd("check", "--config", str(config))
    assert f"{tmp_path}/config.db: 3 events, 1 run\n" in again.stdout
    assert f"  feeds     {tmp_path}/events.json\n" in again.stdout


def test_a_person_is_not_asked(tmp_path: Path, base_url: str, standin: StandIn) -> None:
    """On a terminal it asks; the key is not echoed, what was wrong may be typed again."""
    command = [*SYNCD, "setup", "--config", str(tmp_path / "config.toml"), "--base-url", base_url]
    master, slave = pty.openpty()
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True
    ) as process:
        os.close(slave)
        shown = b""

        def answer(question: str, words: str) -> None:
            nonlocal shown
            begun = len(shown)
            while question.encode() not in shown[begun:]:
                shown += os.read(master, 4096)
            os.write(master, f"{words}\n".encode())

        answer("Account number", "my account")
        answer("Account number", standin.user)
        answer("API key (is not shown): ", "wrong-key-canary")
        answer(f"[{standin.user}]: ", "")
        answer("API key (is not shown): ", standin.key)
        answer("Attendees [none]: ", "some")
        answer("Attendees [none]: ", "full")
        try:
            while more := os.read(master, 4096):
                shown += more
        except OSError:  # Linux's end of a terminal
            pass
        assert process.wait(20) == 0
    os.close(master)
    assert b"canary" not in shown
    assert standin.key.encode() not in shown
    assert b"Billetweb refused the user or the key" in shown
    settings = tomllib.loads((tmp_path / "config.toml").read_text())
    assert settings["sync"]["attendees"] == "full"


@pytest.mark.parametrize(
    ("options", "question"), [([], b"Account number"), (["--user", "12345"], b"API key (is not shown): ")]
)
def test_a_person_who_leaves_is_asked_again(tmp_path: Path, options: list[str], question: bytes) -> None:
    """Ctrl-D in the place of an answer ends it; nothing is written."""
    master, slave = pty.openpty()
    command = [*SYNCD, "setup", "--config", str(tmp_path / "config.toml"), *options]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True
    ) as process:
        os.close(slave)
        shown = os.read(master, 4096)
        os.write(master, b"\x04")
        with contextlib.suppress(OSError):  # Linux's end of a terminal
            while more := os.read(master, 4096):
                shown += more
        assert process.wait(20) == 78
    os.close(master)
    assert shown.startswith(question)
    assert shown.endswith(b"the answers ended: nothing was written\r\n")
    assert not [*tmp_path.iterdir()]


def test_a_wrong_key_is_written(tmp_path: Path, base_url: str) -> None:
    """Nothing is written where the key is refused, or Billetweb does not answer; `--offline` does not ask."""
    said = setup(tmp_path, base_url, key="wrong-key")
    assert said.returncode == 78
    assert said.stderr.startswith("GET /events: Billetweb refused the user or the key")
    assert "wrong-key" not in said.stdout + said.stderr
    said = setup(tmp_path, "http://127.0.0.1:9/api")
    assert (said.returncode, "nothing was written" in said.stderr) == (1, True)
    said = setup(tmp_path, base_url.removesuffix("/api"))
    assert said.returncode == 1
    assert "check billetweb.base_url, which ends with /api" in said.stderr
    assert not [*tmp_path.iterdir()]
    assert setup(tmp_path, "http://127.0.0.1:9/api", "--offline").returncode == 0


def test_a_key_that_may_not_read_attendees_passes_for_one_that_may(
    tmp_path: Path, base_url: str, standin: StandIn
) -> None:
    """It says so. One for chosen events may read theirs."""
    standin.restricted = True
    assert "Attendees may be read with it." in setup(tmp_path, base_url).stdout
    standin.fail("/event/*/attendees", restricted)
    said = setup(tmp_path, base_url, "--overwrite")
    assert said.returncode == 0
    assert "Attendees may not be read with it." in said.stdout


def test_settings_that_are_there_are_overwritten(tmp_path: Path, base_url: str) -> None:
    """A second account needs `--overwrite`, which leaves all other settings as they are."""
    assert setup(tmp_path, base_url).returncode == 0
    path = tmp_path / "config.toml"
    path.write_text(path.read_text().replace('interval = "15m"', 'interval = "7m"'))
    before = path.read_text()
    said = setup(tmp_path, base_url)
    assert said.returncode == 78
    assert "/billetweb-key is there already: nothing was written. --overwrite puts" in said.stderr
    assert path.read_text() == before
    anew = setup(tmp_path, base_url, "--overwrite")
    assert anew.returncode == 0
    following = anew.stdout.split("Next:\n")[1].splitlines()
    assert [line.split()[-1] for line in following[:2]] == ["reload", "run-now"]
    assert path.read_text() == before
    path.write_text(before.replace('"12345"', '"54321"'))
    said = setup(tmp_path, base_url)
    assert f"{path} is for an account already: nothing was written. --overwrite puts" in said.stderr


def test_another_key_is_tried_elsewhere(tmp_path: Path, base_url: str, standin: StandIn) -> None:
    """Where the configuration names an address, there: the daemon will ask that one too."""
    assert setup(tmp_path, base_url).returncode == 0
    options = ["--config", str(tmp_path / "config.toml"), "--user", "12345", "--key-file", "-", "--overwrite"]
    asked = len(standin.requests)
    said = syncd("setup", *options, stdin=f"{KEY}\n")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"The key is tried at {base_url}: billetweb.base_url in ")
    assert len(standin.requests) > asked
    said = syncd("setup", *options, "--base-url", "http://127.0.0.1:9/api", stdin=f"{KEY}\n")
    assert said.returncode == 1


def test_a_key_that_cannot_be_written_leaves_another_account_without_one(
    tmp_path: Path, base_url: str
) -> None:
    """Configuration and key are both written, or neither."""
    path, folder = tmp_path / "config.toml", tmp_path / "credentials"
    folder.write_text("no folder")
    said = setup(tmp_path, base_url, "--offline")
    assert (said.returncode, f"cannot write {folder}/billetweb-key" in said.stderr) == (78, True)
    assert not path.exists()
    path.write_text("[billetweb]\nuser = '54321'\n")
    assert setup(tmp_path, base_url, "--offline", "--overwrite").returncode == 78
    assert path.read_text() == "[billetweb]\nuser = '54321'\n"


def test_a_key_that_is_there_is_overwritten(tmp_path: Path, base_url: str) -> None:
    """Also where there is no configuration."""
    key = tmp_path / "credentials/billetweb-key"
    key.parent.mkdir()
    key.write_text("another-key\n")
    assert setup(tmp_path, base_url).returncode == 78
    assert key.read_text() == "another-key\n"
    assert not (tmp_path / "config.toml").exists()


@pytest.mark.parametrize("sample", ['user = ""', 'user = "12345"', '# user = ""'])
def test_the_sample_passes_for_somebodys_settings(tmp_path: Path, base_url: str, sample: str) -> None:
    """A sample, of an earlier version too, is filled in; what a person changed in it stays."""
    path = tmp_path / "config.toml"
    text = f'# mine\n[billetweb]\n{sample}\n[sync]\ninterval = "1h"\n'
    path.write_text(text)
    assert setup(tmp_path, base_url, "--database", f"sqlite:///{tmp_path}/other.db").returncode == 0
    settings = tomllib.loads(path.read_text())
    assert settings["billetweb"] == {"user": "12345", "base_url": base_url}
    assert settings["sync"] == {"interval": "1h"}
    assert settings["database"] == {"url": f"sqlite:///{tmp_path}/other.db"}
    assert path.read_text().startswith("# mine\n")


@pytest.mark.skipif(os.access("/var/lib/syncd", os.W_OK), reason="syncd is installed, its folder is usable")
@pytest.mark.parametrize("before", [SAMPLE.read_text(), ""])
def test_the_sample_of_a_checkout_leads_to_folders_that_are_not_there(
    tmp_path: Path, base_url: str, before: str
) -> None:
    """A sample, or nothing, where `setup` writes is nobody's yet: database and socket come beside it."""
    path = tmp_path / "config.toml"
    path.write_text(before.replace('jitter = "0s"', 'jitter = "7s"'))
    said = setup(tmp_path, base_url)
    assert said.returncode == 0, said.stderr
    settings = tomllib.loads(path.read_text())
    assert settings["database"]["url"] == f"sqlite:///{tmp_path}/config.db"
    assert settings["control"]["socket"] == f"{tmp_path}/config.sock"
    assert settings["sync"]["jitter"] == ("7s" if before else "0s")
    assert syncd("once", "--config", str(path)).returncode == 0


def test_a_place_that_somebody_chose_is_replaced(tmp_path: Path, base_url: str) -> None:
    """In a configuration without an account, what is not as in the sample stays."""
    (tmp_path / "config.toml").write_text(
        f'[billetweb]\nuser = ""\n[database]\nurl = "sqlite:///{tmp_path}/mine.db"\n'
    )
    assert setup(tmp_path, base_url).returncode == 0
    settings = tomllib.loads((tmp_path / "config.toml").read_text())
    assert settings["database"] == {"url": f"sqlite:///{tmp_path}/mine.db"}
    assert "control" not in settings
    sample = SAMPLE.read_text().replace('user = ""', 'user = "54321"')
    (tmp_path / "config.toml").write_text(sample)
    assert setup(tmp_path, base_url, "--overwrite").returncode == 0
    written = tomllib.loads((tmp_path / "config.toml").read_text())
    assert [written[table] for table in ("database", "control")] == [
        tomllib.loads(sample)[table] for table in ("database", "control")
    ]


@pytest.mark.parametrize(
    ("control", "option"),
    [
        ("[control]\nsocket = '/run/my own.sock'", "--socket '/run/my own.sock' "),
        ("", ""),
        ("control = 1", ""),
    ],
)
def test_next_names_a_socket_of_nobody(tmp_path: Path, base_url: str, control: str, option: str) -> None:
    """What is typed next asks on the socket that the configuration says, which was there before."""
    (tmp_path / "config.toml").write_text(f"{control}\n[billetweb]\nuser = ''\n")
    assert setup(tmp_path, base_url).stdout.endswith(f"syncctl {option}status\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[billetweb\n", "cannot be read"),
        ("billetweb = 1\n", "cannot be read"),
        ('billetweb = { user = "" }\n', "written in a way that cannot be changed here"),
    ],
)
def test_what_cannot_be_understood_is_replaced(tmp_path: Path, base_url: str, text: str, reason: str) -> None:
    """It is left as it is, whatever it is."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    said = setup(tmp_path, base_url)
    assert said.returncode == 78
    assert reason in said.stderr
    assert path.read_text() == text
    assert not (tmp_path / "credentials").exists()


def test_a_key_is_replaced_where_the_settings_cannot_be(tmp_path: Path, base_url: str) -> None:
    """A link in the place of the configuration is no place to write to: then the key stays too."""
    assert setup(tmp_path, base_url).returncode == 0
    key, path = tmp_path / "credentials/billetweb-key", tmp_path / "config.toml"
    key.write_text("another-key\n")
    path.rename(tmp_path / "elsewhere.toml")
    path.symlink_to(tmp_path / "elsewhere.toml")
    said = setup(tmp_path, base_url, "--overwrite")
    assert (said.returncode, "nothing was written" in said.stderr) == (78, True)
    assert key.read_text() == "another-key\n"


def test_a_folder_that_is_no_word_is_a_riddle(tmp_path: Path, base_url: str) -> None:
    """What stands in a path stands in the configuration, letter for letter."""
    folder = tmp_path / "été 😀"
    folder.mkdir()
    assert setup(folder, base_url).returncode == 0
    settings = tomllib.loads((folder / "config.toml").read_text())
    assert settings["database"]["url"] == f"sqlite:///{folder}/config.db"


def test_a_link_is_followed(tmp_path: Path, base_url: str) -> None:
    """A link in the place of the key or the configuration leads nowhere."""
    (tmp_path / "credentials").mkdir()
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "credentials/billetweb-key").symlink_to(target)
    assert setup(tmp_path, base_url, "--overwrite").returncode == 78
    assert not target.read_bytes()


@pytest.mark.parametrize("spelling", ["12345:{key}", "Basic {base64}"])
def test_a_key_as_the_page_prints_it_is_written_as_it_is(
    tmp_path: Path, base_url: str, spelling: str
) -> None:
    """The file holds the key alone."""
    printed = spelling.format(key=KEY, base64=base64.b64encode(f"12345:{KEY}".encode()).decode())
    assert setup(tmp_path, base_url, key=printed).returncode == 0
    assert (tmp_path / "credentials/billetweb-key").read_text() == f"{KEY}\n"


def test_a_script_waits_for_a_terminal(tmp_path: Path) -> None:
    """Without a terminal, what is not given is named."""
    config = str(tmp_path / "config.toml")
    said = syncd("setup", "--config", config, "--key-file", "-")
    assert (said.returncode, "give --user" in said.stderr) == (78, True)
    said = syncd("setup", "--config", config)
    assert (said.returncode, "give --user and --key-file" in said.stderr) == (78, True)
    said = syncd("setup", "--config", config, "--user", "12345")
    assert (said.returncode, "give --key-file" in said.stderr) == (78, True)
    said = syncd("setup", "--config", config, "--user", "me@example.org", "--key-file", "-")
    assert (said.returncode, "account number: must be digits only" in said.stderr) == (78, True)


@pytest.mark.slow("starts several processes")
def test_a_closed_input_is_a_fault_of_syncd(tmp_path: Path, base_url: str) -> None:
    """Where there is none, nobody is asked; with a key in a file nobody need be."""
    key, config = tmp_path / "key", tmp_path / "config.toml"
    key.write_text(KEY)
    command = ["setup", "--config", str(config), "--base-url", base_url, "--user", "12345"]
    for given, code, said in (
        ([], 78, "give --key-file"),
        (["--key-file", "-"], 78, "standard input is closed"),
        (["--key-file", str(key)], 0, ""),
    ):
        closed = ["sh", "-c", '"$@" <&-', "sh", *SYNCD, *command, *given]
        done = subprocess.run(closed, capture_output=True, text=True, check=False, env=environment())
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_a_proxy_that_cannot_be_used_passes_for_a_wrong_key(tmp_path: Path) -> None:
    """It is found before anything is asked."""
    done = syncd("setup", "--config", tmp_path / "config.toml", HTTPS_PROXY="ftp://proxy.example")
    assert done.returncode == 78
    assert "HTTPS_PROXY" in done.stderr.upper()
    assert "--key-file" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to a group")
def test_the_service_cannot_read_its_settings(
    tmp_path: Path, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root gives the configuration to the service's group, and keeps the key."""
    monkeypatch.setattr("syncd.cli.setup.GROUP", "daemon")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\n"))
    path = tmp_path / "config.toml"
    options = ["--base-url", base_url, "--user", "12345", "--key-file", "-"]
    assert main(["setup", "--config", str(path), *options]) == 0
    key = tmp_path / "credentials/billetweb-key"
    assert (mode(path), path.stat().st_gid) == (0o640, grp.getgrnam("daemon").gr_gid)
    assert (mode(key), key.stat().st_uid, key.stat().st_gid) == (0o600, 0, 0)
