"""What is said of every setting, and the files that are made from it: a page, and a schema for editors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from composition import CONF, SCHEMAS, composed
from conftest import REPO
from documented import PAGES, presets_of
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from angle.config import TrainConfig
from angle.config.build import config_text
from angle.config.json_schema import json_schema
from angle.config.keys import flatten
from angle.config.reference import GLOBAL_PRESET, groups_of, presets_of_settings, settings_of

SCHEMA = json_schema(TrainConfig)
#: Presets that set Hydra's launchers, and launch files, have no settings of ours.
PRESETS = [path for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in ("accelerate", "launcher")]
EXPERIMENTS = [path for path in PRESETS if path.parent.name == "experiment" and path.stem != "none"]
GENERATE = "it is not what the schema and the presets say: type python docs/generate.py"


def problems(settings: Any, schema: Any = SCHEMA) -> list[str]:
    """Return what an editor would underline."""
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(settings)]


def loaded(text: str) -> Any:
    """Return YAML as editors read it, with 2e-5 as a number."""
    return OmegaConf.to_container(OmegaConf.create(text))


def generated() -> Any:
    """Return docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", REPO / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_every_setting_has_a_default_and_a_sentence(schema: type) -> None:
    settings = {setting.key: setting for setting in settings_of(schema)}
    assert {key: setting.default for key, setting in settings.items()} == flatten(schema())
    for setting in settings.values():
        assert setting.meaning.endswith(".") or setting.meaning.endswith(".)"), setting.key
        assert setting.allowed


def test_groups_that_look_alike_are_one() -> None:
    groups = {group.keys: group for group in groups_of(TrainConfig)}
    sources = groups["data.valid", "data.valid_sts", "data.test"]
    assert sources.meanings[0] == "Rows of any format whose loss is reported during training."
    assert sources.settings[0].key == "data.valid.name_or_path"


def test_entries_of_a_mapping_have_settings_of_their_own() -> None:
    groups = {group.keys[0]: group for group in groups_of(TrainConfig)}
    settings = {setting.key.rpartition(".")[2] for setting in groups["data.train.sources.NAME"].settings}
    assert settings > {"name_or_path", "columns", "weight", "loss"}
    source = {"name_or_path": "a.jsonl", "weight": 2}
    assert not problems({"data": {"train": {"sources": {"a": source}}}})
    assert problems({"data": {"train": {"sources": {"a": source | {"wieght": 2}}}}})


def test_presets_are_known_by_setting() -> None:
    presets = presets_of_settings(CONF)
    assert ("lora=r64", 128) in presets["lora.alpha"]
    assert ("loss=graded", 0.0) in presets["loss.ibn_w"]
    assert ("data=stsb", {"text1": "sentence1", "text2": "sentence2", "label": "score"}) in presets["data.test.columns"]


def test_generated_files_are_fresh() -> None:
    module = generated()
    assert (REPO / "docs" / "settings.md").read_text(encoding="utf-8") == module.settings_page(), GENERATE
    assert (CONF / "schema.json").read_text(encoding="utf-8") == module.schema_text(), GENERATE


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads((CONF / "schema.json").read_text()) == json.loads(json.dumps(SCHEMA))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_presets_are_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    settings = loaded(text)
    assert problems(settings if text.startswith(GLOBAL_PRESET) else {path.parent.name: settings}) == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_editors_find_the_schema_of_experiments(path: Path) -> None:
    assert "# yaml-language-server: $schema=../schema.json" in path.read_text().splitlines(), (
        f"write this line into {path.name}, below the one that says what it is"
    )


def test_presets_of_the_documentation_are_valid() -> None:
    presets = [text for page in PAGES for text in presets_of(page).values() if text.startswith(GLOBAL_PRESET)]
    assert presets
    assert [problem for text in presets for problem in problems(loaded(text))] == []


@pytest.mark.parametrize(
    "words", [[], ["model=llama7b", "lora=r64", "pooling=last"], ["experiment=nli_smollm2"]], ids=str
)
def test_saved_settings_are_valid(words: list[str]) -> None:
    assert problems(yaml.safe_load(config_text(composed(*words)))) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: {epoch: 2}", "$.train: Additional properties are not allowed ('epoch' was unexpected)"),
        ("modell: {}", "$: Additional properties are not allowed ('modell' was unexpected)"),
        ("train: {epochs: two}", "$.train.epochs: 'two' is not of type 'integer'"),
        ("train: {epochs: 0}", "$.train.epochs: 0 is less than the minimum of 1"),
        ("train: {learning_rate: 0}", "$.train.learning_rate: 0 is less than or equal to the minimum of 0"),
        ("train: {scheduler: linea}", "$.train.scheduler: 'linea' is not one of ['linear', 'cosine', "),
        ("model: {load_kbit: 5}", "$.model.load_kbit: 5 is not one of [4, 8, None]"),
        ("model: {kernels: [packin]}", "$.model.kernels[0]: 'packin' is not one of "),
        ("data: {shuffle: maybe}", "$.data.shuffle: 'maybe' is not of type 'boolean'"),
        ("pooling: {strategy: mena}", "$.pooling.strategy: 'mena' is not valid under any of the given schemas"),
        ("lora: r16", "$.lora: 'r16' is not of type 'object'"),
    ],
)
def test_mistakes_are_found(text: str, problem: str) -> None:
    (found,) = problems(loaded(text))
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "text",
    [
        "pooling: {strategy: 3}",
        "train: {token_budget: 8192, learning_rate: 2e-5}",
        "data: {train: {name_or_path: [a, b]}}",
    ],
)
def test_what_may_be_written_in_several_ways_is_valid(text: str) -> None:
    assert problems(loaded(text)) == []
