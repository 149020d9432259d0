"""What evaluate.py tells of tasks with queries: their scores, a table, and the average of NanoBEIR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from angle.data.retrieval import RetrievalSet
from angle.data.retrieval_files import NANO_BEIR
from angle.evaluation.evaluators.retrieval import RetrievalEvaluator
from angle.evaluation.metrics import Floats
from angle.terminal import COLUMNS

NDCG = RetrievalEvaluator.metric.name
#: Columns of the table: metric and header.
TABLE_COLUMNS = (
    ("queries", "queries"),
    (NDCG, "nDCG@10"),
    ("mrr@10", "MRR@10"),
    ("map@100", "MAP@100"),
    ("recall@10", "recall@10"),
    ("recall@100", "recall@100"),
)
#: Longest name of a task in it, so that it fits.
NAME_COLUMNS = COLUMNS - sum(len(header) + 2 for _, header in TABLE_COLUMNS)

Results = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class QueryScores:
    """The scores of each query of one task."""

    query_ids: Sequence[str]
    values: dict[str, Floats]
    """(Q,) by metric."""
    passages: int
    """How many there are to find the relevant ones among."""

    @classmethod
    def of(cls, queries: RetrievalSet, values: dict[str, Floats]) -> QueryScores:
        """Return the scores of a set's queries."""
        return cls(queries.query_ids, values, len(queries.passage_ids))

    def metrics(self) -> dict[str, float]:
        """Return the means over the queries, and how many queries and passages there are."""
        means = {name: float(of_queries.mean()) for name, of_queries in self.values.items()}
        return means | {"queries": float(len(self.query_ids)), "passages": float(self.passages)}


def split_kinds(
    results: Mapping[str, dict[str, float]],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return the results of tasks with pairs, and of those with queries."""
    queries = {name: metrics for name, metrics in results.items() if NDCG in metrics}
    return {name: metrics for name, metrics in results.items() if name not in queries}, queries


def retrieval_average(results: Results) -> float | None:
    """Return the mean nDCG@10 of the thirteen sets of NanoBEIR, None unless all are present."""
    by_name = {name.lower(): metrics for name, metrics in results.items()}
    if not all(name.lower() in by_name for name in NANO_BEIR):
        return None
    return float(np.mean([by_name[name.lower()][NDCG] for name in NANO_BEIR]))


def retrieval_table(results: Results) -> str:
    """Return the main results as a table for a terminal, times 100."""
    names = dict(zip(results, short_names(list(results), NAME_COLUMNS), strict=True))
    width = max(len(name) for name in (*names.values(), "average"))
    lines = [f"{'task':{width}}{''.join(f'  {header}' for _, header in TABLE_COLUMNS)}"]
    for task, metrics in results.items():
        cells = (f"{metrics[key]:.0f}" if key == "queries" else f"{100 * metrics[key]:.2f}" for key, _ in TABLE_COLUMNS)
        row = "".join(f"  {cell:>{len(header)}}" for cell, (_, header) in zip(cells, TABLE_COLUMNS, strict=True))
        lines.append(f"{names[task]:{width}}{row}")
    mean = retrieval_average(results)
    if mean is not None:
        queries, ndcg = (len(header) for _, header in TABLE_COLUMNS[:2])
        lines.append(f"{'average':{width}}  {'':{queries}}  {100 * mean:>{ndcg}.2f}")
    return "\n".join(lines)


def short_names(names: list[str], width: int) -> list[str]:
    """Return the last part of each name that is a path, of more parts if it would not be the only one of its name."""
    names = [name.rstrip("/") for name in names]
    for parts in range(1, max(name.count("/") for name in names) + 2):
        short = ["/".join(name.split("/")[-parts:]) for name in names]
        if len(set(short)) == len(short):
            break
    end = width - width // 3 - 1
    return [name if len(name) <= width else f"{name[: width // 3]}…{name[-end:]}" for name in short]
