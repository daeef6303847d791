"""The man pages and completions: as the generator gives them, complete, and read without complaint."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import fields

from syncd import config
from syncd.cli import main as cli
from syncd.ctl import main as ctl

ROOT = Path(__file__).parent.parent
GENERATE = ROOT / "systemd/generate.py"
MAN = ROOT / "systemd/man"
COMPLETIONS = ROOT / "systemd/completions"
PAGES = {"syncd": "syncd.8", "syncctl": "syncctl.1"}
REFERENCES = ["syncd-tables.7", "syncd-socket.7"]
PARSERS = {"syncd": cli.parser(), "syncctl": ctl.build_parser()}


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with more variables set, or skip the test where it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    env = {**os.environ, **variables}
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def commands(program: str) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a program's commands, by name."""
    (found,) = (a.choices for a in PARSERS[program]._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found)


def options(parser: argparse.ArgumentParser) -> list[str]:
    """Return every option of a parser."""
    return [option for action in parser._actions for option in action.option_strings]


COMMANDS = [(program, command) for program in PARSERS for command in commands(program)]


def page_of(name: str) -> str:
    """Return a man page's source, as plain text but for its requests."""
    return re.sub(r"\\f.", "", (MAN / name).read_text("utf-8")).replace("\\-", "-")


def completed(line: str, folder: Path) -> list[str]:
    """Return what bash offers for the last word of a line, in a folder."""
    program = line.partition(" ")[0]
    script = """
        source "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        $(complete -p "$1" | sed "s/.* -F \\([^ ]*\\) .*/\\1/")
        printf "%s\\n" "${COMPREPLY[@]}"
    """
    scripts = COMPLETIONS / f"{program}.bash"
    done = run("bash", "-c", script, "bash", scripts, *line.split(" "), cwd=folder)
    # compopt is for a completion that readline asked for, which none did here.
    complaints = [line for line in done.stderr.splitlines() if "compopt: not currently" not in line]
    assert (done.returncode, complaints) == (0, [])
    return done.stdout.split()


def test_committed_file_stale(tmp_path: Path) -> None:
    """The committed files are what the generator gives, wherever and in whatever environment it runs."""
    odd = {"COLUMNS": "40", "FORCE_COLOR": "1", "SYNCD_CONFIG": "/elsewhere", "LC_ALL": "C"}
    done = run(sys.executable, GENERATE, "--check", cwd=tmp_path, **odd)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow("compares pages of a stale copy")
