"""The contract file: what is written, what is read back, and what is refused in a sentence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from angle.errors import ConfigError
from angle.modeling.contract import EncoderContract, read_contract
from angle.modeling.encoder import Encoder

COMPLETE = EncoderContract(
    "avg", 77, "Ähnlich: {text}", "left", True, 2, 4, (("<s>",), ("</s>", "!")), layers=5, dimensions=64
)


def write(folder: Path, **entries: Any) -> str:
    (folder / "angle_config.json").write_text(json.dumps(entries), encoding="utf-8")
    return str(folder)


def pooling_module(folder: Path, **config: Any) -> str:
    """Write the files of a sentence-transformers folder that say how it pools."""
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"},
               {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_file_has_every_entry(tmp_path: Path) -> None:
    COMPLETE.save(tmp_path)
    text = (tmp_path / "angle_config.json").read_text(encoding="utf-8")
    assert "Ähnlich" in text
    assert json.loads(text) == {
        "pooling": "avg", "max_length": 77, "prompt": "Ähnlich: {text}", "padding_side": "left", "is_llm": True,
        "bidirectional_from": 2, "load_kbit": 4, "special_tokens": [["<s>"], ["</s>", "!"]], "layers": 5,
        "dimensions": 64,
    }  # fmt: skip


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    COMPLETE.save(tmp_path)
    assert read_contract(str(tmp_path)) == COMPLETE


def test_an_encoder_states_everything_that_is_not_optional() -> None:
    contract = dataclasses.asdict(Encoder.load("tiny").contract)
    optional = {"prompt", "bidirectional_from", "load_kbit", "layers", "dimensions"}
    assert {name for name, value in contract.items() if value is None} == optional


def test_the_contract_in_words() -> None:
    assert str(COMPLETE) == (
        "avg pooling, first 5 layers, first 64 dimensions, at most 77 tokens, template 'Ähnlich: {text}', both "
        "directions from layer 2, trained on 4-bit weights"
    )
    last = dataclasses.replace(COMPLETE, pooling="last", prompt=None, bidirectional_from=None, load_kbit=None)
    assert str(last) == "last pooling, first 5 layers, first 64 dimensions, at most 77 tokens, </s> ! after a text"


def test_what_is_not_said_is_none(tmp_path: Path) -> None:
    assert read_contract(write(tmp_path)) == EncoderContract()
    (tmp_path / "angle_config.json").unlink()
    assert read_contract(str(tmp_path)) == EncoderContract()


def test_the_reference_s_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"pooling_strategy": "cls_avg", "max_length": None, "model_name_or_path": "bert", "is_llm": 0}
    assert read_contract(write(tmp_path, **entries)) == EncoderContract(pooling="cls_avg", is_llm=False)
    folder = write(tmp_path, pooling_strategy=2, apply_billm=True)
    assert read_contract(folder) == EncoderContract(pooling="2", bidirectional_from=0)
    monkeypatch.setenv("BiLLM_START_INDEX", "3")
    assert read_contract(folder).bidirectional_from == 3
    monkeypatch.setenv("BiLLM_START_INDEX", "-1")
    assert read_contract(folder).bidirectional_from is None
    monkeypatch.setenv("BiLLM_START_INDEX", "many")
    with pytest.raises(ConfigError, match=r"^BiLLM_START_INDEX=many cannot work: it must be the index of a layer\."):
        read_contract(folder)


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("pooling", ["avg"], "the name of a pooling or the index of a token"),
        ("max_length", "long", "a whole number above 0"),
        ("max_length", True, "a whole number above 0"),
        ("prompt", "query:", "a template with {text}"),
        ("padding_side", "top", "left or right"),
        ("is_llm", "yes", "true or false"),
        ("bidirectional_from", "first", "the index of a layer"),
        ("load_kbit", 16, "4, 8 or null"),
        ("special_tokens", ["<s>", "</s>"], "two lists of tokens, those before and those after a text"),
        ("layers", 0, "a whole number above 0"),
        ("dimensions", -1, "a whole number above 0"),
    ],
)
def test_a_wrong_entry_is_refused(entry: str, value: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_contract(write(tmp_path, **{entry: value}))
    assert str(error.value) == (
        f"angle_config.json of {tmp_path} says {entry}={json.dumps(value)}, but it must be {expected}: correct the "
        f"entry, or remove it."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "angle_config.json of {folder} is not valid JSON: Expecting property name"),
        ("[1]", "angle_config.json of {folder} holds a list, but a contract is a JSON object of entries."),
    ],
)
def test_a_damaged_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "angle_config.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_contract(str(tmp_path))
    assert str(error.value).startswith(message.replace("{folder}", str(tmp_path)))


def test_an_unknown_pooling_matters_only_if_none_is_given(tmp_path: Path) -> None:
    folder = write(tmp_path, pooling_strategy="all", max_length=9)
    with pytest.raises(ConfigError) as error:
        read_contract(folder)
    assert str(error.value) == (
        f"{folder} pools by all, which has no name here: type pooling.strategy=... to choose another."
    )
    assert read_contract(folder, needs_pooling=False) == EncoderContract(max_length=9)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "avg"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["mean"]}, "avg"),
    ],
)
def test_the_pooling_of_a_sentence_transformers_folder(config: Any, pooling: str, tmp_path: Path) -> None:
    assert read_contract(pooling_module(tmp_path, **config)) == EncoderContract(pooling=pooling)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls + mean"),
        ({"pooling_mode": ["cls", "max"]}, "cls + max"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
    ],
)
def test_a_pooling_of_sentence_transformers_without_a_name_here(config: Any, modes: str, tmp_path: Path) -> None:
    """Two modes are concatenated there, which is none of our means of two."""
    folder = pooling_module(tmp_path, **config)
    with pytest.raises(ConfigError, match=f"pools by {modes}, which has no name here".replace("+", r"\+")):
        read_contract(folder)
    assert read_contract(folder, needs_pooling=False) == EncoderContract()


def test_a_module_that_is_not_run_here_is_refused(tmp_path: Path) -> None:
    folder = pooling_module(tmp_path, pooling_mode="mean")
    modules = json.loads((tmp_path / "modules.json").read_text())
    dense = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([*modules, dense]))
    for needs_pooling in (True, False):
        with pytest.raises(ConfigError) as error:
            read_contract(folder, needs_pooling=needs_pooling)
        assert str(error.value) == (
            f"{folder} has a Dense module after its pooling, which this project does not run, so its embeddings would "
            f"differ."
        )


def test_pooling_is_not_guessed_when_the_hub_cannot_be_reached() -> None:
    with pytest.raises(ConfigError, match=r"^The pooling of nobody/nothing is unknown: the hub cannot be reached"):
        read_contract("nobody/nothing")
    assert read_contract("nobody/nothing", needs_pooling=False) == EncoderContract()
