"""A disk that is full, at whatever is written: one sentence, no scratch, and what was whole stays whole."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fork_server
import pytest
from conftest import REPO, sample_files, snapshot, start

pytestmark = pytest.mark.slow

COMMON = ["train.batch_size=8", "train.max_steps=24", "train.logging_steps=1"]


def limited(size: int, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that can write no file of more than `size` bytes."""
    words = (str(REPO / "tests" / "limited.py"), str(size), *words)
    return fork_server.run(words, folder, fork_server.environment(), timeout=300)


@pytest.mark.parametrize(
    ("size", "settings", "kept"),
    [
        (1000, [], set()),  # config.yaml
        (4200, [], {"config.yaml"}),  # run.json
        (6500, ["train.eval_steps=0"], {"config.yaml", "run.json", "predictions"}),  # predictions/
        (
            6500,
            ["data.valid_sts.name_or_path=null", "train.save_steps=0"],
            {"config.yaml", "run.json"},
        ),  # metrics.jsonl
        (700_000, ["train.eval_steps=2"], {"config.yaml", "run.json", "predictions"}),  # best/
        (
            2_000_000,
            ["train.eval_steps=2", "train.save_steps=3"],
            {"best", "config.yaml", "run.json", "predictions"},
        ),  # optimizer.pt
    ],
)
def test_a_run_says_so(size: int, settings: list[str], kept: set[str], tmp_path: Path) -> None:
    words = [*sample_files(tmp_path), *COMMON, *settings, "train.output_dir=run"]
    done = limited(size, "train.py", *words, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: run cannot be written to (File too large). The existing files are intact: ")
    assert done.stderr.count("\n") == 1
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {name for name in left if name not in (".lock", "train.log", "metrics.jsonl", "checkpoints")} == kept
    assert not list((tmp_path / "run").glob("**/*.new"))
    if "best" in kept:
        done = start("train.py", *words, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


def test_evaluate_and_convert_say_so(tmp_path: Path) -> None:
    words = [*sample_files(tmp_path), "train.batch_size=8", "train.max_steps=1", "train.output_dir=run"]
    assert start("train.py", *words, folder=tmp_path).returncode == 0
    before = snapshot(tmp_path / "run")
    for size, *command in ((100_000, "convert.py"), (500, "evaluate.py", "output_dir=out")):
        done = limited(size, *command, "model.name_or_path=run", folder=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert " cannot be written to (File too large). The existing files are intact: free disk space" in done.stderr
    assert snapshot(tmp_path / "run") == before
    assert not list((tmp_path / "out").iterdir())
