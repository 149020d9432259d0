"""The objective: its terms, and their weights and multipliers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from angle.config.values import check_fields, check_one_of, declared, expand_home
from angle.errors import ConfigError

#: The multiplier that null means in the ranking terms, and for graded labels.
RANKING_TAU, GRADED_TAU = 20.0, 5.0


@dataclass(frozen=True)
class LossTermSpec:
    """What the settings say about a term; `angle.objective.terms` has its function."""

    name: str
    """Its name in metrics.jsonl: loss/<name>."""
    title: str
    """Its name in messages."""
    weight: str
    """The field of `LossConfig` that has its weight."""
    multiplier: str | None
    """The field of `LossConfig` that its similarities are multiplied by; None if it has none."""
    default_weights: Mapping[str, float | str]
    """The weight that null means, for each data format that the term applies to; a name: as much as that setting."""
    graded_weight: float = 0.0
    """The weight that null means for graded labels."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the data formats that the term applies to."""
        return tuple(self.default_weights)


COSINE = LossTermSpec("cosine", "cosine", "cosine_w", "cosine_tau", MappingProxyType({"A": 1.0, "B": 0.0}), 1.0)
#: In both directions, as much for triples as angle_emb's 20 in one.
IN_BATCH = LossTermSpec("ibn", "in-batch", "ibn_w", "ibn_tau", MappingProxyType({"A": 20.0, "B": 10.0, "C": 20.0}))
ANGLE = LossTermSpec("angle", "angle", "angle_w", "angle_tau", MappingProxyType({"A": 1.0, "B": 1.0}))
POSITIVES = LossTermSpec("positives", "in-batch of positives", "positives_w", "ibn_tau", MappingProxyType({"B": 0.0}))
REVERSE = LossTermSpec(
    "reverse", "reverse in-batch", "reverse_w", "ibn_tau", MappingProxyType({"B": IN_BATCH.weight, "C": 0.0})
)
#: Settings that the sources of a mixture cannot have of their own.
OF_ALL_SOURCES = ("guide", "guide_margin")
#: Every term, in the order in which they are summed and named.
LOSS_TERM_SPECS = (COSINE, IN_BATCH, ANGLE, POSITIVES, REVERSE)


