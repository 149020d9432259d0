"""docs/runs.md names every file and every key that runs and sweeps write, and no others."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from composition import composed
from conftest import REPO, sample_files, sample_rows, start, write_jsonl
from retrieval_sets import random_set
from safetensors import safe_open

from angle import fit

PAGE = (REPO / "docs" / "runs.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE))
#: What the runs below do not write: with fp16, on the hub, and of a teacher's or a search's.
NOT_WRITTEN = {"overflows", "pushed", "push_problem"}


def documented(section: str) -> set[str]:
    """Return the names in the first column of a section's tables."""
    rows = re.findall(r"^\| (`.+?) \|", SECTIONS[section], re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return finished runs that together write nearly everything."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        files = sample_files(folder)
        write_jsonl(folder / "triples.jsonl", sample_rows("B", "train", 32))
        common = [*files, "train.max_steps=1", "data.valid.name_or_path=triples.jsonl"]
        fit(composed(*common, "ese=on", "teacher=self", "train.output_dir=first"))
        triples = ["data=files", "data.train.name_or_path=triples.jsonl", "train.max_steps=1"]
        random_set(folder / "set", 4, 20)
        validation = ["data.valid_split=0.2", "data.valid_retrieval.name_or_path=set"]
        fit(composed(*triples, *validation, "loss.positives_w=1", "train.output_dir=second"))
        source = "data.train.sources.NAME.name_or_path=triples.jsonl"
        fit(composed("data=files", source, "train.max_steps=1", "train.output_dir=third"))
    return [folder / "first", folder / "second", folder / "third"]


def test_files(runs: list[Path]) -> None:
    named = {name.rstrip("/") for name in re.findall(r"`([^`]+)`", PAGE[: PAGE.index("## config.yaml")])}
    written = {path.name for run in runs for path in run.iterdir()}
    assert written - named == set()
    assert {"config.yaml", "run.json", "metrics.jsonl", "train.log", "predictions", "checkpoints", "best"} <= written
    checkpoint = {path.name for path in (runs[0] / "checkpoints").glob("*/*")}
    assert {name for name in checkpoint if name.replace("-0", "-<rank>") not in SECTIONS["checkpoints/"]} == set()


def test_run_json(runs: list[Path]) -> None:
    written: set[str] = set()
    for run in runs:
        for key, value in json.loads((run / "run.json").read_text()).items():
            opened = key in ("hardware", "result")
            written |= {f"{key}.{name}" for name in value} if opened else {key}
    assert documented("run.json") - NOT_WRITTEN == written


def test_metrics(runs: list[Path]) -> None:
    lines = [line for run in runs for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert documented("metrics.jsonl") - NOT_WRITTEN == {name for line in lines for name in json.loads(line)}


def test_predictions(runs: list[Path]) -> None:
    with safe_open(runs[0] / "predictions" / "after.safetensors", "numpy") as opened:
        assert documented("predictions/") == set(opened.keys())
        (metadata,) = opened.metadata().items()
    names = set(json.loads(metadata[1]))
    assert {name for name in (metadata[0], *names) if f"`{name}`" not in SECTIONS["predictions/"]} == set()


def test_model(runs: list[Path]) -> None:
    assert documented("best/ and final/") == set(json.loads((runs[0] / "best" / "angle_config.json").read_text()))
    files = {path.name for path in (runs[0] / "best").iterdir()}
    assert {"angle_config.json", "manifest.json", "model.safetensors"} <= files


@pytest.mark.slow
def test_sweep(tmp_path: Path) -> None:
    words = ["-m", *sample_files(tmp_path), "train.max_steps=1", "loss.ibn_w=1,2", "hydra.sweep.dir=sweep"]
    done = start("train.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    section = SECTIONS["A sweep's folder"]
    jobs: list[dict[str, Any]] = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert documented("A sweep's folder") == set(jobs[0])
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert {name for name in columns if f"`{name}`" not in section} - {"loss.ibn_w"} <= set(jobs[0]["result"])
    files = {path.name for path in (tmp_path / "sweep").iterdir() if "loss.ibn_w" not in path.name}
    assert {name for name in files if name not in section and not name.startswith(".")} == set()
