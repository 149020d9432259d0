"""What a model says of validation rows, saved with a run, so that models can be compared row by row and looked into.

T texts, R rows, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from angle.errors import DataError
from angle.evaluation.evaluator import Encode, EvaluationRows, RowValues, ValidationEvaluator
from angle.files import make_folder, write_durably

#: In a run folder: what the untrained model says, and what the model says that the run ends with.
FOLDER, BEFORE, AFTER = "predictions", "before", "after"
#: The one key of a file's metadata; the order of several would be another each time.
METADATA = "predictions"
#: Rows whose texts are saved, characters of each text, and numbers in the saved embeddings (2 MiB) at most.
MAX_ROWS, MAX_CHARACTERS, MAX_NUMBERS = 2000, 500, 2**20


@dataclass(frozen=True)
class Predictions:
    """What a model says of the rows that its primary metric is measured on."""

    metric: str
    """The metric's name."""
    step: int
    """Optimiser steps that the model was trained for."""
    fingerprint: str
    """Hash of the rows; predictions for others cannot be compared row by row."""
    format: str
    """The rows' format: A, B, C, or that of queries with passages."""
    rows: RowValues
    """What the metric is computed from."""
    texts: list[str]
    """The T distinct texts of some rows, as the model reads them: cut, and perhaps in lower case."""
    shown_rows: npt.NDArray[np.int64]
    """(S,): which rows these are."""
    shown_texts: npt.NDArray[np.int64]
    """(S, roles): their texts, as indices into `texts`; of several negatives, the first."""
    embeddings: npt.NDArray[np.float16]
    """(at most T, D): unit vectors, of the first texts."""

    def save(self, run: Path, name: str) -> None:
        """Write the predictions into a run folder, completely or not at all."""
        labels = {} if self.rows.labels is None else {"labels": self.rows.labels}
        arrays = {
            "values": self.rows.values,
            "shown_rows": self.shown_rows,
            "shown_texts": self.shown_texts,
            "embeddings": self.embeddings,
        }
        named = {name: getattr(self, name) for name in ("metric", "step", "fingerprint", "format", "texts")}
        make_folder(run / FOLDER)
        contiguous = {key: np.ascontiguousarray(array) for key, array in (arrays | labels).items()}
        write_durably(_file(run, name), save(contiguous, {METADATA: json.dumps(named)}))

    @classmethod
    def load(cls, run: Path, name: str) -> Predictions | None:
        """Return the predictions in a run folder; None if there are none.

        Raises:
            DataError: the file is damaged.

        """
        file = _file(run, name)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "numpy") as opened:
                named = json.loads(opened.metadata()[METADATA])
                arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return cls(
                metric=named["metric"],
                step=named["step"],
                fingerprint=named["fingerprint"],
                format=named["format"],
                rows=RowValues(arrays["values"], arrays.get("labels")),
                texts=named["texts"],
                shown_rows=arrays["shown_rows"],
                shown_texts=arrays["shown_texts"],
                embeddings=arrays["embeddings"],
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            raise DataError(f"{file} is damaged: the report of its run goes without it if you delete it.") from None


def predict(
    evaluator: ValidationEvaluator, encode: Encode, decode: Callable[[Sequence[int]], str], step: int
) -> Predictions:
    """Return what a model says of an evaluator's rows.

    Args:
        evaluator: has the rows.
        encode: the model.
        decode: turns tokens into text.
        step: optimiser steps that the model was trained for.

    """
    corpus = evaluator.corpus
    shown, texts, shown_texts = _shown(corpus)
    embeddings = encode(corpus.tokens)
    embedded = texts[: max(1, MAX_NUMBERS // embeddings.shape[1])]
    bounds = corpus.tokens.offsets
    return Predictions(
        metric=evaluator.metric.name,
        step=step,
        fingerprint=corpus.fingerprint,
        format=corpus.format.name,
        rows=evaluator.row_values(encode),
        texts=[
            decode(corpus.tokens.ids[bounds[text] : bounds[text + 1]].tolist())[:MAX_CHARACTERS]
            for text in texts.tolist()
        ],
        shown_rows=shown,
        shown_texts=shown_texts,
        embeddings=F.normalize(embeddings[embedded].double(), dim=-1).numpy().astype(np.float16),
    )


def _shown(
    corpus: EvaluationRows,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return some rows, in an order of chance, their distinct texts as they come, and each row's indices into these."""
    rows = np.random.default_rng(0).permutation(len(corpus))[:MAX_ROWS]
    ids = corpus.draw_texts(rows, seed=0, epoch=0).first_of_each_role
    distinct, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return rows, distinct[order], place[inverse.reshape(ids.shape)]


def _file(run: Path, name: str) -> Path:
    return run / FOLDER / f"{name}.safetensors"
