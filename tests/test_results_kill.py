"""Results that a busy server has acknowledged are there after `kill -9`. benchmarks/kill.py does this many times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_acknowledged_results_survive_kill_9() -> None:
    command = [sys.executable, str(SCRIPT), "--rounds", "3", "--stored", "20"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=390)
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout)
    print(ended.stderr, ended.stdout)  # the seed of the moments, should one of these fail
    assert result["acknowledged"] >= 3
    assert (result["lost"], result["torn"], result["integrity_check"]) == (0, 0, ["ok"])
    assert result["rows"] >= 20 + result["acknowledged"]
    assert result["errors_in_the_log"] == 0
    assert result["ready_seconds"]["starts"] == 4
    assert result["startup_ms_of_the_plugin"].keys() == {"open", "sweep_in_background"}