@dataclass
class LossConfig:
    """The objective: cosine_w * cosine + ibn_w * in-batch + angle_w * angle. A null weight takes the format's own, or,
    where labels are graded (data_format.graded), that of ranking cosines alone. Triples (B) are contrasted in both
    directions, with reverse_w.
    """

    cosine_w: float | None = declared(None, at_least=0)
    """Weight of the cosine ranking loss (formats A and B)."""
    ibn_w: float | None = declared(None, at_least=0)
    """Weight of the in-batch contrastive loss (all formats)."""
    angle_w: float | None = declared(None, at_least=0)
    """Weight of the angle ranking loss (formats A and B)."""
    positives_w: float | None = declared(None, at_least=0)
    """Weight of the in-batch contrastive loss with the batch's positives as candidates, without its negatives (format
    B)."""
    reverse_w: float | None = declared(None, at_least=0)
    """Weight of the in-batch contrastive loss from positives to texts, with all texts and negatives of the batch as
    candidates (formats B and C): as much as ibn_w makes the loss symmetric, as format A's is. null: as much as ibn_w
    for B, or 0 with cln_w; 0 for C."""
    cln_w: float | None = declared(None, at_least=0)
    """The weights of format B as angle_emb 0.6 writes them: with a number here, ibn_w is for the candidates without
    negatives and this for those with them, each halved; so cln_w=1 ibn_w=1 is ibn_w=0.5 positives_w=0.5."""
    cosine_tau: float | None = declared(None, above=0)
    """Multiplier of the cosine similarities: an inverse temperature; null: 20, or 5 where labels are graded."""
    ibn_tau: float = declared(20.0, above=0)
    """Multiplier of the in-batch similarities: an inverse temperature."""
    angle_tau: float | None = declared(None, above=0)
    """Multiplier of the angle similarities: an inverse temperature; null: 20, or 5 where labels are graded."""
    guide: str | None = None
    """A model that tells false negatives of the in-batch losses: candidates that it finds nearer to a text than the
    text's positive are left out. On the hub, a model or a run folder; null: none."""
    guide_margin: float = 0.0
    """Candidates are left out already if the guide's cosine is above the positive's minus this."""
    positive_above: float | None = None
    """A row of format A is a positive of the in-batch loss if its label is above this; null: 0 (sample data: 4)."""

    def __post_init__(self) -> None:
        check_fields("loss", self)
        self.guide = expand_home("loss.guide", self.guide)
        if self.guide is None and self.guide_margin:
            raise ConfigError(f"loss.guide_margin={self.guide_margin:g} needs a guide: add loss.guide=MODEL.")
        if self.cln_w is not None and self.positives_w is not None:
            raise ConfigError(
                f"loss.cln_w={self.cln_w:g} and loss.positives_w={self.positives_w:g} both weigh the in-batch loss of "
                f"positives: leave one of them out."
            )
        if not self.cln_w and not any(self._may_have_weight(term) for term in LOSS_TERM_SPECS):
            settings = enumerate_words(f"loss.{term.weight}" for term in LOSS_TERM_SPECS if self.weight(term) == 0)
            raise ConfigError(f"{settings} are all 0, so there is nothing to learn: set one of them above 0.")

    def _may_have_weight(self, term: LossTermSpec) -> bool:
        """Return whether a term has a weight above 0 in some data format."""
        weight = self.weight(term)
        if weight is not None:
            return weight > 0
        as_much_as = {spec.weight: spec for spec in LOSS_TERM_SPECS}
        defaults = term.default_weights.values()
        return any(self._may_have_weight(as_much_as[each]) if isinstance(each, str) else each for each in defaults)

    def weight(self, term: LossTermSpec) -> float | None:
        """Return the weight of a term; None leaves it to the data format."""
        weight: float | None = getattr(self, term.weight)
        return weight

    def multiplier(self, term: LossTermSpec) -> float:
        """Return the multiplier of a term's similarities, 1 if it has no setting; null is that of no graded labels."""
        return 1.0 if term.multiplier is None else float(getattr(self, term.multiplier) or RANKING_TAU)

    def with_changes(self, changes: Mapping[str, float | None], setting: str) -> LossConfig:
        """Return a copy with some settings changed.

        Args:
            changes: values by the names of the settings.
            setting: where they stand, for messages.

        Raises:
            ConfigError: there is no setting of such a name, or a value cannot work.

        """
        fields = {field.name: field for field in dataclasses.fields(self) if field.name not in OF_ALL_SOURCES}
        for name, value in changes.items():
            check_one_of(setting, name, tuple(fields))
            if value is None and fields[name].default is not None:
                raise ConfigError(f"{setting}.{name}=null cannot work: it must be a number.")
        try:
            return dataclasses.replace(self, **dict[str, Any](changes))
        except ConfigError as error:
            raise ConfigError(f"{setting}: {error}") from None

    @property
    def has_candidates(self) -> bool:
        """Whether one of the terms that compare a text with others of its batch may have a weight."""
        compares = (term for term in LOSS_TERM_SPECS if term.multiplier == IN_BATCH.multiplier)
        return bool(self.cln_w) or any(map(self._may_have_weight, compares))

    def for_format(self, name: str, *, graded: bool = False) -> LossConfig:
        """Return a copy whose null weights and multipliers are those of the data format `name`.

        Args:
            name: A, B or C.
            graded: whether labels are graded.

        Raises:
            ConfigError: no term that applies to the format has a weight above 0.

        """
        weights: dict[str, Any] = {}
        for term in LOSS_TERM_SPECS:
            default = term.graded_weight if graded else term.default_weights.get(name, 0.0)
            weight = self.weight(term)
            default = weights[default] if isinstance(default, str) else default
            weights[term.weight] = default if weight is None else weight
        if self.cln_w is not None and name in POSITIVES.formats:
            halves = {POSITIVES.weight: weights[IN_BATCH.weight] / 2, IN_BATCH.weight: self.cln_w / 2}
            weights |= halves | {REVERSE.weight: self.reverse_w or 0.0}
        applicable = [term for term in LOSS_TERM_SPECS if name in term.formats]
        if not any(weights[term.weight] for term in applicable):
            settings = [f"loss.{term.weight}" for term in applicable]
            single = len(applicable) == 1
            raise ConfigError(
                f"{enumerate_words(f'{setting}=0' for setting in settings)} leave{'s' if single else ''} nothing to "
                f"learn: format {name} has only the {enumerate_words(term.title for term in applicable)} "
                f"loss{'' if single else 'es'}; set {settings[0] if single else 'one of them'} above 0."
            )
        tau = GRADED_TAU if graded else RANKING_TAU
        multipliers: dict[str, Any] = {"cosine_tau": self.cosine_tau or tau, "angle_tau": self.angle_tau or tau}
        return dataclasses.replace(self, **weights, **multipliers, cln_w=None)

    def active_terms(self, name: str) -> list[tuple[LossTermSpec, float]]:
        """Return the terms that are computed for the data format `name`, with their weights; a null weight is 0."""
        weighted = ((term, self.weight(term) or 0.0) for term in LOSS_TERM_SPECS if name in term.formats)
        return [(term, weight) for term, weight in weighted if weight]

    @property
    def is_of_graded_labels(self) -> bool:
        """Whether its weights and multipliers are those that null means for graded labels."""
        graded = LossConfig().for_format("A", graded=True)
        return all(
            (self.weight(term), self.multiplier(term)) == (graded.weight(term), graded.multiplier(term))
            for term in LOSS_TERM_SPECS
        )

    def summary(self, name: str) -> str:
        """Return the sum that is minimised for the data format `name`, such as "20 in-batch (tau 20) + ..."."""
        return " + ".join(
            f"{weight:g} {term.title}{'' if term.multiplier is None else f' (tau {self.multiplier(term):g})'}"
            for term, weight in self.active_terms(name)
        )


def enumerate_words(words: Iterable[str]) -> str:
    """Return "a", "a and b", or "a, b and c"."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