def test_check_blind(tmp_path: Path) -> None:
    """The generator writes its files beside itself; --check names one that was changed, and leaves it."""
    copy = tmp_path / "systemd/generate.py"
    copy.parent.mkdir()
    shutil.copy(GENERATE, copy)
    for source in ("config.toml", "README.md"):
        shutil.copy(ROOT / source, tmp_path)
    assert len(run(sys.executable, copy).stdout.splitlines()) == 11
    assert run(sys.executable, copy, "--check").returncode == 0
    page = tmp_path / "systemd/man/syncd.8"
    page.write_text("changed\n")
    done = run(sys.executable, copy, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (1, "systemd/man/syncd.8 differs\n", "")
    assert page.read_text() == "changed\n"


@pytest.mark.parametrize("program", PARSERS)
def test_page_lacks_section(program: str) -> None:
    """A program's page has the sections that people look for, and every exit code of its help."""
    page = page_of(PAGES[program])
    headings = re.findall(r"^\.SH (.+)", page, re.MULTILINE)
    assert headings[:5] == ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS"]
    assert {"EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"} <= set(headings)
    codes = re.findall(r"^ +(\d+) ", PARSERS[program].epilog or "", re.MULTILINE)
    status = page.partition(".SH EXIT STATUS")[2].partition(".SH")[0]
    assert re.findall(r"^\.TP\n(\d+)$", status, re.MULTILINE) == codes
    assert len(codes) > 5


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_page_lacks_option(program: str, command: str) -> None:
    """Each command has its part of the page, with each of its options unless the program takes it too."""
    page = page_of(PAGES[program])
    part = re.search(rf"^\.SS {command}\n(\w(?:.|\n)*?)^\.S", page, re.MULTILINE)
    general = page.partition(".SH OPTIONS")[2].partition(".SH")[0]
    assert part
    for option in options(commands(program)[command]):
        assert re.search(rf"^(.*, )?{option}\b", part[1] + general, re.MULTILINE), option


def test_page_lacks_word() -> None:
    """What a command takes besides options stands in the synopsis and in the command's part."""
    page = page_of(PAGES["syncctl"])
    assert "\nwebhooks\n[--json]\n[--no-trunc]\n[retry]\n[ID]...\\&\n[--endpoint NAME]\n" in page
    assert "\n.TP\nretry\nSend again now.\n.TP\nID\nThese deliveries.\n" in page


def test_page_lacks_variable() -> None:
    """Every environment variable that the code reads stands in one of the pages."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "syncd").rglob("*.py"))
    names = set(re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', sources))
    assert {"SYNCD_CONFIG", "SYNCD_SOCKET", "NO_COLOR"} <= names
    pages = page_of("syncd.8") + page_of("syncctl.1")
    assert {name for name in names if not re.search(rf"\b{name}\b", pages)} == set()


def test_page_lacks_key() -> None:
    """Every key of the configuration has an entry in its table's section, with a text."""
    page = page_of("syncd.toml.5")
    tables = [table for table in fields(config.Config) if hasattr(table.type, "__struct_fields__")]
    assert len(tables) > 5
    for table in tables:
        section = page.partition(f".SH [{table.name}]\n")[2].partition(".SH")[0]
        keys = re.findall(r"^\.TP\n(\w+) = .+\n\S* ?\w", section, re.MULTILINE)
        assert sorted(keys) == sorted(key.name for key in fields(table.type))


def test_example_looks_like_default() -> None:
    """A key that is required, or has no default, is marked so; the others are not."""
    marked = re.findall(
        r"^(\w+) = .+ \((required|no default); an example\)$", page_of("syncd.toml.5"), re.MULTILINE
    )
    assert marked == [
        ("user", "required"),
        ("key_file", "no default"),
        ("group", "no default"),
        ("url", "no default"),
        *((key.name, "required" if key.required else "no default") for key in fields(config.PublishConfig)),
        ("path", "required"),
        ("format", "required"),
        ("name", "required"),
        ("url", "required"),
        ("secret_file", "no default"),
        ("on", "required"),
    ]


@pytest.mark.parametrize("page", [*PAGES.values(), "syncd.toml.5", *REFERENCES])
@pytest.mark.parametrize(
    "renderer", [("man", "--warnings", "-E", "UTF-8", "-l"), ("groff", "-ww", "-man", "-Tutf8", "-P-cbou")]
)
def test_page_does_not_render(renderer: tuple[str, ...], page: str) -> None:
    """The page renders without a warning, and none of its markup shows."""
    done = run(*renderer, MAN / page, LC_ALL="C.UTF-8", MANWIDTH="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert "SEE ALSO" in done.stdout
    assert [line for line in done.stdout.splitlines() if re.search(r"[`\\]|^ *\.[A-Z]", line)] == []


@pytest.mark.parametrize("page", [*PAGES.values(), "syncd.toml.5", *REFERENCES])
def test_page_not_portable(page: str) -> None:
    """The other man program finds nothing to object to but the date, which is left out on purpose."""
    done = run("mandoc", "-Tlint", MAN / page)
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_bash_lacks_option(program: str, command: str, tmp_path: Path) -> None:
    """Bash offers every command of a program, and every option of a command."""
    assert completed(f"{program} ", tmp_path) == [*commands(program)]
    assert completed(f"{program} {command} -", tmp_path) == options(commands(program)[command])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("syncctl run", ["run-now"]),
        ("syncctl run-now --f", ["--full"]),
        ("syncctl --socket x.sock status --c", ["--check"]),
        ("syncctl --socket s", ["some.toml", "somewhere"]),
        ("syncctl history --socket some.", ["some.toml"]),
        ("syncd run --config s", ["some.toml", "somewhere"]),
        ("syncd setup --key-file s", ["some.toml", "somewhere"]),
        ("syncd demo --dir s", ["somewhere"]),
        ("syncd demo --seed s", []),
    ],
)
def test_bash_offers_wrong_word(line: str, words: list[str], tmp_path: Path) -> None:
    """Bash completes commands, options, and files or folders where an option wants them."""
    (tmp_path / "some.toml").touch()
    (tmp_path / "somewhere").mkdir()
    assert sorted(completed(line, tmp_path)) == words


