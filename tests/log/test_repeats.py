"""What is told once in a while: by a clock that a test sets, and from the standard library's loggers."""

import logging

import pytest
from conftest import LogLines
from support.variants import mostly_slow

from syncd.log.repeats import EVERY_S, MOST, Repeats


def test_the_same_is_told_without_end() -> None:
    """A thing is told at once, then in each hour once more, with how often it was not."""
    now = 0.0
    repeats = Repeats(lambda: now)
    assert [repeats.untold("a") for _ in range(3)] == [0, None, None]
    assert repeats.untold("b") == 0
    now = EVERY_S - 1
    assert repeats.untold("a") is None
    now = EVERY_S
    assert [repeats.untold("a"), repeats.untold("b"), repeats.untold("a")] == [3, 0, None]


def test_ever_new_things_are_told_without_end() -> None:
    """Of more different things than anybody reads the others are told as one; an hour later there is room."""
    now = 0.0
    repeats = Repeats(lambda: now)
    told = [repeats.untold(number) for number in range(10 * MOST)]
    assert told == [0] * (MOST + 1) + [None] * (9 * MOST - 1)
    assert repeats.untold(0) is None
    now = EVERY_S
    assert [repeats.untold("new"), repeats.untold(0), repeats.untold(0)] == [0, 0, None]


@pytest.mark.parametrize(
    "library", ["uvicorn.error", "asyncio", "apscheduler.executors", "httpx", "any.other"]
)
@pytest.mark.parametrize(
    "level", mostly_slow([logging.ERROR, logging.WARNING, logging.CRITICAL], "many lines")
)
def test_a_library_fills_the_log(log_lines: LogLines, library: str, level: int) -> None:
    """A warning or an error of a library that differs from the one before in numbers alone is told once."""
    for number in range(1000):
        text = f"socket.accept() out of system resource\nsocket: <fd={number}, at {hex(number)}>"
        logging.getLogger(library).log(level, text)
        logging.getLogger(library).log(level, "Invalid HTTP request %s received.", number)
    logging.getLogger(library).log(level, "something else")
    lines = log_lines.text.splitlines()
    assert len(lines) == 3
    assert "something else" in lines[2]
    assert sum("<fd=0, at 0x0>" in line for line in lines) == 1


@pytest.mark.slow("thousands of errors")
def test_ever_new_errors_fill_the_log(log_lines: LogLines) -> None:
    """However the messages of a library differ, they are bounded."""
    for number in range(26**3):
        word = "".join(chr(97 + number // 26**place % 26) for place in range(3))
        logging.getLogger("asyncio").error("error: %s", word)
    assert len(log_lines.text.splitlines()) <= MOST + 1


def test_details_are_lost(log_lines: LogLines) -> None:
    """What libraries say below a warning, for those who look for a fault, is told each time."""
    for number in range(300):
        logging.getLogger("httpx").info("HTTP Request: GET %s", number)
    assert len(log_lines.text.splitlines()) == 300
