"""angle_emb 0.6.1: its options and defaults, chosen by an option that it alone has."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from composition import CONF, composed
from conftest import REPO, sample_rows, write_jsonl
from reference_command import BASE, clear_environment

from angle import AnglE, ConfigError, TrainConfig, build_config
from angle.cli.arguments import check_arguments
from angle.compat.angle_emb_0_5 import ANGLE_EMB_0_5
from angle.compat.angle_emb_0_6 import ANGLE_EMB_0_5_6, ANGLE_EMB_0_6, version_of
from angle.compat.command_line import option_names, parse
from angle.compat.translation import Translation, translate
from angle.config.build import load_config
from angle.config.keys import flatten, unflatten
from angle.config.overrides import hydra_overrides

REFERENCE = json.loads((REPO / "tests" / "fixtures" / "reference_options_0_6.json").read_text())
VERSION = "is of angle_emb 0.6.1, so its defaults are used: "


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


def translation_of(words: str) -> Translation:
    arguments = shlex.split(f"{BASE} {words}")
    return translate(parse(arguments, version_of(option_names(arguments))))


def config_of(words: str) -> TrainConfig:
    return build_config(unflatten(translation_of(words).settings), TrainConfig)


def test_options_are_those_of_angle_emb() -> None:
    assert REFERENCE.keys() == ANGLE_EMB_0_6.by_name.keys()
    assert len(REFERENCE) == 71
    for name, expected in REFERENCE.items():
        option = ANGLE_EMB_0_6.by_name[name]
        assert option.type.__name__ == expected["type"], name
        assert option.default == expected["default"], name
        assert list(option.choices) == expected.get("choices", []), name
        assert option.required == (expected.get("required", False) and name != "save_dir"), name


@pytest.mark.parametrize(
    ("words", "settings", "notes"),
    [
        ("--cln_w 2", {"loss.cln_w": 2.0}, [f"--cln_w {VERSION}filter_duplicate 0, ibn_w 1.0, angle_w 0.02"]),
        ("--text_prompt 'x: {text}'", {"model.prompt": "x: {text}"}, None),
        (
            "--query_prompt 'q: {text}' --doc_prompt 'd: {text}'",
            {"model.prompts": {"query": "q: {text}", "document": "d: {text}"}},
            None,
        ),
        ("--doc_prompt 'd: {text}'", {"model.prompts": {"document": "d: {text}"}}, None),
        (
            "--column_rename_mapping 'question:query; answer : positive'",
            {"data.train.columns": {"query": "question", "positive": "answer"}},
            None,
        ),
        ("--bf16 1", {"train.mixed_precision": "bf16"}, None),
        ("--bf16 0 --is_llm 1", {"model.is_llm": True}, None),
        ("--gradient_checkpointing 1", {"model.gradient_checkpointing": True}, None),
        (
            "--use_reentrant 0 --ibn_w 3 --cln_w 0 --angle_w 1 --filter_duplicate 1",
            {"loss.ibn_w": 3.0, "loss.cln_w": 0.0, "loss.angle_w": 1.0, "data.duplicates": "mask"},
            [
                "--use_reentrant is of angle_emb 0.6.1",
                "--use_reentrant has no effect: activations are recomputed as with 0",
                "--filter_duplicate keeps equal texts from being negatives; angle_emb drops their rows",
            ],
        ),
    ],
)
def test_an_option_of_the_later_version_sets_its_setting(
    words: str, settings: dict[str, Any], notes: list[str] | None
) -> None:
    config = config_of(words)
    defaults = {"loss.ibn_w": 1.0, "loss.cln_w": 1.0, "loss.angle_w": 0.02, "data.duplicates": "keep"}
    base = flatten(config_of("--cln_w 1"))
    assert flatten(config) == base | defaults | settings
    if notes is not None:
        assert sorted(translation_of(words).notes) == sorted(notes)
    assert composed(*check_arguments(hydra_overrides(config), TrainConfig, CONF)) == config  # the printed line


def test_the_version_between_has_the_later_weights_and_the_earlier_options() -> None:
    words = "--prompt_template 'x: {text}' --cln_w 2"
    config = config_of(words)
    assert config.model.prompt == "x: {text}"
    assert (config.loss.ibn_w, config.loss.cln_w, config.loss.angle_w) == (1.0, 2.0, 0.02)
    assert config.data.duplicates == config_of("").data.duplicates != config_of("--cln_w 2").data.duplicates
    note = "--cln_w is of angle_emb 0.5.6, so its defaults are used: ibn_w 1.0, angle_w 0.02"
    assert translation_of(words).notes[0] == note
    assert ANGLE_EMB_0_5_6.by_name.keys() == ANGLE_EMB_0_5.by_name.keys() | {"cln_w"}


def test_options_of_both_versions_keep_the_document_s_defaults() -> None:
    assert version_of(option_names(["--ibn_w", "3", "--save_dir=x"])) is ANGLE_EMB_0_5
    assert config_of("--ibn_w 3").loss.angle_w == 1.0
    assert config_of("--ibn_w 3").loss.cln_w is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--query_prompt '{text}' --prompt_template '{text}'",
            "--prompt_template is an option of angle_emb 0.5.4 and --query_prompt one of 0.6.1, whose defaults differ: "
            "leave one of them out.",
        ),
        (
            "--column_rename_mapping question",
            "--column_rename_mapping 'question' cannot work: it is a list of existing and new names, such as "
            "--column_rename_mapping 'question:query;answer:positive'.",
        ),
        ("--bf16 1 --fp16 1", "--fp16 1 and --bf16 1 are two precisions: leave one of them out."),
    ],
)
def test_what_cannot_work_is_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        translation_of(words)
    assert str(error.value) == message


def test_fit_takes_the_later_version_s_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    triples = [
        {"query" if name == "text" else name: text for name, text in row.items()}
        for row in sample_rows("B", "train", 16)
    ]
    AnglE("tiny").fit(
        triples, output_dir=str(tmp_path / "run"), query_prompt="fox: {text}", doc_prompt="owl: {text}", batch_size=8,
        argument_kwargs={"max_steps": 2},
    )  # fmt: skip
    assert f"query_prompt {VERSION}ibn_w 1.0, angle_w 0.02, cln_w 1.0\n" in capsys.readouterr().out
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.loss.ibn_w, config.loss.positives_w, config.loss.angle_w) == (0.5, 0.5, 0.02)
    assert config.data_format.name == "B"
    trained = AnglE.from_pretrained(str(tmp_path / "run"))
    assert trained.encoder.tokenizer.prompts == {"query": "fox: {text}", "document": "owl: {text}"}


@pytest.mark.parametrize("columns", [("query", "positive"), ("query", "positive", "negative")])
def test_a_column_query_is_a_text(columns: tuple[str, ...], tmp_path: Path) -> None:
    from conftest import SpyTokenizer

    from angle.config import SourceConfig
    from angle.data.loading import load_corpus

    rows = [dict(zip(columns, (f"{name}{number}" for name in columns), strict=True)) for number in range(4)]
    for suffix in ("jsonl", "csv"):
        path = tmp_path / f"rows.{suffix}"
        if suffix == "jsonl":
            write_jsonl(path, rows)
        else:
            path.write_text("\n".join([",".join(columns), *(",".join(row.values()) for row in rows)]) + "\n")
        corpus = load_corpus(SourceConfig(str(path)), "train", SpyTokenizer())
        assert (corpus.format.name, len(corpus)) == ("C" if len(columns) == 2 else "B", 4)
    renamed = SourceConfig(str(path), columns={"query": "positive", "positive": "query"})
    assert load_corpus(renamed, "train", SpyTokenizer()).format.roles[0] == "text"
