"""Weights sharded over two processes (FSDP2): trained, checkpointed and saved as by one process with all of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_multi_gpu_env
from conftest import REPO, SMALL, launch_ranks, made_once, repeatable_metrics, sample_rows, write_jsonl
from safetensors.torch import load_file

from angle.config import LoraConfig, ModelConfig, TrainConfig
from angle.config.build import build_config
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.training.accelerator import start_accelerator
from angle.training.dry_run import dry_run
from angle.training.loop import fit
from angle.training.sharding import REQUIRED_ENV, check_shardable

pytestmark = pytest.mark.slow

LAUNCH_FILE = REPO / "conf" / "accelerate" / "fsdp2_lora.yaml"
BF16 = {"model": {"dtype": "bfloat16"}, "train": {"mixed_precision": "bf16", "max_steps": 2}}
AVERAGED = {"train": {"average": "ema", "average_window": 3, "eval_steps": 1, "layer_decay": 0.5}}
#: Jobs by name: for each start, whether weights are sharded and at which step it is stopped; and more settings.
JOBS: dict[str, tuple[list[tuple[bool, int | None]], dict[str, Any]]] = {
    "plain": ([(True, None)], {}),
    "cached": ([(True, None)], {"train": {"token_budget": 80}, "model": {"gradient_checkpointing": True}}),
    "stopped": ([(True, 2), (True, None)], {}),
    "sharded, then full": ([(True, 2), (False, None)], {}),
    "full, then sharded": ([(False, 2), (True, None)], {"train": {"packing": "off"}}),
    "best earlier": ([(True, None)], {"train": {"learning_rate": 0.1, "eval_steps": 1}}),
    "averaged": ([(True, 2), (True, None)], AVERAGED),
    "bf16": ([(True, None)], BF16),
    "bf16 full": ([(False, None)], BF16),
}


def launcher_env(launch_file: Path) -> dict[str, str]:
    """Return what accelerate sets in the environment of two processes that it starts with a launch file."""
    parser = launch_command_parser()
    words = ["--config_file", str(launch_file), "--num_processes", "2", "script.py"]
    arguments, _, _ = _validate_launch_command(parser.parse_args(words))
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if os.environ.get(name) != value}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, folder_of: Callable[[str], str]) -> Path:
    """A folder with the runs of two processes by name, the run "one" of one process, and what each of the two held."""
    return made_once(tmp_path_factory, "sharded", lambda folder: train_all(folder, folder_of("llama")))


def train_all(folder: Path, model: str) -> None:
    """Train everything that is compared."""
    llama = shutil.copytree(model, folder / "llama")  # which is there as long as the folder is
    torch.manual_seed(3)  # with which the "best earlier" is best by far at the second of four steps
    below = Encoder.load(ModelConfig(str(llama)), lora=LoraConfig(enabled=True, r=2, dropout=0.0))
    with torch.no_grad():
        for name, weight in below.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    below.save(folder / "below")
    for split, number in (("train", 37), ("validation", 23)):
        write_jsonl(folder / f"{split}.jsonl", sample_rows("A", split, number))

    def settings(run: str, rows: int, more: dict[str, Any]) -> dict[str, Any]:
        """Four steps of two batches, all of whose gradients are clipped, of an adapter above one that is frozen."""
        train = {"batch_size": rows, "gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 3e-4}
        train |= {"max_grad_norm": 0.1, "logging_steps": 1, "eval_steps": 2, "save_steps": 2}
        valid = {"name_or_path": str(folder / "validation.jsonl")}
        return {
            "model": {"name_or_path": str(llama), "adapter": str(folder / "below")} | more.get("model", {}),
            "lora": {"enabled": True, "r": 4, "dropout": 0.0},
            "data": {"train": {"name_or_path": str(folder / "train.jsonl")}, "valid": valid, "test": valid},
            "train": train | {"output_dir": str(folder / run)} | more.get("train", {}),
        }

    jobs = [
        {"sharded": sharded, "stop_at": step, "settings": settings(name, 4, more)}
        for name, (starts, more) in JOBS.items()
        for sharded, step in starts
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    for rank in launch_ranks([str(REPO / "tests" / "sharded.py"), str(folder)], folder, **launcher_env(LAUNCH_FILE)):
        assert rank.returncode == 0, rank.stderr[-5000:]
    for run, more in (("one", {}), ("one averaged", AVERAGED)):
        fit(build_config(settings(run, 8, more), TrainConfig))


def adapters(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run's final adapters, the frozen ones too."""
    files = sorted((run / "final").rglob("adapter_model.safetensors"))
    assert len(files) == 2
    return {f"{file.parent.name}/{name}": weight for file in files for name, weight in load_file(file).items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return what a run measured, without times and padding, which differs with the number of processes."""
    lines = repeatable_metrics((run / "metrics.jsonl").read_text())
    return [{name: value for name, value in line.items() if name != "padding_share"} for line in lines]


def test_each_process_holds_half_of_every_layer(runs: Path) -> None:
    jobs = json.loads((runs / "jobs.json").read_text())
    first, second = (json.loads((runs / f"held-{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(second) == len(jobs)
    for job, one, other in zip(jobs, first, second, strict=True):
        if not job["sharded"]:
            assert one["sharded"] == other["sharded"] == 0
            continue
        assert one["replicated"] == other["replicated"] == 0
        assert one["sharded"] + other["sharded"] == one["all"]
        assert one["sharded"] == pytest.approx(other["sharded"], rel=0.02)
        assert one["modules"] == ["FSDPLlamaDecoderLayer"] * SMALL["num_hidden_layers"] + ["FSDPTrainableEncoder"]


def test_a_step_exchanges_each_layers_gradients_once(runs: Path) -> None:
    """Whatever its number of batches and micro-batches."""
    jobs, (plain, cached, *_) = list(JOBS), json.loads((runs / "held-0.json").read_text())
    assert jobs[:2] == ["plain", "cached"]
    assert plain["exchanges"] == cached["exchanges"] == 4 * SMALL["num_hidden_layers"]


@pytest.mark.parametrize("name", ["plain", "cached", "stopped", "sharded, then full", "full, then sharded"])
def test_two_processes_train_as_one(runs: Path, name: str) -> None:
    expected, actual = adapters(runs / "one"), adapters(runs / name)
    assert actual.keys() == expected.keys()
    start = load_file(runs / "below" / "adapter_model.safetensors")
    assert any(weight.abs().max() > 3e-4 for key, weight in expected.items() if key.startswith("final") and "_B" in key)
    assert len(start) < len(expected)
    for key, weight in expected.items():
        torch.testing.assert_close(actual[key], weight, rtol=0, atol=1e-5)
    of_one, of_two = metrics(runs / "one"), metrics(runs / name)
    assert min(line["gradient_norm"] for line in of_one if "gradient_norm" in line) > 0.1  # so that all are clipped
    for line, other in zip(of_one, of_two, strict=True):
        assert other == pytest.approx(line, rel=1e-4, abs=1e-6)


def test_a_saved_adapter_gives_one_process_the_same_embeddings(runs: Path) -> None:
    texts = [row["text1"] for row in sample_rows("A", "validation", 40)]
    expected = Encoder.load(str(runs / "one")).encode(texts)
    torch.testing.assert_close(Encoder.load(str(runs / "plain")).encode(texts), expected, rtol=0, atol=1e-5)


def test_resumed_run_is_bitwise_the_uninterrupted_one(runs: Path) -> None:
    straight, resumed = adapters(runs / "plain"), adapters(runs / "stopped")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert metrics(runs / "stopped") == metrics(runs / "plain")


def test_shards_are_averaged_and_resumed_as_whole_weights(runs: Path) -> None:
    expected, actual, last = (adapters(runs / name) for name in ("one averaged", "averaged", "one"))
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=0, atol=1e-5)
    assert max(torch.dist(last[name], weight) for name, weight in expected.items()) > 1e-3
    for line, other in zip(metrics(runs / "one averaged"), metrics(runs / "averaged"), strict=True):
        assert other == pytest.approx(line, rel=1e-4, abs=1e-6)


def test_the_best_model_is_loaded_into_the_shards(runs: Path) -> None:
    """The test set is the validation set here, so what was measured at the end is what was measured at that step."""
    result = json.loads((runs / "best earlier" / "run.json").read_text())["result"]
    correlations = {
        line["step"]: line["valid/spearman"] for line in metrics(runs / "best earlier") if "valid/loss" in line
    }
    assert result["best_step"] != 4
    assert result["test_after"] == correlations[result["best_step"]] != correlations[4]


def test_a_checkpoint_is_as_one_process_writes_it(runs: Path) -> None:
    checkpoints = [runs / name / "checkpoints" / "step-00000004" for name in ("plain", "one")]
    shapes = [
        {name: weight.shape for name, weight in load_file(checkpoint / "model.safetensors").items()}
        for checkpoint in checkpoints
    ]
    assert shapes[0] == shapes[1]
    actual, expected = (torch.load(path / "optimizer.pt", weights_only=True)["optimizer"] for path in checkpoints)
    assert actual["param_groups"] == expected["param_groups"]
    assert actual["state"].keys() == expected["state"].keys()
    for number, moments in expected["state"].items():
        for key, value in moments.items():
            assert torch.dist(actual["state"][number][key], value) <= 1e-3 * value.norm()


def test_precision_is_that_of_unsharded_weights(runs: Path) -> None:
    """Frozen weights are bfloat16, adapters float32, and layers are computed in bfloat16."""
    full, sharded = adapters(runs / "bf16 full"), adapters(runs / "bf16")
    assert {weight.dtype for weight in sharded.values()} == {torch.float32}
    for name, weight in full.items():
        torch.testing.assert_close(sharded[name], weight, rtol=0, atol=1e-6)
    for line, other in zip(metrics(runs / "bf16 full"), metrics(runs / "bf16"), strict=True):
        assert other == pytest.approx(line, rel=1e-5)


def check_and_start(config: TrainConfig) -> None:
    """Do what a run does first."""
    check_shardable(config)
    start_accelerator(config.train.mixed_precision)


@pytest.mark.parametrize(
    ("variables", "groups", "text"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version=1, .*fsdp2_lora.yaml"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "fsdp_cpu_ram_efficient_loading=true"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "fsdp_activation_checkpointing=true"),
        ({}, {"lora": {"enabled": False}}, "lora=none .*sharded.* add lora=r16"),
        ({}, {"model": {"load_kbit": 4}}, "model.load_kbit=4 .* type model.dtype=bfloat16"),
        ({}, {"ese": {"enabled": True}}, "ese.enabled=true .* type ese=none"),
        ({}, {"teacher": {"enabled": True, "name_or_path": "self"}}, "teacher.enabled=true .* type teacher=none"),
        ({}, {"train": {"mixed_precision": "fp16"}}, "train.mixed_precision=fp16 .* type train.mixed_precision=bf16"),
        ({}, {"train": {"token_budget": "auto"}}, "train.token_budget=auto .* a number"),
        ({}, {"train": {"compile": True}}, "train.compile=true .* leave it out"),
    ],
)
def test_settings_unsupported_with_fsdp_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], groups: dict[str, Any], text: str
) -> None:
    for name, value in (REQUIRED_ENV | {"ACCELERATE_USE_FSDP": "true"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=text):
        check_and_start(build_config({"lora": {"enabled": True}} | groups, TrainConfig))


def test_a_dry_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would count each layer as held from its first use on."""
    for name, value in (REQUIRED_ENV | {"ACCELERATE_USE_FSDP": "true"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"train.dry_run=true .* leave it out"):
        dry_run(build_config({"lora": {"enabled": True}}, TrainConfig))
