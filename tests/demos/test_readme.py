"""The README's code, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.demos import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
# A block that imports ctrlnet is a script; the others go on from the first one.
FIRST, *OTHERS = [block for block in BLOCKS if "import ctrlnet" in block]
SCRIPTS = ["\n".join([FIRST, *(block for block in BLOCKS if "import ctrlnet" not in block)]), *OTHERS]


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_the_code_of_the_readme_runs(number, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS[number]], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
