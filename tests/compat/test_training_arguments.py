"""What code for angle_emb passes on to transformers and peft: taken, ignored, or refused with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import sample_rows

from angle import AnglE, ConfigError, CorrelationEvaluator, DataError
from angle.compat.training_arguments import (
    NO_EFFECT_HERE,
    checked_lora_arguments,
    checked_model_arguments,
    split_training_arguments,
)
from angle.config import TrainingConfig
from angle.config.build import load_config
from angle.training.optimizer import make_optimizer
from angle.training.schedule import lr_factor
from angle.utils import cosine_similarity


@pytest.fixture(scope="module")
def angle() -> AnglE:
    return AnglE("tiny")


def test_arguments_that_change_nothing_are_ignored_and_others_translated() -> None:
    given = {
        "report_to": "none", "dataloader_num_workers": 2, "push_to_hub": False, "load_best_model_at_end": True,
        "optim": "adamw_torch", "lr_scheduler_type": "constant_with_warmup", "weight_decay": 0.1, "bf16": True,
        "fp16": False, "hub_model_id": None,
    }  # fmt: skip
    rest, settings = split_training_arguments(given)
    assert rest == {"push_to_hub": False, "lr_scheduler_type": "constant", "weight_decay": 0.1}
    assert settings == {"train.mixed_precision": "bf16"}
    assert split_training_arguments({"report_to": ["wandb", "tensorboard"]})[1] == {
        "tracking.mode": "online", "tracking.tensorboard": True,
    }  # fmt: skip
    assert split_training_arguments(None) == ({}, {})


def test_ignored_arguments_are_those_of_transformers() -> None:
    from dataclasses import fields

    from transformers import TrainingArguments

    known = {field.name for field in fields(TrainingArguments)}
    # Some were removed in version 5, which older code still gives.
    assert len(NO_EFFECT_HERE & known) > 25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: split_training_arguments({"optim": "adafactor"}),
            "argument_kwargs has optim='adafactor', but this loop trains with AdamW: leave it out.",
        ),
        (
            lambda: split_training_arguments({"report_to": "all"}),
            "argument_kwargs has report_to='all': choose from none, wandb, tensorboard, mlflow.",
        ),
        (
            lambda: checked_model_arguments({"cache_dir": "x"}),
            "model_kwargs has 'cache_dir', which is not an argument here: set the environment variable HF_HUB_CACHE.",
        ),
        (
            lambda: checked_model_arguments({"device_map": {"layer.0": 0, "layer.1": 1}}),
            "model_kwargs has device_map={'layer.0': 0, 'layer.1': 1}, but a model is on one device: give "
            "device='cuda:0', say, or leave it out.",
        ),
        (
            lambda: checked_lora_arguments({"use_rslora": True, "r": 16, "lora_alpha": 8}, 32, 32),
            "lora_config_kwargs has use_rslora=True, which scales by lora_alpha / sqrt(r) instead of lora_alpha / r: "
            "for the same scale leave it out and give lora_alpha=32.",
        ),
        (
            lambda: checked_lora_arguments({"modules_to_save": ["embeddings"]}, 32, 32),
            "lora_config_kwargs has modules_to_save, but beside adapters nothing is trained here: leave it out, or "
            "train all weights with apply_lora=False.",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value) == message
    assert checked_model_arguments({"device_map": "auto", "low_cpu_mem_usage": True}) == {}
    assert checked_lora_arguments({"task_type": "x", "r": 4}, 32, 32) == {"r": 4}


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"trainer_kwargs": {"callbacks": []}}, ConfigError, "trainer_kwargs has callbacks, which this loop does not "),
        ({"callbacks": []}, TypeError, "AnglE.fit takes no callbacks, which this loop does not have: metrics are in "),
        (
            {"loss_kwargs": {"angle_pooling_strategy": "mean"}},
            ConfigError,
            "loss_kwargs has angle_pooling_strategy='mean': here similarities are summed. For a mean, divide angle_tau",
        ),
    ],
)
def test_fit_refuses_what_its_loop_lacks(
    angle: AnglE, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        angle.fit([], **options)
    assert str(error.value).startswith(message)


def test_adam_s_numbers_and_the_schedule_reach_the_optimiser(tmp_path: Path) -> None:
    AnglE("tiny", load_mlm_model=True, kbit_kwargs={"use_gradient_checkpointing": False}).fit(
        sample_rows("C", "train", 8), output_dir=str(tmp_path / "run"), batch_size=4, warmup_steps=0,
        argument_kwargs={"max_steps": 1, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "lr_scheduler_type": "inverse_sqrt"},
        loss_kwargs={"angle_pooling_strategy": "sum"},
    )  # fmt: skip
    train = load_config(tmp_path / "run" / "config.yaml").train
    assert (train.adam_beta2, train.adam_epsilon, train.scheduler) == (0.95, 1e-6, "inverse_sqrt")
    (group,) = make_optimizer(torch.nn.Linear(2, 2, bias=False), train).param_groups
    assert (group["betas"], group["eps"]) == ((0.9, 0.95), 1e-6)
    with pytest.raises(ConfigError, match=r"train\.adam_beta1=1 cannot work: it must be below 1, such as 0\.9\."):
        TrainingConfig(adam_beta1=1.0)


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_inverse_square_root_is_that_of_transformers(warmup: int) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler("inverse_sqrt", optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(20):
        assert lr_factor(step, 20, warmup, "inverse_sqrt") == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_score_is_one_number_and_unpacks_into_two(angle: AnglE) -> None:
    pairs = sample_rows("A", "test", 30)
    score = angle.evaluate(pairs)
    correlation, accuracy = score
    assert isinstance(score, float)
    assert score > -1
    assert f"{score:.2f}" == f"{correlation:.2f}"
    assert float(np.mean([score, score])) == pytest.approx(correlation)
    metrics = angle.metrics(pairs)
    assert (correlation, accuracy) == (metrics["spearman_cosine"], metrics["accuracy"])
    assert angle.evaluate(pairs, metric="pearson_dot") == metrics["pearson_dot"]
    written = [row | {name: f"fox: {row[name]}" for name in ("text1", "text2")} for row in pairs]
    assert angle.evaluate(pairs, prompt="fox: {text}") == angle.evaluate(written) != score


def test_the_evaluator_of_pairs_and_the_cosine(angle: AnglE) -> None:
    pairs = sample_rows("A", "test", 30)
    columns = {name: [row[name] for row in pairs] for name in ("text1", "text2", "label")}
    evaluator = CorrelationEvaluator(columns["text1"], columns["text2"], columns["label"])
    scores = evaluator(angle, show_progress=False)
    assert list(scores) == evaluator.list_all_metrics()
    expected = angle.metrics(pairs)
    assert scores == pytest.approx({name: expected[name] for name in scores}, abs=1e-6)
    with pytest.raises(DataError, match="text1, text2 and labels have 30, 30 and 1 entries"):
        CorrelationEvaluator(columns["text1"], columns["text2"], [1.0])
    assert cosine_similarity([1, 2], [2, 4]) == pytest.approx(1)
    assert cosine_similarity(np.array([1.0, 0]), [0, 3]) == 0
    assert np.isnan(cosine_similarity([0, 0], [1, 1]))


def test_a_template_can_be_set_for_all_calls() -> None:
    angle = AnglE("tiny")
    plain = angle.encode(["a cat", "red"], padding="max_length")
    assert angle.set_prompt("fox: {text}") is angle
    np.testing.assert_array_equal(angle.encode(["a cat"]), angle.encode(["fox: a cat"], prompt=""))
    np.testing.assert_array_equal(angle.encode([{"text": "a cat"}]), angle.encode(["a cat"]))
    angle.set_prompt(None)
    np.testing.assert_array_equal(angle.encode(["a cat", "red"]), plain)
