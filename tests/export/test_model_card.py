"""Model cards: the scores under the names of what was measured, and what a reader may and must know of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REPO, sample_files, start, start_here
from huggingface_hub import ModelCard

from angle.config import LOSS_TERM_SPECS, RUN_FILE, TrainConfig
from angle.config.build import build_config
from angle.config.record import write_config, write_record
from angle.export.card_model import CardModel, SentenceTransformersSupport
from angle.export.card_scores import MAX_LOG_ROWS
from angle.export.example import Example
from angle.export.markdown import literal, table
from angle.export.model_card import LOSS_TAGS, model_card
from angle.export.public_names import describe_model, name_on_hub
from angle.export.trained_run import TrainedRun, find_trained_run, read_samples
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.encoder import Encoder

MODEL = CardModel("user/my-encoder", EmbeddingConfig("avg", 64), "tiny", False, 128, SentenceTransformersSupport.NEVER)
DATA = {
    "train": {"name_or_path": "/data/triples.jsonl"},
    "valid": {"name_or_path": "/data/held-out.jsonl"},
    "valid_sts": {"name_or_path": "/data/dev.jsonl"},
    "test": {"name_or_path": "/data/test.jsonl"},
}
RESULT = {
    "best_score": 0.75, "best_step": 30, "valid_before": {"spearman": 0.375, "triplet_accuracy": 0.5},
    "test_before": 0.25, "test_after": 0.5, "test_word_overlap": 0.125,
}  # fmt: skip
EXAMPLE = Example(96, [[1.0, 0.5, 0.25], [0.5, 1.0, 0.125], [0.25, 0.125, 1.0]])
LOG = [
    {"step": 0, "valid/spearman": 0.375, "valid/pearson": 0.25},
    {"step": 0, "test/spearman": 0.25, "test/pearson": 0.1875},
    {"step": 20, "loss": 2.5, "loss/angle": 1.0},
    {"step": 25, "valid/spearman": 0.5, "valid/pearson": 0.5},
    {"step": 30, "loss": 1.25, "valid/loss": 3.0},
    {"step": 30, "valid/spearman": 0.75, "valid/pearson": 0.625},
    {"step": 30, "test/spearman": 0.5, "test/pearson": 0.4375},
]
TEST = "test rows that are not public"
TEST_ROWS = f"| {TEST} | 50.00 |\n| {TEST}, before training | 25.00 |\n| {TEST}, of shared words alone | 12.50 |"


def run_of(
    best_metric: str | None = None, log: list[dict[str, Any]] | None = None, **settings: dict[str, Any]
) -> TrainedRun:
    """Return a run whose best model this metric chose."""
    config = build_config({"data": DATA, "train": {"best_metric": best_metric}, **settings}, TrainConfig)
    record: dict[str, Any] = {"command": ["train.py"], "versions": {}, "git_commit": None, "texts": 10, "seconds": 1.0}
    record |= {"hardware": {"processes": 1, "gpu": None, "device": "cpu"}, "result": RESULT}
    return TrainedRun(config, record, log or [])


def evaluated(card: str) -> dict[tuple[str, str], float]:
    """Return the values in the metadata by data set and type of the metric."""
    results = ModelCard(card).data.eval_results
    return {(str(result.dataset_name), result.metric_type): result.metric_value for result in results}


def test_correlations_are_one_table() -> None:
    card = model_card(MODEL, run_of())
    valid = "validation rows that are not public"
    valid_rows = f"| {valid}, step 30 | 75.00 |\n| {valid}, before training | 37.50 |"
    assert f"| measured on | Spearman |\n|---|---|\n{valid_rows}\n{TEST_ROWS}\n" in card
    assert evaluated(card) == {(TEST, "spearman_cosine"): 0.5, (valid, "spearman_cosine"): 0.75}


def test_another_metric_has_its_own_table_and_its_own_rows() -> None:
    card = model_card(MODEL, run_of("triplet_accuracy"))
    valid = "| validation rows that are not public"
    rows = f"{valid}, step 30 | 75.00 |\n{valid}, before training | 50.00 |"
    assert f"| measured on | triplet accuracy |\n|---|---|\n{rows}\n" in card
    assert f"| measured on | Spearman |\n|---|---|\n{TEST_ROWS}\n" in card
    assert evaluated(card) == {(TEST, "spearman_cosine"): 0.5}


def test_pearson_stands_beside_spearman_and_the_log_has_the_best_row_in_bold() -> None:
    card = model_card(MODEL, run_of(log=LOG))
    valid = "validation rows that are not public"
    assert f"| {valid}, step 30 | 75.00 | 62.50 |\n| {valid}, before training | 37.50 | 25.00 |\n" in card
    assert f"| {TEST} | 50.00 | 43.75 |\n| {TEST}, before training | 25.00 | 18.75 |\n" in card
    assert f"| {TEST}, of shared words alone | 12.50 | – |\n" in card
    assert evaluated(card)[TEST, "pearson_cosine"] == 0.4375
    assert (
        "| step | training loss | validation Spearman | validation Pearson | validation loss |\n|---|---|---|---|---|\n"
        "| 0 | – | 37.50 | 25.00 | – |\n| 25 | 2.500 | 50.00 | 50.00 | – |\n"
        "| **30** | **1.250** | **75.00** | **62.50** | **3.000** |\n"
    ) in card


def test_a_long_log_keeps_its_first_its_best_and_its_last_row() -> None:
    log = [{"step": step, "valid/spearman": 0.1} for step in range(0, 501)]
    card = model_card(MODEL, run_of(log=log))
    rows = [line for line in card.splitlines() if line.endswith("| – | 10.00 |") or "**" in line]
    assert len(rows) <= MAX_LOG_ROWS + 3
    assert rows[0].startswith("| 0 |")
    assert "| **30** | **–** | **10.00** |" in rows
    assert rows[-1].startswith("| 500 |")


def test_a_run_without_validation_shows_its_losses() -> None:
    run = run_of(log=[{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}])
    run.record["result"] = RESULT | {"best_score": None, "best_step": None}
    assert "How training went.\n\n| step | training loss |\n|---|---|\n| 10 | 2.000 |\n| 20 | 1.000 |\n" in model_card(
        MODEL, run
    )


def test_tags_licence_and_languages_are_metadata() -> None:
    run = run_of(
        hub={"license": "cc-by-4.0", "language": ["en", "no"]},
        loss={"cosine_w": 1.0, "ibn_w": 0.0, "angle_w": 1.0},
        ese={"enabled": True},
        lora={"enabled": True},
        data_format={"name": "A"},
    )
    run.record["rows"] = {"train": 1234}
    card = model_card(MODEL, run)
    data = ModelCard(card).data
    assert (data.license, data.language) == ("cc-by-4.0", ["en", "no"])
    assert data.tags[3:] == ["dataset_size:1234", "loss:CoSENTLoss", "loss:AnglELoss", "espresso", "lora"]
    assert "| language | en, no |\n| licence | cc-by-4.0 |\n" in card
    assert "objective on 1,234 training rows that are not public" in card
    assert LOSS_TAGS.keys() == {term.name for term in LOSS_TERM_SPECS}
    one = ModelCard(model_card(MODEL, run_of(hub={"language": "de"}))).data
    assert (one.language, one.license) == ("de", None)


def test_the_papers_behind_a_model_are_cited() -> None:
    def cited(card: str) -> list[str]:
        return [line.partition("{")[2].rstrip(",") for line in card.splitlines() if line.startswith("@")]

    assert cited(model_card(MODEL, run_of())) == ["li2023angle"]
    everything = run_of(ese={"enabled": True}, lora={"enabled": True})
    bidirectional = CardModel(
        "a/b", EmbeddingConfig("avg", 64, bidirectional_from=0), "tiny", True, 8, SentenceTransformersSupport.CONVERTED
    )
    assert cited(model_card(bidirectional, everything)) == ["li2023angle", "li2025ese", "li2024bellm", "hu2022lora"]
    assert cited(model_card(MODEL)) == []


def test_adapters_name_the_base_that_they_are_for() -> None:
    support = SentenceTransformersSupport.AS_IS
    model = CardModel("a/b", EmbeddingConfig("avg", 64), "BAAI/bge-m3", True, None, support, example=EXAMPLE)
    card = model_card(model, run_of())
    assert ModelCard(card).data.base_model == "BAAI/bge-m3"
    assert "pip install -U sentence-transformers peft\n" in card
    assert "| dimensions | 96 |" in card
    assert "# (3, 96)\nprint(model.similarity(embeddings, embeddings))\n# tensor([[1.0000, 0.5000, 0.2500],\n" in card


def test_a_decoder_s_adapters_show_what_they_give_in_angle_hydra() -> None:
    settings = EmbeddingConfig("avg", 64, similarity="dot", prompt="{topic}: {text}")
    model = CardModel("a/b", settings, "BAAI/bge-m3", True, None, SentenceTransformersSupport.NEVER, example=EXAMPLE)
    card = model_card(model)
    assert "# torch.Size([3, 96])\nprint(embeddings @ embeddings.T)\n# tensor([[1.0000, 0.5000, 0.2500],\n" in card
    assert "| similarity function | dot product |" in card


def test_queries_and_documents_are_shown_apart() -> None:
    settings = EmbeddingConfig("avg", 64, prompts={"query": "q: "})
    model = CardModel("a/b", settings, "BAAI/bge-m3", False, 96, SentenceTransformersSupport.AS_IS)
    assert "queries = model.encode_query(sentences)\ndocuments = model.encode_document(sentences)\n" in model_card(
        model
    )


def test_texts_in_tables_are_shown_as_they_are() -> None:
    assert table(("a", "b"), [("x|y", literal("5 * [a](b) | <b> `q`"))]) == (
        "| a | b |\n|---|---|\n| x\\|y | <code>5 &#42; &#91;a&#93;(b) &#124; &lt;b&gt; &#96;q&#96;</code> |"
    )


def test_names_that_nobody_else_has_are_told_in_words(tmp_path: Path) -> None:
    cached = "/home/me/.cache/huggingface/hub/models--BAAI--bge-small-en-v1.5/snapshots/5c38ec7/"
    assert name_on_hub(cached) == "BAAI/bge-small-en-v1.5"
    assert name_on_hub("/home/me/bert") is None
    assert describe_model("/home/me/bert") == "a model that is not on the hub"
    assert describe_model("tiny") == "angle-hydra's built-in small BERT, which starts at random"
    Encoder.load("tiny").save(tmp_path / "bert")
    local = "a model that is not on the hub (BertModel, 2 layers, hidden size 128, 321,920 weights)"
    assert describe_model(str(tmp_path / "bert")) == local

    run = tmp_path / "runs" / "secret"  # trained from another run, which was trained from a model on the hub
    base = "BAAI/bge-small-en-v1.5"
    for name in ("first", "second"):
        (run / name).mkdir(parents=True)
        write_config(run / name, build_config({"model": {"name_or_path": base}}, TrainConfig))
        write_record(run / name, {})
        base = str(run / name)
    assert (run / "second" / RUN_FILE).exists()
    described = (
        "[BAAI/bge-small-en-v1.5](https://huggingface.co/BAAI/bge-small-en-v1.5) (trained further in an earlier run)"
    )
    assert describe_model(base) == describe_model(f"{base}/best") == described


def test_samples_are_short_rows_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    texts = ["long " * 100, "b\nb", "middling text", "a"]
    file.write_text("".join(json.dumps({"q": text, "positive": [text, "other"]}) + "\n" for text in texts))
    source = {"name_or_path": str(file), "columns": {"text": "q"}}
    data = build_config({"data": {"train": source}}, TrainConfig).data
    assert read_samples(data, "C") == [{"text": text, "positive": text} for text in ("b b", "middling text", "a")]
    file.write_text("".join(json.dumps({"q": text, "positive": text}) + "\n" for text in texts[:1]))
    (only,) = read_samples(data, "C")
    assert len(only["text"]) == 160
    assert only["text"].endswith("…")
    file.unlink()
    assert read_samples(data, "C") == []


@pytest.mark.slow
@pytest.mark.usefixtures("unverified")
def test_the_readme_of_a_converted_folder(tmp_path: Path) -> None:
    """Of a run on private files: it names none of them, shows rows because that was asked for, and its code runs."""
    data = sample_files(tmp_path, "A")
    prompt = 'model.prompt="Find | <this>: {text}"'
    few = [*data, prompt, "train.max_steps=4", "train.batch_size=8", "train.eval_steps=2", "hub.license=mit"]
    done = start("train.py", *few, "hub.samples=true", "hub.language=en", "train.output_dir=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = start("convert.py", "model.name_or_path=run", "normalize=true", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "sentence_transformers"
    card = (folder / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["license"], metadata["language"], metadata["library_name"]) == (
        "mit",
        "en",
        "sentence-transformers",
    )
    assert card.count("Some training rows:\n\n| text1 | text2 | label |\n") == 1
    for name in (str(tmp_path), tmp_path.name, *(path.name for path in tmp_path.glob("*.jsonl"))):
        assert name not in card

    trained = find_trained_run(tmp_path / "run")
    assert trained is not None
    assert trained.example is not None
    blocks = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    code = [block.replace('"sentence_transformers"', f'"{folder}"') for block in blocks]
    (tmp_path / "used.py").write_text(
        f"{code[0]}\nours = embeddings\n{code[1]}\nprint(abs(ours - embeddings.numpy()).max())"
    )
    done = start(str(tmp_path / "used.py"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    *printed_lines, difference = done.stdout.splitlines()
    assert printed_lines == [line.removeprefix("# ") for line in blocks[0].splitlines() if line.startswith("# ")]
    assert float(difference) < 1e-5
    similarities = [line.strip("tensor([ ]),") for line in printed_lines[1:]]
    found = np.array([[float(value) for value in line.split(",")] for line in similarities])
    np.testing.assert_allclose(found, trained.example.similarities, atol=1e-4)  # as the run has recorded them

    def converted(source: str, output: str) -> tuple[str, str]:
        """Return what is printed, and the card."""
        done = start_here("convert.py", f"model.name_or_path={source}", f"output_dir={output}", folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return " ".join(done.stdout.split()), (tmp_path / output / "README.md").read_text(encoding="utf-8")

    _, card = converted("run/best", "plain")
    assert "## Use" in card
    assert "## Training" not in card
    assert "AnglE" not in card
    assert str(REPO) not in card

    (tmp_path / "train.jsonl").unlink()
    printed, card = converted("run", "without samples")
    assert "Note the README has no samples, because the training rows are no longer where they were" in printed
    assert "## Training" in card
    with (tmp_path / "run" / "config.yaml").open("a") as file:
        file.write("# mine\n")
    printed, card = converted("run", "changed")
    assert "Note the README does not tell of the training: " in printed
    assert "## Training" not in card
