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

COMMANDS = {
    "syncd": "run once check setup demo",
    "syncctl": "status run-now history events watch doubts publish webhooks accept pause resume reload"
    " metrics page",
}
"""The commands of both programs: a word that one lacks may be the other's."""


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
    """The parser of a program, which has commands.

    `first` is told to who gives none: which command shows what.
    """

    def __init__(self, prog: str, description: str, epilog: str, *, first: str) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog)
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")
        self._first = first
        self._subparsers_of = self.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
        self.commands: Mapping[str, Parser] = self._subparsers_of.choices

    def add(self, name: str, help_: str, example: str, description: str = "") -> Parser:
        """Add a command."""
        epilog = f"example:\n  {example}"
        return self._subparsers_of.add_parser(
            name, help=help_, description=description or help_, epilog=epilog
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the parsed command line; what is wrong with it ends in SystemExit(2), as with argparse.

        Raises OSError where nothing can be written.
        """
        try:
            return self._parsed(argv)
        except SystemExit:
            write("")  # argparse leaves its help unflushed, and the interpreter grumbles over a closed pipe
            raise
        except Wrong as wrong:
            if not self._wants_json(argv):
                argparse.ArgumentParser.error(wrong.parser, str(wrong))
            write(json.dumps({"error": {"code": "usage", "message": str(wrong)}}, indent=2) + "\n")
            raise SystemExit(2) from None

    def _wants_json(self, argv: Sequence[str]) -> bool:
        """Tell whether `--json` stands behind a command that has it, or behind what was meant for one."""
        words = [word for word in argv if word == "--json" or not word.startswith("-")]
        owners = self._owners("--json")
        is_one = bool(words) and (words[0] in owners or words[0] not in self.commands)
        return "--json" in words[1:] and bool(owners) and is_one

    def _parsed(self, argv: Sequence[str]) -> argparse.Namespace:
        command = self._command(argv)
        args, unknown = self.parse_known_args(argv)
        unknown = [word for word in unknown if word != "--"]
        if "ids" in args:  # argparse takes no more of them after an option
            args.ids += [word for word in unknown if not word.startswith("-")]
            unknown = [word for word in unknown if word.startswith("-")]
        if unknown:
            self.commands[command].error(self._unknown(command, unknown[0]))
        return args

    def _command(self, argv: Sequence[str]) -> str:
        """Return which command is given, "" where help or version is asked for; end where neither is."""
        words, own = iter(argv), _options(self)
        for word in words:
            name = word.partition("=")[0]
            if not word.startswith("-"):
                if word not in self.commands:
                    owners = [f"{other} {word}" for other, known in COMMANDS.items() if word in known.split()]
                    close = _meant(owners[0] if owners else alike(word, self.commands))
                    self.error(f"there is no command {word!r}{close} `{self.prog} --help` lists them")
                return word
            if name not in own:
                self.error(self._too_early(argv, name))
            if own[name].nargs == 0:
                return ""
            if name == word:  # its value is the next one
                next(words, None)
        return self.error(  # which ends the program
            f"no command given; {self._first}.\n"
            f"Commands: {', '.join(self.commands)}. `{self.prog} --help` tells what each does."
        )

    def _too_early(self, argv: Sequence[str], option: str) -> str:
        owners = self._owners(option)
        given = [word for word in argv if word in self.commands]
        if owners:
            command = next((word for word in given if word in owners), owners[0])
            return f"{option} belongs after the command: `{self.prog} {command} {option}`"
        close = alike(option, _options(self))
        if given and not close:
            return self._unknown(given[0], option)
        return f"there is no option {option}{_meant(close)} `{self.prog} --help` lists the commands"

    def _unknown(self, command: str, word: str) -> str:
        """Return what is wrong with a word that a command does not take."""
        help_ = f"`{self.prog} {command} --help`"
        if not word.startswith("-"):
            takes_events = "--event" in _options(self.commands[command]) and names_an_event(word)
            close = f"--event {word}" if takes_events else None
            return f"{command} takes no {word!r}{_meant(close)} {help_} shows what it takes"
        option = word.partition("=")[0]
        if owners := self._owners(option):
            some = " and ".join(owners[:3]) + " and others" * bool(owners[3:])
            return f"{command} has no {option}; {some} {'have' if owners[1:] else 'has'}"
        close = alike(option, _options(self.commands[command]))
        return f"{command} has no {option}{_meant(close)} {help_} lists what it has"

    def _owners(self, option: str) -> list[str]:
        return [name for name, command in self.commands.items() if option in _options(command)]


class Wrong(Exception):
    """What is wrong with a command line, and the parser whose usage helps."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser


def _meant(close: str | None) -> str:
    return f"; did you mean `{close}`?" if close else ";"


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}  # noqa: SLF001
