"""Mining: rows and passages in, rows with hard negatives out.

Q queries, P passages, D dimensions, K candidates.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from angle.config import MineConfig
from angle.data.retrieval import check_templates, tokenize
from angle.distributed.process_group import best_device
from angle.errors import ConfigError, DataError
from angle.evaluation.encoding import encode_distributed
from angle.evaluation.search import Neighbours, search
from angle.files import make_folder, write_durably
from angle.mining.judge import Judge, load_judge
from angle.mining.select import IntArray, Scores, select_negatives
from angle.mining.texts import CORPUS, ROWS, Texts, read_texts
from angle.modeling.encoder import Encoder
from angle.modeling.kernel_choice import kernels_to_skip, kernels_to_skip_from_main_process
from angle.terminal import announce, clear_announcement

if TYPE_CHECKING:
    from accelerate import PartialState

#: What is written: rows with negatives, and the figures.
NEGATIVES_FILE, MINING_FILE = "negatives.jsonl", "mining.json"
#: Passages that are encoded, and then searched, at a time.
PASSAGES_AT_ONCE = 50_000


@dataclass(frozen=True)
class MinedRow:
    """A query and one of its positives, with the query's negatives."""

    query: str
    positive: str
    negatives: Sequence[str]
    scores: Sequence[float]
    """Of the positive, then of each negative."""

    def as_row(self, layout: str, num_negatives: int) -> dict[str, Any]:
        """Return the row that is written, in format B; a column without a negative is null."""
        row: dict[str, Any] = {"text": self.query, "positive": self.positive}
        if num_negatives == 1:
            row["negative"] = self.negatives[0]
        elif layout == "list":
            row["negative"] = list(self.negatives)
        else:
            names = (f"negative_{number}" for number in range(1, num_negatives + 1))
            row |= dict(itertools.zip_longest(names, self.negatives))
        return row | {"scores": [round(score, 6) for score in self.scores]}


@dataclass(frozen=True)
class Mining:
    """The outcome of mining."""

    folder: Path
    config: MineConfig
    rows: Sequence[MinedRow]
    queries: int
    passages: int
    counts: Mapping[str, int]
    """Rows by what became of them, in words."""
    left_out: Mapping[str, int]
    """Candidates that were left out, by the setting that did."""

    @property
    def path(self) -> Path:
        """The file with the rows."""
        return self.folder / NEGATIVES_FILE

    def __str__(self) -> str:
        """Return how many there are and how near they are, in a few lines."""
        lines = [f"{self.queries:,} queries, {self.passages:,} passages"]
        lines += [f"{count:,} {what}" for what, count in self.counts.items()]
        if self.left_out:
            causes = ", ".join(f"{count:,} by {cause}" for cause, count in self.left_out.items())
            lines.append(f"candidates left out: {causes}")
        if self.rows:
            positive, negative = self.mean_scores()
            lines.append(f"mean score of positives {positive:.3f}, of negatives {negative:.3f}")
        return "\n".join(lines)

    def mean_scores(self) -> tuple[float, float]:
        """Return the mean score of the positives, and of the negatives."""
        negatives = [score for row in self.rows for score in row.scores[1:]]
        return float(np.mean([row.scores[0] for row in self.rows])), float(np.mean(negatives))


