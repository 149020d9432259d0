"""Averages of weights: what they are, that they are what is evaluated and saved, and that a run goes on with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import dying_at, sample_files
from safetensors.torch import load_file
from torch import Tensor, nn

from angle import ConfigError, TrainConfig, build_config
from angle.config import TrainingConfig
from angle.modeling.adapters import TRAINED
from angle.modeling.encoder import Encoder
from angle.training.average import WeightAverage
from angle.training.dry_run import dry_run
from angle.training.loop import fit
from benchmarks.small_models import build

STEPS = 12
PREFIX = "encoder.backbone."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    sample_files(folder)
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "valid_sts")}


def settings(files: dict[str, str], folder: Path, **train: Any) -> TrainConfig:
    """A run that keeps the weights after every step; it decays, so that every row of the embeddings is trained."""
    train = {
        "max_steps": STEPS, "batch_size": 8, "eval_steps": 3, "save_steps": 1, "save_total_limit": 100,
        "logging_steps": 4, "weight_decay": 0.01, "learning_rate": 0.01, "output_dir": str(folder),
    } | train  # fmt: skip
    return build_config(
        {"data": {name: {"name_or_path": file} for name, file in files.items()}, "train": train}, TrainConfig
    )


def of_step(run: Path, step: int, name: str = "model") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def naive_shares(kind: str, window: int, steps: int) -> dict[int, float]:
    """Return the coefficient of each step's weights in the average after so many steps, by its definition."""
    first, interval = max(1, STEPS - window + 1) if kind == "last" else 1, max(1, window // 10)
    included = [step for step in range(first, steps + 1) if (STEPS - step) % interval == 0]
    if kind == "last":
        return dict.fromkeys(included, 1 / len(included))
    decay, count = (1 - 1 / window) ** interval, len(included)
    shares = [(1 - decay) / (1 - decay**count) * decay ** (count - number) for number in range(1, count + 1)]
    return dict(zip(included, shares, strict=True))


def naive_average(run: Path, kind: str, window: int, steps: int, name: str) -> Tensor:
    """Return the average of one weight in float64."""
    return sum(of_step(run, step)[name].double() * share for step, share in naive_shares(kind, window, steps).items())


def naive_fold(weights: list[dict[str, Tensor]], coefficients: list[float]) -> dict[str, Tensor]:
    """Return the average one weight and one step at a time, with the arithmetic of the run's."""
    averages = weights[0]
    for newest, coefficient in zip(weights[1:], coefficients[1:], strict=True):
        averages = {name: averages[name].lerp(newest[name], coefficient) for name in newest}
    return averages


@pytest.mark.parametrize(
    ("kind", "window", "steps", "more"),
    [
        ("ema", 4, 4, {}),
        ("ema", 0.25, 3, {"gradient_accumulation_steps": 2}),
        ("ema", 25, 25, {}),
        ("ema", 100, 100, {"token_budget": 60}),
        ("ema", 1, 1, {}),
        ("last", 5, 5, {"token_budget": 60, "gradient_accumulation_steps": 2}),
        ("last", 0.5, 6, {}),
        ("last", 24, 24, {}),
        ("last", 1, 1, {}),
    ],
)
def test_a_run_saves_the_average_of_its_steps(
    files: dict[str, str], tmp_path: Path, kind: str, window: float, steps: int, more: dict[str, Any]
) -> None:
    fit(settings(files, tmp_path, average=kind, average_window=window, **more))
    for step in (STEPS - 2, STEPS) if steps > 2 else (STEPS,):
        averages = of_step(tmp_path, step, "average")
        included = list(naive_shares(kind, steps, step))
        coefficients = [naive_shares(kind, steps, each)[each] for each in included]
        fold = naive_fold([of_step(tmp_path, each) for each in included], coefficients)
        for name, weight in averages.items():
            expected = naive_average(tmp_path, kind, steps, step, name)
            torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(weight, fold[name], rtol=0, atol=0)
    final, last = load_file(tmp_path / "final" / "model.safetensors"), of_step(tmp_path, STEPS)
    assert len(averages) > 30
    assert all(torch.equal(final[name.removeprefix(PREFIX)], weight) for name, weight in averages.items())
    moved = [not torch.equal(averages[name], last[name]) for name in averages]
    assert any(moved) == (steps > 1)


def test_the_average_is_what_is_measured(files: dict[str, str], tmp_path: Path) -> None:
    """The test set is the validation set here, and is measured once more with the model that was saved."""
    result = fit(settings(files | {"test": files["valid_sts"]}, tmp_path, average="last", average_window=7))
    assert result.best_step is not None
    best, final = (Encoder.load(str(tmp_path / name)) for name in ("best", "final"))
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["valid/spearman"] for line in logged if "valid/spearman" in line}
    assert list(scores) == [0, 3, 6, 9, 12]
    assert result.test_after == scores[result.best_step]
    for step, encoder in ((result.best_step, best), (STEPS, final)):
        # Before the last seven steps, what is measured are the weights as they are.
        expected = of_step(tmp_path, step, "average" if step > 5 else "model")
        found = encoder.backbone.state_dict()
        assert all(torch.equal(found[name.removeprefix(PREFIX)], weight) for name, weight in expected.items())
    for step in (3, 12):
        assert (tmp_path / "checkpoints" / f"step-{step:08d}" / "average.safetensors").exists() == (step == 12)


