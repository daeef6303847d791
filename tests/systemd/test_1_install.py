"""First boot: what README says under "Install", word for word, ends in a service."""

import re
import subprocess
from pathlib import Path

from inside import (
    BASE_URL,
    BILLETWEB,
    BILLETWEB_UNIT,
    CONFIG,
    DATABASE,
    KEY,
    KEY_FILE,
    PROJECT,
    SOCKET,
    USER,
    configured,
    follow,
    idle,
    install_steps,
    make_user,
    query,
    run,
    run_as,
    shown,
    systemctl,
)

STEPS = (PROJECT / "README.md").read_text("utf-8").partition("### The checklist\n")[2].partition("\n## ")[0]
INSTALL, START = install_steps(PROJECT)


def quoted(part: str) -> str:
    """Return the command that README quotes in a sentence of this section."""
    commands: list[str] = re.findall(r"`([^`\n]+)`", STEPS)
    return next(command for command in commands if part in command)


def followed(line: str, until: str) -> None:
    """Run a line that never ends by itself until it has printed this."""
    with subprocess.Popen(["bash", "-c", f"exec {line}"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert any(until in printed for printed in process.stdout)
        finally:
            process.kill()


def test_install_step_fails() -> None:
    """Each line of the installation does what it says, and the key is read where README pastes it."""
    BILLETWEB_UNIT.write_text(BILLETWEB)
    systemctl("enable", "--now", "billetweb")
    for line in INSTALL:
        follow(line)
    assert KEY_FILE.read_text().strip() == KEY


def test_start_step_fails() -> None:
    """With the user number in its file, each line of the start works; the last shows syncd come up."""
    values = {"user": USER, "base_url": BASE_URL, "interval": "10s"}
    text = CONFIG.read_text()
    CONFIG.write_text(configured(text, **{key: f'"{value}"' for key, value in values.items()}))
    *lines, last = START
    for line in lines:
        follow(line)
    followed(last, until=" is up: runs every 10 s")


def test_installed_service_does_not_work() -> None:
    """It is active and enabled, runs at once and by itself, and the mirror holds the account."""
    assert (shown("ActiveState"), shown("UnitFileState")) == ("active", "enabled")
    assert idle(run_count=2)["health"] == "ok"
    assert query("SELECT trigger, outcome FROM syncd_runs ORDER BY id LIMIT 2") == [
        ("startup", "ok"),
        ("interval", "ok"),
    ]
    assert query("SELECT count(*) FROM billetweb_events") == [(3,)]


def test_advice_that_does_not_help() -> None:
    """Who joins the group as README says may use syncctl, and the check by hand finds nothing wrong."""
    make_user("anna")
    assert run_as("anna", "syncctl", "status").returncode == 4
    follow(quoted("usermod").replace("NAME", "anna"))
    assert run_as("anna", "syncctl", "status").returncode == 0
    follow(quoted("syncd check"))


def test_installed_files_open_to_others() -> None:
    """The key is root's alone; mirror and socket are for the group, and for nobody else."""
    modes = {KEY_FILE: "root:root 600", KEY_FILE.parent: "root:root 700"}
    modes |= {CONFIG: "root:syncd 640"}
    modes |= {DATABASE: "syncd:syncd 640", DATABASE.parent: "syncd:syncd 750", SOCKET: "syncd:syncd 660"}
    found = {path: run("stat", "--format=%U:%G %a", str(path)).stdout.strip() for path in modes}
    assert found == modes


def test_page_or_completion_out_of_sight() -> None:
    """Man finds the pages; the completions are where bash, zsh and fish look for what is local."""
    for section, name in (
        ("8", "syncd"),
        ("1", "syncctl"),
        ("5", "syncd.toml"),
        ("7", "syncd-tables"),
        ("7", "syncd-socket"),
    ):
        where = Path(run("man", "--where", section, name).stdout.strip())
        assert where.samefile(f"/usr/local/share/man/man{section}/{name}.{section}")
    for program in ("syncd", "syncctl"):
        for place in (f"bash-completion/completions/{program}", f"zsh/site-functions/_{program}"):
            assert Path("/usr/local/share", place).is_file()
        assert Path(f"/usr/local/share/fish/vendor_completions.d/{program}.fish").is_file()


def test_service_noisy_in_everyday() -> None:
    """Nothing since the installation was worth a warning."""
    assert run("journalctl", "-u", "syncd", "-p", "warning", "--quiet").stdout == ""
