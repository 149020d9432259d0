"""Runs with a guide: another model, with another tokenizer, whose embeddings are kept on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import decoder_tokenizer, sample_rows, write_jsonl

from angle.config import ModelConfig, TrainConfig
from angle.config.build import build_config
from angle.data.training_data import InMemoryTrainingData
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.training import guide, setup
from angle.training.accelerator import start_accelerator
from angle.training.run_folder import RunFolder


def config_of(tmp_path: Path, name: str, **loss: object) -> TrainConfig:
    rows = write_jsonl(tmp_path / "rows.jsonl", sample_rows("B", "train", 24))
    data = {"train": {"name_or_path": str(rows)}}
    return build_config({"data": data, "loss": {"guide": name, **loss}, "train": {"batch_size": 8}}, TrainConfig)


def test_a_batch_has_the_guide_s_embeddings_of_its_texts(tmp_path: Path, folder_of: Callable[[str], str]) -> None:
    """The guide reads the texts themselves, by its own tokenizer."""
    name = str(shutil.copytree(folder_of("llama"), tmp_path / "guide"))
    decoder_tokenizer(start=True).save_pretrained(name)  # the model that is trained has none
    components = setup.build(config_of(tmp_path, name), start_accelerator("no"))
    assert components.fingerprints.keys() == {"model", "guide"}
    assert isinstance(components.data.train, InMemoryTrainingData)
    rows = sample_rows("B", "train", 24)
    encoder = Encoder.load(ModelConfig(name))
    (batch,) = next(components.data.train.steps(0))
    structure = batch.structure
    assert structure.guide is not None
    for role, column in enumerate(("text", "positive")):
        wanted = torch.nn.functional.normalize(encoder.encode([rows[row][column] for row in batch.rows]), dim=1)
        torch.testing.assert_close(structure.guide[structure.embedding_index[:, role], 0], wanted, rtol=0, atol=1e-5)
    negatives = torch.nn.functional.normalize(encoder.encode([rows[row]["negative"] for row in batch.rows]), dim=1)
    torch.testing.assert_close(structure.guide[structure.negatives.embedding_index, 0], negatives, rtol=0, atol=1e-5)


def test_embeddings_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    loaded = guide.load_guide("tiny", ModelConfig(), torch.device("cpu"))
    first = loaded(["fox", "owl"], True)
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", None)
        np.testing.assert_array_equal(
            guide.load_guide("tiny", ModelConfig(), torch.device("cpu"))(["fox", "owl"], True), first
        )
    assert (loaded(["owl", "fox"], True) == first[::-1]).all()


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^loss\.guide_margin=0\.1 needs a guide: add loss\.guide=MODEL\.$"):
        build_config({"loss": {"guide_margin": 0.1}}, TrainConfig)
    stream = {"data": {"train": {"name_or_path": "a.jsonl"}, "streaming": True}, "train": {"max_steps": 1}}
    with pytest.raises(ConfigError, match=r"^loss\.guide cannot work with data\.streaming=true"):
        build_config({**stream, "loss": {"guide": "tiny"}}, TrainConfig)
    with pytest.raises(ConfigError, match=r"^loss\.guide=.*missing cannot be loaded: "):
        setup.build(config_of(tmp_path, str(tmp_path / "missing")), start_accelerator("no"))
    with pytest.raises(ConfigError, match=r"^loss\.guide=tiny has nothing to do, as no in-batch loss has a weight"):
        build_config({"loss": {"guide": "tiny", "ibn_w": 0.0}}, TrainConfig)


def test_a_guide_s_own_templates_make_two_embeddings_of_a_text(tmp_path: Path, folder_of: Callable[[str], str]) -> None:
    Encoder.load(ModelConfig(folder_of("bert"), prompts={"query": "fox "})).save(tmp_path / "guide")
    loaded = guide.load_guide(str(tmp_path / "guide"), ModelConfig(), torch.device("cpu"))
    encoder = Encoder.load(ModelConfig(folder_of("bert")))
    wanted = torch.nn.functional.normalize(encoder.encode(["fox owl", "owl"]), dim=1).numpy()
    np.testing.assert_allclose(loaded(["owl"], True)[0], wanted, atol=1e-6)
    np.testing.assert_allclose(loaded(["owl"], False)[0], wanted[1:], atol=1e-6)


def test_a_run_does_not_go_on_with_another_guide(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"data": {}, "weights": {"model": {}, "guide": {"base": "old"}}}))
    with pytest.raises(ConfigError, match=r"^The weights of loss\.guide=tiny have changed since the run in"):
        run.check_inputs(
            {}, {"model": {}, "guide": {"base": "new"}}, build_config({"loss": {"guide": "tiny"}}, TrainConfig)
        )
