"""A run folder is used by one process, never over other work, and what is in it is complete or absent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, snapshot
from safetensors import SafetensorError

from angle.config import TrainConfig, TrainingConfig
from angle.config.build import build_config, load_config
from angle.errors import ConfigError, TrainingError
from angle.files import MANIFEST, checksum, write_durably
from angle.modeling.locations import locate_model
from angle.training.run_folder import RunFolder, RunState


def config(**train: object) -> TrainConfig:
    """Return the default settings, some of the loop's changed."""
    return TrainConfig(train=TrainingConfig(**train))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has begun."""
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.create(config(), config(), {"finished": False, "seed": 42})
    return folder


def test_a_missing_or_empty_folder_is_new(tmp_path):
    assert RunFolder(tmp_path / "no" / "such").check_config(config()) is RunState.NEW
    (tmp_path / "empty").mkdir()
    assert RunFolder(tmp_path / "empty").check_config(config()) is RunState.NEW
    assert snapshot(tmp_path) == {"empty": None}


def test_a_run_is_unfinished_until_its_record_says_otherwise(run):
    assert load_config(run.path / "config.yaml") == config()
    assert run.check_config(config()) is RunState.UNFINISHED
    run.update(finished=True, result={"best_score": 0.5})
    assert run.check_config(config()) is RunState.FINISHED
    assert run.requested_config() == config()
    record = run.record()
    assert record.pop("requested")["train"]["seed"] == 42
    assert record.pop("config_checksum") == checksum(run.path / "config.yaml")
    assert record == {"finished": True, "seed": 42, "result": {"best_score": 0.5}}


def test_other_settings_are_refused_with_the_difference(run):
    before = snapshot(run.path)
    with pytest.raises(ConfigError) as caught:
        run.check_config(config(seed=7, epochs=3, logging_steps=1))
    assert str(caught.value) == (
        f"train.output_dir={run.path} holds a run with other settings (train.epochs: 1 -> 3; train.seed: 42 -> 7); "
        f"to go on with its own ones type train.resume={run.path}, else give a new folder."
    )
    assert snapshot(run.path) == before


def test_resolved_settings_do_not_differ_but_settings_no_longer_requested_do(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(config(learning_rate=1e-3, max_steps=7), config(max_steps=7), {"finished": False})
    assert folder.check_config(config(max_steps=7)) is RunState.UNFINISHED
    with pytest.raises(ConfigError, match=r"\(train\.max_steps: 7 -> null\)"):
        folder.check_config(config())
    with pytest.raises(ConfigError, match=r"\(train\.learning_rate: null -> 0\.001\)"):
        folder.check_config(config(learning_rate=1e-3, max_steps=7))


def test_two_processes_cannot_train_in_one_folder(run):
    with run.locked():
        code = "import sys; from pathlib import Path; from angle.training.run_folder import RunFolder\n"
        code += "with RunFolder(Path(sys.argv[1])).locked(): pass"
        other = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, cwd=REPO)
        assert f"train.output_dir={run.path} is in use: another process trains there." in other.stderr
    with run.locked():
        pass


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.txt", "x"),
        ("config.yaml", "learning_rate: 1\n"),
        ("config.yaml", "- a\n"),
        ("config.yaml", "a: [\n"),
        ("config.yaml", ""),
        ("config.yaml", "train:\n  seed: 42\n"),
        ("run.json", '{"finished": true}'),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name, content):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        RunFolder(folder).check_config(config())
    assert str(caught.value) == (
        f"train.output_dir={folder} holds other files and no run, so nothing is written there; "
        f"give an empty or a new folder."
    )
    assert snapshot(tmp_path) == {"other": None, f"other/{name}": content.encode()}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"^train\.output_dir=.*file "):
        RunFolder(tmp_path / "file").check_config(config())
    assert snapshot(tmp_path) == {"file": b"x"}


def save(run: RunFolder, *steps: int, keep: int = 9) -> list[Path]:
    """Save a checkpoint of two files at each step."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes(range(64)))
        (folder / "progress.json").write_text(json.dumps({"step": steps}))

    return [run.save_checkpoint(step, write, keep) for step in steps]


def model_files(folder: Path) -> dict[str, bytes | None]:
    """Return what is in a model's folder beside its manifest."""
    return {name: content for name, content in snapshot(folder).items() if name != MANIFEST}


def fail_on_warning(text: str) -> None:
    """Fail, as there should be no warning."""
    raise AssertionError(text)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_only_the_newest_checkpoints_are_kept(run, keep):
    save(run, 5, 50, 500, 1_000_000, keep=keep)
    names = [f"step-{step:08d}" for step in (1_000_000, 500, 50, 5)]
    assert [path.name for path in run.checkpoints()] == names[:keep]
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == sorted(names[:keep])
    assert run.newest_checkpoint(fail_on_warning).name == names[0]


def test_run_without_checkpoints(run):
    assert run.newest_checkpoint(fail_on_warning) is None


