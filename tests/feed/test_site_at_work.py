"""A site whose own process, of another user, keeps its SQLite file open and writes to it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import MakeConfig, rig_on
from msgspec import structs
from support import site
from support.processes import environment, short_folder

from syncd.config import PublishConfig
from syncd.standin.server import StandIn

CONCERT, SLUG = "900006", "concert-a-la-grange"
THEIRS = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
print(file.execute(f"PRAGMA journal_mode = {sys.argv[2]}").fetchone()[0], flush=True)
for line in sys.stdin:
    file.execute('UPDATE "Stage" SET "billetwebUrl" = ?', [line.strip()])
    row = file.execute('SELECT "placesLeft", "isFull" FROM "Formation"').fetchone()
    print(row, file.execute("PRAGMA journal_mode").fetchone()[0], flush=True)
"""


@pytest.mark.sqlite_only("a file's")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="another user needs /usr/bin/python3")
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_site_at_work_and_syncd_lock_each_other_out(
    make_config: MakeConfig, standin: StandIn, instant_retries: None, mode: str
) -> None:
    """Both of a site's tables follow the sales, its own process reads that and writes, the mode stays."""
    with short_folder() as folder:
        path = folder / "prod.db"
        url = f"sqlite:///{path}"
        for table in ("Formation", "Stage"):
            site.make(url, table)
            site.add(url, SLUG, table)
        other = []
        if os.geteuid() == 0:
            for each in (folder, path):
                shutil.chown(each, "nobody")
            other = ["setpriv", "--reuid", "nobody", "--clear-groups"]
        with subprocess.Popen(
            [*other, "/usr/bin/python3", "-c", THEIRS, str(path), mode],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as theirs:
            assert theirs.stdin
            assert theirs.stdout
            assert theirs.stdout.readline() == f"{mode}\n"
            match: dict[str, tuple[str, ...]] = {"billetwebId": ("ext_id", "id")}
            figures = {"placesLeft": "places_left", "isFull": "is_full"}
            targets = tuple(
                PublishConfig(name=name, table=name, match=match, set=figures, database=url)
                for name in ("Formation", "Stage")
            )
            with rig_on(structs.replace(make_config(), publish=targets)) as rig:
                for trade, left in ((None, 3), (standin.sell, 0), (standin.refund, 3)):
                    if trade:
                        trade(CONCERT, 3)
                    assert rig.run().outcome == "ok"
                    assert [each.state.last_error for each in rig.account.outputs.publishing.targets] == [
                        None,
                        None,
                    ]
                    theirs.stdin.write(f"{left}\n")
                    assert theirs.stdout.readline() == f"({left}, {int(not left)}) {mode}\n"
                    told = site.rows(url, "placesLeft", "isFull", "billetwebUrl", table="Stage")
                    assert told == [(left, int(not left), str(left))]
            theirs.stdin.close()
            assert theirs.wait(30) == 0
