"""Run folders that something has happened to, through the real command: the run of before, or one sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fork_server
import pytest
from conftest import REPO, repeatable_metrics, sample_files, sample_rows, snapshot, start

pytestmark = pytest.mark.slow

SETTINGS = [
    "train.batch_size=8", "train.max_steps=7", "train.eval_steps=2", "train.save_steps=3", "train.logging_steps=3",
    "train.output_dir=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after 4 of 7 steps, 2 of them evaluations; for copying."""
    folder = tmp_path_factory.mktemp("stopped")
    words = [str(REPO / "tests" / "signalled.py"), "SIGTERM@4", "train.py", *sample_files(folder), *SETTINGS]
    done = fork_server.run(words, folder, fork_server.environment(), timeout=300)
    assert done.returncode == 75, done.stderr
    return folder


@pytest.fixture(scope="module")
def expected(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run at its end, resumed from what nobody has damaged; for reading."""
    folder = tmp_path_factory.mktemp("expected") / "copy"
    shutil.copytree(stopped, folder)
    done = start("train.py", "train.resume=run", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "run"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "config.yaml emptied": (lambda run: (run / "config.yaml").write_text(""), "config.yaml is not as it was when"),
    "config.yaml cut": (lambda run: os.truncate(run / "config.yaml", 900), "config.yaml is not as it was when"),
    "config.yaml edited": (
        lambda run: edit(run / "config.yaml", "weight_decay: 0.0", "weight_decay: 0.1"),
        "config.yaml is not as it was when the run began, and other settings would make another run of it: put the "
        "original back, or start a new run with another train.output_dir.",
    ),
    "config.yaml deleted": (lambda run: (run / "config.yaml").unlink(), "config.yaml is missing, and other settings"),
    "run.json emptied": (lambda run: (run / "run.json").write_text(""), "run.json is not as it was written"),
    "run.json a list": (lambda run: (run / "run.json").write_text("[]"), "run.json is not as it was written"),
    "run.json edited": (lambda run: edit(run / "run.json", '"seed": 42', '"seed": 43'), "run.json is not as it was"),
    "run.json deleted": (lambda run: (run / "run.json").unlink(), "holds other files and no run"),
    "checkpoints a file": (
        lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").write_text("")),
        "run cannot be written to (",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trusted_is_refused_in_one_sentence(name: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    damage, message = REFUSED[name]
    damage(run)
    before = snapshot(run)
    done = start("train.py", *sample_files(tmp_path / "copy"), *SETTINGS, folder=tmp_path / "copy")
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    kept = {name: content for name, content in snapshot(run).items() if name in before}
    unchanged = {name for name in before if name not in ("train.log", "metrics.jsonl")}
    assert all(kept[name] == before[name] for name in unchanged)


SURVIVED: dict[str, tuple[Callable[[Path], object], str]] = {
    "best/ damaged": (
        lambda run: flip(run / "best" / "model.safetensors"),
        "Warning: run/best is damaged, with which run/checkpoints/step-00000003 would go on, starting from the",
    ),
    "best/ deleted": (lambda run: shutil.rmtree(run / "best"), "run/best is damaged"),
    "a file like a checkpoint": (
        lambda run: (run / "checkpoints" / "step-00000006").write_text(""),
        "Warning: run/checkpoints/step-00000006 is damaged, going back to the one before",
    ),
    "metrics.jsonl damaged at its end": (
        lambda run: (run / "metrics.jsonl").open("a").write('{"step": 9}\n\0\0\0\0\n{"st'),
        "resume  at step 4",
    ),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_what_can_be_repeated_is_repeated(name: str, stopped: Path, expected: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    damage, message = SURVIVED[name]
    damage(run)
    done = start("train.py", "train.resume=run", folder=tmp_path / "copy")
    assert (done.returncode, done.stderr) == (0, "")
    assert message in done.stdout
    for model in ("best", "final"):
        file = Path(model, "model.safetensors")
        assert (run / file).read_bytes() == (expected / file).read_bytes()
    found, wanted = (repeatable_metrics((folder / "metrics.jsonl").read_text()) for folder in (run, expected))
    assert found == wanted


def test_a_damaged_line_before_kept_ones_is_left_out_and_said(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    metrics = tmp_path / "copy" / "run" / "metrics.jsonl"
    first, *others = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(first[:-9] + "\n" + "".join(others))
    done = start("train.py", "train.resume=run", folder=tmp_path / "copy")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Warning: line 1 of run/metrics.jsonl is damaged and is left out" in done.stdout
    assert metrics.read_text().startswith("".join(others))


CHANGED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "evaluate, a flipped bit": ("evaluate.py", flip, "model.safetensors is not as it was saved"),
    "convert, a missing file": ("convert.py", Path.unlink, "tokenizer.json is missing"),
    "train, an edited file": (
        "train.py",
        lambda path: edit(path, '"max_length": ', '"max_length": 1'),
        "angle_config.json is not as it was saved",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_model_that_is_not_as_it_was_saved_is_not_used(name: str, expected: Path, tmp_path: Path) -> None:
    script, change, problem = CHANGED[name]
    shutil.copytree(expected, tmp_path / "run")
    change(tmp_path / "run" / "best" / problem.partition(" ")[0])
    done = start(script, "model.name_or_path=run", folder=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: model.name_or_path=run/best is damaged ({problem}): put the original back or, if you have changed it "
        f"on purpose, delete run/best/manifest.json.\n",
    )


def test_a_stream_of_other_rows_is_not_gone_on_with(tmp_path: Path) -> None:
    from datasets import Dataset

    def save(rows: list[dict[str, object]]) -> None:
        Dataset.from_list(rows).save_to_disk(tmp_path / "rows")

    rows = sample_rows("A", "train", 64)
    save(rows)
    words = ["data=files", "data.train.name_or_path=rows", "data.streaming=true", "data.stream_window=16", *SETTINGS]
    signalled = [str(REPO / "tests" / "signalled.py"), "SIGTERM@4", "train.py", *words]
    done = fork_server.run(signalled, tmp_path, fork_server.environment(), timeout=300)
    assert done.returncode == 75, done.stderr
    shutil.rmtree(tmp_path / "rows")
    save([*rows[:9], rows[9] | {"text1": "another text"}, *rows[10:]])
    done = start("train.py", "train.resume=run", folder=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: data.train: {tmp_path}/rows does not have the rows that the first 4 steps were trained on, so going "
        f"on would mix two data sets: put the old rows back, or start a new run with another train.output_dir.\n",
    )
    shutil.rmtree(tmp_path / "rows")
    save(rows)
    done = start("train.py", "train.resume=run", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
