"""Who is compared: systems with their objectives, and which settings are equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.throughput.jobs import ANGLE_EMB, OWN, SBERT, TAUS

FORMATS = ("A", "B")
EQUALITIES = {
    "settings": "Same settings, same objective",
    "steps": "Same number of steps, each with its own objective and best learning rate",
    "time": "Same time, each with its own objective and best learning rate",
}


@dataclass(frozen=True)
class Side:
    """A system with an objective."""

    name: str
    """As tables call it."""
    system: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What its trainer is told, as in `Job.options`."""
    whole_labels: bool = False
    """Whether labels are put where angle_emb, which cuts them to whole numbers, finds the intended positives."""


@dataclass(frozen=True)
class Pair:
    """A peer, and this project set to the peer's objective."""

    own: Side
    peer: Side


@dataclass(frozen=True)
class Part:
    """An equality on rows of a format."""

    equality: str
    format: str

    @property
    def name(self) -> str:
        """As the command line calls it."""
        return f"{self.equality}-{self.format}"


PARTS = {part.name: part for part in (Part(equality, name) for name in FORMATS for equality in EQUALITIES)}


def own_side(name: str, overrides: Iterable[str]) -> Side:
    """Return this project with words of train.py's command line."""
    return Side(f"{OWN}, {name}", OWN, {"overrides": list(overrides)})


def _pair(peer: Side, what: str, cosine_w: float, ibn_w: float, angle_w: float, *, whole_labels: bool = False) -> Pair:
    terms = {"cosine_w": cosine_w, "ibn_w": ibn_w, "angle_w": angle_w, "reverse_w": 0.0} | TAUS
    words = [*(f"loss.{name}={value:g}" for name, value in terms.items()), "data.duplicates=keep", "train.dropout=own"]
    overrides = {"overrides": words}
    return Pair(Side(f"{OWN}, {what}", OWN, overrides, whole_labels), peer)


def _sbert(loss: str, **options: Any) -> Side:
    return Side(f"{SBERT}, {loss}", SBERT, {"loss": loss, **options})


def _angle_emb(name: str, *, filter_duplicate: bool, whole_labels: bool = False, **weights: float) -> Side:
    options = {"filter_duplicate": filter_duplicate, "loss_kwargs": weights | TAUS}
    return Side(name, ANGLE_EMB, options, whole_labels)


#: Whose objectives are the same. angle_emb 0.6 halves the contrastive terms of triples, so 40 there is 20 here.
PAIRS = {
    "A": (
        _pair(
            _angle_emb(
                f"{ANGLE_EMB}, the same",
                filter_duplicate=False,
                whole_labels=True,
                cosine_w=1.0,
                ibn_w=20.0,
                angle_w=1.0,
            ),
            "cosine 1, in-batch 20, angle 1",
            1,
            20,
            1,
            whole_labels=True,
        ),
        _pair(_sbert("CoSENTLoss"), "cosine", 1, 0, 0),
        _pair(_sbert("AnglELoss"), "angle", 0, 0, 1),
    ),
    "B": (
        _pair(
            _angle_emb(
                f"{ANGLE_EMB}, the same", filter_duplicate=False, cosine_w=0.0, ibn_w=0.0, cln_w=40.0, angle_w=1.0
            ),
            "in-batch 20, angle 1",
            0,
            20,
            1,
        ),
        _pair(_sbert("MultipleNegativesRankingLoss"), "in-batch", 0, 1, 0),
    ),
}
#: The peers as they are documented: angle_emb's weights are those of the README of 0.6.1 (A: its example on the STS
#: benchmark; B, which it calls C: its recommendation), and duplicates are left out, as it does unless told otherwise.
#: sentence-transformers documents that sampler for its loss.
DOCUMENTED = {
    "A": (
        _angle_emb(ANGLE_EMB, filter_duplicate=True, cosine_w=1.0, ibn_w=1.0, angle_w=0.02),
        _sbert("CoSENTLoss"),
        _sbert("AnglELoss"),
    ),
    "B": (
        _angle_emb(ANGLE_EMB, filter_duplicate=True, cosine_w=0.0, ibn_w=1.0, cln_w=1.0, angle_w=0.02),
        _sbert("MultipleNegativesRankingLoss", batch_sampler="no_duplicates"),
    ),
}
#: This project as a user would type it, in equal steps and equal time: a name, and words of train.py's command line
#: that fit both formats. Each is compared with each peer.
OURS: dict[str, tuple[str, ...]] = {"loss=auto": ("loss=auto",)}


def sides_of(part: Part, peers: Iterable[str], ours: Iterable[str] = tuple(OURS)) -> list[Side]:
    """Return the sides that train in a part: this project's first, then those of the given peers."""
    if part.equality == "settings":
        pairs = [pair for pair in PAIRS[part.format] if pair.peer.system in peers]
        return [pair.own for pair in pairs] + [pair.peer for pair in pairs]
    return [own_side(name, OURS[name]) for name in ours] + [
        side for side in DOCUMENTED[part.format] if side.system in peers
    ]


def comparisons_of(part: Part, peers: Iterable[str], ours: Iterable[str] = tuple(OURS)) -> list[Pair]:
    """Return who is compared with whom in a part."""
    if part.equality == "settings":
        return [pair for pair in PAIRS[part.format] if pair.peer.system in peers]
    sides = sides_of(part, peers, ours)
    own = [side for side in sides if side.system == OWN]
    return [Pair(one, peer) for one in own for peer in sides if peer.system != OWN]
