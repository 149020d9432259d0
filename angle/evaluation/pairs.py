"""What predictions say of pairs of texts: how similar they are, against how similar they should be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from angle.evaluation.metrics import Floats
from angle.evaluation.predictions import Predictions

#: Texts of which neighbours are shown, and neighbours of each.
NEIGHBOURED, NEIGHBOURS = 8, 3
#: Groups into which graded labels are put.
LABEL_GROUPS = 3
#: Names of the groups of triples and pairs without labels.
POSITIVE, NEGATIVE, CHANCE = "positive", "negative", "texts of two rows"


@dataclass(frozen=True)
class Pairs:
    """P pairs of texts, each in a group of pairs that should be equally similar."""

    left: npt.NDArray[np.int64]
    """(P,): indices into the predictions' texts."""
    right: npt.NDArray[np.int64]
    cosines: Floats
    """(P,)"""
    groups: list[str]
    """(P,): names."""
    group_names: list[str]
    """The groups, from what should be least similar to what should be most."""
    labels: npt.NDArray[np.float32] | None
    """(P,): format A's."""

    @classmethod
    def of(cls, predictions: Predictions) -> Pairs:
        """Return the pairs of the rows whose texts were saved, of formats B and C those with embeddings."""
        roles = predictions.shown_texts
        if predictions.rows.labels is not None:
            labels = predictions.rows.labels[predictions.shown_rows]
            groups, names = _label_groups(labels)
            cosines = predictions.rows.values[predictions.shown_rows]
            return cls(roles[:, 0], roles[:, 1], cosines, groups, names, labels)
        roles = roles[(roles < len(predictions.embeddings)).all(axis=1)]
        kinds = [(roles[:, 0], roles[:, 1], POSITIVE)]
        if predictions.format == "B":
            kinds.append((roles[:, 0], roles[:, 2], NEGATIVE))
        kinds.append((roles[:, 0], np.roll(roles[:, 1], 1), CHANCE))
        left, right = (np.concatenate([kind[side] for kind in kinds]) for side in (0, 1))
        groups = [name for texts, _, name in kinds for _ in texts]
        names = [name for name in (CHANCE, NEGATIVE, POSITIVE) if name in groups]
        return cls(left, right, _cosines(predictions, left, right), groups, names, None)

    def of_group(self, name: str) -> npt.NDArray[np.bool_]:
        """Return (P,): which pairs are of a group."""
        return np.array([group == name for group in self.groups], bool)

    def errors(self) -> Floats:
        """Return (P,): how far a pair's place in the order of similarities is from that in the order of labels.

        Between -1, far too low, and 1, far too high.
        """
        assert self.labels is not None
        difference: Floats = (rankdata(self.cosines) - rankdata(self.labels)) / max(1, len(self.cosines) - 1)
        return difference


def alignment_and_uniformity(predictions: Predictions) -> tuple[float, float] | None:
    """Return how near positives are, and how evenly texts are spread; lower is better for both; None without positives.

    Alignment is the mean squared distance of positive pairs, uniformity the logarithm of the mean of exp(-2 d^2) over
    pairs of different texts at distance d, on the unit sphere (Wang and Isola, "Understanding contrastive
    representation learning through alignment and uniformity on the hypersphere", 2020).
    """
    pairs = Pairs.of(predictions)
    positive = pairs.of_group(pairs.group_names[-1]) & (
        np.maximum(pairs.left, pairs.right) < len(predictions.embeddings)
    )
    if not positive.any() or len(predictions.embeddings) < 2:
        return None
    alignment = float((2 - 2 * pairs.cosines[positive]).mean())
    vectors = predictions.embeddings.astype(np.float64)
    products = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return alignment, float(np.log(np.exp(-2 * (2 - 2 * products)).mean()))


def plane(predictions: Predictions) -> Floats:
    """Return (T, 2): the embeddings on the plane in which they differ most (principal components)."""
    centred = predictions.embeddings.astype(np.float64)
    centred = centred - centred.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    coordinates: Floats = centred @ directions[:2].T
    return coordinates


def neighbours(predictions: Predictions, text: int, count: int) -> list[tuple[int, float]]:
    """Return the nearest other texts of a text with their cosines, the nearest first."""
    vectors = predictions.embeddings.astype(np.float64)
    cosines = vectors @ vectors[text]
    cosines[text] = -np.inf
    nearest = np.argsort(-cosines, kind="stable")[:count]
    return [(int(index), float(cosines[index])) for index in nearest]


def neighbours_table(sides: Mapping[str, Predictions]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table: some texts, and the nearest others as each model sees them.

    Args:
        sides: what models say of the same rows, by their names; the last one chooses the texts.

    """
    *_, last = sides.values()
    sides = {name: side for name, side in sides.items() if side.fingerprint == last.fingerprint}
    embedded = min(len(side.embeddings) for side in sides.values())
    rows = []
    for text in list(dict.fromkeys(last.shown_texts[:, 0].tolist()))[:NEIGHBOURED]:
        if text < embedded:
            found = (neighbours(side, text, NEIGHBOURS) for side in sides.values())
            cells = ["; ".join(f"{last.texts[other]} ({100 * cosine:.0f})" for other, cosine in near) for near in found]
            rows.append([last.texts[text], *cells])
    return ["text", *sides], rows


def _cosines(predictions: Predictions, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> Floats:
    vectors = predictions.embeddings.astype(np.float64)
    cosines: Floats = (vectors[left] * vectors[right]).sum(axis=1)
    return cosines


def _label_groups(labels: npt.NDArray[np.float32]) -> tuple[list[str], list[str]]:
    """Return the group of each label: the label if there are few, else which part of their range it is in."""
    distinct = np.unique(labels)
    if len(distinct) <= LABEL_GROUPS:
        return [f"label {label:g}" for label in labels], [f"label {label:g}" for label in distinct]
    edges = np.linspace(distinct[0], distinct[-1], LABEL_GROUPS + 1)
    names = [f"label {low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
    index = np.clip(np.searchsorted(edges, labels, "right") - 1, 0, LABEL_GROUPS - 1)
    groups = [names[number] for number in index]
    return groups, [name for name in names if name in groups]
