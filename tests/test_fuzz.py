"""A few of the random uses that ``make fuzz`` makes by the thousand."""

import os
import subprocess
import sys

from support.demos import ROOT


def test_random_uses_end_well():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fuzz"), "--uses", "25", "--seed", "7", "--minutes", "4"],
        capture_output=True, text=True, timeout=420, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("seed 7, 25 uses") and "ok" in done.stdout