@pytest.mark.parametrize("name", ["model.safetensors", "progress.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "gone"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(run, name, damage):
    older, newer = save(run, 1, 2)
    file = newer / name
    content = bytearray(file.read_bytes())
    content[3] ^= 0x80
    changed = {"flipped": bytes(content), "short": bytes(content[:-1]), "empty": b""}
    file.unlink() if damage == "gone" else file.write_bytes(changed[damage])
    warnings: list[str] = []
    assert run.newest_checkpoint(warnings.append) == older
    assert warnings == [f"{newer} is damaged, going back to the one before"]


def test_no_checkpoint_is_found_if_all_are_damaged(run):
    for path in save(run, 1, 2):
        (path / "model.safetensors").write_bytes(b"")
    warnings: list[str] = []
    assert run.newest_checkpoint(warnings.append) is None
    assert len(warnings) == 2
    assert "before" not in warnings[-1]  # there is none


def test_a_partly_written_checkpoint_is_absent(run):
    save(run, 1)

    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(TrainingError, match="no space"):
        run.save_checkpoint(2, fail, 1)
    assert [path.name for path in run.checkpoints()] == ["step-00000001"]
    save(run, 2)  # what is left of the attempt is in nobody's way
    assert run.newest_checkpoint(fail_on_warning).name == "step-00000002"


def test_a_checkpoint_can_be_written_again(run):
    save(run, 1, 2)
    (run.checkpoints()[0] / "model.safetensors").write_bytes(b"")
    save(run, 2)
    assert run.newest_checkpoint(fail_on_warning).name == "step-00000002"


def test_checkpoints_after_the_resumed_one_are_removed(run):
    """Else a damaged newer one would outlive every one that is written before its step."""
    save(run, 100)
    (run.checkpoints()[0] / "model.safetensors").write_bytes(b"")
    run.prune_checkpoints(0, keep=1)
    assert run.checkpoints() == []
    save(run, 50, keep=1)
    assert run.newest_checkpoint(fail_on_warning).name == "step-00000050"


def test_replace_puts_the_new_folder_in_place(run):
    for text in ("old", "new"):
        path = run.replace("best", lambda folder, text=text: (folder.mkdir(), (folder / text).write_text(text)))
        assert model_files(path) == {text: text.encode()}
    assert sorted(path.name for path in run.path.iterdir()) == ["best", "config.yaml", "run.json"]


def test_replace_leaves_the_old_folder_when_the_new_one_fails(run):
    run.replace("best", lambda folder: (folder.mkdir(), (folder / "a").write_text("old")))

    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "a").write_text("half")
        raise OSError("no space left")

    with pytest.raises(TrainingError, match="no space"):
        run.replace("best", fail)
    assert model_files(run.path / "best") == {"a": b"old"}
    run.replace("best", lambda folder: (folder.mkdir(), (folder / "a").write_text("new")))
    assert model_files(run.path / "best") == {"a": b"new"}


def test_a_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_durably(path, "old")

    def fail(*_: object) -> None:
        raise OSError("crash")

    monkeypatch.setattr("angle.files.os.replace", fail)
    with pytest.raises(OSError, match="crash"):
        write_durably(path, "new")
    assert path.read_text() == "old"


def test_training_into_the_folder_of_its_own_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(TrainConfig(), TrainConfig(), {})
    again = build_config({"model": {"name_or_path": str(tmp_path / "run")}}, TrainConfig)
    with pytest.raises(ConfigError, match="holds the model that training starts from: give a new folder"):
        folder.check_config(again)
    same = RunFolder(tmp_path / "tiny")  # called like the model, but not it
    same.create(TrainConfig(), TrainConfig(), {})
    monkeypatch.chdir(tmp_path)
    assert RunFolder(Path("tiny")).check_config(TrainConfig()) is RunState.UNFINISHED


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")],
)
def test_full_disk_leaves_existing_files_intact(tmp_path: Path, error: Exception) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(config(), config(), {})
    folder.save_checkpoint(1, lambda scratch: (scratch / "a").write_text("1"), keep=1)
    folder.replace("best", lambda scratch: [scratch.mkdir(), (scratch / "a").write_text("1")])
    before = snapshot(tmp_path)

    def fail(scratch: Path) -> None:
        scratch.mkdir(exist_ok=True)
        (scratch / "a").write_text("half")
        raise error

    for write in (lambda: folder.save_checkpoint(2, fail, keep=1), lambda: folder.replace("best", fail)):
        with pytest.raises(
            TrainingError, match=r"No space left on device\)\. The existing files are intact: free disk space"
        ):
            write()
        assert snapshot(tmp_path) == before


def test_a_resumed_run_restores_what_a_killed_one_was_replacing(run):
    """Killed between the two renames, of the best model and of a checkpoint that is written again."""
    (checkpoint,) = save(run, 1)
    best = run.replace("best", lambda folder: (folder.mkdir(), (folder / "a").write_text("old")))
    before = snapshot(run.path)
    for folder in (best, checkpoint):
        folder.rename(folder.with_name(f".{folder.name}.old"))
        folder.with_name(f".{folder.name}.new").mkdir()
    assert locate_model(str(run.path)) == str(run.path / ".best.old")
    with run.locked():
        assert snapshot(run.path) == before | {".lock": b""}
    assert locate_model(str(run.path)) == str(best)


def test_checksums_cover_files_in_sub_folders(run):
    def write(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text("1")

    checkpoint = run.save_checkpoint(1, write, keep=1)
    assert run.newest_checkpoint(fail_on_warning) == checkpoint
    (checkpoint / "adapter" / "weights").write_text("2")
    assert run.newest_checkpoint(lambda warning: None) is None
