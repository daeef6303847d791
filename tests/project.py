"""The files of the project that tests hold the code against."""

from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
