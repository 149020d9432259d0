"""Embeddings of tokens that do not occur in the training data: left out of training, with the same result."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CanineConfig, CanineModel

from angle import Encoder, ModelConfig, TrainConfig, build_config, fit
from angle.modeling.tiny import tiny_tokenizer
from angle.modeling.token_embeddings import PartlyTrainedEmbedding, freeze_unused_tokens, partly_trained_embedding

TOKENS = np.array([2, 5, 5, 9, 3, 2, 7, 3, 0], np.int32)
TRAINED = [2, 3, 5, 7, 9]


class Model(nn.Module):
    """Something with an embedding table."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 4, **options)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).cos().cumsum(0)


def steps(model: nn.Module, number: int) -> None:
    """Train on the tokens, with momentum that goes on where a step has no gradient."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
    for step in range(number):
        model(torch.from_numpy(TOKENS.astype(int))[step % 3 : step % 3 + 4]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"padding_idx": 3}, {}])
def test_weights_match_plain_training(options: dict[str, Any]) -> None:
    plain = Model(**options)
    model = copy.deepcopy(plain)
    before = plain.table.weight.detach().clone()
    freeze_unused_tokens(model, TOKENS)
    assert isinstance(model.table, PartlyTrainedEmbedding)

    steps(plain, 7)
    steps(model, 7)

    everything = torch.arange(16)
    assert torch.equal(model.table(everything), plain.table(everything))
    assert torch.equal(model.state_dict()["table.weight"], plain.table.weight)
    assert not torch.equal(plain.table.weight[TRAINED[2:]], before[TRAINED[2:]])


def test_only_used_rows_are_trainable() -> None:
    model = Model(padding_idx=0)
    freeze_unused_tokens(model, TOKENS)

    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["table.trainable_weight"]
    assert model.table.trainable_weight.shape == (len(TRAINED), 4)
    assert partly_trained_embedding(model) is model.table
    assert model.state_dict().keys() == {"table.weight"}


@pytest.mark.parametrize("case", ["most tokens occur", "frozen", "shared", "renormalised", "scaled by frequency"])
def test_other_embeddings_are_trained_completely(case: str) -> None:
    options = {"renormalised": {"max_norm": 1.0}, "scaled by frequency": {"scale_grad_by_freq": True}}
    model = Model(**options.get(case, {}))
    if case == "frozen":
        model.table.weight.requires_grad_(False)
    if case == "shared":
        model.head = nn.Linear(4, 16, bias=False)
        model.head.weight = model.table.weight
    freeze_unused_tokens(model, np.arange(12, dtype=np.int32) if case == "most tokens occur" else TOKENS)

    assert type(model.table) is nn.Embedding


def test_a_model_without_token_embeddings() -> None:
    config = CanineConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    model = CanineModel(config)
    freeze_unused_tokens(model, TOKENS)

    assert all(parameter.requires_grad for parameter in model.parameters())
    assert partly_trained_embedding(model) is None


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_a_run_gives_the_weights_of_plain_training(
    packing: str, folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    words = [word for word in tiny_tokenizer().get_vocab() if word.isalpha()]
    rows = [{"text1": " ".join(words[n : n + 3]), "text2": words[n], "label": n % 2} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    weights = {}
    # A decay too small to change a float32 weight takes the plain way.
    for decay in (0.0, 1e-12):
        config = build_config(
            {
                "model": {"name_or_path": folder_of("bert")},
                "data": {"train": {"name_or_path": str(tmp_path / "rows.jsonl")}},
                "train": {
                    "batch_size": 2, "epochs": 4, "learning_rate": 1e-2, "weight_decay": decay, "packing": packing,
                    # Without dropout the loss falls to 0, and gradients to rounding, which Adam makes as large as any.
                    "dropout": "own", "output_dir": str(tmp_path / f"run-{decay}"),
                },
            },
            TrainConfig,
        )  # fmt: skip
        weights[decay] = load_file(fit(config).folder / "final" / "model.safetensors")

    name = "embeddings.word_embeddings.weight"
    before = Encoder.load(ModelConfig(folder_of("bert"))).backbone.state_dict()[name]
    assert weights[0.0].keys() == weights[1e-12].keys()
    for key, weight in weights[0.0].items():
        if key.endswith("attention.self.key.bias"):
            continue  # it adds a constant to a softmax: its gradient is rounding, which Adam makes as large as any
        torch.testing.assert_close(
            weight, weights[1e-12][key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )
    moved = (weights[0.0][name] != before).any(dim=1)
    assert moved.sum() == 7 + 2  # words, and those that begin and end every text
