"""The table of loss terms: complete, in the schema's order, and the one that the loss iterates over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from angle.config import LOSS_TERM_SPECS, LossConfig
from angle.objective import combined
from angle.objective.combined import CombinedLoss
from angle.objective.terms import LOSS_TERMS
from angle.structures import FORMATS, BatchStructure


def test_every_term_of_the_schema_has_a_function() -> None:
    assert tuple(term.spec for term in LOSS_TERMS) == LOSS_TERM_SPECS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("term", LOSS_TERMS, ids=lambda term: term.spec.name)
def test_a_term_is_computed_for_its_formats_times_its_weight_with_its_multiplier(term, name, monkeypatch):
    calls = []

    def function(inputs, scale):
        calls.append(scale)
        return inputs.embeddings.new_tensor(3.0)

    weights = {other.weight: 1.0 if name in other.formats else 0.0 for other in LOSS_TERM_SPECS}
    multipliers = {} if term.spec.multiplier is None else {term.spec.multiplier: 7.0}
    config = LossConfig(**weights | {term.spec.weight: 5.0}, **multipliers)
    table = [replace(each, function=function if each is term else lambda *_: torch.tensor(0.0)) for each in LOSS_TERMS]
    monkeypatch.setattr(combined, "LOSS_TERMS", table)
    index = torch.arange(2 * len(FORMATS[name].roles)).view(2, -1)
    structure = BatchStructure.of_columns(
        FORMATS[name], index, index, torch.ones(2) if FORMATS[name].labelled else None
    )
    output = CombinedLoss(config, FORMATS[name], 4)(torch.ones(index.numel(), 4), structure)
    applies = name in term.spec.formats
    assert (term.spec.name in output.terms) is applies
    assert calls == [7.0 if multipliers else 1.0] * applies
    assert output.total.item() == (15.0 if applies else 0.0)


@pytest.mark.parametrize("name", FORMATS)
def test_summary(name: str) -> None:
    config = LossConfig(1.0, 2.5, 3.0, cosine_tau=4.0, ibn_tau=5.0, angle_tau=6.0).for_format(name)
    assert (
        config.summary(name)
        == {
            "A": "1 cosine (tau 4) + 2.5 in-batch (tau 5) + 3 angle (tau 6)",
            "B": "1 cosine (tau 4) + 2.5 in-batch (tau 5) + 3 angle (tau 6) + 2.5 reverse in-batch (tau 5)",
            "C": "2.5 in-batch (tau 5)",
        }[name]
    )
    terms = CombinedLoss(config, FORMATS[name], 4).weighted_terms
    assert [term.spec for _, term in terms] == [spec for spec, _ in config.active_terms(name)]
