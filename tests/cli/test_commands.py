"""The three scripts as a user types them: train, evaluate, convert, sweep, and resume after a kill."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fork_server
import numpy as np
import pytest
import torch
from conftest import REPO, made_once, sample_files, start, write_jsonl
from safetensors.torch import load_file

from angle import TrainConfig, build_config, fit
from angle.data import sample
from angle.evaluation.metrics import spearman
from angle.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]

#: How a sweep is typed from another folder than that of the script.
SWEEP = f"python {REPO / 'train.py'} -m"


def commands_in(printed: str) -> list[str]:
    """Return the command lines in what was printed, each as one line."""
    return re.findall(r"python \S+\.py .+", re.sub(r" \\\n +", " ", printed))


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which `python train.py` was typed, and what it printed."""

    def train(folder: Path) -> None:
        env = fork_server.environment()
        words = [sys.executable, str(REPO / "train.py")]  # a new interpreter: imports must print nothing
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, "")
        (folder / "printed.txt").write_text(done.stdout)

    folder = made_once(tmp_path_factory, "default", train)
    return folder, (folder / "printed.txt").read_text()


def test_the_default_learns_more_than_word_overlap(default_run):
    folder, printed = default_run
    (record,) = folder.glob("runs/*/*/run.json")
    result = json.loads(record.read_text())["result"]
    assert result["test_before"] < 0.5
    assert result["test_after"] > 0.85
    assert result["test_after"] > result["test_word_overlap"] + 0.4
    run = record.parent.relative_to(folder)
    assert (
        f"Test    Spearman {100 * result['test_before']:.2f} before training, {100 * result['test_after']:.2f} after "
        f"(shared words alone: {100 * result['test_word_overlap']:.2f})\n" in printed
    )
    assert f"Saved   {run}/best\n" in printed
    assert commands_in(printed) == [
        f"python {REPO / 'evaluate.py'} model.name_or_path={run}",
        f"python {REPO / 'convert.py'} model.name_or_path={run}",
        f"{SWEEP} loss.ibn_w=10,20,30 loss.angle_tau=1,20",
    ]


def test_evaluate_finds_the_score_that_training_printed(default_run):
    folder, _ = default_run
    (record,) = folder.glob("runs/*/*/run.json")
    done = start("evaluate.py", f"model.name_or_path={record.parent.relative_to(folder)}", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    after = json.loads(record.read_text())["result"]["test_after"]
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("sample (test)"))
    assert row.split()[2:4] == ["1000", f"{100 * after:.2f}"]
    (results,) = folder.glob("evaluations/*/*/results.json")
    assert json.loads(results.read_text())["tasks"]["sample (test)"]["spearman_cosine"] == pytest.approx(after)


def test_a_closed_pipe_ends_the_program_quietly(default_run):
    folder, _ = default_run
    (run,) = folder.glob("runs/*/*")
    words = [str(REPO / "evaluate.py"), f"model.name_or_path={run}", "output_dir=unread"]
    environment = fork_server.environment()
    reading, writing = os.pipe()
    os.close(reading)
    done = fork_server.run(words, folder, environment, timeout=300, stdout=writing)
    os.close(writing)
    assert (done.stderr, done.returncode) == ("", 141)


def test_sentence_transformers_finds_the_same_score(default_run):
    from sentence_transformers import SentenceTransformer

    folder, _ = default_run
    (record,) = folder.glob("runs/*/*/run.json")
    done = start("convert.py", f"model.name_or_path={record.parent.relative_to(folder)}", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.partition("Saved")[0].splitlines())) <= 80
    (distance,) = re.findall(
        r"Checked the folder in a new process; the largest cosine distance on 20 texts is (\S+) "
        r"\(sentence-transformers [\d.]+ and transformers [\d.]+\)", " ".join(done.stdout.split()),
    )  # fmt: skip
    assert float(distance) < 1e-5
    (path,) = re.findall(r'SentenceTransformer\("(.+)"\)', done.stdout)
    model = SentenceTransformer(str(folder / path), device="cpu")
    pairs = sample.columns("A", "test")
    one, two = (model.encode(pairs[name], normalize_embeddings=True) for name in ("text1", "text2"))
    score = spearman((one * two).sum(axis=1), pairs["label"])
    assert score == pytest.approx(json.loads(record.read_text())["result"]["test_after"], abs=5e-5)


