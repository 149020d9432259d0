"""Searches with a budget of time: their stages, what these take, and that they go on after a kill."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from composition import CONF, composed
from conftest import REPO, sample_files, start
from fork_server import environment
from hydra import compose, initialize_config_dir

from angle.cli.arguments import check_arguments
from angle.cli.budget import FIRST, FULL, OWN, SEEDS, SHORT, BudgetSearch
from angle.cli.sweep import check_search
from angle.config import TrainConfig
from angle.config.build import build_config
from angle.config.record import read_record, write_config, write_record
from angle.errors import ConfigError
from angle.sweeps.budget import BUDGET_FILE, PRESET_FILE, Budget
from angle.sweeps.record import JobResult, SweepRecord
from angle.sweeps.sweep import Sweep

STEPS_PER_EPOCH = 200
WORDS = ("hparams=quick", "data=stsb", "train.epochs=2", "loss.ibn_w=0", "loss.angle_w=0")


class KilledError(Exception):
    pass


def searched(*words: str) -> BudgetSearch:
    """Return the search that a command line asks for."""
    composed()  # makes the schema known to Hydra
    found = check_search(check_arguments(["-m", *words], TrainConfig, CONF)[1:], "train", CONF)
    assert isinstance(found, BudgetSearch)
    return found


@dataclass
class Machine:
    """Runs the jobs of a search without training: they take the time, and find the scores, that this says."""

    folder: Path
    around: float = 10.0
    step: float = 0.25
    tests: float = 5.0
    """What runs take that measure the model before training and on the test set."""
    now: float = 0.0
    dies_at: int | None = None
    """The job that is cut off."""
    jobs: list[dict[str, str]] = field(default_factory=list)
    recalled: list[list[str]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    """The settings by which folders are named."""
    of_folder: dict[Path, dict[str, str]] = field(default_factory=dict)
    """What the job of each was told."""

    def score(self, settings: dict[str, str]) -> float:
        """Return a score that is best at a rate of 1e-4 and a multiplier of 8, and higher in longer runs."""
        rate, multiplier = float(settings.get("train.learning_rate", 5e-5)), float(settings.get("loss.cosine_tau", 20))
        loss = abs(rate / 1e-4 - 1) + abs(multiplier / 8 - 1)
        return 1 - loss / 20 - 10 / int(settings["train.max_steps"]) + int(settings.get("train.seed", 42)) / 1e6

    def launch(self, jobs: list[list[str]], _: int) -> list[JobResult]:
        longest, found = 0.0, []
        for words in jobs:
            settings = dict(word.split("=", 1) for word in words if not word.startswith("hparams"))
            self.jobs.append(settings)
            if len(self.jobs) == self.dies_at:
                raise KilledError
            folder = self.folder / "_".join(f"{key}-{settings[key]}" for key in sorted(self.keys & settings.keys()))
            steps, known = int(settings["train.max_steps"]), folder.exists()
            assert self.of_folder.setdefault(folder, settings) == settings
            is_spared = settings.get("train.eval_on_start") == "false" and settings.get("data.test.name_or_path") in (
                None,
                "null",
            )
            seconds = self.around + steps * self.step + (0 if is_spared else self.tests)
            if not known:
                longest = max(longest, seconds)
                self._write(folder, words, steps)
            result = JobResult(settings, str(folder), self.score(settings), error=None, trained=True)
            result.seconds = 0.1 if known else seconds
            SweepRecord(self.folder).add(result)
            found.append(result)
        self.now += longest
        return found

    def _write(self, folder: Path, words: list[str], steps: int) -> None:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            requested = build_config(compose("train", overrides=words), TrainConfig)
        folder.mkdir()
        config = replace(requested, train=replace(requested.train, learning_rate=requested.train.learning_rate or 5e-5))
        config.data_format.name = "A"
        config.loss = config.loss.for_format("A")
        write_config(folder, config)
        requested = replace(requested, hparams=TrainConfig().hparams)
        record: dict[str, Any] = {"steps_per_epoch": STEPS_PER_EPOCH, "seconds": steps * self.step}
        write_record(folder, record | {"requested": asdict(requested), "result": {}})

    def run(self, search: BudgetSearch, *, parallel: bool = False) -> Budget:
        search, self.keys = replace(search, clock=lambda: self.now), search.keys
        search.run(self.folder, self.recalled.extend, self.launch, parallel=parallel)
        budget = Budget.read(self.folder)
        assert budget is not None
        return budget


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("budget", "around", "step"), [("30m", 10, 0.25), ("20m", 20, 0.01), ("3h", 5, 1.0)])
def test_the_stages_take_the_time_that_they_may(
    machine: Machine, budget: str, around: float, step: float, parallel: bool
) -> None:
    machine.around, machine.step = around, step
    account = machine.run(searched(*WORDS, f"hparams.budget={budget}"), parallel=parallel)
    assert account.spent == pytest.approx(machine.now)
    at_most = 3 * 2 * STEPS_PER_EPOCH
    stages = {stage.name: stage for stage in account.stages}
    assert account.spent <= account.seconds
    assert stages[FULL].steps == at_most or account.spent > 0.85 * account.seconds
    left = account.seconds - stages[FIRST].seconds
    assert 0.4 * left < stages[SHORT].seconds <= 0.5 * left
    assert 20 <= stages[SHORT].steps < stages[FULL].steps <= at_most
    assert [len(stages[name].folders) for name in (FIRST, FULL, SEEDS)] == [2, 3, 2]
    assert (OWN in stages) == (stages[FULL].steps >= 2 * STEPS_PER_EPOCH)


def test_the_best_settings_are_chosen_and_written_as_a_preset(machine: Machine, tmp_path: Path) -> None:
    account = machine.run(searched(*WORDS))
    first, look, second, *_ = machine.jobs
    assert "train.learning_rate" not in first | look
    assert (float(second["train.learning_rate"]), float(second["loss.cosine_tau"])) == (5e-5, 20)  # as they are
    short = [job for job in machine.jobs[2:] if int(job["train.max_steps"]) == account.stages[1].steps]
    finalists = sorted(short, key=machine.score)[-3:]
    full = [job for job in machine.jobs if int(job["train.max_steps"]) == account.stages[2].steps]
    assert [job["train.learning_rate"] for job in full[:3]] == [job["train.learning_rate"] for job in finalists[::-1]]
    best = max(full[:3], key=machine.score)
    assert [job["train.seed"] for job in full[3:]] == ["43", "44"]
    assert {job["train.learning_rate"] for job in full[3:]} == {best["train.learning_rate"]}
    assert len(account.chosen) == 3

    shutil.copytree(CONF, tmp_path / "conf")
    shutil.copy(tmp_path / PRESET_FILE, tmp_path / "conf" / "experiment" / "found.yaml")
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        config = build_config(compose("train", overrides=["experiment=found"]), TrainConfig)
    assert asdict(config) == read_record(Path(account.chosen[0]))["requested"]
    assert config.train.learning_rate == float(best["train.learning_rate"])


def test_the_runs_that_choose_do_without_what_they_do_not_choose_by(machine: Machine) -> None:
    machine.run(searched(*WORDS, "train.save_steps=5"))
    chose = [job.get("data.test.name_or_path") == "null" for job in machine.jobs]
    assert chose == [False, True, *(len(chose) - 8) * [True], *6 * [False]]
    for job, is_short in zip(machine.jobs, chose, strict=True):
        assert job.get("train.eval_on_start") == ("false" if is_short else None)
        assert job["train.save_steps"] == "5"


def test_a_seed_of_the_command_line_is_that_of_every_run_but_more_seeds(machine: Machine) -> None:
    machine.run(searched(*WORDS, "train.seed=7"))
    seeds = [job["train.seed"] for job in machine.jobs]
    assert seeds[-2:] == ["8", "9"]
    assert set(seeds[:-2]) == {"7"}


def test_the_sweep_ranks_what_was_chosen_first(machine: Machine, tmp_path: Path) -> None:
    """Even if its other seeds are worse than the second best."""
    plain = machine.score
    machine.score = lambda settings: plain(settings) - 0.3 * (settings.get("train.seed") in ("43", "44"))  # type: ignore[method-assign]
    account = machine.run(searched(*WORDS, "hparams.budget=1h"))
    sweep = Sweep.read(tmp_path)
    assert sweep.chosen is sweep.ranked[0] or sweep.chosen == sweep.ranked[0]
    assert {str(job.folder) for job in sweep.ranked[0].jobs} == set(account.chosen)
    assert (sweep.ranked[1].mean or 0) > (sweep.ranked[0].mean or 0)
    short = account.stages[1]
    assert [job.settings["train.max_steps"] for job in sweep.explored.jobs] == [str(short.steps)] * len(short.folders)
    assert sweep.own is not None
    assert sweep.own.settings["train.max_steps"] == "400"


@pytest.mark.parametrize("dies_at", [1, 2, 3, 10, 18, 20, 22, 24])
def test_a_search_that_was_killed_goes_on(tmp_path: Path, dies_at: int) -> None:
    straight, killed = (Machine(tmp_path / name) for name in ("straight", "killed"))
    for one in (straight, killed):
        one.folder.mkdir()
    search = searched(*WORDS, "hparams.budget=1h")
    expected = straight.run(search)
    killed.dies_at = dies_at
    with pytest.raises(KilledError):
        killed.run(search)
    *done, lost = killed.jobs
    killed.dies_at, killed.jobs = None, []
    account = killed.run(search)
    assert account.spent == pytest.approx(killed.now)
    assert account.spent == pytest.approx(expected.spent, rel=0.1)
    assert [stage.name for stage in account.stages] == [stage.name for stage in expected.stages]
    assert len(account.chosen) == 3
    assert lost in killed.jobs
    short = str(account.stages[1].steps)
    was_short = [job for job in done[2:] if job["train.max_steps"] == short]
    assert len(killed.recalled) == len(was_short)
    assert not [job for job in was_short if job in killed.jobs]


def test_what_the_command_line_sets_is_not_suggested(machine: Machine) -> None:
    search = searched("hparams=quick", "train.learning_rate=1e-4", "loss.ibn_w=0", "loss.angle_w=0,1", "train.seed=7")
    of_stages = {"train.max_steps", "train.seed"}
    suggested = {"loss.cosine_tau", "loss.ibn_tau", "loss.reverse_w", "train.layer_decay"}
    assert search.keys == {"loss.angle_w", *suggested, *of_stages}
    machine.run(search)
    assert {job["train.learning_rate"] for job in machine.jobs} == {"1e-4"}
    assert {job.get("loss.angle_w") for job in machine.jobs[2:]} <= {"0", "1", None}
    assert {job["train.seed"] for job in machine.jobs if "train.seed" in job} == {"7", "8", "9"}


def test_its_length_is_a_runs_own(machine: Machine) -> None:
    account = machine.run(searched(*WORDS, "train.max_steps=60", "hparams.budget=2h"))
    assert {stage.name: stage.steps for stage in account.stages if stage.steps} == {
        FIRST: 20,
        SHORT: 45,
        FULL: 180,
        OWN: 60,
        SEEDS: 180,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hparams.budget=soon"], r"hparams.budget=soon is no time: give one such as 30m, 2h or 1h30m\."),
        (["hparams.budget=0m"], r"hparams.budget=0m is no time"),
        (
            ["hparams.budget=1m"],
            r"hparams.budget=1m is too short: a run takes 10 s, and 0\.25 s more .* hparams.budget=4m, or more",
        ),
    ],
)
def test_budgets_that_cannot_work_are_refused(machine: Machine, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        machine.run(searched(*WORDS, *words))


@pytest.mark.slow
def test_the_command_ends_with_what_it_has_chosen(tmp_path: Path, command: Callable[..., Any]) -> None:
    """Killed within its short runs, and started again."""
    words = ["-m", *sample_files(tmp_path), "hparams=quick", "hparams.budget=5m", "hydra.sweep.dir=sweep"]
    words += ["hparams.trials=6", "train.max_steps=30"]
    line = [sys.executable, str(REPO / "train.py"), *words]
    with subprocess.Popen(line, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith("Job 4 "):
                process.send_signal(signal.SIGKILL)
    done = start("train.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    account = json.loads((tmp_path / "sweep" / BUDGET_FILE).read_text())
    assert sum(stage["seconds"] for stage in account["stages"]) < account["seconds"]
    assert [len(stage["folders"]) for stage in account["stages"]][:3] == [2, 6, 3]
    longer = [folder for stage in account["stages"][2:] for folder in stage["folders"]]
    soup = read_record(tmp_path / "sweep" / "soup")
    assert {Path(tried["folder"]).name for tried in soup["soup"]["tried"]} == {Path(folder).name for folder in longer}
    assert len(longer) == 6
    scores = [read_record(tmp_path / folder)["result"]["best_score"] for folder in longer]
    assert (account["model"] == "sweep/soup") == (soup["result"]["best_score"] >= max(scores))
    assert account["model"] in ["sweep/soup", *longer]
    assert account["model"] == re.search(r"^Model   (.*)$", done.stdout, re.MULTILINE)[1]  # type: ignore[index]
    page = " ".join((tmp_path / "sweep" / "report" / "report.html").read_text().split())
    for sentence in ("The model is the ", "that of the settings as they are (Spearman "):
        assert sentence in page
        assert sentence in " ".join(done.stdout.split())
    assert f"Preset  sweep/{PRESET_FILE}" in done.stdout
    assert re.search(r"^Time    \d\.\d of 5 minutes: ", done.stdout, re.MULTILINE)
    assert "Where the time went" in page
    assert "The search has chosen" in page
