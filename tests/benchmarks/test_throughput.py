"""The arithmetic of the throughput benchmark, and its clock."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import fork_server
import numpy as np
import pytest
import torch
from conftest import REPO, write_jsonl

from angle.kernels import KERNEL_NAMES
from angle.kernels.registry import INSTALLED
from benchmarks.throughput import bench as benchmark
from benchmarks.throughput.__main__ import parse
from benchmarks.throughput.bench import Bench
from benchmarks.throughput.clock import StepClock
from benchmarks.throughput.figures import (
    Spread,
    between,
    distinct_tokens,
    fastest,
    model_flops,
    peak_flops,
    ratio,
    step_time,
)
from benchmarks.throughput.jobs import (
    ANGLE_EMB,
    BARE,
    KERNEL_TECHNIQUES,
    OWN,
    SBERT,
    TECHNIQUES,
    Job,
    WorkerError,
    start,
)
from benchmarks.throughput.report import Measured, table
from benchmarks.throughput.techniques import Disabled, disable, kernels_without
from benchmarks.throughput.workloads import WORKLOADS


def test_step_time_is_the_median_with_the_range_of_rounds() -> None:
    assert step_time([[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]]) == Spread(4.5, 2.0, 5.0)


def test_a_ratio_compares_each_round_with_itself() -> None:
    own, peer = [[1.0], [10.0], [2.0]], [[3.0], [20.0], [8.0]]  # the machine was slow in the second round
    assert ratio(peer, own) == Spread(3.0, 2.0, 4.0)
    assert fastest([[[9.0], [9.0], [9.0]], peer]) is peer


def test_texts_of_a_batch_count_once_in_its_tokens() -> None:
    batch = [("a", "b"), ("a", "c"), ("b", "b")]
    assert distinct_tokens(batch, {"a": 3, "b": 5, "c": 7, "d": 100}) == 15


@pytest.mark.parametrize("trains", [True, False])
def test_operations_are_those_that_torch_counts(trains: bool) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    length, width, inner = 5, 8, 12
    up, down = torch.nn.Linear(width, inner, bias=False), torch.nn.Linear(inner, width, bias=False)
    for linear in (up, down):
        linear.requires_grad_(trains)
    text = torch.randn(1, length, width, requires_grad=True)
    with FlopCounterMode(display=False) as counted:
        hidden = down(up(text))
        (hidden @ hidden.transpose(1, 2) @ hidden).sum().backward()
    weights = 2 * width * inner
    ours = model_flops(0, weights, 1, width, [length]) if trains else model_flops(weights, 0, 1, width, [length])
    assert ours == counted.get_total_flops()


def test_the_peak_of_a_gpu_is_found_by_its_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 67e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA H100 NVL", "bf16") == 835e12
    assert peak_flops("NVIDIA H200", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "fp8") is None
    assert peak_flops("Another GPU", "bf16") is None
    assert peak_flops(None, "bf16") is None


def test_a_step_lasts_from_the_end_of_the_one_before_to_its_own() -> None:
    stamps = [(10.0, 0.0), (11.0, 0.5), (13.0, 0.5), (17.0, 2.5)]
    assert between(stamps, 1) == [[1.0, 0.5], [2.0, 0.0], [4.0, 2.0]]
    assert between(stamps, 3) == [[4.0, 2.0]]


def test_step_clock_records_every_step_and_excludes_untimed_work() -> None:
    clock, weight = StepClock(), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    begun = time.perf_counter()
    for _ in range(5):
        weight.grad = torch.ones(1)
        clock.without(time.sleep)(0.03)
        optimizer.step()
    whole = time.perf_counter() - begun
    answer = clock.answer(warmup=2)
    assert [len(answer[key]) for key in ("seconds", "outside", "cpu")] == [3, 3, 3]
    assert min(answer["outside"]) >= 0.03
    assert sum(answer["seconds"]) + sum(answer["outside"]) < whole - 2 * 0.03  # three of five steps
    assert answer["memory"] > 10 * 2**20


@pytest.mark.slow
def test_loss_is_the_same_without_techniques(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    config = Path(folder_of("bert"), "config.json")
    without_dropout = json.loads(config.read_text()) | {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    shutil.copytree(config.parent, model)
    (model / "config.json").write_text(json.dumps(without_dropout))
    texts = ["a cat", "the dog sleeps in the house", "a cat", "two birds eat an apple"]
    rows.write_text(
        "\n".join(
            json.dumps({"text1": text, "text2": other, "label": number})
            for number, (text, other) in enumerate(itertools.pairwise(texts))
        )
    )
    for scratch in ("with", "without"):
        (tmp_path / scratch).mkdir()
    plain = Job(OWN, "loss", str(model), str(rows), str(tmp_path / "with"), batch_size=3, max_length=32)
    answer = start(plain)
    job = replace(plain, scratch=str(tmp_path / "without"), without=TECHNIQUES)
    command = ["-m", "benchmarks.throughput.worker", json.dumps(asdict(job))]
    without = fork_server.run(command, REPO, fork_server.environment(), 100)
    assert without.returncode == 0, without.stderr
    assert json.loads(without.stdout)["loss"] == pytest.approx(answer["loss"], rel=1e-5)


def test_unknown_technique_is_refused() -> None:
    for take_out in (disable, lambda names: kernels_without(names, KERNEL_NAMES)):
        with pytest.raises(ValueError, match=r"There is no technique packed row; there are: packed rows, attention in"):
            take_out(["fused AdamW", "packed row"])


def test_every_kernel_is_a_technique_and_is_taken_out_by_its_name() -> None:
    assert sorted(KERNEL_TECHNIQUES.values()) == sorted(KERNEL_NAMES)
    assert kernels_without(["packed rows", "fused AdamW"], ["packing", "dropout"]) == ["dropout"]
    assert kernels_without(TECHNIQUES, KERNEL_NAMES) == []


def test_a_patch_that_would_change_nothing_is_an_error() -> None:
    module: Any = ModuleType("module")
    module.np, module.step = np, lambda: 1
    disabled = Disabled()
    for path in ("steps", "torch.unique"):
        with pytest.raises(AttributeError, match=f"module has no {path}: bring the benchmark up to date"):
            disabled.patch(module, path, lambda: None)
    disabled.patch(module, "np.unique", lambda texts: "patched")
    disabled.patch(module, "step", lambda: 2)
    assert (module.np.unique([1]), np.unique([1]), module.np.arange(1)) == ("patched", [1], [0])
    with pytest.raises(RuntimeError, match="Training does not call step: bring the benchmark up to date"):
        disabled.check()
    assert module.step() == 2
    disabled.check()


@pytest.fixture
def bench(folder_of: Callable[[str], str], tmp_path: Path) -> Bench:
    """A benchmark of a tiny model beside sentence-transformers, two rounds of a step."""
    rows = [{"text": f"a {n}", "positive": f"b {n}", "negative": f"c {n}"} for n in range(80)]
    words = ["--minilm", folder_of("bert"), "--nli", str(write_jsonl(tmp_path / "rows.jsonl", rows))]
    (tmp_path / "scratch").mkdir()
    return Bench(
        parse([*words, "--peers", SBERT, "--rounds", "2", "--steps", "1", "--warmup", "1"]), tmp_path / "scratch"
    )


@pytest.mark.parametrize("task", ["loss", "train"])
def test_a_peer_that_cannot_do_the_work_is_reported_and_skipped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    trained: list[str] = []

    def answer(job: Job, python: str) -> dict[str, Any]:
        if job.task == "train":
            trained.append(job.system)
        if (job.system, job.task) == (SBERT, task):
            raise WorkerError("torch.OutOfMemoryError: CUDA out of memory.")
        return {"loss": 1.0, "seconds": [0.5 if job.system == BARE else 1.0], "memory": 2**20}

    monkeypatch.setattr(benchmark, "start", answer)
    done = bench.measure(WORKLOADS["nli-32"], "float32")
    assert trained == [OWN, *([SBERT] if task == "train" else []), BARE, OWN, BARE]
    assert done.checks == ([] if task == "loss" else [f"loss of {SBERT} 1.00000, here 1.00000"])
    lines = table(done, None).splitlines()
    assert lines[2].startswith("| angle-hydra | 1,000 ms [1,000, 1,000] | 32.0 |")
    assert lines[2].endswith("| 2.00 [2.00, 2.00] |  |")
    assert lines[-1] == "| sentence-transformers | out of memory |  |  |  |  |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_techniques_are_taken_out_of_what_is_in_use(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    status = dict.fromkeys(KERNEL_NAMES, INSTALLED) | {"linear": "slower here: 0.93", "rms_norm": "not on cpu"}
    jobs: list[Job] = []

    def answer(job: Job, python: str) -> dict[str, Any]:
        jobs.append(job)
        return {"seconds": [1.0 + len(job.without) / 10], "memory": 2**20, "kernels": status}

    monkeypatch.setattr(benchmark, "start", answer)
    done = bench.take_apart(WORKLOADS["nli-32"], "float32")
    used = [name for name in TECHNIQUES if name not in ("products by oneDNN", "norms as one kernel")]
    expected = [(), *((name,) for name in used), tuple(used)]
    assert [job.without for job in jobs] == expected * 2
    in_use = ("packing", "blocks", "lora", "dropout", "allocator")
    assert [job.kernels for job in jobs] == [None] + [in_use] * (len(jobs) - 1)
    lines = table(done, None).splitlines()
    assert lines[3].startswith("| without packed rows | 1,100 ms")
    assert lines[-3].endswith("| 1.90 [1.90, 1.90] |")
    assert lines[-2:] == [
        "| without products by oneDNN | not used: slower here: 0.93 |  |  |  |  |",
        "| without norms as one kernel | not used: not on cpu |  |  |  |  |",
    ]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("loss", [1.002, float("nan")])
def test_nothing_is_measured_where_losses_differ(bench: Bench, monkeypatch: pytest.MonkeyPatch, loss: float) -> None:
    monkeypatch.setattr(benchmark, "start", lambda job, _: {"loss": loss if job.system == SBERT else 1.0})
    with pytest.raises(SystemExit, match="not the same work, so nothing is measured"):
        bench.measure(WORKLOADS["nli-32"], "float32")


def test_peers_option_selects_systems(tmp_path: Path) -> None:
    def systems(name: str, *words: str) -> list[str]:
        return Bench(parse([*words]), tmp_path)._systems(WORKLOADS[name])

    assert systems("nli-32") == [OWN, ANGLE_EMB, SBERT]
    assert systems("nli-32", "--peers") == [OWN]
    assert systems("nli-128", "--peers", SBERT) == [OWN, SBERT, f"{SBERT}, cached"]


def test_failure_of_this_project_ends_the_benchmark(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job, python: str) -> dict[str, Any]:
        raise WorkerError(job.system)

    monkeypatch.setattr(benchmark, "start", fail)
    done = Measured(WORKLOADS["nli-32"], "float32", 1.0, 32)
    for system in (OWN, BARE):
        with pytest.raises(WorkerError, match=system):
            bench._answer(done, Job(system, "train", "", "", ""))
