"""The settings saved with a model: what is written, what is read back, and what is refused in a sentence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from angle.errors import ConfigError
from angle.modeling.embedding_config import EmbeddingConfig, read_embedding_config
from angle.modeling.encoder import Encoder

COMPLETE = EmbeddingConfig(
    "avg", 77, "Ähnlich: {text}", "left", True, 2, 4, (("<s>",), ("</s>", "!")), layers=5, dimensions=64,
    normalize=True, similarity="dot", prompts={"query": "q: "},
)  # fmt: skip


def write(folder: Path, **entries: Any) -> str:
    (folder / "angle_config.json").write_text(json.dumps(entries), encoding="utf-8")
    return str(folder)


def pooling_module(folder: Path, **config: Any) -> str:
    """Write the files of a sentence-transformers folder that configure its pooling."""
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
        "dimensions": 64, "base_fingerprint": None, "lower_case": None, "normalize": True, "similarity": "dot",
        "prompts": {"query": "q: "},
    }  # fmt: skip


def test_saving_and_reading(tmp_path: Path) -> None:
    COMPLETE.save(tmp_path)
    assert read_embedding_config(str(tmp_path)) == COMPLETE


def test_an_encoder_has_all_entries_that_are_not_optional() -> None:
    embedding_config = dataclasses.asdict(Encoder.load("tiny").embedding_config)
    optional = {"prompt", "bidirectional_from", "load_kbit", "layers", "dimensions", "base_fingerprint", "lower_case",
                "normalize", "similarity", "prompts"}  # fmt: skip
    assert {name for name, value in embedding_config.items() if value is None} == optional


def test_human_readable_form() -> None:
    assert str(COMPLETE) == (
        "avg pooling, first 5 layers, first 64 dimensions, unit length, at most 77 tokens, template "
        "'Ähnlich: {text}', query 'q: ', compared by dot, both directions from layer 2, trained on 4-bit weights"
    )
    plain = EmbeddingConfig("last", 77, special_tokens=COMPLETE.special_tokens, layers=5, dimensions=64)
    assert str(plain) == "last pooling, first 5 layers, first 64 dimensions, at most 77 tokens, </s> ! after a text"


def test_missing_entries_are_none(tmp_path: Path) -> None:
    assert read_embedding_config(write(tmp_path)) == EmbeddingConfig()
    (tmp_path / "angle_config.json").unlink()
    assert read_embedding_config(str(tmp_path)) == EmbeddingConfig()


def test_a_file_of_angle_emb_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"pooling_strategy": "cls_avg", "max_length": None, "model_name_or_path": "bert", "is_llm": 0}
    assert read_embedding_config(write(tmp_path, **entries)) == EmbeddingConfig(pooling="cls_avg", is_llm=False)
    folder = write(tmp_path, pooling_strategy=2, apply_billm=True)
    assert read_embedding_config(folder) == EmbeddingConfig(pooling="2", bidirectional_from=0)
    monkeypatch.setenv("BiLLM_START_INDEX", "3")
    assert read_embedding_config(folder).bidirectional_from == 3
    monkeypatch.setenv("BiLLM_START_INDEX", "-1")
    assert read_embedding_config(folder).bidirectional_from is None
    monkeypatch.setenv("BiLLM_START_INDEX", "many")
    with pytest.raises(ConfigError, match=r"^BiLLM_START_INDEX=many cannot work: it must be the index of a layer\."):
        read_embedding_config(folder)


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
        ("lower_case", "no", "true or false"),
        ("normalize", 1, "true or false"),
        ("similarity", "l2", "one of cosine, dot, euclidean, manhattan"),
        ("prompts", {"query": 7}, "an object of texts by their names"),
        ("base_fingerprint", 7, "a hash in hexadecimal digits"),
    ],
)
def test_a_wrong_entry_is_refused(entry: str, value: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_embedding_config(write(tmp_path, **{entry: value}))
    assert str(error.value) == (
        f"angle_config.json of {tmp_path} has {entry}={json.dumps(value)}, but it must be {expected}: correct the "
        f"entry, or remove it."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "angle_config.json of {folder} is not valid JSON: Expecting property name"),
        ("[1]", "angle_config.json of {folder} holds no JSON object, which it must: copy or download it again."),
    ],
)
def test_a_damaged_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "angle_config.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_embedding_config(str(tmp_path))
    assert str(error.value).startswith(message.replace("{folder}", str(tmp_path)))


def test_an_unsupported_pooling_is_an_error_only_if_it_is_needed(tmp_path: Path) -> None:
    folder = write(tmp_path, pooling_strategy="all", max_length=9)
    with pytest.raises(ConfigError) as error:
        read_embedding_config(folder)
    assert str(error.value) == (
        f"{folder} uses pooling all, which is not supported: type pooling.strategy=... to choose another."
    )
    assert read_embedding_config(folder, needs_pooling=False) == EmbeddingConfig(max_length=9)


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
    assert read_embedding_config(pooling_module(tmp_path, **config)) == EmbeddingConfig(pooling=pooling)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls + mean"),
        ({"pooling_mode": ["cls", "max"]}, "cls + max"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
    ],
)
def test_an_unsupported_pooling_of_sentence_transformers(config: Any, modes: str, tmp_path: Path) -> None:
    """Two modes are concatenated there, which is none of our means of two."""
    folder = pooling_module(tmp_path, **config)
    with pytest.raises(ConfigError, match=f"uses pooling {modes}, which is not supported".replace("+", r"\+")):
        read_embedding_config(folder)
    assert read_embedding_config(folder, needs_pooling=False) == EmbeddingConfig()


def test_an_unsupported_module_of_sentence_transformers_is_refused(tmp_path: Path) -> None:
    folder = pooling_module(tmp_path, pooling_mode="mean")
    modules = json.loads((tmp_path / "modules.json").read_text())
    dense = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([*modules, dense]))
    for needs_pooling in (True, False):
        with pytest.raises(ConfigError) as error:
            read_embedding_config(folder, needs_pooling=needs_pooling)
        assert str(error.value) == (
            f"{folder} has a Dense module, which this project does not run, so its embeddings would differ."
        )


def add_modules(folder: Path, *classes: str) -> None:
    """Add modules to those of a sentence-transformers folder."""
    modules = json.loads((folder / "modules.json").read_text())
    modules += [{"path": f"2_{name}", "type": f"sentence_transformers.models.{name}"} for name in classes]
    (folder / "modules.json").write_text(json.dumps(modules))


def test_a_normalize_module_is_kept(tmp_path: Path) -> None:
    folder = pooling_module(tmp_path, pooling_mode="mean")
    add_modules(tmp_path, "Normalize", "Dropout")
    assert read_embedding_config(folder) == EmbeddingConfig(pooling="avg", normalize=True)


def test_a_normalize_module_of_something_else_is_refused(tmp_path: Path) -> None:
    """One whose embeddings go on to another module, or one that scales the tokens' states."""
    folder = pooling_module(tmp_path, pooling_mode="mean")
    add_modules(tmp_path, "Normalize", "LayerNorm")
    with pytest.raises(ConfigError, match="has a Normalize module, which this project does not run"):
        read_embedding_config(folder)
    pooling_module(tmp_path, pooling_mode="mean")
    add_modules(tmp_path, "Normalize")
    (tmp_path / "2_Normalize").mkdir()
    (tmp_path / "2_Normalize" / "config.json").write_text(json.dumps({"module_input_name": "token_embeddings"}))
    with pytest.raises(ConfigError, match="has a Normalize module, which this project does not run"):
        read_embedding_config(folder)
    (tmp_path / "2_Normalize" / "config.json").write_text(json.dumps({"module_input_name": "sentence_embedding"}))
    assert read_embedding_config(folder).normalize


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 99}, {"max_length": 99}),
        ("sentence_xlm-roberta_config.json", {"max_seq_length": 99, "do_lower_case": False}, {"max_length": 99}),
        ("sentence_distilbert_config.json", {"do_lower_case": True}, {"lower_case": True}),
        ("tokenizer_config.json", {"model_max_length": 256}, {"max_length": 256}),  # where version 6 keeps it
        ("tokenizer_config.json", {"model_max_length": int(1e30)}, {}),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "q: ", "document": "", "other": None}, "default_prompt_name": None},
            {"prompts": {"query": "q: ", "document": ""}},
        ),
        ("config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}}, {}),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "q: ", "passage": "p: "}},
            {"prompts": {"query": "q: ", "passage": "p: ", "document": "p: "}},
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"text": "t: ", "query": "t: ", "document": "t: "}, "default_prompt_name": "text"},
            {"prompt": "t: {text}"},
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "q {x}: "}, "default_prompt_name": "query", "truncate_dim": 8},
            {"prompt": "q {{x}}: {text}", "dimensions": 8, "prompts": {"query": "q {{x}}: {text}"}},
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"text": "t: "}, "default_prompt_name": "text", "similarity_fn_name": "dot"},
            {"prompt": "t: {text}", "similarity": "dot"},
        ),
        ("config_sentence_transformers.json", {"similarity_fn_name": "cosine"}, {}),
    ],
)
def test_the_settings_of_every_generation_of_sentence_transformers(
    file: str, content: Any, expected: Any, tmp_path: Path
) -> None:
    folder = pooling_module(tmp_path, pooling_mode="mean")
    (tmp_path / file).write_text(json.dumps(content))
    assert read_embedding_config(folder) == EmbeddingConfig(pooling="avg", **expected)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "has transformer_task=fill-mask where",
        ),
        ("sentence_bert_config.json", {"module_output_name": "pooler"}, "has module_output_name=pooler where sentence"),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "is a CrossEncoder, whose output"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query"},
            "has default_prompt_name=query, but",
        ),
        ("config_sentence_transformers.json", ["query"], "holds no JSON object"),
    ],
)
def test_settings_of_sentence_transformers_that_are_not_supported(
    file: str, content: Any, message: str, tmp_path: Path
) -> None:
    folder = pooling_module(tmp_path, pooling_mode="mean")
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_embedding_config(folder)


def test_a_folder_of_sentence_transformers_without_pooling(tmp_path: Path) -> None:
    folder = pooling_module(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(json.loads((tmp_path / "modules.json").read_text())[:1]))
    with pytest.raises(ConfigError, match=r"has no Pooling module, so its pooling is unknown: type pooling.strategy="):
        read_embedding_config(folder)


def test_pooling_is_not_guessed_when_the_hub_cannot_be_reached() -> None:
    with pytest.raises(ConfigError, match=r"^The pooling of nobody/nothing is unknown: the hub cannot be reached"):
        read_embedding_config("nobody/nothing")
    assert read_embedding_config("nobody/nothing", needs_pooling=False) == EmbeddingConfig()