def mine(config: MineConfig, processes: PartialState | None = None) -> Mining:
    """Find hard negatives, and write rows that have them.

    Args:
        config: the model, the rows, the corpus and the options.
        processes: those of a launcher, which split the encoding; all of them call this, and the main one writes.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data, or no row that has negatives.

    """
    folder = _new_folder(config)
    if not config.rows.names():
        raise ConfigError(
            "rows.name_or_path is missing: give queries with known positives, for example "
            "rows.name_or_path=pairs.jsonl."
        )
    announce(f"reading {', '.join(config.rows.names())}")
    texts = read_texts(config.rows, config.corpus, config.limits)
    announce(f"loading {config.model.name_or_path}")
    kernel_selector = kernels_to_skip if processes is None else kernels_to_skip_from_main_process
    encoder = Encoder.load(config.model, config.pooling, kernel_selector=kernel_selector)
    device = best_device() if processes is None else processes.device
    encoder.to(device).eval()
    check_templates(encoder.tokenizer, ROWS)
    judge = None
    if config.judge.name_or_path is not None:
        announce(f"loading {config.judge.name_or_path}")
        judge = load_judge(config.judge, device, config.batch_size)
    found, positive_scores = _Searcher(texts, encoder, config, processes).run()
    candidates, scores = found.passages.numpy(), found.cosines.numpy()
    if judge is not None:
        announce("judging")
        scores, positive_scores = _judged(judge, texts, candidates)
    lowest = np.array([min(of_query) for of_query in positive_scores], np.float32)
    left_out = [_no_negatives(texts, query) for query in range(len(texts.queries))]
    negatives, negative_scores, reasons = select_negatives(candidates, scores, left_out, lowest, config)
    mining = _outcome(folder, config, texts, negatives, negative_scores, positive_scores, reasons)
    if not mining.rows:
        enough = "any negative" if config.incomplete == "keep" else f"{config.num_negatives} negatives"
        keep = "" if config.incomplete == "keep" else "fewer num_negatives, incomplete=keep, "
        raise DataError(
            f"No row has {enough} among {len(texts.passages):,} passages: give more of them by "
            f"{CORPUS}.name_or_path=FILE, {keep}or looser limits."
        )
    if processes is None or processes.is_main_process:
        _write(mining)
    return mining


def _new_folder(config: MineConfig) -> Path:
    """Return the folder for results, which is checked first, so that nothing is computed in vain."""
    folder = Path(config.output_dir or "mined")
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if existing.is_file():
        raise ConfigError(f"output_dir={folder} cannot be a folder: {existing} is a file; give a new folder.")
    if (folder / NEGATIVES_FILE).exists():
        raise ConfigError(f"output_dir={folder} holds negatives already; give a new folder.")
    return folder


