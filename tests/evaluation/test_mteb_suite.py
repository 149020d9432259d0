"""MTEB through the real package, on small tasks of its kind that need no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from retrieval_sets import random_set

from angle.config import EvaluateConfig
from angle.errors import ConfigError, DataError
from angle.evaluation import mteb_suite
from angle.evaluation.mteb_suite import evaluate_mteb
from angle.evaluation.report import evaluate

NAMES = {
    "ndcg@10": "ndcg_at_10", "mrr@10": "mrr_at_10", "map@100": "map_at_100", "recall@10": "recall_at_10",
    "recall@100": "recall_at_100", "precision@10": "precision_at_10",
}  # fmt: skip


def task_of(folder: Path) -> Any:
    """Return a retrieval task of mteb's with the queries, passages and judgements of a folder."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.mocks.mock_tasks import MockRetrievalTask

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    class OwnTask(AbsTaskRetrieval):
        metadata = MockRetrievalTask.metadata.model_copy(update={"name": "Own", "eval_splits": ["test"]})

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            qrels: dict[str, dict[str, int]] = {}
            for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
                query, passage, grade = line.split("\t")
                qrels.setdefault(query, {})[passage] = int(grade)
            parts = {
                name: Dataset.from_list([
                    {"id": row["_id"], "text": row["text"], "title": row.get("title", "")} for row in lines(file)
                ])
                for name, file in (("queries", "queries.jsonl"), ("corpus", "corpus.jsonl"))
            }  # fmt: skip
            parts["queries"] = parts["queries"].remove_columns("title")
            self.dataset = {"default": {"test": parts | {"relevant_docs": qrels, "top_ranked": None}}}
            self.data_loaded = True

    return OwnTask()


def the_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tasks_of(names: list[str]) -> Iterator[Any]:
        yield task_of(folder)

    monkeypatch.setattr(mteb_suite, "_tasks_of", tasks_of)


@pytest.mark.slow
@pytest.mark.parametrize("graded", [False, True])
def test_mteb_measures_what_this_project_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graded: bool) -> None:
    folder = random_set(tmp_path / "set", graded=graded, split="test")
    ours = evaluate(EvaluateConfig(tasks=[str(folder)], output_dir=str(tmp_path / "ours"))).results[str(folder)]
    the_task(folder, monkeypatch)
    config = EvaluateConfig(tasks=["Own"], suite="mteb", output_dir=str(tmp_path / "theirs"))
    theirs = evaluate_mteb(config)
    assert theirs.scores == {"Own": ("ndcg_at_10", pytest.approx(ours["ndcg@10"], abs=1e-5))}
    (path,) = (tmp_path / "theirs" / "results").rglob("Own.json")
    assert path.parent.parent.name == "angle-hydra__tiny"
    (scores,) = json.loads(path.read_text())["scores"]["test"]
    for name, their_name in NAMES.items():
        assert scores[their_name] == pytest.approx(ours[name], abs=1e-5), name
    assert str(theirs).splitlines()[-1].split() == ["Own", "ndcg_at_10", f"{100 * ours['ndcg@10']:.2f}"]
    with pytest.raises(ConfigError, match=r"^output_dir=.*theirs holds results already; give a new folder\.$"):
        evaluate_mteb(config)


@pytest.mark.slow
def test_queries_and_documents_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = []
    tokenize = mteb_suite.tokenize

    def noting(tokenizer: Any, texts: Any, role: str | None) -> Any:
        roles.append((role, len(texts)))
        return tokenize(tokenizer, texts, role)

    monkeypatch.setattr(mteb_suite, "tokenize", noting)
    the_task(random_set(tmp_path / "set", split="test"), monkeypatch)
    evaluate_mteb(EvaluateConfig(tasks=["Own"], suite="mteb", output_dir=str(tmp_path / "out")))
    assert sorted(roles) == [("document", 150), ("query", 20)]


@pytest.mark.slow
def test_what_mteb_does_not_know_or_cannot_load_is_refused(tmp_path: Path) -> None:
    config = EvaluateConfig(tasks=["STS1"], suite="mteb", output_dir=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"^tasks=STS1 is no task and no benchmark of mteb .*; did you mean STS1\d\?"):
        evaluate_mteb(config)
    config.tasks = ["STS12"]
    with pytest.raises(DataError, match=r"^tasks=STS12: mteb could not load its data: "):
        evaluate_mteb(config)


def test_it_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        evaluate_mteb(EvaluateConfig(tasks=["STS12"], suite="mteb"))
    assert str(error.value) == "suite=mteb needs the package mteb: type pip install -e '.[mteb]'."


NO_EFFECT = "has no effect with suite=mteb, whose tasks know their own data: leave one out."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "suite=mteb needs tasks: give for example tasks=[STS12,NFCorpus], or a benchmark such as "
            "'tasks=[\"MTEB(eng, v2)\"]'.",
        ),
        ({"tasks": ["STS12"], "ese_grid": True}, f"ese_grid {NO_EFFECT}"),
        ({"tasks": ["STS12"], "split": "dev"}, f"split {NO_EFFECT}"),
    ],
)
def test_settings_that_mean_nothing_to_it_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        EvaluateConfig(suite="mteb", **settings)
    assert str(error.value) == message
