"""Processes that train as one: what the main process decides, the others are told."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_ranks, sample_files
from safetensors.torch import load_file
from torch import distributed as dist
from torch import nn

from angle.config import ModelConfig, PoolingConfig, SourceConfig, TrainConfig
from angle.config.build import build_config
from angle.data import sample
from angle.errors import TrainingError
from angle.evaluation.evaluators.sts import load_sts, score_pairs
from angle.modeling.encoder import Encoder
from angle.training.distributed import check_finite_weights
from angle.training.loop import fit
from angle.training.run_folder import RunFolder
from benchmarks.small_models import build


def _resume_by_main_process() -> None:
    """Resume a run on each of two processes, of which only the main one can choose a checkpoint."""
    train = {"batch_size": 8, "max_steps": 2, "save_steps": 1, "logging_steps": 1, "output_dir": "run"}
    config = build_config({"data": {"train": {"name_or_path": "train.jsonl"}}, "train": train}, TrainConfig)
    run = RunFolder(fit(config).folder)
    if os.environ["RANK"] == "0":
        run.update(finished=False)
        (run.checkpoints()[0] / "model.safetensors").write_bytes(b"damaged")
    else:
        RunFolder.newest_checkpoint = None
    dist.barrier()
    assert not fit(config).already_finished


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_not_saved(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_finite_weights(model, 3, "")
    with torch.no_grad():
        model[1].bias[0] = value
    with pytest.raises(
        TrainingError, match=r"^The weights of 1\.bias are not finite after step 3, so .* saved\. Oh\. "
    ):
        check_finite_weights(model, 3, "Oh.")
    model.requires_grad_(False)
    check_finite_weights(model, 3, "")


@pytest.mark.slow
def test_the_main_process_chooses_the_checkpoint_for_all(tmp_path: Path) -> None:
    sample_files(tmp_path)
    run_ranks(_resume_by_main_process, tmp_path)
    assert "is damaged, going back to the one before" in (tmp_path / "run" / "train.log").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


def _build_quantized(folder: Path) -> None:
    """Build a small I-BERT that computes in integers, over ranges that it has seen and goes on to track."""
    build("ibert", folder / "plain")
    encoder = Encoder.load(ModelConfig(str(folder / "plain")), PoolingConfig("avg")).train()
    tokens = encoder.tokenizer(sample.columns("A", "train", 64)["text1"])
    encoder(torch.from_numpy(tokens.ids).long(), tokens.lengths)
    encoder.backbone.config.quant_mode = True
    encoder.save(folder / "model")


def _resume_a_model() -> None:
    """Train a model on each of two processes, its last step once more, and compare."""
    train = {"batch_size": 8, "max_steps": 3, "save_steps": 1, "token_budget": 64, "output_dir": "run"}
    data = {name: {"name_or_path": f"{name}.jsonl"} for name in ("train", "valid_sts")}
    config = build_config({"model": {"name_or_path": "model"}, "data": data, "train": train}, TrainConfig)
    run = RunFolder(fit(config).folder)
    expected = load_file(run.path / "final" / "model.safetensors")
    dist.barrier()
    if os.environ["RANK"] == "0":
        run.update(finished=False)
        shutil.rmtree(run.checkpoints()[0])
    dist.barrier()
    assert not fit(config).already_finished
    resumed = load_file(run.path / "final" / "model.safetensors")
    assert all(torch.equal(resumed[name], weight) for name, weight in expected.items())


@pytest.mark.slow
def test_weights_that_no_text_reaches(tmp_path: Path) -> None:
    """ESM has a head."""
    build("esm", tmp_path / "model")
    sample_files(tmp_path)
    run_ranks(_resume_a_model, tmp_path)


@pytest.mark.slow
def test_statistics_of_each_process(tmp_path: Path) -> None:
    """A checkpoint has those of the main process, from which the others go on in every step."""
    _build_quantized(tmp_path)
    sample_files(tmp_path)
    run_ranks(_resume_a_model, tmp_path)
    encoder = Encoder.load(ModelConfig(str(tmp_path / "run" / "final")), PoolingConfig()).eval()
    corpus = load_sts(SourceConfig(str(tmp_path / "valid_sts.jsonl")), "valid_sts", encoder.tokenizer)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    expected = score_pairs(encoder, corpus).metrics()
    assert last == {"step": 3} | {
        f"valid/{name}": pytest.approx(expected[f"{name}_cosine"], abs=1e-6) for name in ("spearman", "pearson")
    }
