"""The loop: exact resume, seeds, precision, evaluation, and what stops it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import repeatable_metrics, sample_rows, snapshot, write_jsonl
from safetensors.torch import load_file, save_file
from small_runs import sources_of_sample

from angle import ConfigError, DataError, Encoder, ModelConfig, TrainConfig, TrainingError, build_config, fit
from angle.config import LoraConfig, SourceConfig
from angle.data import sample
from angle.files import checksum
from angle.modeling.tiny import tiny_tokenizer
from angle.objective.combined import CombinedLoss
from angle.structures import FORMATS, BatchStructure
from angle.tracking.tracker import Tracker
from angle.training import loop
from angle.training.checkpoint import Progress
from angle.training.meter import MAX_OVERFLOWS, Meter
from angle.training.run_folder import RunFolder
from angle.training.schedule import lr_factor, number_of_steps
from angle.training.summary import summary
from benchmarks.small_models import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with dropout, so that the random state matters."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(sample.vocabulary()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of format C whose positives are lists to draw from."""
    table = sample_rows("C", "train", 70)
    rows = (
        row | {"positive": [row["positive"], before["positive"]]}
        for row, before in zip(table, [table[-1], *table], strict=False)
    )
    return write_jsonl(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", sample_rows("A", "validation", 40))


def settings(model: Path, rows: Path, folder: Path, **train: Any) -> TrainConfig:
    defaults = {"batch_size": 8, "epochs": 2, "gradient_accumulation_steps": 2, "logging_steps": 1, "save_steps": 2}
    return build_config(
        {
            "model": {"name_or_path": str(model)},
            "data": {"train": {"name_or_path": str(rows)}},
            "train": defaults | {"learning_rate": 1e-3, "output_dir": str(folder), "dropout": "own"} | train,
        },
        TrainConfig,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return repeatable_metrics((folder / "metrics.jsonl").read_text())


def assert_equal_weights(run: Path, expected_run: Path) -> None:
    final, expected = weights(run), weights(expected_run)
    assert final.keys() == expected.keys()
    assert all(torch.equal(final[name], expected[name]) for name in expected)


class KilledError(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes the loop die after so many steps from its start."""
    advance = Tracker.advance

    def arm(steps: int) -> None:
        done = 0

        def advance_or_die(self: Tracker) -> None:
            nonlocal done
            done += 1
            if done == steps:
                monkeypatch.setattr(Tracker, "advance", advance)
                raise KilledError
            advance(self)

        monkeypatch.setattr(Tracker, "advance", advance_or_die)

    return arm


def assert_resumes_bitwise(
    run: Callable[[Path], TrainConfig], tmp_path: Path, stop_after: Callable[[int], None], step: int = 5
) -> None:
    """Check that a run which dies at a step goes on as one in another folder that does not."""
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    fit(run(uninterrupted))
    stop_after(step)
    with pytest.raises(KilledError):
        fit(run(interrupted))
    fit(run(interrupted))
    assert_equal_weights(uninterrupted, interrupted)
    assert metrics(uninterrupted) == metrics(interrupted)


@pytest.mark.parametrize("killed_at", [1, 2, 5, 8])  # before the first checkpoint, on one, between two, in epoch 2
def test_resumed_run_is_bitwise_the_uninterrupted_one(
    model: Path, rows: Path, tmp_path: Path, stop_after: Callable[[int], None], killed_at: int
) -> None:
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    fit(settings(model, rows, uninterrupted))
    stop_after(killed_at)
    with pytest.raises(KilledError):
        fit(settings(model, rows, interrupted))
    assert not (interrupted / "final").exists()

    fit(settings(model, rows, interrupted))

    assert_equal_weights(uninterrupted, interrupted)
    assert metrics(uninterrupted) == metrics(interrupted)


@pytest.mark.parametrize("negatives", ["draw", "all"])
def test_lists_of_negatives_resume_bitwise(
    model: Path, tmp_path: Path, stop_after: Callable[[int], None], negatives: str
) -> None:
    table = sample_rows("B", "train", 48)
    lists = (row | {"negative": [row["negative"], table[number // 2]["negative"]]} for number, row in enumerate(table))
    rows = write_jsonl(tmp_path / "rows.jsonl", lists)

    def run(folder: Path) -> TrainConfig:
        config = settings(model, rows, folder)
        config.data.negatives = negatives
        return config

    assert_resumes_bitwise(run, tmp_path, stop_after)


@pytest.mark.parametrize("mix", ["by_source", "together"])
def test_a_mixture_resumes_bitwise(model: Path, tmp_path: Path, stop_after: Callable[[int], None], mix: str) -> None:
    formats = ["B+", "C"] if mix == "together" else ["A", "B+", "C"]
    data = {"train": sources_of_sample(tmp_path, formats, 24), "mix": mix, "sampling": "round_robin"}

    def run(folder: Path) -> TrainConfig:
        train = asdict(settings(model, tmp_path / "none", folder).train)
        return build_config({"model": {"name_or_path": str(model)}, "data": data, "train": train}, TrainConfig)

    assert_resumes_bitwise(run, tmp_path, stop_after)


@pytest.mark.slow
def test_statistics_of_forward_passes_resume_bitwise(
    rows: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    """I-BERT tracks the range of its activations while it is trained, in buffers."""
    build("ibert", tmp_path / "ibert")
    fit(settings(tmp_path / "ibert", rows, tmp_path / "uninterrupted"))
    stop_after(5)
    with pytest.raises(KilledError):
        fit(settings(tmp_path / "ibert", rows, tmp_path / "interrupted"))
    fit(settings(tmp_path / "ibert", rows, tmp_path / "interrupted"))
    assert_equal_weights(tmp_path / "uninterrupted", tmp_path / "interrupted")
    before, after = load_file(tmp_path / "ibert" / "model.safetensors"), weights(tmp_path / "interrupted")
    assert not torch.equal(after["embeddings.embeddings_act1.x_max"], before["embeddings.embeddings_act1.x_max"])


def test_streamed_run_resumes_bitwise(
    model: Path, rows: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    def streamed(folder: Path) -> TrainConfig:
        config = settings(model, rows, folder, max_steps=9)
        config.data.streaming, config.data.stream_window = True, 32
        return config

    assert_resumes_bitwise(streamed, tmp_path, stop_after, step=7)


def test_resume_setting_takes_the_runs_own_settings(
    model: Path, rows: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    fit(settings(model, rows, uninterrupted))
    stop_after(4)
    with pytest.raises(KilledError):
        fit(settings(model, rows, interrupted))

    fit(build_config({"train": {"resume": str(interrupted)}}, TrainConfig))

    assert_equal_weights(uninterrupted, interrupted)


def test_finished_run_is_only_reported(model: Path, rows: Path, tmp_path: Path) -> None:
    config = settings(model, rows, tmp_path / "run", max_steps=2)
    fit(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    result = fit(config)
    assert result.already_finished
    assert "holds this run already, finished." in summary(result)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_seed_decides_the_run(model: Path, rows: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(settings(model, rows, tmp_path / name, seed=seed, max_steps=3))
    assert_equal_weights(tmp_path / "a", tmp_path / "b")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


def test_logging_and_evaluation_change_nothing(model: Path, rows: Path, pairs: Path, tmp_path: Path) -> None:
    plain = settings(model, rows, tmp_path / "plain")
    watched = settings(model, rows, tmp_path / "watched", logging_steps=7, eval_steps=3, save_steps=0)
    watched.data.valid_sts.name_or_path = str(pairs)
    fit(plain)
    fit(watched)
    assert_equal_weights(tmp_path / "plain", tmp_path / "watched")


def test_bf16_follows_float32(model: Path, rows: Path, tmp_path: Path) -> None:
    for precision in ("no", "bf16"):
        fit(settings(model, rows, tmp_path / precision, mixed_precision=precision))
    float32, bf16 = (metrics(tmp_path / name) for name in ("no", "bf16"))
    assert float32 != bf16
    for expected, line in zip(float32, bf16, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=0.05)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "bf16").values())


def test_best_model_is_kept_even_when_every_score_is_negative(
    model: Path, rows: Path, pairs: Path, tmp_path: Path
) -> None:
    reversed_pairs = tmp_path / "reversed.jsonl"
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    reversed_pairs.write_text("\n".join(json.dumps(line | {"label": -line["label"]}) for line in lines))
    config = settings(model, rows, tmp_path / "run", eval_steps=2)
    config.data.valid_sts.name_or_path = str(reversed_pairs)
    config.data.test.name_or_path = str(reversed_pairs)

    result = fit(config)

    scores = {line["step"]: line["valid/spearman"] for line in metrics(tmp_path / "run") if "valid/spearman" in line}
    assert list(scores) == [0, 2, 4, 6, 8, 10]
    assert result.valid_before["spearman"] == scores.pop(0)
    assert max(scores.values()) < 0
    assert result.best_score == max(scores.values())
    assert scores[result.best_step or 0] == result.best_score
    # The test set is the validation set here, so the model in best/ must score what chose it.
    assert result.best_step != 10
    assert result.test_after == result.best_score


def test_measuring_at_the_start_changes_nothing_else(model: Path, rows: Path, pairs: Path, tmp_path: Path) -> None:
    measured, unmeasured = (
        settings(model, rows, tmp_path / str(start), eval_steps=2, eval_on_start=start) for start in (True, False)
    )
    for config in (measured, unmeasured):
        config.data.valid_sts.name_or_path = config.data.test.name_or_path = str(pairs)

    expected, result = fit(measured), fit(unmeasured)

    assert expected.valid_before
    assert expected.test_before is not None
    assert (result.valid_before, result.test_before) == ({}, None)
    same = {"folder": tmp_path, "valid_before": {}, "test_before": None}
    assert replace(result, **same) == replace(expected, **same)
    assert result.test_word_overlap is not None
    logged = {folder: metrics(tmp_path / folder) for folder in ("True", "False")}
    assert logged["False"] == [line for line in logged["True"] if line["step"] > 0]
    assert "before training" not in summary(result)
    assert "before training" in summary(expected)


@pytest.mark.parametrize("lora", [False, True])
def test_best_weights_are_tested_without_a_second_model(
    model: Path, rows: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    """And what is trained is saved before the best model is measured: killed then, the run resumes to the same end."""

    def chosen_early(folder: Path) -> TrainConfig:
        """A run whose first evaluation is the best: its loss grows from there."""
        config = settings(model, rows, folder, eval_steps=2, learning_rate=0.1, warmup_steps=0, best_metric="loss")
        config.lora = LoraConfig(enabled=True, r=4, alpha=8) if lora else LoraConfig()
        config.data.valid.name_or_path = config.data.test.name_or_path = str(pairs)
        return config

    load, loaded = Encoder.load, []

    def load_and_count(*args: Any, **kwargs: Any) -> Encoder:
        loaded.append(args)
        return load(*args, **kwargs)

    monkeypatch.setattr(Encoder, "load", load_and_count)
    result = fit(chosen_early(tmp_path / "uninterrupted"))
    assert len(loaded) == 1
    assert result.best_step not in (None, 10)
    spearman = {
        line["step"]: line["valid/spearman"] for line in metrics(tmp_path / "uninterrupted") if "valid/loss" in line
    }
    assert result.test_after == spearman[result.best_step or 0] != spearman[10]

    def die(*_: object) -> None:
        assert (tmp_path / "interrupted" / "final").exists()
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("angle.training.loop.load_saved_model", die)
        with pytest.raises(KilledError):
            fit(chosen_early(tmp_path / "interrupted"))
    resumed = fit(chosen_early(tmp_path / "interrupted"))
    assert (resumed.test_after, resumed.best_step, resumed.best_score) == (
        result.test_after,
        result.best_step,
        result.best_score,
    )
    assert metrics(tmp_path / "uninterrupted") == metrics(tmp_path / "interrupted")
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    uninterrupted, interrupted = (
        load_file(tmp_path / name / "final" / file) for name in ("uninterrupted", "interrupted")
    )
    assert all(torch.equal(uninterrupted[name], interrupted[name]) for name in uninterrupted)


@pytest.mark.parametrize(
    ("data_format", "metric", "best_of"),
    [("B", "triplet_accuracy", max), ("B", "loss", min), ("C", "in_batch_accuracy", max), ("C", "loss", min)],
)
def test_a_metric_of_the_format_chooses_the_best_model(
    model: Path, rows: Path, tmp_path: Path, data_format: str, metric: str, best_of: Callable[..., float]
) -> None:
    write_jsonl(tmp_path / "valid.jsonl", sample_rows(data_format, "validation", 40))
    config = settings(model, rows, tmp_path / "run", eval_steps=2, best_metric=metric, learning_rate=0.01)
    config.data.valid.name_or_path = str(tmp_path / "valid.jsonl")

    result = fit(config)

    values = {line["step"]: line[f"valid/{metric}"] for line in metrics(tmp_path / "run") if "valid/loss" in line}
    assert list(values) == [0, 2, 4, 6, 8, 10]
    assert result.valid_before[metric] == values.pop(0)
    assert len(set(values.values())) > 1
    assert result.best_score == best_of(values.values())
    assert result.best_step == next(step for step, value in values.items() if value == result.best_score)
    assert result.score == (-result.best_score if metric == "loss" else result.best_score)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert (record["best_metric"], record["best_score"]) == (metric, result.best_score)
    label = metric.replace("_", " ").replace("in batch", "in-batch")
    score = f"{result.best_score:.3f}" if metric == "loss" else f"{100 * result.best_score:.2f}"
    assert f" {label} {score} on validation, at step {result.best_step} (" in summary(result)


def test_a_best_metric_that_is_not_measured_is_refused_before_training(
    model: Path, rows: Path, pairs: Path, tmp_path: Path
) -> None:
    config = settings(model, rows, tmp_path / "run", best_metric="triplet_accuracy")
    config.data.valid.name_or_path = str(pairs)
    with pytest.raises(ConfigError, match=r"^train.best_metric=triplet_accuracy needs .* one of: .*loss, .*spearman"):
        fit(config)
    assert not (tmp_path / "run").exists()


def test_validation_pairs_whose_labels_are_all_the_same_are_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    """Every correlation would be 0, and the first model the best."""
    write_jsonl(tmp_path / "same.jsonl", [{"text1": f"a {n}", "text2": f"b {n}", "label": 1} for n in range(4)])
    config = settings(model, rows, tmp_path / "run")
    config.data.valid.name_or_path = str(tmp_path / "same.jsonl")
    with pytest.raises(DataError) as caught:
        fit(config)
    assert str(caught.value) == "data.valid: every label is 1, so no correlation exists; give graded or mixed labels."
    assert not (tmp_path / "run").exists()


def test_validation_loss_is_reported_by_term(model: Path, rows: Path, pairs: Path, tmp_path: Path) -> None:
    config = settings(model, rows, tmp_path / "run", max_steps=2)
    config.data.valid.name_or_path = str(pairs)  # format A, while training is on format C
    config.loss.cosine_w, config.loss.ibn_w, config.loss.angle_w = 2.0, 3.0, 1.0
    fit(config)
    line = next(line for line in metrics(tmp_path / "run") if "valid/loss" in line)
    terms = {name: line[f"valid/loss/{name}"] for name in ("cosine", "ibn", "angle")}
    assert line["valid/loss"] == pytest.approx(2 * terms["cosine"] + 3 * terms["ibn"] + terms["angle"], rel=1e-5)
    assert "valid/spearman" in line


def test_validation_loss_is_the_mean_of_evenly_sized_batches(
    model: Path, rows: Path, pairs: Path, tmp_path: Path
) -> None:
    """Nine rows in batches of eight at most: of five and of four, not of eight and of one, which has no loss."""
    lines = [json.loads(line) for line in pairs.read_text().splitlines()[:9]]
    pairs.write_text("\n".join(map(json.dumps, lines)))
    config = settings(model, rows, tmp_path / "run", max_steps=1)
    config.data.valid.name_or_path = str(pairs)
    config.loss.cosine_w, config.loss.ibn_w, config.loss.angle_w = 2.0, 3.0, 1.0
    fit(config)
    encoder = Encoder.load(ModelConfig(str(tmp_path / "run" / "final"))).eval()
    loss_of, losses = CombinedLoss(config.loss, FORMATS["A"], encoder.dimensions), []
    for part in (lines[:5], lines[5:]):
        texts = [line[role] for line in part for role in ("text1", "text2")]
        ids = torch.tensor([texts.index(text) for text in texts]).view(-1, 2)
        labels = torch.tensor([float(line["label"]) for line in part])
        losses.append(loss_of(encoder.encode(texts), BatchStructure(FORMATS["A"], ids, ids, labels)).total)
    line = next(line for line in metrics(tmp_path / "run") if "valid/loss" in line)
    assert line["valid/loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-5)


@pytest.mark.parametrize("start", ["fresh", "further", "above"])
def test_lora_trains_adapters_alone_and_resumes_bitwise(
    start: str, model: Path, rows: Path, pairs: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    lora = LoraConfig(enabled=True, r=4, alpha=8)
    if start != "fresh":
        earlier = settings(model, rows, tmp_path / "earlier", max_steps=2)
        earlier.lora = lora
        fit(earlier)

    def adapted(folder: Path) -> TrainConfig:
        config = settings(model, rows, folder, eval_steps=2)
        config.lora = LoraConfig() if start == "further" else lora
        config.model.adapter = None if start == "fresh" else str(tmp_path / "earlier")
        config.data.valid_sts.name_or_path = config.data.test.name_or_path = str(pairs)
        return config

    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    result = fit(adapted(uninterrupted))
    stop_after(5)
    with pytest.raises(KilledError):
        fit(adapted(interrupted))
    fit(adapted(interrupted))

    names = {path.name for path in (uninterrupted / "final").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    expected, resumed = (
        load_file(folder / "final" / "adapter_model.safetensors") for folder in (uninterrupted, interrupted)
    )
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert any(value.abs().max() > 0 for name, value in expected.items() if "lora_B" in name)
    # The best model's adapters are loaded from its folder for the test.
    assert result.test_after == result.best_score


@pytest.mark.parametrize("streaming", [False, True])
def test_resume_refuses_changed_data(
    model: Path, rows: Path, tmp_path: Path, stop_after: Callable[[int], None], streaming: bool
) -> None:
    config = settings(model, rows, tmp_path / "run", max_steps=9)
    config.data.streaming = streaming
    stop_after(3)
    with pytest.raises(KilledError):
        fit(config)
    rows.write_text(rows.read_text().replace("the", "one", 1))
    with pytest.raises(DataError, match=r"The data has changed since the run in .* was started"):
        fit(config)


@pytest.mark.parametrize(
    ("save_steps", "problem"),
    [
        (2, r"The loss of step 4 is (nan|inf) \(ibn (nan|inf)\); rows: .* line \d"),  # known before the next save
        (1, r"The weights of \S+ are not finite after step 3, so they are not saved\. "),
    ],
)
def test_weights_that_a_step_makes_nan_stop_the_run_before_they_are_saved(
    save_steps: int, problem: str, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, steps = loop.clip_gradients, 0

    def spoil_third(parameters: Any, max_norm: float, accelerator: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        parameters = list(parameters)
        if steps == 3:
            next(parameter for parameter in parameters if parameter.grad is not None).data.fill_(math.nan)
        return clip(parameters, max_norm, accelerator)

    monkeypatch.setattr(loop, "clip_gradients", spoil_third)
    with pytest.raises(TrainingError) as caught:
        fit(settings(model, rows, tmp_path / "run", save_steps=save_steps, logging_steps=9))
    message = str(caught.value)
    assert re.match(problem, message), message
    assert " The last good checkpoint is " in message
    assert "run/checkpoints/step-00000002. " in message
    assert "tart a new run with a lower train.learning_rate" in message
    assert not (tmp_path / "run" / "final").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_weights_are_saved(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, steps = loop.clip_gradients, 0

    def break_third(parameters: Any, max_norm: float, accelerator: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        parameters = list(parameters)
        if steps == 3:
            next(parameter.grad for parameter in parameters if parameter.grad is not None).fill_(math.inf)
        return clip(parameters, max_norm, accelerator)

    monkeypatch.setattr(loop, "clip_gradients", break_third)
    with pytest.raises(TrainingError) as caught:
        fit(settings(model, rows, tmp_path / "run", save_steps=1, logging_steps=9))
    message = str(caught.value)
    assert message.startswith("The gradient of step 3 is inf, though its loss is finite; rows: ")
    assert "run/checkpoints/step-00000002. " in message
    assert sorted(path.name[-1] for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["1", "2"]


def test_steps_that_overflow_in_fp16_are_counted_and_too_many_in_a_row_stop_the_run() -> None:
    data, progress = SimpleNamespace(describe=lambda step: f"rows of step {step}"), Progress(step=4)
    meter = Meter(None, data, None, progress, lambda: "There is no checkpoint before it.")  # type: ignore[arg-type]
    for _ in range(3):
        for _ in range(MAX_OVERFLOWS - 1):
            meter.add_step(torch.tensor(math.inf), overflowed=True)
        meter.add_step(torch.tensor(1.0), overflowed=False)
    assert progress.overflows == 3 * (MAX_OVERFLOWS - 1)
    for _ in range(MAX_OVERFLOWS - 1):
        meter.add_step(torch.tensor(math.inf), overflowed=True)
    with pytest.raises(TrainingError, match=r"up to step 5, .* \(rows of the last: rows of step 4\)\. There is no"):
        meter.add_step(torch.tensor(math.inf), overflowed=True)


def test_a_model_whose_embeddings_are_not_finite_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    save_file(weights | {"embeddings.LayerNorm.weight": torch.full((32,), 3e38)}, broken / "model.safetensors")
    with pytest.raises(ConfigError, match=r"BertModel gives states that are not finite"):
        fit(settings(broken, rows, tmp_path / "run"))


def test_checkpoints_are_limited(model: Path, rows: Path, tmp_path: Path) -> None:
    fit(settings(model, rows, tmp_path / "run", save_total_limit=2))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000010"]


def test_a_run_of_less_than_an_epoch_keeps_checkpoints(model: Path, rows: Path, tmp_path: Path) -> None:
    fit(settings(model, rows, tmp_path / "run", max_steps=4, save_steps=None, save_total_limit=9))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-0000000{step}" for step in (1, 2, 3, 4)]
    fit(settings(model, rows, tmp_path / "none", max_steps=2, save_steps=0))
    assert not (tmp_path / "none" / "checkpoints").exists()


def test_resume_keeps_the_precision(model: Path, rows: Path, tmp_path: Path, stop_after: Callable[[int], None]) -> None:
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    fit(settings(model, rows, uninterrupted, mixed_precision="bf16"))
    stop_after(4)
    with pytest.raises(KilledError):
        fit(settings(model, rows, interrupted, mixed_precision="bf16"))
    fit(build_config({"train": {"resume": str(interrupted)}}, TrainConfig))
    assert_equal_weights(uninterrupted, interrupted)


def test_a_run_of_a_version_that_decided_less_is_not_resumed(
    model: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    """It had no such settings, and would go on with another loss than it began with."""
    triples = write_jsonl(tmp_path / "triples.jsonl", sample_rows("B", "train", 64))
    config = settings(model, triples, tmp_path / "run", dropout=None)
    stop_after(3)
    with pytest.raises(KilledError):
        fit(config)
    folder = RunFolder(tmp_path / "run")
    text = (folder.path / "config.yaml").read_text()
    assert text.count("reverse_w: 10.0\n") == text.count("dropout: '0'\n") == 1
    earlier = re.sub(r" *(reverse_w: 10.0|dropout: '0')\n", "", text)
    (folder.path / "config.yaml").write_text(earlier)
    folder.update(config_checksum=checksum(folder.path / "config.yaml"))
    before = snapshot(folder.path)
    for resumed in (config, build_config({"train": {"resume": str(folder.path)}}, TrainConfig)):
        with pytest.raises(ConfigError) as error:
            fit(resumed)
        assert str(error.value) == (
            f"{folder.path} holds a run that another version of angle-hydra started, which had not decided "
            f"loss.reverse_w: null -> 10.0; train.dropout: null -> 0: start a new one with another "
            f"train.output_dir, or go on with that version. Its models can be used all the same."
        )
        assert snapshot(folder.path) == before


def test_resume_refuses_another_number_of_processes(
    model: Path, rows: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    config = settings(model, rows, tmp_path / "run")
    stop_after(3)
    with pytest.raises(KilledError):
        fit(config)
    folder = RunFolder(tmp_path / "run")
    folder.update(hardware=folder.record()["hardware"] | {"processes": 4})
    words = "accelerate launch --multi_gpu --num_processes 4 train.py"
    with pytest.raises(ConfigError, match=rf"started with 4 processes .* with 1: go on with {words}"):
        fit(config)


def test_training_low_precision_weights_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    config = settings(model, rows, tmp_path / "run")
    config.model.dtype = "bfloat16"
    with pytest.raises(ConfigError, match=r"^Trainable weights are bfloat16, .* lost to rounding: add lora=r16"):
        fit(config)
    assert not (tmp_path / "run").exists()
    config.lora = LoraConfig(enabled=True, r=4, alpha=8)
    fit(config)
    saved = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}


@pytest.mark.parametrize("base", ["tiny", "model"])
def test_adapter_run_finds_its_base_from_any_working_directory(
    base: str, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    config = settings(model, rows, tmp_path / "run", max_steps=2)
    config.model.name_or_path = base if base == "tiny" else model.name  # a path relative to the folder we are in
    config.lora = LoraConfig(enabled=True, r=4, alpha=8)
    fit(config)
    here = Encoder.load(ModelConfig(str(tmp_path / "run"))).encode(["the cat"])
    monkeypatch.chdir(tmp_path)
    assert torch.equal(Encoder.load(ModelConfig(str(tmp_path / "run"))).encode(["the cat"]), here)


def test_weight_decay_spares_biases_and_norms(model: Path, rows: Path, tmp_path: Path) -> None:
    before = load_file(model / "model.safetensors")
    # Without a gradient (learning from a constant loss), only the decay moves a weight.
    config = settings(
        model, rows, tmp_path / "run", weight_decay=0.5, max_steps=1, warmup_steps=0, scheduler="constant"
    )
    config.loss.ibn_tau = 1e-12
    fit(config)
    after = weights(tmp_path / "run")
    matrix, norm = "encoder.layer.0.output.dense.weight", "encoder.layer.0.output.LayerNorm.weight"
    assert after[matrix].norm() < before[matrix].norm()
    assert (after[norm] - before[norm]).abs().max() < 2e-3  # one Adam step at 1e-3


@pytest.mark.parametrize(("setting", "total", "expected"), [(0.1, 95, 10), (0.0, 95, 0), (1, 95, 1), (30, 95, 30)])
def test_warmup_is_steps_or_a_fraction(setting: float, total: int, expected: int) -> None:
    assert number_of_steps(setting, total) == expected


def test_schedules() -> None:
    linear = [lr_factor(step, 6, 2, "linear") for step in range(7)]
    assert linear == [0, 0.5, 1, 0.75, 0.5, 0.25, 0]
    assert [lr_factor(step, 6, 2, "constant") for step in range(7)] == [0, 0.5, 1, 1, 1, 1, 1]
    assert lr_factor(4, 6, 2, "cosine") == pytest.approx(0.5)
    assert lr_factor(3, 6, 2, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("purpose", ["valid", "valid_sts", "test"])
def test_evaluating_on_a_copy_of_the_training_rows_is_refused(
    model: Path, pairs: Path, tmp_path: Path, purpose: str
) -> None:
    shutil.copy(pairs, tmp_path / "copy.jsonl")
    config = settings(model, pairs, tmp_path / "run")
    setattr(config.data, purpose, SourceConfig(str(tmp_path / "copy.jsonl")))
    with pytest.raises(DataError, match=f"^data.{purpose} has the rows that are trained on"):
        fit(config)
    assert not (tmp_path / "run").exists()


def test_prompts_by_role_are_trained_saved_and_refused_where_no_row_has_them(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    """The rows have format C."""

    def with_prompts(folder: str, prompts: dict[str, str]) -> TrainConfig:
        config = settings(model, rows, tmp_path / folder, max_steps=2)
        return replace(config, model=replace(config.model, prompts=prompts))

    prompts = {"query": "fox: ", "document": "owl: "}
    fit(with_prompts("run", prompts))
    trained = Encoder.load(str(tmp_path / "run"))
    assert trained.embedding_config.prompts == prompts
    assert trained.embedding_config.prompt is None
    with pytest.raises(ConfigError, match=r"model\.prompts: \{.*owl.*\} -> \{.*\}"):
        fit(with_prompts("run", prompts | {"document": "red: "}))
    with pytest.raises(ConfigError) as error:
        fit(with_prompts("other", {"text1": "fox"}))
    assert str(error.value) == (
        "model.prompts has text1, but the training rows are of format C, whose texts are text and positive: leave it "
        "out, or write model.prompt, which stands for all texts that have no template of their own."
    )
