"""How both programs help with their own words: a help that opens with its sentence, and what a slip meant."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial

from syncd import __version__
from syncd.text import alike, names_an_event, write

TYPE_CHECKING = False  # importing typing would cost a tenth of the start of `syncctl`
if TYPE_CHECKING:
    from typing import Any, NoReturn

Commands = Mapping[str, argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """A parser whose help opens with its sentence, and ends with an example."""

    def __init__(self, **options: Any) -> None:
        # Each option makes a formatter, and one without a width loads shutil to ask for the terminal's.
        formatter = partial(argparse.RawDescriptionHelpFormatter, width=80)
        super().__init__(formatter_class=formatter, allow_abbrev=False, **options)

    def format_help(self) -> str:
        """Return the help: the description stands before the usage."""
        usage, described, rest = super().format_help().split("\n\n", 2)
        return f"{described}\n\n{usage}\n\n{rest}"

    def error(self, message: str) -> NoReturn:
        """Raise Wrong."""
        raise Wrong(self, message)


class Program(Parser):
    """The parser of a program, which has commands; they are a default of it, under that name."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog)
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")
        self._commands = self.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
        self.set_defaults(commands=self._commands.choices)

    def add(self, name: str, help_: str, example: str, description: str = "") -> Parser:
        """Add a command."""
        epilog = f"example:\n  {example}"
        return self._commands.add_parser(name, help=help_, description=description or help_, epilog=epilog)


class Wrong(Exception):
    """What is wrong with a command line, and the parser whose usage helps."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str], first: str) -> argparse.Namespace:
    """Return the parsed command line; what is wrong with it ends in SystemExit(2), as with argparse.

    `first` is told to who gives none: which
    command shows what. Raises OSError where nothing can be written.
    """
    try:
        return _parse(parser, argv, first)
    except SystemExit:
        write("")  # argparse leaves its help unflushed, and the interpreter grumbles over a closed pipe
        raise
    except Wrong as wrong:
        if not _wants_json(parser.get_default("commands"), argv):
            argparse.ArgumentParser.error(wrong.parser, str(wrong))
        write(json.dumps({"error": {"code": "usage", "message": str(wrong)}}, indent=2) + "\n")
        raise SystemExit(2) from None


def _wants_json(commands: Commands, argv: Sequence[str]) -> bool:
    """Tell whether `--json` stands behind a command that has it, or behind what was meant for one."""
    words = [word for word in argv if word == "--json" or not word.startswith("-")]
    owners = _owners(commands, "--json")
    return "--json" in words[1:] and bool(owners) and words[0] in {*owners} | {words[0]} - {*commands}


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str], first: str) -> argparse.Namespace:
    commands: Commands = parser.get_default("commands")
    command = _command(parser, commands, argv, first)
    args, unknown = parser.parse_known_args(argv)
    unknown = [word for word in unknown if word != "--"]
    if "ids" in args:  # argparse takes no more of them after an option
        args.ids += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        commands[command].error(_unknown(parser.prog, commands, command, unknown[0]))
    return args


def _command(parser: argparse.ArgumentParser, commands: Commands, argv: Sequence[str], first: str) -> str:
    """Return which command is given, "" where help or version is asked for; end where neither is."""
    words, own = iter(argv), _options(parser)
    for word in words:
        name = word.partition("=")[0]
        if not word.startswith("-"):
            if word not in commands:
                lists = f"`{parser.prog} --help` lists them"
                parser.error(f"there is no command {word!r}{_meant(alike(word, commands))} {lists}")
            return word
        if name not in own:
            parser.error(_too_early(parser, commands, argv, name))
        if own[name].nargs == 0:
            return ""
        if name == word:  # its value is the next one
            next(words, None)
    return parser.error(  # which ends the program
        f"no command given; {first}.\n"
        f"Commands: {', '.join(commands)}. `{parser.prog} --help` tells what each does."
    )


def _too_early(parser: argparse.ArgumentParser, commands: Commands, argv: Sequence[str], option: str) -> str:
    owners = _owners(commands, option)
    given = [word for word in argv if word in commands]
    if owners:
        command = next((word for word in given if word in owners), owners[0])
        return f"{option} belongs after the command: `{parser.prog} {command} {option}`"
    close = alike(option, _options(parser))
    if given and not close:
        return _unknown(parser.prog, commands, given[0], option)
    return f"there is no option {option}{_meant(close)} `{parser.prog} --help` lists the commands"


def _unknown(program: str, commands: Commands, command: str, word: str) -> str:
    """Return what is wrong with a word that a command does not take."""
    if not word.startswith("-"):
        takes_events = "--event" in _options(commands[command]) and names_an_event(word)
        close = f"--event {word}" if takes_events else None
        return f"{command} takes no {word!r}{_meant(close)} `{program} {command} --help` shows what it takes"
    option = word.partition("=")[0]
    if owners := _owners(commands, option):
        some = " and ".join(owners[:3]) + " and others" * bool(owners[3:])
        return f"{command} has no {option}; {some} {'have' if owners[1:] else 'has'}"
    close = alike(option, _options(commands[command]))
    return f"{command} has no {option}{_meant(close)} `{program} {command} --help` lists what it has"


def _meant(close: str | None) -> str:
    return f"; did you mean `{close}`?" if close else ";"


def _owners(commands: Commands, option: str) -> list[str]:
    return [name for name, command in commands.items() if option in _options(command)]


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}  # noqa: SLF001
