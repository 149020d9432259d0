"""Several processes, as launched for real: two of them train as one with all the rows."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fork_server
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from conftest import (
    REPO,
    launch_ranks,
    run_ranks,
    sample_files,
    sample_rows,
    sample_rows_with_negatives,
    start,
    write_jsonl,
)
from retrieval_sets import random_set
from safetensors.torch import load_file
from small_runs import sources_of_sample
from torch import distributed as dist

from angle.cli.jobs import check_common_folder
from angle.config import EvaluateConfig, ModelConfig
from angle.distributed.environment import launch_time
from angle.distributed.process_group import init_distributed
from angle.errors import ConfigError
from angle.evaluation import encoding, report
from angle.modeling.encoder import Encoder
from angle.structures import Tokens

pytestmark = pytest.mark.slow

LAUNCH_FOLDER = REPO / "conf" / "accelerate"
TWO_PROCESSES = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def train(tmp_path: Path, launcher: list[str], *words: str) -> str:
    return run("train.py", tmp_path, launcher, *words)


def run(script: str, tmp_path: Path, launcher: list[str], *words: str) -> str:
    done = launch(script, tmp_path, launcher, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def launch(script: str, tmp_path: Path, launcher: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    environment = fork_server.environment(
        HF_HUB_OFFLINE="1", WANDB_MODE="disabled", ANGLE_CACHE=str(tmp_path / "cache")
    )
    return fork_server.run([*launcher, str(REPO / script), *words], tmp_path, environment, timeout=300)


def train_ranks(tmp_path: Path, *words: str) -> tuple[str, str]:
    """Run train.py as two processes, as a launcher would, and return what both printed."""
    first, second = launch_ranks([str(REPO / "train.py"), *words], tmp_path)
    errors = first.stderr + second.stderr
    assert first.returncode == second.returncode == 0, errors[-3000:]
    return first.stdout + second.stdout, errors


def rows_of(data_format: str, tmp_path: Path) -> Path:
    """37 rows: the last global batch of 8 has 5, which two processes share as 3 and 2."""
    return write_rows(tmp_path / f"{data_format}.jsonl", data_format, 37)


def write_rows(path: Path, data_format: str, number: int) -> Path:
    rows = sample_rows_with_negatives(number) if data_format == "B+" else sample_rows(data_format, "train", number)
    rows[3]["text2" if data_format == "A" else "positive"] = rows[1]["text2" if data_format == "A" else "positive"]
    return write_jsonl(path, rows)


EVALUATED = ["data.valid.name_or_path=[valid.jsonl]", "data.test.name_or_path=valid.jsonl"]
ESPRESSO = ["ese=on", "ese.compression_size=32"]
ALL_TERMS = "data_format.graded=false"  # also of format A


@pytest.mark.parametrize(
    ("data_format", "words"),
    [
        ("A", [*EVALUATED, *ESPRESSO, "teacher=self", "teacher.projection=true", "teacher.mse_w=1"]),
        ("B", []),
        ("B", [*ESPRESSO, "teacher=self", "teacher.pooling=tokens", "train.token_budget=40"]),
        ("B+", ["train.token_budget=40", "loss.cosine_w=1"]),
        ("C", ["train.token_budget=1"]),
    ],
    ids=["A-espresso-teacher", "B", "B-espresso-tokens-cache", "B-negatives-cache", "C-cache"],
)
def test_two_processes_train_as_one(tmp_path: Path, data_format: str, words: list[str]) -> None:
    write_rows(tmp_path / "valid.jsonl", "A", 43)
    common = [f"data.train.name_or_path={rows_of(data_format, tmp_path)}", "train.gradient_accumulation_steps=2",
              "train.logging_steps=1", "data=files", "train.learning_rate=1e-3", ALL_TERMS, *words]  # fmt: skip
    train(tmp_path, [], *common, "train.batch_size=8", "train.output_dir=one")
    printed, errors = train_ranks(tmp_path, *common, "train.batch_size=4", "train.output_dir=two")

    assert printed.count("Saved   two/") == 1
    assert "FutureWarning" not in errors
    check_same_weights(tmp_path / "one", tmp_path / "two")
    # The norm is compared too: an optimiser such as Adam forgives gradients that are too large by a factor.
    in_one, in_two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    measured = [name for line in in_one for name in line if name.startswith(("valid", "test"))]
    values = 3 * sum("valid" in word for word in words) + 2 * sum("test" in word for word in words)
    assert len(measured) == 2 * values  # before training and after it
    for name in {"loss", "gradient_norm", *measured}:
        ones, twos = ([line[name] for line in lines if name in line] for lines in (in_one, in_two))
        assert twos == pytest.approx(ones, rel=1e-5 if name == "loss" else 1e-4)


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        (
            ["A", "B+", "C"],
            ["train.token_budget=60", "data.train.sources.b.batch_size=%d", "data.sampling=temperature"],
        ),
        (["B+", "C"], ["data.mix=together", "ese=on", "ese.compression_size=32", "teacher=self", "loss.guide=tiny"]),
    ],
    ids=["by_source-cache", "together-espresso-teacher-guide"],
)
def test_two_processes_train_on_a_mixture_as_one(tmp_path: Path, formats: list[str], words: list[str]) -> None:
    sources = sources_of_sample(tmp_path, formats, 11)["sources"]
    common = [f"data.train.sources.{name}.name_or_path={source['name_or_path']}" for name, source in sources.items()]
    common += [ALL_TERMS]
    common += ["train.gradient_accumulation_steps=2", "train.logging_steps=1", "train.learning_rate=1e-3"]

    def of_size(rows: int) -> list[str]:
        sized = [word % (rows // 2) if "%" in word else word for word in words]
        return [*common, *sized, f"train.batch_size={rows}"]

    train(tmp_path, [], *of_size(8), "train.output_dir=one")
    train_ranks(tmp_path, *of_size(4), "train.output_dir=two")
    check_same_weights(tmp_path / "one", tmp_path / "two")
    losses = []
    for name in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line.get(key) for line in lines for key in ("loss", "loss/source/a", "gradient_norm")])
    assert losses[0] == [None if value is None else pytest.approx(value, rel=1e-4) for value in losses[1]]
    seen = [json.loads((tmp_path / name / "run.json").read_text())["rows_seen"] for name in ("one", "two")]
    assert seen[0] == seen[1]


def check_same_weights(one: Path, two: Path) -> None:
    in_one, in_two = (load_file(run / "final" / "model.safetensors") for run in (one, two))
    assert in_one.keys() == in_two.keys()
    for name, weight in in_one.items():
        torch.testing.assert_close(in_two[name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["tasks=[one.jsonl,questions]"], "results.json"),
        (["tasks=[one.jsonl,other.jsonl]", "ese_grid=true"], "grid.json"),
    ],
)
def test_two_processes_evaluate_as_one(tmp_path: Path, words: list[str], name: str) -> None:
    write_rows(tmp_path / "one.jsonl", "A", 43)
    write_rows(tmp_path / "other.jsonl", "A", 8)
    random_set(tmp_path / "questions", split="test")
    words = ["model.name_or_path=tiny", "batch_size=4", *words]
    by_one = run("evaluate.py", tmp_path, [], *words, "output_dir=alone")
    first, second = launch_ranks([str(REPO / "evaluate.py"), *words, "output_dir=both"], tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr[-3000:]
    assert (first.stdout, second.stdout) == (by_one.replace("alone", "both"), "")
    folders = (tmp_path / "alone", tmp_path / "both")
    assert len({tuple(sorted(path.name for path in folder.iterdir())) for folder in folders}) == 1
    one, two = (numbers_in(json.loads((folder / name).read_text())) for folder in folders)
    assert len(one) > 10
    assert two == pytest.approx(one, abs=1e-5)


def numbers_in(tree: Any) -> list[float]:
    """Return all numbers in what JSON holds, in their order."""
    if isinstance(tree, dict | list):
        values = tree.values() if isinstance(tree, dict) else tree
        return [number for value in values for number in numbers_in(value)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_each_process_encodes_its_shard_and_one_writes(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", "A", 43)
    run_ranks(evaluate_shard, tmp_path)
    recorded = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [wrote for _, wrote in recorded] == [True, False]
    first, second = (lengths for lengths, _ in recorded)
    assert 40 < len(first) == len(second)
    in_turn = [length for both in zip(first, second, strict=True) for length in both]
    assert in_turn == sorted(in_turn, reverse=True)  # dealt out by length


def evaluate_shard() -> None:
    """Evaluate as one of two processes; write down the lengths of the texts that it encodes, and whether it writes."""
    lengths, wrote, encode = list[int](), list[Path](), Encoder.encode_tokens

    def encode_and_count(encoder: Encoder, tokens: Tokens, *args: Any, **options: Any) -> torch.Tensor:
        lengths.extend(tokens.lengths.tolist())
        return encode(encoder, tokens, *args, **options)

    report.save_results = lambda path, *_: wrote.append(path)  # type: ignore[assignment]
    Encoder.encode_tokens = encode_and_count  # type: ignore[method-assign]
    config = EvaluateConfig(ModelConfig("tiny"), tasks=["pairs.jsonl"], output_dir="out")
    report.evaluate(config, init_distributed("evaluate.py"))
    Path(f"{os.environ['RANK']}.json").write_text(json.dumps([lengths, bool(wrote)]))
    dist.destroy_process_group()


def test_gathering_in_chunks_returns_all_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that are this one twice, each embedding is the first token of a text of its share."""
    tokens = Tokens(np.arange(15, dtype=np.int32), np.array([0, 1, 3, 8, 12, 15]))
    for at_once in (1, 2, 100):
        monkeypatch.setattr(encoding, "COPY_ELEMENTS", at_once)
        monkeypatch.setattr(encoding, "all_gather", lambda own, processes: own.repeat(processes, 1))
        found = encoding.encode_distributed(
            lambda some: torch.from_numpy(some.ids[some.offsets[:-1]]).float()[:, None],
            tokens,
            SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu")),  # type: ignore[arg-type]
        )
        # Dealt by length: texts of 5, 3 and 1 tokens to the first one, of 4 and 2 to the second.
        assert found.flatten().tolist() == [0, 12, 3, 3, 12]