@dataclass(frozen=True)
class _Searcher:
    """Encodes passages piece by piece, each of which is searched and then forgotten."""

    texts: Texts
    encoder: Encoder
    config: MineConfig
    processes: PartialState | None

    def run(self) -> tuple[Neighbours, list[list[float]]]:
        """Return the nearest passages of each query, and the scores of its known positives."""
        texts = self.texts
        queries = F.normalize(self._encode(texts.queries, "query", ROWS), dim=-1)
        scores = [[0.0] * len(positives) for positives in texts.positives]
        skipped = max(map(len, texts.positives)) + any(texts.passage_of(query) is not None for query in texts.queries)
        count = min(self.config.last_rank + skipped, len(texts.passages))
        return search(queries, self._pieces(queries, scores), count, self.encoder.device), scores

    def _pieces(self, queries: Tensor, scores: list[list[float]]) -> Iterator[Tensor]:
        """Yield the embeddings of all passages, and write the cosines of queries and known positives into `scores`."""
        pairs = np.array([
            (passage, query, place)
            for query, positives in enumerate(self.texts.positives)
            for place, passage in enumerate(positives)
        ])  # fmt: skip
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        for first in range(0, len(self.texts.passages), PASSAGES_AT_ONCE):
            part = self.texts.passages[first : first + PASSAGES_AT_ONCE]
            embeddings = self._encode(part, "document", CORPUS)
            begin, end = np.searchsorted(pairs[:, 0], [first, first + len(part)])
            passages, of_queries, of_places = pairs[begin:end].T
            cosines = (F.normalize(embeddings[passages - first], dim=-1) * queries[of_queries]).sum(dim=-1)
            for query, place, cosine in zip(of_queries, of_places, cosines.tolist(), strict=True):
                scores[query][place] = cosine
            yield embeddings

    def _encode(self, texts: Sequence[str], role: str, what: str) -> Tensor:
        try:
            tokens = tokenize(self.encoder.tokenizer, texts, role)
        except ValueError as error:
            raise DataError(f"{what}: {str(error).removesuffix('.')}.") from None
        is_main = self.processes is None or self.processes.is_main_process
        share = -(-len(tokens) // (1 if self.processes is None else self.processes.num_processes))
        clear_announcement()
        with tqdm(total=share, desc=what, unit="text", disable=None if is_main else True, leave=False) as bar:
            encode = partial(self.encoder.encode_tokens, batch_size=self.config.batch_size, progress=bar.update)
            return encode_distributed(encode, tokens, self.processes)


def _judged(judge: Judge, texts: Texts, candidates: IntArray) -> tuple[Scores, list[list[float]]]:
    """Return a judge's scores of the candidates (Q, K) of queries, and of their known positives."""
    rows, columns = np.nonzero(candidates >= 0)
    found = [
        (texts.queries[query], texts.passages[passage])
        for query, passage in zip(rows, candidates[rows, columns], strict=True)
    ]
    known = [
        (texts.queries[query], texts.passages[passage])
        for query, positives in enumerate(texts.positives)
        for passage in positives
    ]
    judged = judge([*found, *known])
    scores: npt.NDArray[np.float32] = np.full(candidates.shape, -np.inf, np.float32)
    scores[rows, columns] = judged[: len(found)]
    ends = np.cumsum([len(positives) for positives in texts.positives])
    of_positives = np.split(judged[len(found) :], ends[:-1])
    return scores, [part.tolist() for part in of_positives]


def _no_negatives(texts: Texts, query: int) -> list[int]:
    """Return the passages that are no negatives of a query: its known positives, and one that is the query itself."""
    itself = texts.passage_of(texts.queries[query])
    return [*texts.positives[query], *([] if itself is None else [itself])]


def _outcome(
    folder: Path,
    config: MineConfig,
    texts: Texts,
    negatives: Sequence[IntArray],
    negative_scores: Sequence[Scores],
    positive_scores: Sequence[Sequence[float]],
    reasons: Counter[str],
) -> Mining:
    rows, counts = [], Counter[str]()
    counts["rows written"] = 0
    for query, text in enumerate(texts.queries):
        found = len(negatives[query])
        is_written = found == config.num_negatives or (found and config.incomplete == "keep")
        for positive, score in zip(texts.positives[query], positive_scores[query], strict=True):
            if is_written:
                passages = [texts.passages[passage] for passage in negatives[query]]
                scores = [score, *negative_scores[query].tolist()]
                rows.append(MinedRow(text, texts.passages[positive], passages, scores))
                counts["rows written"] += 1
                if found < config.num_negatives:
                    counts["of them with fewer negatives"] += 1
            else:
                counts["rows dropped without enough negatives"] += 1
    if texts.repeated_rows:
        counts["rows that were repeated, left out"] = texts.repeated_rows
    return Mining(
        folder,
        config,
        rows,
        len(texts.queries),
        len(texts.passages),
        counts,
        {reason: count for reason, count in reasons.items() if count},
    )


def _write(mining: Mining) -> None:
    """Write the rows, and the figures with the settings that they were made with."""
    make_folder(mining.folder)
    lines = (
        json.dumps(row.as_row(mining.config.layout, mining.config.num_negatives), ensure_ascii=False)
        for row in mining.rows
    )
    write_durably(mining.path, "".join(f"{line}\n" for line in lines))
    positive, negative = mining.mean_scores()
    content = {
        "queries": mining.queries,
        "passages": mining.passages,
        "rows": dict(mining.counts),
        "candidates_left_out": dict(mining.left_out),
        "mean_score_of_positives": positive,
        "mean_score_of_negatives": negative,
        "settings": dataclasses.asdict(mining.config),
    }
    write_durably(mining.folder / MINING_FILE, json.dumps(content, indent=2) + "\n")
