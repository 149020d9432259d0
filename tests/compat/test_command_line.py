"""angle_emb's command line: --help, and what is required."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

from conftest import REPO
from reference_command import (
    OPTIONS,
    error_of,
)


def test_both_required_options_are_named():
    assert error_of("") == "the following arguments are required: --model_name_or_path, --train_name_or_path."


def test_help_is_readable_and_comes_fast(tmp_path):
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "angle.compat.angle_trainer", "--help"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO), "COLUMNS": "100"}, capture_output=True, text=True,
    )  # fmt: skip
    assert time.perf_counter() - begun < 3
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  --{name} " in done.stdout for name in OPTIONS)
    assert re.search(r"\n  --ibn_w FLOAT +weight of the in-batch contrastive loss \(default: 30.0\) +\[loss.ibn_w\]\n",
                     re.sub(r"\n {20,}", " ", done.stdout))  # fmt: skip
