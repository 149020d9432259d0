"""Weights that two processes share out (FSDP2): trained, kept and saved as by one process that has them whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, SMALL, write_jsonl
from safetensors.torch import load_file

from angle.config import LoraConfig, ModelConfig, TrainConfig
from angle.config.build import build_config
from angle.data import sample
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.training import setup
from angle.training.dry_run import dry_run
from angle.training.loop import fit
from angle.training.sharding import WANTED

pytestmark = pytest.mark.slow

LAUNCH_FILE = REPO / "conf" / "accelerate" / "fsdp2_lora.yaml"
BF16 = {"model": {"dtype": "bfloat16"}, "train": {"mixed_precision": "bf16", "max_steps": 2}}
TIMINGS = {"texts_per_second", "padding_share", "time"}
#: Job by name: whether weights are shared out and up to which step, for each start of it; and further settings.
JOBS: dict[str, tuple[list[tuple[bool, int | None]], dict[str, Any]]] = {
    "plain": ([(True, None)], {}),
    "cached": ([(True, None)], {"train": {"token_budget": 40}, "model": {"gradient_checkpointing": True}}),
    "stopped": ([(True, 2), (True, None)], {}),
    "then whole": ([(True, 2), (False, None)], {}),
    "then shared": ([(False, 2), (True, None)], {"train": {"packing": "off"}}),
    "best earlier": ([(True, None)], {"train": {"learning_rate": 0.03, "eval_steps": 1}}),
    "bf16": ([(True, None)], BF16),
    "bf16 whole": ([(False, None)], BF16),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, folder_of: Callable[[str], str]) -> Path:
    """A folder with the runs of two processes by name, "one" of one process, and what each of the two held."""
    folder = tmp_path_factory.mktemp("place")
    below = Encoder.load(ModelConfig(folder_of("llama")), lora=LoraConfig(enabled=True, r=2, dropout=0.0))
    with torch.no_grad():
        for name, weight in below.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    below.save(folder / "below")
    for split, number in (("train", 37), ("validation", 23)):
        columns = sample.columns("A", split, number)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        write_jsonl(folder / f"{split}.jsonl", rows)

    def settings(run: str, rows: int, further: dict[str, Any]) -> dict[str, Any]:
        """Four steps of two batches, all of whose gradients are clipped, of an adapter above one that is frozen."""
        train = {"batch_size": rows, "gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 3e-4}
        train |= {"max_grad_norm": 0.1, "logging_steps": 1, "eval_steps": 2, "save_steps": 2}
        valid = {"name_or_path": str(folder / "validation.jsonl")}
        return {
            "model": {"name_or_path": folder_of("llama"), "adapter": str(folder / "below")} | further.get("model", {}),
            "lora": {"enabled": True, "r": 4, "dropout": 0.0},
            "data": {"train": {"name_or_path": str(folder / "train.jsonl")}, "valid": valid, "test": valid},
            "train": train | {"output_dir": str(folder / run)} | further.get("train", {}),
        }

    jobs = [
        {"shared": shared, "until": until, "settings": settings(name, 4, further)}
        for name, (starts, further) in JOBS.items()
        for shared, until in starts
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILE), "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(REPO / "tests" / "sharded.py"), str(folder)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    fit(build_config(settings("one", 8, {}), TrainConfig))
    return folder


def adapters(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run's final adapters, the frozen ones too."""
    files = sorted((run / "final").rglob("adapter_model.safetensors"))
    assert len(files) == 2
    return {f"{file.parent.name}/{name}": weight for file in files for name, weight in load_file(file).items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return what a run measured, without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def test_each_process_holds_half_of_every_layer(place: Path) -> None:
    jobs = json.loads((place / "jobs.json").read_text())
    ours, theirs = (json.loads((place / f"held-{rank}.json").read_text()) for rank in (0, 1))
    assert len(ours) == len(theirs) == len(jobs)
    for job, one, other in zip(jobs, ours, theirs, strict=True):
        if not job["shared"]:
            assert one["parts"] == other["parts"] == 0
            continue
        assert one["whole"] == other["whole"] == 0
        assert one["parts"] + other["parts"] == one["all"]
        assert one["parts"] == pytest.approx(other["parts"], rel=0.02)
        assert one["modules"] == ["FSDPLlamaDecoderLayer"] * SMALL["num_hidden_layers"] + ["FSDPStudent"]


def test_a_step_exchanges_each_layers_gradients_once(place: Path) -> None:
    """Whatever its number of batches and micro-batches."""
    jobs, (plain, cached, *_) = list(JOBS), json.loads((place / "held-0.json").read_text())
    assert jobs[:2] == ["plain", "cached"]
    assert plain["exchanges"] == cached["exchanges"] == 4 * SMALL["num_hidden_layers"]


@pytest.mark.parametrize("name", ["plain", "cached", "stopped", "then whole", "then shared"])
def test_two_processes_train_as_one(place: Path, name: str) -> None:
    wanted, found = adapters(place / "one"), adapters(place / name)
    assert found.keys() == wanted.keys()
    start = load_file(place / "below" / "adapter_model.safetensors")
    assert any(weight.abs().max() > 3e-4 for key, weight in wanted.items() if key.startswith("final") and "_B" in key)
    assert len(start) < len(wanted)
    for key, weight in wanted.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)
    ones, twos = metrics(place / "one"), metrics(place / name)
    assert min(line["gradient_norm"] for line in ones if "gradient_norm" in line) > 0.1  # so that all are clipped
    for one, two in zip(ones, twos, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_a_saved_adapter_gives_one_process_the_same_embeddings(place: Path) -> None:
    texts = sample.columns("A", "validation", 40)["text1"]
    wanted = Encoder.load(str(place / "one")).encode(texts)
    torch.testing.assert_close(Encoder.load(str(place / "plain")).encode(texts), wanted, rtol=0, atol=1e-5)


def test_resumed_run_is_bitwise_the_uninterrupted_one(place: Path) -> None:
    straight, resumed = adapters(place / "plain"), adapters(place / "stopped")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert metrics(place / "stopped") == metrics(place / "plain")


def test_the_best_model_is_loaded_into_the_shards(place: Path) -> None:
    """The test set is the validation set here, so what was measured at the end is what was measured at that step."""
    result = json.loads((place / "best earlier" / "run.json").read_text())["result"]
    correlations = {
        line["step"]: line["valid/spearman"] for line in metrics(place / "best earlier") if "valid/loss" in line
    }
    assert result["best_step"] != 4
    assert result["test_after"] == correlations[result["best_step"]] != correlations[4]


def test_a_checkpoint_is_as_one_process_writes_it(place: Path) -> None:
    ours, theirs = (place / name / "checkpoints" / "step-00000004" for name in ("plain", "one"))
    wanted = load_file(theirs / "model.safetensors")
    found = load_file(ours / "model.safetensors")
    assert {name: weight.shape for name, weight in found.items()} == {n: weight.shape for n, weight in wanted.items()}
    found, wanted = (torch.load(at / "optimizer.pt", weights_only=True)["optimizer"] for at in (ours, theirs))
    assert found["param_groups"] == wanted["param_groups"]
    assert found["state"].keys() == wanted["state"].keys()
    for number, moments in wanted["state"].items():
        for key, value in moments.items():
            assert torch.dist(found["state"][number][key], value) <= 1e-3 * value.norm()


def test_precision_is_that_of_whole_weights(place: Path) -> None:
    """Frozen weights are bfloat16, adapters float32, and layers are computed in bfloat16."""
    full_tensor, shared = adapters(place / "bf16 whole"), adapters(place / "bf16")
    assert {weight.dtype for weight in shared.values()} == {torch.float32}
    for name, weight in full_tensor.items():
        torch.testing.assert_close(shared[name], weight, rtol=0, atol=1e-6)
    for ones, twos in zip(metrics(place / "bf16 whole"), metrics(place / "bf16"), strict=True):
        assert twos == pytest.approx(ones, rel=1e-5)


@pytest.mark.parametrize(
    ("variables", "groups", "text"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version=1, .*fsdp2_lora.yaml"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "fsdp_cpu_ram_efficient_loading=true"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "fsdp_activation_checkpointing=true"),
        ({}, {"lora": {"enabled": False}}, "lora=none .* add lora=r16"),
        ({}, {"model": {"load_kbit": 4}}, "model.load_kbit=4 .* type model.dtype=bfloat16"),
        ({}, {"ese": {"enabled": True}}, "ese.enabled=true .* type ese=none"),
        ({}, {"teacher": {"enabled": True, "name_or_path": "self"}}, "teacher.enabled=true .* type teacher=none"),
        ({}, {"train": {"mixed_precision": "fp16"}}, "train.mixed_precision=fp16 .* type train.mixed_precision=bf16"),
        ({}, {"train": {"token_budget": "auto"}}, "train.token_budget=auto .* a number"),
        ({}, {"train": {"compile": True}}, "train.compile=true .* leave it out"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], groups: dict[str, Any], text: str
) -> None:
    for name, value in (WANTED | {"ACCELERATE_USE_FSDP": "true"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=text):
        setup.start_accelerator(build_config({"lora": {"enabled": True}} | groups, TrainConfig))


def test_a_dry_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would count each layer as held from its first use on."""
    for name, value in (WANTED | {"ACCELERATE_USE_FSDP": "true"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"train.dry_run=true .* leave it out"):
        dry_run(build_config({"lora": {"enabled": True}}, TrainConfig))