def test_a_sweep_on_several_processes_ends_with_the_job_that_fails(tmp_path: Path) -> None:
    words = ["-m", "model.name_or_path=tiny,nowhere,tiny", "tasks=[pairs.jsonl]"]
    write_rows(tmp_path / "pairs.jsonl", "A", 20)
    alone = launch("evaluate.py", tmp_path, [], *words)
    first, second = launch_ranks([str(REPO / "evaluate.py"), *words, "hydra.sweep.dir=sweep"], tmp_path)
    assert "\nJob 3 of 3 " in alone.stdout
    assert alone.returncode == first.returncode == second.returncode == 1
    assert "Error: " in first.stderr
    assert "\nJob 2 of 3 " in first.stdout
    assert "\nJob 3 of 3 " not in first.stdout


def test_a_sweep_by_the_launch_file_for_a_cpu_trains_each_job_as_one_process_does(tmp_path: Path) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FOLDER / "cpu_two_processes.yaml")]
    words = [*sample_files(tmp_path), "train.max_steps=3"]
    train(tmp_path, [], *words, "loss.ibn_w=20", "train.batch_size=8", "train.output_dir=one")
    done = launch("train.py", tmp_path, launcher, "-m", *words, "loss.ibn_w=10,20", "train.batch_size=4")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FutureWarning" not in done.stderr
    assert done.stdout.count("device  cpu:0, 2 processes,") == 1  # the second job's is the same
    jobs = sorted(path.parent for path in tmp_path.glob("multirun/*/*/*/run.json"))
    assert [job.name for job in jobs] == ["loss.ibn_w-10", "loss.ibn_w-20"]
    assert len(list(tmp_path.glob("multirun/*/*"))) == 1
    assert all(json.loads((job / "run.json").read_text())["hardware"]["processes"] == 2 for job in jobs)
    check_same_weights(tmp_path / "one", jobs[1])


