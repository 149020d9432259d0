"""Dropout as a setting: found wherever an architecture has it, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composition import composed
from conftest import sample_rows, write_jsonl
from torch import Tensor

from angle import fit
from angle.config import LoraConfig, ModelConfig, PoolingConfig
from angle.config.build import load_config
from angle.errors import ConfigError
from angle.modeling.dropout import set_dropout
from angle.modeling.encoder import Encoder
from angle.structures import FORMATS
from angle.training import setup
from angle.training.resolve import decided_value

IDS = torch.arange(4, 16)[None]


@torch.no_grad()
def states_of(model: Any) -> Tensor:
    """Return the states of a text in training mode."""
    states: Tensor = model.train()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    return states


@pytest.mark.parametrize("name", ["bert", "modernbert", "mpnet", "deberta-v2", "llama", "gemma3_text"])
def test_it_is_set_wherever_an_architecture_has_it(folder_of: Callable[[str], str], name: str) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder_of(name))
    config = model.config.to_dict()
    evaluated = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    assert set_dropout(model, 0.5)
    assert not model.training
    assert not torch.equal(states_of(model), states_of(model))
    assert set_dropout(model, 0.0)
    torch.testing.assert_close(states_of(model), evaluated, rtol=1e-5, atol=1e-6)
    assert model.config.to_dict() == config


def test_a_model_that_drops_in_places_of_its_own_stays_as_it_is(folder_of: Callable[[str], str]) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder_of("bert"))
    model.embeddings.register_forward_hook(lambda module, _, states: torch.dropout(states, 0.1, module.training))
    before = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert not set_dropout(model, 0.2)
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)] == before


def test_adapters_have_their_own(folder_of: Callable[[str], str]) -> None:
    lora = LoraConfig(enabled=True, dropout=0.3)
    encoder = Encoder.load(ModelConfig(folder_of("bert")), PoolingConfig("avg"), lora)
    assert set_dropout(encoder.backbone, 0.0)
    found = {
        "lora" if "lora" in name else "model": module.p
        for name, module in encoder.backbone.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert found == {"lora": 0.3, "model": 0.0}


def run_losses(model: Path, folder: Path, name: str, *words: str) -> list[float]:
    """Train on rows of a format, and return the losses of three steps."""
    rows = folder / f"{name}.jsonl"
    if not rows.exists():
        write_jsonl(rows, sample_rows(name, "train", 32))
    run = [
        f"model.name_or_path={model}",
        "train.max_steps=3",
        "train.logging_steps=1",
        f"train.output_dir={folder}/run",
    ]
    shutil.rmtree(folder / "run", ignore_errors=True)
    fit(composed("data=files", f"data.train.name_or_path={rows}", *run, *words))
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def dropping(folder_of: Callable[[str], str]) -> Path:
    """The folder of a model with dropout."""
    folder = Path(folder_of("bert"))
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.1
    return folder


def test_a_run_without_is_that_of_a_model_without(dropping: Path, tmp_path: Path) -> None:
    """The other model says so in its configuration; that of the saved one is as it was."""
    without = tmp_path / "model"
    shutil.copytree(dropping, without)
    zeros = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (without / "config.json").write_text(json.dumps(json.loads((dropping / "config.json").read_text()) | zeros))
    expected = run_losses(without, tmp_path, "A")
    assert run_losses(dropping, tmp_path, "A", "train.dropout=0") == expected
    assert "seed 42, dropout 0" in (tmp_path / "run" / "train.log").read_text().replace("\n        ", " ")
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["hidden_dropout_prob"] == 0.1
    assert run_losses(dropping, tmp_path, "A", "train.dropout=own") != expected


@pytest.mark.parametrize("name", FORMATS)
def test_none_is_the_default(dropping: Path, tmp_path: Path, name: str) -> None:
    losses = {word: run_losses(dropping, tmp_path, name, f"train.dropout={word}") for word in ("0", "own")}
    assert losses["0"] != losses["own"]
    assert run_losses(dropping, tmp_path, name) == losses["0"]
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config.train.dropout == decided_value(config, "train.dropout", ["train.dropout"]) == "0"


def test_places_that_are_not_known(dropping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is refused; else the model trains with what it has."""
    own = run_losses(dropping, tmp_path, "B", "train.dropout=own")
    monkeypatch.setattr(setup, "set_dropout", lambda *_: False)
    assert run_losses(dropping, tmp_path, "B") == own
    assert load_config(tmp_path / "run" / "config.yaml").train.dropout == "own"
    with pytest.raises(ConfigError) as error:
        run_losses(dropping, tmp_path, "B", "train.dropout=0.2")
    assert str(error.value) == (
        "train.dropout=0.2 cannot work with BertModel, which drops in places of its own: leave it out."
    )


@pytest.mark.parametrize("value", ["1", "-0.1", "nan", "off"])
def test_what_is_no_probability_is_refused(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(f"train.dropout={value}")
    assert str(error.value) == (
        f"train.dropout={value} cannot work: give a probability of at least 0 and below 1, such as 0.1, or own for the "
        f"model's own."
    )
