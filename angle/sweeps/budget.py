"""budget.json: how a search with a budget of time has spent it, and what it has chosen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from angle.config import TrainConfig
from angle.config.build import build_config, preset_text
from angle.config.record import read_record
from angle.errors import ConfigError
from angle.files import write_durably

BUDGET_FILE = "budget.json"
#: In the sweep's folder, the settings that were chosen, as a preset.
PRESET_FILE = "best.yaml"
#: In the sweep's folder, the mean of the weights of longer runs.
SOUP_FOLDER = "soup"


@dataclass
class Stage:
    """A part of a search."""

    name: str
    """What it is for."""
    steps: int
    """Of each of its jobs."""
    folders: list[str] = field(default_factory=list)
    """Of its jobs that have ended."""
    seconds: float = 0.0
    """What it took, of every command that worked on it."""


@dataclass
class Budget:
    """The account of a search, kept in its folder."""

    folder: Path
    seconds: float = 0.0
    """What may be spent."""
    stages: list[Stage] = field(default_factory=list)
    own: str | None = None
    """The folder of the run without the search, None if there was no time for one."""
    chosen: list[str] = field(default_factory=list)
    """The folders of the runs with the settings that were chosen, a seed each; none before the search is over."""
    model: str | None = None
    """The folder of the best model: the mean of the longer runs' weights, or one of these runs."""

    @classmethod
    def read(cls, folder: Path) -> Budget | None:
        """Return the account in a folder, None if there is none.

        Raises:
            ConfigError: the file is not as it was written.

        """
        path = folder / BUDGET_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text("utf-8"))
            stages = [Stage(**one) for one in content["stages"]]
            return cls(folder, content["seconds"], stages, content["own"], content["chosen"], content["model"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is not as a search writes it: move it away, with its folder.") from None

    @property
    def spent(self) -> float:
        """Seconds that are gone."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def left(self) -> float:
        """Seconds that may still be spent."""
        return self.seconds - self.spent

    def spent_in_words(self) -> str:
        """Return what was spent, and on what."""
        stages = ", ".join(f"{stage.seconds / 60:.1f} {stage.name}" for stage in self.stages)
        return f"{self.spent / 60:.1f} of {self.seconds / 60:.0f} minutes: {stages}"

    def choose(self, folders: list[str], model: str) -> None:
        """Write down which runs have the settings that were chosen, and the best model; write these as a preset."""
        self.chosen, self.model = folders, model
        requested = build_config(read_record(Path(folders[0]))["requested"], TrainConfig)
        write_durably(self.folder / PRESET_FILE, preset_text(requested))
        self.save()

    @property
    def choosing(self) -> Stage | None:
        """The stage in which the settings are chosen, which follows a first look; None before it."""
        return self.stages[1] if len(self.stages) > 1 else None

    def stage(self, name: str, steps: int) -> Stage:
        """Return a stage, a new one unless an earlier command has begun it."""
        known = next((stage for stage in self.stages if stage.name == name), None)
        if known is None:
            known = Stage(name, steps)
            self.stages.append(known)
        return known

    @contextmanager
    def timed(self, stage: Stage, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
        """Count the time that something takes for a stage, and save the account, also if it fails."""
        start = clock()
        try:
            yield
        finally:
            stage.seconds += clock() - start
            self.save()

    def save(self) -> None:
        """Write the account into the folder."""
        content = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_durably(self.folder / BUDGET_FILE, json.dumps(content, indent=2) + "\n")