def test_launch_files_match_their_names() -> None:
    launch_files = {path.stem: load_config_from_file(str(path)) for path in LAUNCH_FOLDER.iterdir()}
    types = {
        name: (file.distributed_type, file.num_machines, file.num_processes) for name, file in launch_files.items()
    }
    assert types == {
        "one_gpu": (DistributedType.NO, 1, 1),
        "several_gpus": (DistributedType.MULTI_GPU, 1, 8),
        "fsdp2_lora": (DistributedType.FSDP, 1, 8),
        "several_nodes": (DistributedType.MULTI_GPU, 2, 16),
        "cpu_two_processes": (DistributedType.MULTI_GPU, 1, 2),
    }
    for path in LAUNCH_FOLDER.iterdir():
        assert f"accelerate launch --config_file conf/accelerate/{path.name} " in path.read_text()


def test_multi_node_run_needs_an_output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    for script, setting in (("train.py", "train.output_dir"), ("evaluate.py", "output_dir")):
        done = start(script, folder=tmp_path, **variables)
        assert done.returncode == 1
        assert f"Error: {setting} is missing: each machine" in done.stderr
        assert not list(tmp_path.iterdir())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert check_common_folder("/shared/sweep/loss.ibn_w-10") == "/shared/sweep/loss.ibn_w-10"
    with pytest.raises(ConfigError):
        check_common_folder(f"multirun/{launch_time()}/0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert check_common_folder(f"runs/{launch_time()}") == f"runs/{launch_time()}"


def test_an_error_is_printed_once_and_last(tmp_path: Path) -> None:
    sentence = "There is no setting train.epoch; did you mean train.epochs?"
    done = launch("train.py", tmp_path, TWO_PROCESSES, "train.epoch=3")
    assert done.returncode == 1
    assert done.stderr.count(f"Error: {sentence}") == 1
    assert done.stderr.rstrip("=\n").endswith(f" {sentence}")  # the launcher's report ends with it
    alone = start("train.py", "train.epoch=3", folder=tmp_path, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    assert (alone.returncode, alone.stderr) == (1, f"Error: {sentence}\n")
