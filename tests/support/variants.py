"""Variants of a test: some are always tried, the others where there is time for all."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], why: str, *, always: int = 1) -> list[Any]:
    """Return the values of a parameter: the first ones as they are, those after them marked as slow."""
    return [
        value if place < always else pytest.param(value, marks=pytest.mark.slow(why))
        for place, value in enumerate(values)
    ]
