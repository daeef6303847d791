"""How `syncctl` helps with its own words: examples, and what was meant by a command line that is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from syncd.text import meant

EXAMPLES = {
    "status": "syncctl status --check || echo 'syncd needs a look'",
    "run-now": "syncctl run-now --event 900003 --timeout 5m",
    "history": "syncctl history -n 5",
    "events": "syncctl events --free",
    "watch": "syncctl watch",
    "doubts": "syncctl doubts",
    "publish": "syncctl publish",
    "webhooks": "syncctl webhooks retry --endpoint site",
    "accept": "syncctl accept --event 900003",
    "pause": "syncctl pause",
    "resume": "syncctl resume",
    "reload": "syncctl reload",
    "page": "syncctl page --port 8080",
    "metrics": "syncctl metrics --textfile /var/lib/prometheus/node-exporter/syncd.prom",
}
"""A line to copy, by command."""
Commands = Mapping[str, argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """A parser whose help opens with its sentence, and which says what may have been meant."""

    def format_help(self) -> str:
        """Return the help: the description stands before the usage."""
        usage, described, rest = super().format_help().split("\n\n", 2)
        return f"{described}\n\n{usage}\n\n{rest}"


def example(name: str) -> str | None:
    """Return what a command's help ends with."""
    return f"example:\n  {EXAMPLES[name]}" if name in EXAMPLES else None


def parse(parser: argparse.ArgumentParser, commands: Commands, argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; what is wrong with it ends in SystemExit(2), as with argparse."""
    if trouble := before_the_command(commands, argv):
        parser.error(trouble)
    args, unknown = parser.parse_known_args(argv)
    if "ids" in args:  # argparse takes no more of them after an option
        args.ids += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        parser.error(unknown_option(commands, args.command, unknown[0]))
    return args


def before_the_command(commands: Commands, argv: Sequence[str]) -> str:
    """Return what is wrong with the command's name, or with what stands before it; "" where nothing is."""
    words = iter(argv)
    for word in words:
        name = word.partition("=")[0]
        if word == "--socket":
            next(words, None)
        elif not word.startswith("-"):
            return "" if word in commands else _no_command(commands, word)
        elif name in ("-h", "--help", "--version"):
            return ""
        elif name != "--socket":
            return _too_early(commands, argv, name)
    return (
        "no command given; `syncctl status` shows what the daemon does and how it fares.\n"
        f"Commands: {', '.join(commands)}. `syncctl --help` tells what each does."
    )


def _no_command(commands: Commands, word: str) -> str:
    return f"there is no command {word!r}{meant(word, commands)} `syncctl --help` lists them"


def _too_early(commands: Commands, argv: Sequence[str], option: str) -> str:
    owners = _owners(commands, option)
    if not owners:
        return f"there is no option {option}; `syncctl --help` lists the commands"
    command = next((word for word in argv if word in owners), owners[0])
    return f"{option} belongs after the command: `syncctl {command} {option}`"


def unknown_option(commands: Commands, command: str, option: str) -> str:
    """Return what is wrong with a word that a command does not take."""
    option = option.partition("=")[0]
    if not option.startswith("-"):
        return f"{command} takes no {option!r}; `syncctl {command} --help` shows what it takes"
    if owners := _owners(commands, option):
        return f"{command} has no {option}; {' and '.join(owners[:3])} {'have' if owners[1:] else 'has'}"
    close = meant(option, _options(commands[command]))
    return f"{command} has no {option}{close} `syncctl {command} --help` lists what it has"


def _owners(commands: Commands, option: str) -> list[str]:
    return [name for name, command in commands.items() if option in _options(command)]


def _options(command: argparse.ArgumentParser) -> list[str]:
    return [option for action in command._actions for option in action.option_strings]  # noqa: SLF001
