"""Recipes (experiment=): each composes to the settings that its source names, and says what a user must know."""

from __future__ import annotations

import re

import pytest
from composition import CONF, composed
from conftest import REPO

from angle.config import DataConfig, TrainSourceConfig
from angle.config.keys import flatten

#: Of each recipe, what makes it that recipe: a published command's values, where it follows one.
RECIPES: dict[str, dict[str, object]] = {
    "nli_a_bert": {
        "data_format.name": "A", "pooling.strategy": "cls", "model.max_length": 128, "train.epochs": 10,
        "loss.cosine_w": 0, "loss.ibn_w": 30, "loss.angle_w": 1, "loss.angle_tau": 20, "train.learning_rate": 5e-5,
        "train.warmup_steps": 50, "train.batch_size": 128, "train.gradient_accumulation_steps": 16, "train.seed": 42,
        "train.dropout": "own",
    },
    "nli_a_llama7b": {
        "data_format.name": "A", "pooling.strategy": "last", "model.max_length": 45, "model.load_kbit": 4,
        "model.prompt": 'Summarize sentence "{text}" in one word:"', "loss.cosine_w": 1, "loss.ibn_w": 35,
        "loss.angle_w": 1, "loss.cosine_tau": 20, "loss.ibn_tau": 20, "loss.angle_tau": 1, "lora.r": 32,
        "lora.alpha": 32, "lora.dropout": 0.1, "lora.target_modules": ["q_proj", "v_proj"], "train.epochs": 1,
        "train.learning_rate": 2e-4, "train.batch_size": 160, "train.gradient_accumulation_steps": 4,
    },
    "nli_a_minilm": {"data_format.name": "A", "loss.cosine_w": 1, "loss.ibn_w": 20, "loss.angle_w": 1},
    "nli_bert": {
        "data_format.name": "B", "pooling.strategy": "cls", "loss.cosine_w": 0, "loss.ibn_w": 20,
        "train.dropout": "own",
    },
    "nli_bert_large": {
        "model.name_or_path": "google-bert/bert-large-uncased", "pooling.strategy": "cls", "train.learning_rate": 2e-5,
        "train.batch_size": 128,
    },
    "nli_espresso_uae_large": {
        "data_format.name": "B", "pooling.strategy": "cls", "model.max_length": 75, "ese.enabled": True,
        "ese.compression_size": 128, "ese.kl_temperature": 1, "loss.cosine_w": 0, "loss.ibn_w": 10, "loss.angle_w": 1,
        "loss.angle_tau": 20, "train.learning_rate": 1e-6, "train.batch_size": 128, "train.epochs": 1,
        "train.gradient_accumulation_steps": 4, "train.warmup_steps": 200, "train.dropout": "own",
    },
    "nli_llama7b": {
        "data_format.name": "B", "pooling.strategy": "avg", "model.max_length": 60, "model.load_kbit": 4,
        "billm.start_index": 0, "lora.r": 64, "lora.alpha": 128, "lora.dropout": 0.1, "lora.target_modules": None,
        "loss.cosine_w": 0, "loss.ibn_w": 20, "loss.angle_w": 1, "train.learning_rate": 2e-4, "train.epochs": 2,
        "train.batch_size": 120, "train.gradient_accumulation_steps": 32, "train.warmup_steps": 50,
    },
    "nli_minilm": {"data_format.name": "B", "loss.cosine_w": 0, "loss.ibn_w": 20, "loss.angle_w": 1},
    "nli_self_minilm": {"teacher.name_or_path": "self", "teacher.weight": 1, "train.learning_rate": 2e-5},
    "nli_smollm2": {"billm.start_index": 15, "lora.r": 16, "train.learning_rate": 5e-4},
    "pubmed_biomedbert": {
        "data.train.subset": "all_pubmed_en_v1", "pooling.strategy": "cls", "model.max_length": 75,
        "train.learning_rate": 1e-6, "train.batch_size": 64, "train.gradient_accumulation_steps": 3, "train.epochs": 1,
        "train.warmup_steps": 50, "train.dropout": "own",
    },
    "pubmed_uae_large": {
        "model.name_or_path": "WhereIsAI/UAE-Large-V1", "data.train.subset": "all_pubmed_en_v1",
        "train.batch_size": 32, "train.learning_rate": 1e-6, "train.gradient_accumulation_steps": 3,
    },
    "stsb_angle_bert": {
        "data_format.name": "A", "pooling.strategy": "cls", "model.max_length": 128, "loss.cosine_w": 1,
        "loss.ibn_w": 1, "loss.angle_w": 1, "train.epochs": 5, "train.batch_size": 32, "train.learning_rate": 2e-5,
        "train.warmup_steps": 0, "train.gradient_accumulation_steps": 1, "train.dropout": "own",
    },
    "stsb_espresso_minilm": {"ese.enabled": True, "loss.ibn_w": 0, "train.learning_rate": 5e-5},
    "stsb_minilm": {
        "loss.cosine_w": 1, "loss.ibn_w": 0, "loss.angle_w": 0, "loss.cosine_tau": 5, "train.learning_rate": 5e-5,
    },
}  # fmt: skip


def test_recipes_are_these():
    assert sorted(file.stem for file in (CONF / "experiment").glob("*.yaml") if file.stem != "none") == sorted(RECIPES)
    assert len(RECIPES) == 15


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_composes_to_what_its_source_says(name: str) -> None:
    settings = flatten(composed(f"experiment={name}"))
    assert {key: settings[key] for key in RECIPES[name]} == RECIPES[name]


@pytest.mark.parametrize("name", ["nli_self_minilm", "nli_llama7b", "pubmed_uae_large"])
def test_a_recipe_trains_another_model_on_another_file(name: str) -> None:
    config = composed(f"experiment={name}", "data=files", "data.train.name_or_path=mine.jsonl", "model=tiny")
    assert config.model.name_or_path == "tiny"
    assert config.data == DataConfig(train=TrainSourceConfig("mine.jsonl"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_needs(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    header = re.sub(r"\n# yaml-language-server: \S+", "", text[: text.index("\ndefaults:")])
    header = re.sub(r"\n# *", " ", header)
    assert re.fullmatch(
        rf"# @package _global_ [^:]+(: .+)?\. python train\.py experiment={name} .*Needs: .+\. Published figure: .+\.",
        header,
    )
    page = (REPO / "docs" / "recipes.md").read_text()
    assert f"python train.py experiment={name}\n" in page or f"python train.py experiment={name} " in page
    figures = re.findall(r"\b\d\d\.\d\d\b", header.partition("Published figure")[2])
    assert [figure for figure in figures if figure not in page] == []
