"""An account of many events with 500 places each: whole, equal, and no more memory than a tenth takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeConfig, rig_on
from msgspec.structs import astuple
from sqlalchemy import select
from support.real_databases import url_at
from support.sized import Sized

from syncd.billetweb import decode
from syncd.config import Config
from syncd.database import rows, schema
from syncd.model import ATTENDEES
from syncd.standin.server import php_json, serving

NO_CEILING = Path(__file__).parents[1] / "bench" / "no_ceiling.py"


def imported(config: Config, base_url: str) -> float:
    """Import an account as `syncd once --full` does, ceiling apart; return the process's peak in MiB."""
    figures = config.path.with_name("figures.json")
    text = config.path.read_text().replace(config.billetweb.base_url, base_url)
    config.path.write_text(text)
    command = [sys.executable, f"{NO_CEILING}", "once", "--full", "--config", f"{config.path}"]
    environ = os.environ | {"BILLETWEB_KEY": config.key.value, "BENCH_FIGURES": f"{figures}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout
    peak_mib: float = json.loads(figures.read_text())["peak_mib"]
    return peak_mib


MANY = 200


@pytest.mark.slow("100,000 places take most of a minute")
@pytest.mark.timeout(600)
def test_a_large_account_is_incomplete_or_takes_memory(make_config: MakeConfig, tmp_path: Path) -> None:
    """All of them are as the stand-in has them, and the peak is within half of that for a tenth."""
    peaks = {}
    for events in (MANY // 10, MANY):
        url = url_at(tmp_path / f"{events}.db")
        config = make_config(sync__attendees="full", database__url=url)
        account = Sized(events=events, attendees=500)
        with serving(account) as base_url:
            peaks[events] = imported(config, base_url)
    assert peaks[MANY] <= 1.5 * peaks[MANY // 10], peaks
    columns = rows.HELD[ATTENDEES]
    with rig_on(config) as rig:
        with rig.account.database.begin() as connection:
            for event_id in account.events:
                here = select(*columns).where(schema.attendees.c.event_id == event_id)
                stored = {row[0]: tuple(row) for row in connection.execute(here)}
                body = php_json([*account.attendees(event_id).values()])
                served = decode.decode_attendees(body, event_id=event_id, full=True).records
                assert len(served) == 500
                assert stored == {key: astuple(attendee) for key, attendee in served.items()}
        ((total,),) = rig.sql("SELECT count(*) FROM billetweb_attendees WHERE vanished_at IS NULL")
        assert total == 500 * MANY