@pytest.mark.parametrize("name", ["B", "C"])
def test_the_other_formats_of_the_sample_learn(command: Command, tmp_path, name):
    done = command("train.py", f"loss=format_{name.lower()}", "train.max_steps=40", "train.output_dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert result["test_after"] > result["test_before"] + 0.2


def test_a_sweep_has_a_folder_per_job_each_of_which_can_be_resumed(tmp_path):
    """The sweep is killed in its third job; that one resumes, and ends as if it had never been killed."""
    common = [*sample_files(tmp_path), "train.batch_size=8", "train.max_steps=40", "train.save_steps=10"]
    words = ["-m", "loss.ibn_w=10,20", "loss.angle_tau=1,20", *common]
    sweep = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *words, "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env=fork_server.environment(),
        stdout=subprocess.DEVNULL,
    )
    third = tmp_path / "sweep" / "loss.ibn_w-20_loss.angle_tau-1"
    deadline = time.monotonic() + 200
    while not (third / "checkpoints" / "step-00000020").exists():
        assert sweep.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    assert not (third / "final").exists()

    done = start("train.py", *words, "hydra.sweep.dir=sweep", folder=tmp_path)  # the same command does what is left
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"holds this run already, finished", done.stdout)) == 2
    assert len(re.findall(r"^resume  at step [23]0 ", done.stdout, re.MULTILINE)) == 1
    jobs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir() and path.name != "report")
    names = [f"loss.ibn_w-{weight}_loss.angle_tau-{tau}" for weight in (10, 20) for tau in (1, 20)]
    assert [job.name for job in jobs] == names
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [Path(job["folder"]).name for job in record] == names
    (best,) = re.findall(r"^Best    (sweep/\S+)$", done.stdout, re.MULTILINE)
    scores = [json.loads((job / "run.json").read_text())["result"]["best_score"] for job in jobs]
    assert best == f"sweep/{jobs[np.argmax(scores)].name}"
    (following,) = done.stdout.split("\nNext    ")[1:]  # for the best alone
    assert set(re.findall(r"sweep/loss\S+", following)) == {best}
    for job in jobs:
        assert fit(build_config({"train": {"resume": str(job)}}, TrainConfig)).already_finished

    uninterrupted = ["loss.ibn_w=20", "loss.angle_tau=1", "train.output_dir=uninterrupted"]
    done = start("train.py", *common, *uninterrupted, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    resumed, expected = (
        load_file(folder / "final" / "model.safetensors") for folder in (third, tmp_path / "uninterrupted")
    )
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_an_interrupted_run_says_how_to_resume(tmp_path):
    words = [*sample_files(tmp_path), "train.max_steps=750", "train.eval_steps=750"]
    run = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *words, "train.output_dir=run"],
        cwd=tmp_path,
        env=fork_server.environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    assert run.stdout is not None
    while not run.stdout.readline().startswith("step  20/750 "):
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    printed, errors = run.communicate(timeout=100)
    assert (run.returncode, errors) == (75, "")
    stopped = r"^Stopped at step (\d+) by SIGINT; go on, from step (\d+), with\n +python \S+/train.py train.resume=run$"
    (steps,) = re.findall(stopped, printed, re.MULTILINE)
    checkpoints = [int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert int(steps[0]) == int(steps[1]) == max(checkpoints, default=0)


def test_failed_job_does_not_stop_a_sweep(command: Command, tmp_path):
    words = [*sample_files(tmp_path), "train.batch_size=1,8", "train.max_steps=2", "train.logging_steps=2"]
    done = command("train.py", "-m", *words, "train.output_dir=out/${hydra:job.num}")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: train.batch_size=1 leaves a row no other row to be compared with")
    table, _, following = done.stdout.partition("\n\nNext    ")
    assert following == "" or " model.name_or_path=out/1" in following.splitlines()[0]
    *_, head, first, second, _, failed, _, _, best, page, saved = table.splitlines()
    assert head.split() == ["Spearman"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1"]
    assert first.split() == ["train.batch_size=1", "failed"]
    assert re.fullmatch(r"train\.batch_size=8  +-?\d+\.\d\d  best", second)
    assert failed.startswith("failed  train.batch_size=1: train.batch_size=1 leaves a row no other row")
    assert best == "Best    out/1"
    assert re.fullmatch(r"Page    multirun/\S+/report/report.html", page)
    assert (tmp_path / page.split()[1]).is_file()
    assert re.fullmatch(r"Saved   multirun/\S+/sweep.json, sweep.csv", saved)
    done = command("train.py", "-m", "train.resume=out/1", "train.logging_steps=2,3")
    assert done.stdout.partition("\n\nNext    ")[0].splitlines()[-3] == "Best    out/1"


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run with adapters; for reading."""
    folder = tmp_path_factory.mktemp("adapter")
    words = [*sample_files(folder), "lora=r8", "train.batch_size=4", "train.max_steps=1", "train.logging_steps=2"]
    assert start("train.py", *words, "train.output_dir=run", folder=folder).returncode == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("word", "change"),
    [("train.batch_size=32", "train.batch_size: 4 -> 32"), ("lora=none", "lora.enabled: true -> false")],
)
def test_explicit_default_counts_as_a_change_on_resume(
    command: Command, adapter_run: Path, tmp_path: Path, word: str, change: str
) -> None:
    shutil.copytree(adapter_run, tmp_path / "run")
    RunFolder(tmp_path / "run").update(finished=False)
    done = command("train.py", "train.resume=run", word)
    assert done.returncode == 1
    assert f"these would change it: {change}. Leave them out" in done.stderr
    assert command("train.py", "train.resume=run", "lora=r8", "train.logging_steps=10").returncode == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_the_sweep_that_is_suggested_is_one_of_the_run(command: Command, tmp_path: Path) -> None:
    data = sample_files(tmp_path, "C")
    words = [*data, "loss=format_c", "train.max_steps=20", "train.batch_size=4", "train.batch_size=8"]
    assert command("train.py", *words, "train.output_dir=run").returncode == 0
    for repeated in ([*words, "train.output_dir=run"], ["train.resume=run"]):
        done = command("train.py", *repeated)
        assert done.stdout.count("train.batch_size=") == 1
        line = commands_in(done.stdout)[-1]
        assert line.startswith(f"{SWEEP} ")
        assert line.endswith(" loss.ibn_tau=10,20,50")  # of format C alone
        (run,) = (tmp_path / "run" / "config.yaml",)
        swept = line.removeprefix(f"{SWEEP} ").removesuffix(" loss.ibn_tau=10,20,50")
        composed = command("train.py", "--cfg", "job", *shlex.split(swept)).stdout
        for setting in ("max_steps: 20\n", "batch_size: 8\n", "data_format:\n  name: C\n"):
            assert setting in composed
            assert setting in run.read_text()


@pytest.mark.slow
def test_suggested_commands_quote_the_folder(command: Command, tmp_path: Path) -> None:
    words = ["train.max_steps=10", "train.batch_size=8", "train.output_dir='out dïr [a]'"]
    done = command("train.py", *sample_files(tmp_path), *words)
    (line,) = (line for line in commands_in(done.stdout) if "convert.py" in line)
    converted = command("convert.py", *shlex.split(line)[2:])
    assert (converted.returncode, converted.stderr) == (0, "")


def test_the_sweep_that_is_suggested_keeps_what_it_does_not_vary(command: Command, tmp_path: Path) -> None:
    data = sample_files(tmp_path)
    kept = [*data, "data_format.graded=false", "loss.ibn_tau=50", "train.max_steps=10", "train.batch_size=8"]
    done = command("train.py", *kept, "loss.ibn_w=5", "train.output_dir=run")
    assert commands_in(done.stdout)[-1] == f"{SWEEP} {' '.join(kept)} loss.ibn_w=10,20,30 loss.angle_tau=1,20"


def test_a_sweep_that_scores_nothing_is_given_no_advice(command: Command, tmp_path: Path) -> None:
    done = command("train.py", "-m", *sample_files(tmp_path), "train.dry_run=true", "train.seed=1,2")
    assert done.returncode == 0
    assert "No scores" not in done.stdout


def test_a_sweep_without_scores_says_so(command: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [{"text": f"a {n}", "positive": f"b {n}"} for n in range(8)])
    words = ["data=files", "data.train.name_or_path=c.jsonl", "train.max_steps=1", "train.seed=1,2"]
    done = command("train.py", "-m", *words)
    assert done.returncode == 0
    assert "No scores, so nothing is compared: data.valid_sts.name_or_path=... measures every job.\n" in done.stdout


@pytest.mark.slow
def test_a_value_that_is_added_to_a_sweep_runs_alone(command: Command, tmp_path: Path) -> None:
    words = [*sample_files(tmp_path), "train.max_steps=2", "train.batch_size=8", "hydra.sweep.dir=sweep"]
    words += ["data_format.graded=false"]
    done = command("train.py", "-m", *words, "loss.ibn_w=10,30", "train.seed=1,2")
    assert done.returncode == 0, done.stderr
    assert "The default, loss.ibn_w=20, has no score here" in " ".join(done.stdout.split())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*/final/*")}
    assert len(files) > 8
    done = command("train.py", "-m", *words, "loss.ibn_w=10,20,30", "train.seed=1,2")
    assert done.stdout.count("holds this run already, finished") == 4
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert "has no score here" not in " ".join(done.stdout.split())
    table = done.stdout[done.stdout.index(" sd ") :]
    assert re.findall(r"^(loss\.ibn_w=\d+) .* 2(?:  best)?$", table, re.MULTILINE) == [
        "loss.ibn_w=10", "loss.ibn_w=20", "loss.ibn_w=30",
    ]  # fmt: skip
    assert done.stdout.count("\nmodel   ") == 1  # what the jobs have in common is printed once, and logged by each
    assert all("INFO model   " in log.read_text() for log in (tmp_path / "sweep").glob("*/train.log"))


@pytest.mark.slow
def test_an_interrupted_sweep_says_what_it_found_and_how_to_go_on(tmp_path: Path) -> None:
    words = [*sample_files(tmp_path), "train.batch_size=8", "train.max_steps=30", "loss.ibn_w=10,20"]
    sweep = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), "-m", *words],
        cwd=tmp_path,
        env=fork_server.environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    assert sweep.stdout is not None
    while not sweep.stdout.readline().startswith("Job 2 of 2  loss.ibn_w=20  (about "):
        assert sweep.poll() is None
    while not sweep.stdout.readline().startswith("step 10/30 "):
        assert sweep.poll() is None
    sweep.send_signal(signal.SIGINT)
    printed, _ = sweep.communicate(timeout=100)
    assert sweep.returncode == 75
    assert re.search(r"^loss\.ibn_w=10 .* best$", printed, re.MULTILINE)
    (folder,) = (path.parent for path in tmp_path.glob("multirun/*/*/sweep.json"))
    (line,) = (line for line in commands_in(printed) if " -m " in line)
    assert shlex.split(line)[2:] == ["-m", *words, f"hydra.sweep.dir={folder.relative_to(tmp_path)}"]
    record = json.loads((folder / "sweep.json").read_text())["jobs"]
    statuses = {entry["settings"]["loss.ibn_w"]: entry["error"] for entry in record}
    assert statuses == {"10": None, "20": "interrupted"}
    done = start("train.py", *shlex.split(line)[2:], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resume  at step" in done.stdout


@pytest.mark.parametrize("label", [None, 0.0])
def test_a_loss_that_is_exactly_zero_is_reported(command: Command, tmp_path: Path, label: float | None) -> None:
    row = {"text": "same", "positive": "same"} if label is None else {"text1": "a", "text2": "b", "label": label}
    write_jsonl(tmp_path / "same.jsonl", [row] * 8)
    done = command("train.py", "data=files", "data.train.name_or_path=same.jsonl", "train.max_steps=2")
    assert done.returncode == 0
    assert (done.stdout + done.stderr).count("Warning: the loss is exactly 0 from the first step on") == 1
