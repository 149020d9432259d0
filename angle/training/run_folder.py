"""A run's folder: used by one process at a time, never over other work, with checkpoints complete or absent."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from angle.config import CONFIG_FILE, RUN_FILE, TrainConfig
from angle.config.build import build_config, load_config, save_config
from angle.config.resume import config_diff
from angle.distributed.environment import world_size
from angle.errors import ConfigError, TrainingError, first_line
from angle.files import checksum, replace_folder, restore_folder, try_lock, write_durably

MANIFEST, LOCK_FILE = "manifest.json", ".lock"
#: Rows that `AnglE.fit` got in memory; they are there before the run is.
DATA_FOLDER = "fit_data"


class RunState(Enum):
    """How far the run in a folder has got."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


class RunFolder:
    """The folder of one run: config.yaml, run.json, metrics.jsonl, checkpoints/, best/ and final/."""

    def __init__(self, path: Path) -> None:
        """Set the folder's path; nothing is read or written."""
        self.path = path

    @classmethod
    def choose(cls, resume: str | None, output_dir: str | None) -> RunFolder:
        """Return the folder to resume in, the requested folder, or a new one named after the time.

        Raises:
            ConfigError: no folder is requested, and several processes would each choose a different one.

        """
        path = resume or output_dir
        if path is None and world_size() > 1:
            raise ConfigError("train.output_dir is missing: several processes would each choose a different folder.")
        return cls(Path(path or time.strftime("runs/%Y-%m-%d/%H-%M-%S")))

    def check_config(self, config: TrainConfig) -> RunState:
        """Return how far the folder's run has got, after checking that it has these settings.

        Raises:
            ConfigError: it holds a run with other settings, or anything that is not a run.

        """
        if self.path.is_file():
            raise ConfigError(f"train.output_dir={self.path} is a file and no folder; give a new folder.")
        if not self.path.exists() or all(path.name in (LOCK_FILE, DATA_FOLDER) for path in self.path.iterdir()):
            return RunState.NEW
        if not all((self.path / name).is_file() for name in (CONFIG_FILE, RUN_FILE)):
            raise ConfigError(
                f"train.output_dir={self.path} holds other files and no run, so nothing is written "
                f"there; give an empty or a new folder."
            )
        changed = config_diff(self.requested_config(), config)
        if changed and Path(config.model.name_or_path).resolve() == self.path.resolve():
            raise ConfigError(
                f"train.output_dir={self.path} holds the model that training starts from: give a new folder."
            )
        if changed:
            raise ConfigError(
                f"train.output_dir={self.path} holds a run with other settings ({'; '.join(changed)}); "
                f"to go on with its own ones type train.resume={self.path}, else give a new folder."
            )
        return self.state()

    def state(self) -> RunState:
        """Return how far the run in the folder has got."""
        if not (self.path / CONFIG_FILE).is_file():
            return RunState.NEW
        return RunState.FINISHED if self.record().get("finished") else RunState.UNFINISHED

    def resolved_config(self) -> TrainConfig:
        """Return the run's settings, with everything decided."""
        return load_config(self.path / CONFIG_FILE)

    def requested_config(self) -> TrainConfig:
        """Return the settings as requested when the run was started, before anything was decided.

        Raises:
            ConfigError: the run was started by another version of this project, which recorded them differently.

        """
        record = self.record()
        if record and "requested" not in record:
            raise ConfigError(
                f"{self.path} holds a run that another version of angle-hydra started, so it cannot go on here: start "
                f"a new one with another train.output_dir. Its models can be used all the same."
            )
        requested: dict[str, Any] = record.get("requested", {})
        return build_config(requested, TrainConfig)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder, and clean up what a crash left; a process that dies leaves no lock.

        Raises:
            ConfigError: it cannot be written to, or another process is working in it.

        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock_file = (self.path / LOCK_FILE).open("w")
        except OSError as error:
            raise ConfigError(
                f"train.output_dir={self.path} cannot be written to ({error.strerror}): give another folder."
            ) from None
        with lock_file:
            if not try_lock(lock_file):
                raise ConfigError(
                    f"train.output_dir={self.path} is in use: another process trains there. Wait for it, or give a "
                    f"new folder."
                )
            self._restore()
            yield

    def _restore(self) -> None:
        """Clean up what a crash left while a model or a checkpoint was being written."""
        unfinished = [path.with_name(path.stem[1:]) for path in (self.path / "checkpoints").glob(".step-*")]
        for folder in (self.path / "best", self.path / "final", *unfinished):
            restore_folder(folder)

    def create(self, config: TrainConfig, requested_config: TrainConfig, record: dict[str, Any]) -> None:
        """Write the settings once, as decided and as requested, and the initial record."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.update(**record, requested=dataclasses.asdict(requested_config))
        temp_path = self.path / f".{CONFIG_FILE}.new"
        save_config(config, temp_path)
        temp_path.rename(self.path / CONFIG_FILE)

    def record(self) -> dict[str, Any]:
        """Return what run.json says."""
        path = self.path / RUN_FILE
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content

    def update(self, **changes: Any) -> None:
        """Update entries of run.json atomically."""
        write_durably(self.path / RUN_FILE, json.dumps(self.record() | changes, indent=2, default=str) + "\n")

    def delete_checkpoints_after(self, step: int) -> None:
        """Delete checkpoints newer than the one resumed from; they failed their checksums."""
        for checkpoint in self.checkpoints():
            if checkpoint.name > _checkpoint_name(step):
                shutil.rmtree(checkpoint)

    def replace(self, name: str, write: Callable[[Path], None]) -> Path:
        """Replace the folder of that name (best, final), completely or not at all; `write` creates the new one."""
        target = self.path / name
        with self._explained_errors():
            replace_folder(target, write)
        return target

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int) -> Path:
        """Write a checkpoint with checksums, completely or not at all, then drop all but the `keep` newest.

        `write` fills the empty folder that it is given.
        """
        target = self.path / "checkpoints" / _checkpoint_name(step)

        def write_with_checksums(folder: Path) -> None:
            folder.mkdir()
            write(folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            checksums = {file.relative_to(folder).as_posix(): checksum(file) for file in files}
            (folder / MANIFEST).write_text(json.dumps(checksums, indent=2), encoding="utf-8")

        with self._explained_errors():
            replace_folder(target, write_with_checksums)
        for outdated in self.checkpoints()[keep:]:
            shutil.rmtree(outdated)
        return target

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Say what to do if a folder cannot be written, for example on a full disk.

        Raises:
            TrainingError: it could not be written.

        """
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self.path} cannot be written to ({first_line(error)}). The existing files are intact: free "
                f"disk space, then resume with train.resume={self.path}"
            ) from error

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted((self.path / "checkpoints").glob("step-*"), reverse=True)

    @property
    def last_step(self) -> int:
        """The step of the newest checkpoint, 0 without one."""
        return max((int(path.name.removeprefix("step-")) for path in self.checkpoints()), default=0)

    def newest_checkpoint(self, warn: Callable[[str], object]) -> Path | None:
        """Return the newest checkpoint whose files all match their checksums; warn about any that does not."""
        checkpoints = self.checkpoints()
        for number, checkpoint in enumerate(checkpoints, 1):
            if _is_intact(checkpoint):
                return checkpoint
            fallback = "going back to the one before" if number < len(checkpoints) else "starting from the beginning"
            warn(f"{checkpoint} is damaged, {fallback}")
        return None


def _checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def _is_intact(checkpoint: Path) -> bool:
    """Return whether all files listed in the manifest exist and match their checksums."""
    try:
        checksums = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return bool(checksums) and all(checksum(checkpoint / name) == digest for name, digest in checksums.items())
    except (OSError, ValueError, AttributeError):  # missing files, or a damaged manifest
        return False
