"""The files of the project that tests hold the code against."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
METRICS = {
    name: (kind, re.findall("`(.*?)`", labels), text.replace("\\|", "|"))
    for name, kind, labels, text in re.findall(
        r"^\| `(syncd_\w+)` \| (gauge|counter) \| (.*?) \| (.*) \|$", README, re.MULTILINE
    )
}
"""README's table of metrics: by name the type, the labels and what it is."""
