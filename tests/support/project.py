"""The files of the project that tests hold the code against."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DEVELOPMENT = (ROOT / "tests/README.md").read_text("utf-8")
MEASURED = (ROOT / "tests/bench/README.md").read_text("utf-8")
METRICS = {
    name: (kind, re.findall("`(.*?)`", labels), text.replace("\\|", "|"))
    for name, kind, labels, text in re.findall(
        r"^\| `(syncd_\w+)` \| (gauge|counter) \| (.*?) \| (.*) \|$",
        (ROOT / "syncd/monitoring/metrics.md").read_text("utf-8"),
        re.MULTILINE,
    )
}
"""The table of metrics: by name the type, the labels and what it is."""