@pytest.mark.parametrize(("kind", "died_at"), [("ema", 2), ("ema", 8), ("last", 3), ("last", 9)])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    files: dict[str, str], tmp_path: Path, kind: str, died_at: int
) -> None:
    runs = [tmp_path / name for name in ("straight", "resumed")]
    options = {"average": kind, "average_window": 6, "save_steps": 2, "layer_decay": 0.8}
    fit(settings(files, runs[0], **options))
    with dying_at(died_at):
        fit(settings(files, runs[1], **options))
    fit(settings(files, runs[1], **options))
    for name in ("final", "best"):
        straight, resumed = (load_file(run / name / "model.safetensors") for run in runs)
        assert all(torch.equal(resumed[key], weight) for key, weight in straight.items())
    straight, resumed = (of_step(run, STEPS, "average") for run in runs)
    assert all(torch.equal(resumed[key], weight) for key, weight in straight.items())


def test_training_goes_on_from_the_weights_and_not_from_the_average(files: dict[str, str], tmp_path: Path) -> None:
    """Whatever is measured and saved in between, they are those of a run without one."""
    for kind in ("none", "ema"):
        fit(settings(files, tmp_path / kind, average=kind))
    plain, averaged = (of_step(tmp_path / kind, STEPS) for kind in ("none", "ema"))
    assert all(torch.equal(averaged[name], weight) for name, weight in plain.items())
    assert not (tmp_path / "none" / "checkpoints" / f"step-{STEPS:08d}" / "average.safetensors").exists()


def test_only_adapters_are_averaged(files: dict[str, str], tmp_path: Path) -> None:
    config = settings(files, tmp_path, average="ema", average_window=3, eval_steps=0)
    config.lora = build_config({"lora": {"enabled": True, "r": 2}}, TrainConfig).lora
    fit(config)
    averages = of_step(tmp_path, STEPS, "average")
    assert averages
    assert all("lora_" in name for name in averages)
    saved = load_file(tmp_path / "final" / "adapter_model.safetensors")
    assert len(saved) == len(averages)
    for name, weight in averages.items():
        assert torch.equal(saved[name.removeprefix(PREFIX).replace(f".{TRAINED}", "")], weight)


def test_statistics_are_averaged_with_the_weights(tmp_path: Path) -> None:
    """I-BERT's ranges are buffers, which every forward pass changes."""
    build("ibert", tmp_path)
    model = Encoder.load(str(tmp_path)).backbone
    average = WeightAverage(model, "ema", window=2)
    ranges = model.embeddings.embeddings_act1
    for step, value in ((1, 3.0), (2, 9.0)):
        ranges.x_max = torch.full_like(ranges.x_max, value)
        average.update(step)
    with average.applied():
        assert ranges.x_max.item() == pytest.approx(7.0)  # a third of the first, and two thirds of the second
    assert ranges.x_max.item() == 9.0


def test_memory_is_that_of_what_is_trained(files: dict[str, str], tmp_path: Path) -> None:
    plan = dry_run(settings(files, tmp_path, average="ema")).memory
    assert plan["average of weights"] == plan["trained weights"]
    assert "average of weights" not in dry_run(settings(files, tmp_path)).memory


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"average_window": 10}, "train.average_window=10 has no effect without train.average: add train.average=ema "),
        ({"average": "last", "patience": 3}, "train.average=last cannot work with train.patience=3: .*average=ema"),
        ({"average": "mean"}, "train.average=mean .*none, ema"),
        ({"average": "ema", "average_window": 0}, "train.average_window=0 .*above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        build_config({"train": train}, TrainConfig)


def test_a_window_is_steps_or_a_fraction_of_them() -> None:
    def of(kind: str, window: float, total: int) -> tuple[int, int]:
        average = WeightAverage.of(nn.Linear(1, 1), TrainingConfig(average=kind, average_window=window), total)
        return average.window, average.first_step

    assert of("ema", 0.1, 95) == (10, 1)
    assert of("last", 0.1, 95) == (10, 86)
    assert of("last", 1000, 95) == (1000, 1)
    assert of("ema", 1000, 95) == (1000, 1)