def zsh_options(program: str, command: str) -> str:
    """Return the part of the zsh script that holds a command's options."""
    script = (COMPLETIONS / f"_{program}").read_text("utf-8")
    return script.partition(f"_shtab_{program}_{command.replace('-', '_')}_options=(")[2].partition("\n)")[0]


def fish_options(program: str, command: str) -> Iterator[str]:
    """Give back the options that the fish script has for a command."""
    script = (COMPLETIONS / f"{program}.fish").read_text("utf-8")
    for line in re.findall(rf"^complete .*_using {command}' (.*)", script, re.MULTILINE):
        yield from (f"-{letter}" for letter in re.findall(r"(?:^| )-s (\w)", line))
        yield from (f"--{word}" for word in re.findall(r"(?:^| )-l ([\w-]+)", line))


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_zsh_or_fish_lacks_option(program: str, command: str) -> None:
    """The scripts for zsh and fish know every command and its options."""
    wanted = options(commands(program)[command])
    assert f"\n    {command}:" in (COMPLETIONS / f"_{program}").read_text("utf-8")
    found = zsh_options(program, command)
    assert [option for option in wanted if not re.search(rf"[\"*,{{]{option}[\[,}}]", found)] == []
    assert f" -a {command} " in (COMPLETIONS / f"{program}.fish").read_text("utf-8")
    assert [*fish_options(program, command)] == wanted


@pytest.mark.parametrize("program", PARSERS)
@pytest.mark.parametrize(("shell", "name"), [("bash", "{}.bash"), ("zsh", "_{}"), ("fish", "{}.fish")])
def test_script_does_not_parse(shell: str, name: str, program: str) -> None:
    """The shell reads its script without complaint."""
    done = run(shell, "-n", COMPLETIONS / name.format(program))
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_offers_wrong_word(tmp_path: Path) -> None:
    """Fish completes a command, its option, and a file where one is wanted."""
    (tmp_path / "some.toml").touch()
    script = """
        source $argv[1]
        complete -C "syncctl ru"; complete -C "syncctl run-now --f"; complete -C "syncctl --socket s"
    """
    done = run("fish", "-c", script, COMPLETIONS / "syncctl.fish", cwd=tmp_path, HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [
        "run-now",
        "--full",
        "some.toml",
    ]


def test_file_not_installed() -> None:
    """A wheel puts each generated file where man and the shells look for it."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    expected = {
        f"systemd/man/{path.name}": f"share/man/man{path.name[-1]}/{path.name}" for path in MAN.iterdir()
    }
    places = {
        "": "share/zsh/site-functions/{}",
        ".bash": "share/bash-completion/completions/{}",
        ".fish": "share/fish/vendor_completions.d/{}.fish",
    }
    for path in COMPLETIONS.iterdir():
        name = path.stem if path.suffix == ".bash" else path.name.removesuffix(".fish")
        expected[f"systemd/completions/{path.name}"] = places[path.suffix].format(name)
    assert len(expected) == 11
    assert expected.items() <= build["targets"]["wheel"].get("shared-data", {}).items()
