"""A path on a disk that hangs, as one of the network may."""

import os
from collections.abc import Callable
from pathlib import PosixPath
from typing import Any


class Watched(PosixPath):
    """A path of which `meanwhile` is called, and waited for, whenever somebody looks what is there."""

    meanwhile: Callable[[], Any] = staticmethod(lambda: None)

    def lstat(self) -> os.stat_result:
        """Return what is there, when the disk answers."""
        self.meanwhile()
        return super().lstat()
