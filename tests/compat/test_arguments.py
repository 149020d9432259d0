"""angle_emb's arguments in Python: each sets the setting that the table of its version names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from reference_command import changes

from angle import AnglE, TrainConfig
from angle.compat.arguments import ANGLE_EMB
from angle.modeling.encoder import Encoder

#: Arguments of `fit`, and what they change.
FIT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"epochs": 3}, {"train.epochs": 3}),
    ({"batch_size": 8}, {"train.batch_size": 8}),
    ({"gradient_accumulation_steps": 2}, {"train.gradient_accumulation_steps": 2}),
    ({"learning_rate": 0.5}, {"train.learning_rate": 0.5}),
    ({"warmup_steps": 7}, {"train.warmup_steps": 7.0}),
    ({"logging_steps": 7}, {"train.logging_steps": 7}),
    ({"save_steps": 7}, {"train.save_steps": 7}),
    ({"save_total_limit": 7}, {"train.save_total_limit": 7}),
    ({"eval_steps": 7}, {"train.eval_steps": 7}),
    ({"output_dir": "other"}, {"train.output_dir": "other"}),
    ({"filter_duplicate": False}, {"data.duplicates": "keep"}),
    ({"apply_ese": True}, {"ese.enabled": True}),
    ({"fp16": True}, {"train.mixed_precision": "fp16"}),
    ({"hub_private_repo": False}, {"hub.private": False}),
    ({"push_to_hub": True, "hub_model_id": "user/name"}, {"hub.push": True, "hub.model_id": "user/name"}),
]
#: Arguments of the class, and the settings that the encoder is loaded with.
CLASS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"tokenizer_name_or_path": "t"}, {"model.tokenizer_name_or_path": "t"}),
    (
        {"pretrained_model_path": "weights"},
        {"model.name_or_path": "weights", "model.tokenizer_name_or_path": "tiny"},
    ),
    ({"pooling_strategy": "last"}, {"pooling.strategy": "last", "model.end_token": False}),
    ({"pretrained_lora_path": "adapter"}, {"model.adapter": "adapter"}),
    ({"pooling_strategy": 3}, {"pooling.strategy": "3"}),
    ({"max_length": 7}, {"model.max_length": 7}),
    ({"prompt_template": "a {text}"}, {"model.prompt": "a {text}"}),
    ({"is_llm": False}, {"model.is_llm": False}),
    ({"torch_dtype": "bfloat16"}, {"model.dtype": "bfloat16"}),
    ({"apply_billm": True, "billm_model_class": "X"}, {"billm.enabled": True, "billm.model_class": "X"}),
    ({"billm_model_class": "X"}, {}),
    ({"tokenizer_padding_side": "left"}, {"model.padding_side": "left"}),
    ({"load_kbit": 4}, {"model.load_kbit": 4}),
    ({"load_kbit": 16}, {}),
]


class Recorded(Exception):  # noqa: N818
    """Raised in place of training or loading, with the settings."""


@pytest.fixture
def angle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AnglE:
    """An encoder on a machine with a GPU, whose `fit` raises the configuration that it would train."""

    def record(config: TrainConfig) -> None:
        raise Recorded(config)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("angle.training.loop.fit", record)
    monkeypatch.setattr("angle.compat.arguments.half_precision", lambda: "fp16")
    return AnglE("tiny")


def configuration(angle: AnglE, **arguments: Any) -> TrainConfig:
    """Return the configuration that `fit` would train."""
    with pytest.raises(Recorded) as caught:
        angle.fit("sample", **{"output_dir": "run"} | arguments)
    config: TrainConfig = caught.value.args[0]
    return config


@pytest.mark.parametrize(("arguments", "expected"), [pytest.param(*row, id=",".join(row[0])) for row in FIT])
def test_an_argument_of_fit_sets_its_setting(angle, arguments, expected):
    settings = ANGLE_EMB.python_settings("fit")
    assert {settings[name] for name in arguments} <= expected.keys()
    assert changes(configuration(angle, **arguments), configuration(angle)) == expected


def test_triples_are_trained_as_in_angle_emb(angle):
    assert configuration(angle).loss.for_format("B").reverse_w == 0.0
    assert configuration(angle, loss_kwargs={"ibn_w": 3.0}).loss.for_format("B").reverse_w == 0.0
    assert configuration(angle, loss_kwargs={"reverse_w": 3.0}).loss.reverse_w == 3.0
    assert configuration(angle).train.dropout == "own"


def test_every_argument_has_a_test_case():
    assert {name for arguments, _ in FIT for name in arguments} == ANGLE_EMB.python_settings("fit").keys()
    names = {name for arguments, _ in CLASS for name in arguments} | {"model_name_or_path"}
    assert names == ANGLE_EMB.python_settings("AnglE").keys()


def load_settings(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> dict[str, Any]:
    """Return the settings with which the class loads its encoder, where they are not the schema's defaults."""

    def record(model: Any, pooling: Any, billm: Any = None, **_: Any) -> None:
        raise Recorded(TrainConfig(model=model, pooling=pooling, **{"billm": billm} if billm else {}))

    monkeypatch.setattr(Encoder, "load", record)
    monkeypatch.setattr(TrainConfig, "__post_init__", lambda _: None)  # quantised weights may be used without adapters
    with pytest.raises(Recorded) as caught:
        AnglE("tiny", **arguments)
    return changes(caught.value.args[0], TrainConfig())


@pytest.mark.parametrize(("arguments", "expected"), [pytest.param(*row, id=",".join(row[0])) for row in CLASS])
def test_an_argument_of_the_class_sets_its_setting(monkeypatch, arguments, expected):
    settings = ANGLE_EMB.python_settings("AnglE")
    assert not expected or {settings[name] for name in arguments} <= expected.keys()
    assert load_settings(monkeypatch, **arguments) == expected


def test_the_arguments_are_documented():
    lines = (REPO / "docs" / "migrating.md").read_text().splitlines()
    owners = ("AnglE", "fit", "loss_kwargs", "trainer_kwargs", "argument_kwargs", "model_kwargs", "lora_config_kwargs",
              "kbit_kwargs")  # fmt: skip
    expected = []
    for owner in owners:
        defaults = ANGLE_EMB.python_defaults(owner)
        for name, setting in ANGLE_EMB.python_settings(owner).items():
            default = f"`{defaults[setting]}`" if setting in defaults else "–"
            expected.append(f"| `{owner}` | `{name}` | {default} | `{setting}` |")
    assert [line for line in lines if line.startswith(tuple(f"| `{owner}` |" for owner in owners))] == expected
