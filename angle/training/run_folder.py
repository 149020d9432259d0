"""A run's folder: used by one process at a time, never over other work, with checkpoints complete or absent."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from angle.config import CONFIG_FILE, RUN_FILE, TrainConfig
from angle.config.build import build_config
from angle.config.record import CONFIG_CHECKSUM, read_config, read_record, write_config, write_record
from angle.config.resume import config_diff, newly_decided
from angle.distributed.environment import world_size
from angle.errors import ConfigError, DataError, TrainingError, first_line
from angle.files import (
    LOCK_FILE,
    explained_disk_errors,
    is_scratch,
    locked_folder,
    make_folder,
    read_manifest,
    remove,
    replace_folder,
    restore_folder,
    sync,
    write_manifest,
)

CHECKPOINTS = "checkpoints"
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
        if self._is_new():
            return RunState.NEW
        if not all((self.path / name).is_file() for name in (CONFIG_FILE, RUN_FILE)) and not self._is_resumable():
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

    def _is_new(self) -> bool:
        """Return whether the folder is missing or empty, or holds just what a run that was killed at once leaves."""
        names = {path.name for path in self.path.iterdir() if not is_scratch(path)} if self.path.exists() else set()
        # The record comes last. The lock tells a run's settings from a file of that name of somebody else.
        return names <= {LOCK_FILE, DATA_FOLDER} or ({LOCK_FILE} < names <= {LOCK_FILE, DATA_FOLDER, CONFIG_FILE})

    def _is_resumable(self) -> bool:
        """Return whether the record is one that a run can go on from."""
        return {"requested", CONFIG_CHECKSUM} <= self.record().keys()

    def state(self) -> RunState:
        """Return how far the run in the folder has got."""
        if not (self.path / RUN_FILE).is_file():
            return RunState.NEW
        return RunState.FINISHED if self.record().get("finished") else RunState.UNFINISHED

    def resolved_config(self) -> TrainConfig:
        """Return the run's settings, with everything decided."""
        return read_config(self.path)

    def requested_config(self) -> TrainConfig:
        """Return the settings as requested when the run was started, before anything was decided.

        Raises:
            ConfigError: the run was started by another version of this project, which recorded them differently.

        """
        record = self.record()
        if record and not self._is_resumable():
            raise ConfigError(
                f"{self.path} holds a run that another version of angle-hydra started, so it cannot go on here: start "
                f"a new one with another train.output_dir. Its models can be used all the same."
            )
        requested: dict[str, Any] = record.get("requested", {})
        return build_config(requested, TrainConfig)

    def check_decisions(self, config: TrainConfig) -> None:
        """Check that nothing is decided now that was not when the run was started.

        Raises:
            ConfigError: settings are, which another version of this project did not have, or left open.

        """
        changed = newly_decided(self.resolved_config(), config)
        if changed:
            raise ConfigError(
                f"{self.path} holds a run that another version of angle-hydra started, which had not decided "
                f"{'; '.join(changed)}: start a new one with another train.output_dir, or go on with that version. Its "
                f"models can be used all the same."
            )

    def check_inputs(self, data: Mapping[str, Any], weights: Mapping[str, Any], config: TrainConfig) -> None:
        """Check that the run goes on with the data and the weights that it was started with.

        A checkpoint has only the weights that are trained. The others are read again, from where they were.

        Args:
            data: fingerprints of the data, as they are now.
            weights: those of the model's, the teacher's and the guide's weights.
            config: the run's settings, for messages.

        Raises:
            DataError, ConfigError: the data, or the weights, are others.

        """
        record = self.record()
        if record["data"] != data:
            raise DataError(
                f"The data has changed since the run in {self.path} was started, so going on would mix two "
                f"data sets: start a new run with another train.output_dir."
            )
        named = {
            "model": f"model.name_or_path={config.model.name_or_path}",
            "teacher": f"teacher.name_or_path={config.teacher.name_or_path}",
            "guide": f"loss.guide={config.loss.guide}",
        }
        for part, fingerprints in record["weights"].items():
            if fingerprints != weights.get(part):
                raise ConfigError(
                    f"The weights of {named[part]} have changed since the run in {self.path} was "
                    f"started, so going on would mix two models: put the old ones back, or start a new run with "
                    f"another train.output_dir."
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder, and clean up what a crash left; a process that dies leaves no lock.

        Raises:
            ConfigError: it cannot be written to, or another process is working in it.

        """
        with locked_folder(self.path, "train.output_dir", "another process trains"):
            self._restore()
            yield

    def _restore(self) -> None:
        """Clean up what a crash left while a file, a model or a checkpoint was being written."""
        unfinished = [path.with_name(path.stem[1:]) for path in (self.path / CHECKPOINTS).glob(".step-*")]
        for folder in (self.path / "best", self.path / "final", *unfinished):
            restore_folder(folder)
        for scratch in filter(is_scratch, self.path.iterdir()):
            remove(scratch)

    def create(self, config: TrainConfig, requested_config: TrainConfig, record: dict[str, Any]) -> None:
        """Write the settings, as decided and as requested, and the initial record, which comes last: it makes a run."""
        make_folder(self.path)
        config_checksum = write_config(self.path, config)
        write_record(
            self.path,
            record | {"requested": dataclasses.asdict(requested_config), CONFIG_CHECKSUM: config_checksum},
        )
        for parent in list(self.path.resolve().parents)[:2]:  # runs/<date> may be new too
            sync(parent)

    def record(self) -> dict[str, Any]:
        """Return what run.json says."""
        return read_record(self.path)

    def update(self, **changes: Any) -> None:
        """Update entries of run.json atomically."""
        with self.writing():
            write_record(self.path, self.record() | changes)

    def prune_checkpoints(self, step: int, keep: int) -> None:
        """Delete checkpoints newer than `step`, which cannot be resumed from, and all but the `keep` newest others."""
        usable = [checkpoint for checkpoint in self.checkpoints() if _step_of(checkpoint) <= step]
        superfluous = [checkpoint for checkpoint in self.checkpoints() if checkpoint not in usable[:keep]]
        for checkpoint in superfluous:
            remove(checkpoint)
        if superfluous:  # or a power cut could bring them back into a finished run, which deletes nothing
            sync(self.path / CHECKPOINTS)

    def replace(self, name: str, write: Callable[[Path], None], **notes: Any) -> Path:
        """Replace the folder of that name (best, final), completely or not at all.

        Args:
            name: the folder's.
            write: creates the new one at the path that it is given.
            notes: what its manifest says beside checksums, for `model_notes`.

        """
        target = self.path / name

        def write_with_manifest(folder: Path) -> None:
            write(folder)
            write_manifest(folder, notes)

        with self.writing():
            replace_folder(target, write_with_manifest)
        return target

    def model_notes(self, name: str) -> dict[str, Any] | None:
        """Return what `replace` was told about the folder of that name; None if it is missing or damaged."""
        return read_manifest(self.path / name)

    def save_checkpoint(
        self, step: int, write: Callable[[Path], None], keep: int, best_step: int | None = None
    ) -> Path:
        """Write a checkpoint with checksums, completely or not at all, then drop all but the `keep` newest.

        Args:
            step: optimiser steps done.
            write: fills the empty folder that it is given.
            keep: how many checkpoints stay.
            best_step: the step of the model in best/, without which it cannot be resumed from; None if there is none.

        """
        target = self.path / CHECKPOINTS / _checkpoint_name(step)

        def write_with_manifest(folder: Path) -> None:
            folder.mkdir()
            write(folder)
            write_manifest(folder, {"best_step": best_step})

        with self.writing():
            replace_folder(target, write_with_manifest)
        self.prune_checkpoints(step, keep)
        return target

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say what to do if the folder cannot be written to, for example on a full disk.

        Raises:
            TrainingError: it could not be written to, or it is no longer there.

        """
        if not (self.path / RUN_FILE).is_file():
            raise TrainingError(
                f"{self.path} was moved or deleted while its run was going on, so the run cannot be saved there: "
                f"put the folder back and go on with train.resume={self.path}, or start a new run."
            )
        try:
            with self.explained_disk_errors():
                yield
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self.path} cannot be written to ({first_line(error)}). The existing files are intact: mend that, "
                f"then resume with train.resume={self.path}"
            ) from error

    def explained_disk_errors(self) -> AbstractContextManager[None]:
        """Say what to do if the disk is full, whoever writes: also metrics, log and trackers are in the folder."""
        return explained_disk_errors(self.path, f"resume with train.resume={self.path}")

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        named = [path for path in (self.path / CHECKPOINTS).glob("step-*") if path.name[len("step-") :].isdecimal()]
        return sorted(named, key=_step_of, reverse=True)

    @property
    def last_step(self) -> int:
        """The step of the newest checkpoint, 0 without one."""
        return max(map(_step_of, self.checkpoints()), default=0)

    def newest_checkpoint(self, warn: Callable[[str], object]) -> Path | None:
        """Return the newest checkpoint that can be resumed from; warn about any that cannot.

        Its files match their checksums, and so do those of the best model if it was chosen before the checkpoint: from
        an earlier one, the run will choose it again.
        """
        checkpoints, best = self.checkpoints(), self.model_notes("best")
        for number, checkpoint in enumerate(checkpoints, 1):
            notes = read_manifest(checkpoint)
            best_step = None if notes is None else notes["best_step"]
            problem = f"{checkpoint} is damaged" if notes is None else None
            if best_step is not None and (best is None or best["step"] < best_step):
                problem = f"{self.path / 'best'} is damaged, with which {checkpoint} would go on"
            if problem is None:
                return checkpoint
            fallback = "going back to the one before" if number < len(checkpoints) else "starting from the beginning"
            warn(f"{problem}, {fallback}")
        return None


def _checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
