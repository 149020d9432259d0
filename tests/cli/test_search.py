"""Searches: what is refused before the first job, what Optuna is told, and that a search goes on after a kill."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from composition import CONF, composed
from conftest import REPO, sample_files, start, start_here
from fork_server import environment
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import open_dict
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from angle.cli import search
from angle.cli.arguments import check_arguments
from angle.cli.search import LOCK_FILE, STUDY_FILE, Search, job_pruner
from angle.cli.space import distribution, typed_value
from angle.cli.sweep import check_jobs, check_search
from angle.config import HparamsConfig, TrainConfig
from angle.errors import ConfigError
from angle.files import try_lock
from angle.sweeps.record import JobResult

RATE = "train.learning_rate=tag(log,interval(1e-6,1e-3))"


def searched(*words: str) -> Search | None:
    """Return the search that a command line asks for."""
    composed()  # makes the schema known to Hydra
    checked = check_arguments(["-m", *words], TrainConfig, CONF)
    return check_search(checked[1:], "train", CONF)


def test_a_search_is_read_from_a_command_line_and_a_preset() -> None:
    assert searched("loss.ibn_w=1,2") is None
    found = searched(
        "hparams=optuna", "hparams.space={loss.ibn_w: 'interval(1,50)', train.seed: '1,2'}", "train.seed=3", RATE,
        "pooling=cls,avg",
    )  # fmt: skip
    assert found is not None
    assert found.space == {
        "train.learning_rate": FloatDistribution(1e-6, 1e-3, log=True),
        "pooling": CategoricalDistribution(["cls", "avg"]),
        "loss.ibn_w": FloatDistribution(1, 50),
    }
    assert found.fixed[0] == "hparams=optuna"
    assert found.fixed[-1] == "train.seed=3"


def test_the_preset_of_the_documentation_is_a_search(tmp_path: Path) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (preset,) = re.findall(r"```yaml\n(.*?)```", (REPO / "docs" / "sweeps.md").read_text(), re.DOTALL)
    (tmp_path / "conf" / "experiment" / "my_search.yaml").write_text(preset)
    composed()
    found = check_search(["experiment=my_search", "loss.ibn_w=1,2"], "train", tmp_path / "conf")
    assert found is not None
    assert found.config.trials == 50
    assert found.space == {
        "loss.ibn_w": CategoricalDistribution(["1", "2"]),
        "train.learning_rate": FloatDistribution(1e-6, 1e-3, log=True),
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["loss.ibn_w=interval(1,50)"], "loss.ibn_w=interval(1,50) has no end of values to run: add hparams=optuna"),
        (["hparams=optuna"], "hparams=optuna has nothing to choose"),
        (["hparams.trials=3", "loss.ibn_w=1,2"], "hparams.trials=3 has no effect while hparams is off"),
        (["hparams=optuna", "loss.angle_tau=interval(-5,1)"], "loss.angle_tau=-5"),
        (["hparams=optuna", "loss.angle_tau=interval(1,2)", "pooling=cls,avgg"], "pooling=avgg is not an option"),
        (["hparams=optuna", "train.warmup_steps=0.1,2", "train.learning_rate=interval(1e-3,5)"], "rate=5 cannot work"),
        (["hparams=optuna", "train.learning_rate=tag(log,interval(0,1))"], "an interval starts above 0"),
        (["hparams=optuna", "train.learning_rate=tag(exp,interval(1,2))"], "tag(exp, ...) is not known"),
        (["hparams=optuna", "loss.ibn_w=interval(3,1)"], "goes from a number to a larger one"),
        (["hparams=optuna", "train.scheduler=interval(1,2)"], "only numbers have intervals"),
        (["hparams=optuna", "train.batch_size=interval(8.5,64)"], "train.batch_size=8.5"),
        (["hparams=optuna", "train.seed=1,2"], "hparams=optuna cannot choose train.seed"),
        (["hparams=optuna", "loss.ibn_w=1,2", "train.dry_run=true"], "cannot work with train.dry_run=true"),
        (
            ["hparams=optuna", "loss.ibn_w=1,2", "train.output_dir=out"],
            "train.output_dir=out is one folder for several",
        ),
        (
            ["hparams=optuna", "loss.ibn_w=1,2", "data=files", "data.train.name_or_path=a.jsonl"],
            "hparams=optuna has nothing to compare jobs by",
        ),
        (["hparams=optuna", "hparams.space={loss.ibn_w: 3}"], "hparams.space.loss.ibn_w names one value"),
        (["hparams=optuna", "hparams.space={loss.ibn: '1,2'}"], "There is no setting loss.ibn"),
        (["hparams=optuna", "loss.ibn_w=1,2", "hydra/sweeper=other"], "hydra/sweeper is not supported"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_searched_is_refused_before_the_first_job(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        searched(*words) or check_jobs(words, TrainConfig, "train", CONF)
    assert text in str(caught.value)


def test_a_search_is_a_sweep_and_optuna_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start_here("train.py", "hparams=optuna", folder=tmp_path)
    assert done.stderr == "Error: hparams=optuna searches in a sweep only: add -m, or leave it out.\n"
    monkeypatch.setattr(search, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs the package optuna: type pip install -e '\.\[optuna\]'\."):
        check_arguments(["-m", "hparams=optuna"], TrainConfig, CONF)


@pytest.mark.parametrize(
    ("word", "setting_type", "expected"),
    [
        ("a=interval(1,50)", float, FloatDistribution(1, 50)),
        ("a=interval(1,50)", int, IntDistribution(1, 50)),
        ("a=int(interval(1,50))", float, IntDistribution(1, 50)),
        ("a=tag(log,interval(8,64))", int, IntDistribution(8, 64, log=True)),
        ("a=range(1,10,3)", float, IntDistribution(1, 7, step=3)),
        ("a=range(0.25,1,0.25)", float, FloatDistribution(0.25, 0.75, step=0.25)),
        ("a=1,x,null", str, CategoricalDistribution(["1", "x", "null"])),
        ("a=[p,q],[r]", list, CategoricalDistribution(["[p,q]", "[r]"])),
    ],
)
def test_values_are_drawn_from_what_is_typed(word: str, setting_type: type, expected: Any) -> None:
    assert distribution(OverridesParser.create().parse_override(word), setting_type) == expected


def test_drawn_numbers_are_short_and_inside_their_interval() -> None:
    assert typed_value(3.28371942e-05, FloatDistribution(1e-6, 1e-3)) == "3.284e-05"
    assert float(typed_value(0.123449, FloatDistribution(0, 0.123449))) <= 0.123449
    assert float(typed_value(0.12346, FloatDistribution(0.123459, 1))) >= 0.123459
    assert typed_value(17, IntDistribution(1, 50)) == "17"
    assert typed_value("null", CategoricalDistribution(["null"])) == "null"


Launch = Callable[[list[list[str]], int], list[JobResult]]


def scored(jobs: list[list[str]], start: int) -> list[JobResult]:
    """Return what jobs find that score the better the nearer to 20 their weight is."""
    return [JobResult({}, job[-1], score=-abs(float(job[-1].split("=")[1]) - 20), error=None) for job in jobs]


def search_of(trials: int, **config: Any) -> Search:
    settings = HparamsConfig(enabled=True, trials=trials, **config)
    return Search(settings, ["train.epochs=1"], {"loss.ibn_w": FloatDistribution(1, 50)})


def run(folder: Path, trials: int, launch: Launch, *, parallel: bool = False) -> tuple[list[str], list[str]]:
    """Run a search; return the last words of the jobs that it recalls and launches."""
    recalled, launched = list[str](), list[str]()

    def noted(jobs: list[list[str]], start: int) -> list[JobResult]:
        launched.extend(job[-1] for job in jobs)
        return launch(jobs, start)

    with suppress(KeyboardInterrupt):
        search_of(trials).run(folder, lambda jobs: recalled.extend(job[-1] for job in jobs), noted, parallel=parallel)
    return recalled, launched


def test_a_search_maximises(tmp_path: Path) -> None:
    _, launched = run(tmp_path, 40, scored)
    near = [abs(float(word.split("=")[1]) - 20) < 5 for word in launched]
    assert sum(near[20:]) > 2 * sum(near[:10])


def test_a_search_that_was_killed_goes_on_with_the_jobs_that_it_lost(tmp_path: Path) -> None:
    def killed(jobs: list[list[str]], start: int) -> list[JobResult]:
        if start < 4:
            return scored(jobs, start)
        raise KeyboardInterrupt

    _, first = run(tmp_path, 10, killed, parallel=True)
    recalled, second = run(tmp_path, 10, scored, parallel=True)
    assert recalled == first[:4]
    assert second[:4] == first[4:]
    assert len(recalled) + len(second) == 10 == len({*recalled, *second})
    assert run(tmp_path, 10, scored) == ([*recalled, *second], [])
    assert len(run(tmp_path, 12, scored)[1]) == 2


def test_jobs_that_failed_are_tried_again_by_the_next_command(tmp_path: Path) -> None:
    def failing(jobs: list[list[str]], start: int) -> list[JobResult]:
        return [JobResult({}, job[-1], error="no memory") for job in jobs] if start % 2 else scored(jobs, start)

    _, first = run(tmp_path, 4, failing)
    assert len(first) == 4
    recalled, second = run(tmp_path, 4, scored)
    assert recalled == first[::2]
    assert second == first[1::2]
    assert run(tmp_path, 4, scored)[1] == []


def test_a_folder_holds_one_search_at_a_time(tmp_path: Path) -> None:
    run(tmp_path, 1, scored)
    other = Search(HparamsConfig(enabled=True), ["train.epochs=2"], {"loss.ibn_w": FloatDistribution(1, 50)})
    with pytest.raises(ConfigError, match=r"other settings \(train.epochs=1; train.epochs=2\), whose scores cannot"):
        other.run(tmp_path, lambda _: None, scored, parallel=False)
    with (tmp_path / LOCK_FILE).open("w") as file:
        assert try_lock(file)
        with pytest.raises(ConfigError, match="is in use: another search runs there"):
            run(tmp_path, 2, scored)


def test_a_search_without_scores_ends_at_its_first_job(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has nothing to compare jobs by"):
        run(tmp_path, 3, lambda jobs, _: [JobResult({}, "", error=None)])


@pytest.mark.parametrize("prune", [True, False])
def test_a_job_below_the_median_of_the_others_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: bool
) -> None:
    one = search_of(1, prune=prune)
    study = one.open(tmp_path)
    for score in (0.1, 0.2, 0.3, 0.4, 0.5):
        study.add_trial(create_trial(value=score, intermediate_values={500: score, 1000: score}))

    def next_words() -> list[str]:
        number = one._ask(study)
        return list(study.trials[number].user_attrs["words"])

    word = next_words()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*word, f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    assert job_pruner() is None  # it is no job of a sweep
    with open_dict(config):
        config.hydra.mode = RunMode.MULTIRUN
    should_stop = job_pruner()
    assert should_stop is not None
    assert [should_stop(0.5, 0.35), should_stop(0.75, 0.1), should_stop(1.0, 0.2)] == [False, False, False]
    other = next_words()
    with open_dict(config):
        config.hydra.overrides.task = other
    should_stop = job_pruner()
    assert should_stop is not None
    assert should_stop(0.5, 0.25) is prune
    with open_dict(config):
        config.hydra.overrides.task = ["loss.ibn_w=3"]
    assert job_pruner() is None
    assert study.trials[-1].state is TrialState.RUNNING


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_with_the_same_command(tmp_path: Path) -> None:
    words = ["-m", *sample_files(tmp_path), "hparams=optuna", "hparams.trials=4", "hparams.seed=0"]
    words += ["loss.ibn_w=interval(1,50)", "train.batch_size=8,1"]
    words += ["train.max_steps=24", "train.save_steps=10", "hydra.sweep.dir=sweep"]
    command = [sys.executable, str(REPO / "train.py"), *words]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 20/"):
                process.send_signal(signal.SIGKILL)
    study = optuna.load_study(study_name=search.STUDY, storage=search._storage(tmp_path / "sweep"))
    (cut_off,) = study.get_trials(states=(TrialState.RUNNING,))

    done = start("train.py", *words, folder=tmp_path)
    assert "resume  at step " in done.stdout
    states = [trial.state.name for trial in study.trials]
    assert "RUNNING" not in states
    assert sorted({*states}) == ["COMPLETE", "FAIL"]
    assert done.returncode == 1
    assert study.trials[cut_off.number].params == cut_off.params
    assert study.best_value == max(trial.value for trial in study.trials if trial.value is not None)
    best = re.findall(r"^Best    (sweep/loss\.ibn_w-[\d.]+_train\.batch_size-8)$", done.stdout, re.MULTILINE)[-1]
    assert " ".join(study.best_trial.user_attrs["words"]).replace("=", "-").replace(" ", "_") == Path(best).name
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert {job["status"] for job in record} == {"finished", "failed"}
    assert (tmp_path / "sweep" / STUDY_FILE).is_file()
    assert all(math.isfinite(job["score"]) for job in record if job["status"] == "finished")


@pytest.mark.slow
def test_a_search_stops_what_will_not_win(tmp_path: Path) -> None:
    """A rate that changes nothing is below the median of those that learn, at its first evaluation."""
    words = ["-m", *sample_files(tmp_path), "hparams=optuna", "hparams.trials=6", "hparams.seed=4"]
    words += ["train.learning_rate=tag(log,interval(1e-6,1e-2))", "train.max_steps=12", "train.eval_steps=3"]
    words += ["data_format.graded=false"]
    done = start("train.py", *words, "train.batch_size=16", "hydra.sweep.dir=sweep", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    pruned = [job for job in jobs if job["status"] == "pruned"]
    assert pruned
    assert done.stdout.count("  pruned\n") == len(pruned)
    finished = [job["score"] for job in jobs if job["status"] == "finished"]
    for job in pruned:
        record = json.loads((tmp_path / job["folder"] / "run.json").read_text())
        metrics = [json.loads(line) for line in (tmp_path / job["folder"] / "metrics.jsonl").read_text().splitlines()]
        assert record["result"]["pruned"]
        assert job["score"] is None
        assert max(line["step"] for line in metrics) < 12
        assert max(line["valid/spearman"] for line in metrics if "valid/spearman" in line) < statistics.median(finished)
