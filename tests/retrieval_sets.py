"""Small retrieval sets, in the layout of BEIR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_jsonl

Qrels = Iterable[tuple[str, str, float]]


def write_set(
    folder: Path, corpus: Mapping[str, Any], queries: Mapping[str, str], qrels: Qrels, split: str = "dev"
) -> Path:
    """Write a set; a passage is a text, or a title and a text."""
    folder.mkdir(parents=True, exist_ok=True)
    passages = {name: ("", text) if isinstance(text, str) else text for name, text in corpus.items()}
    write_jsonl(
        folder / "corpus.jsonl",
        [{"_id": name, "title": title, "text": text} for name, (title, text) in passages.items()],
    )
    write_jsonl(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    (folder / "qrels").mkdir(exist_ok=True)
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def random_set(
    folder: Path, queries: int = 20, passages: int = 150, *, graded: bool = False, split: str = "dev"
) -> Path:
    """Write a set of made-up sentences, of which some passages share words with a query."""
    rng = np.random.default_rng(0)
    words = [f"{word}{number}" for word in ("owl", "fox", "moon") for number in range(40)]
    corpus = {f"d{number}": " ".join(rng.choice(words, 8)) for number in range(passages)}
    names = list(corpus)
    asked, qrels = {}, []
    for number in range(queries):
        relevant = rng.choice(passages, int(rng.integers(1, 6)), replace=False)
        asked[f"q{number}"] = " ".join(corpus[names[relevant[0]]].split()[:5])
        for passage in relevant:
            qrels.append((f"q{number}", names[passage], int(rng.integers(1, 4)) if graded else 1))
        if graded:
            qrels.append((f"q{number}", names[int(rng.integers(passages))] if number == 0 else "d0", 0))
    unique = {(query, passage): grade for query, passage, grade in qrels[::-1]}
    return write_set(folder, corpus, asked, [(*pair, grade) for pair, grade in unique.items()], split)
