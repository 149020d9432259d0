"""Learning rates by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from angle import ConfigError, TrainConfig, build_config
from angle.config import LoraConfig, ModelConfig, TrainingConfig
from angle.modeling.encoder import Encoder
from angle.modeling.trainable import TrainableEncoder
from angle.training.optimizer import make_optimizer, set_learning_rate
from benchmarks.small_models import build

RATE, DECAY = 1e-3, 0.5


def movement(trainable: TrainableEncoder, **train: Any) -> dict[str, Tensor]:
    """Return how far each trained weight is moved by a step whose gradient is 1, by its name in the backbone."""
    trained = {name: weight for name, weight in trainable.encoder.backbone.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    optimizer = make_optimizer(trainable, TrainingConfig(**train))
    for weight in trained.values():
        weight.grad = torch.ones_like(weight)
    set_learning_rate(optimizer, RATE)
    optimizer.step()
    return {name: before[name] - weight.detach() for name, weight in trained.items()}


@pytest.mark.parametrize(
    ("model", "layers", "below", "above"),
    [
        ("bert", "encoder.layer", ["embeddings."], []),
        ("modernbert", "layers", ["embeddings."], ["final_norm."]),
        ("llama", "layers", ["embed_tokens."], ["norm."]),
        ("gpt2", "h", ["wte.", "wpe."], ["ln_f."]),
        ("mpnet", "encoder.layer", ["embeddings."], ["encoder.relative_attention_bias."]),
    ],
)
def test_a_layer_learns_slower_than_the_one_above(
    tmp_path: Path, model: str, layers: str, below: list[str], above: list[str]
) -> None:
    """AdamW's first step moves every weight by the learning rate."""
    build(model, tmp_path)
    trainable = TrainableEncoder(Encoder.load(ModelConfig(str(tmp_path))))
    count = trainable.encoder.backbone.config.num_hidden_layers
    steps = [(f"{layers}.{index}.", RATE * DECAY ** (count - 1 - index)) for index in range(count)]
    steps += [(prefix, RATE * DECAY**count) for prefix in below] + [(prefix, RATE) for prefix in above]
    seen = set()
    for name, moved in movement(trainable, layer_decay=DECAY).items():
        prefix, expected = next((prefix, step) for prefix, step in steps if name.startswith(prefix))
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-3, atol=1e-7)
        seen.add(prefix)
    assert seen == {prefix for prefix, _ in steps}


def test_adapters_learn_by_their_layers(folder_of: Callable[[str], str]) -> None:
    encoder = Encoder.load(ModelConfig(folder_of("llama")), lora=LoraConfig(enabled=True, r=2))
    moved = movement(TrainableEncoder(encoder), layer_decay=DECAY)
    count = encoder.backbone.config.num_hidden_layers
    assert len(moved) > 2 * count
    for name, step in moved.items():
        index = int(name.split("layers.")[1].split(".")[0])
        torch.testing.assert_close(step, torch.full_like(step, RATE * DECAY ** (count - 1 - index)), rtol=1e-3, atol=0)


def test_every_layer_has_the_same_rate_by_default_and_only_matrices_decay(folder_of: Callable[[str], str]) -> None:
    trainable = TrainableEncoder(Encoder.load(ModelConfig(folder_of("bert"))))
    optimizer = make_optimizer(trainable, TrainingConfig(weight_decay=0.1))
    decays = {
        (parameter.ndim >= 2, group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays == {(True, 0.1), (False, 0.0)}
    for moved in movement(trainable).values():
        torch.testing.assert_close(moved, torch.full_like(moved, RATE), rtol=1e-3, atol=1e-7)


def test_what_a_teacher_adds_has_the_whole_rate(folder_of: Callable[[str], str]) -> None:
    trainable = TrainableEncoder(
        Encoder.load(ModelConfig(folder_of("bert"))), distillation_level="texts", projection_dim=3
    )
    groups = make_optimizer(trainable, TrainingConfig(layer_decay=DECAY)).param_groups
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert trainable.projection is not None
    assert {scales[id(parameter)] for parameter in trainable.projection.parameters()} == {1.0}


def test_models_without_a_list_of_layers_are_refused(tmp_path: Path) -> None:
    build("albert", tmp_path)
    trainable = TrainableEncoder(Encoder.load(ModelConfig(str(tmp_path))))
    with pytest.raises(ConfigError, match=r"^train.layer_decay=0.9 cannot work with AlbertModel, which has no list"):
        make_optimizer(trainable, TrainingConfig(layer_decay=0.9))


@pytest.mark.parametrize(("value", "message"), [(1.5, "=1.5 cannot work: .* 0.7 to 0.95"), (0, "=0 .*above 0")])
def test_decays_that_cannot_work_are_refused(value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^train.layer_decay{message}"):
        build_config({"train": {"layer_decay": value}}, TrainConfig)
