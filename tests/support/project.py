"""The files of the project that tests hold the code against."""

from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
