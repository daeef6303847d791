"""The credentials: what systemd hands over, else what stands in a folder beside the configuration.

Source: systemd.exec(5), LoadCredential.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from syncd import readers


class Credentials:
    """Those for the configuration at `path`. `used` tells where each is that was read, by its name."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.beside = credentials_beside(path)
        self.folder = Path(environ.get("CREDENTIALS_DIRECTORY", self.beside) or os.devnull)
        self.used: dict[str, Path] = {}

    def __contains__(self, name: str) -> bool:
        """Tell whether there is one. A line break alone is none: the unit sets it for want of a file."""
        try:
            return (self.folder / name).stat().st_size > 1
        except OSError:  # none, or a closed folder
            return False

    def place(self, name: str) -> str:
        """Return what is said where one is no good: which file to look at."""
        return f"credential {self.folder / name}"

    def text(self, name: str) -> str:
        """Return what it says. Raises OSError, and ValueError also where everybody may read it."""
        path = self.used[name] = self.folder / name
        return readers.short_text(path, private=self.folder == self.beside)  # systemd's are private


def credentials_beside(path: Path) -> Path:
    """Return the folder with the credentials of a configuration, where the supplied units have them too."""
    return path.parent / "credentials" / ("" if path.name == "config.toml" else path.stem)
