"""Ranking losses: pairs with a higher label must have a higher similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosent_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return log(1 + sum over all ordered (p, q) with label_p < label_q of exp(score_p - score_q)).

    This is the CoSENT loss (Su, 2022, https://kexue.fm/archives/8847), shared by the cosine and the angle term. It is a
    sum, not a mean: it grows with the log of the number of ordered pairs. Equal labels contribute no term; when all are
    equal the loss is 0, with zero gradient.

    For a fixed q the sum runs over all p with a smaller label, which form a prefix once the pairs are sorted by label.
    So one cumulative logsumexp computes it in O(P log P) time and O(P) memory, without a P x P table.

    Args:
        scores: (P,) similarities of P pairs, times their scale.
        labels: (P,) any numbers.

    """
    order = torch.argsort(labels, stable=True)
    scores, labels = scores[order], labels[order]
    smaller = torch.searchsorted(labels, labels, right=False)  # (P,): how many pairs have a smaller label
    prefix = F.pad(torch.logcumsumexp(scores, dim=0), (1, 0), value=-torch.inf)  # (P + 1,): over that many pairs
    terms = prefix[smaller] - scores
    return torch.logsumexp(F.pad(terms, (0, 1)), dim=0)


def cosine_scores(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine similarity (...) of pairs of unit vectors (..., D); 0 where one of them is a zero vector."""
    return (x * y).sum(-1)


def angle_scores(x: Tensor, y: Tensor) -> Tensor:
    """Return the angle similarity (...) of pairs of unit vectors (..., D); D is even.

    The halves of a vector are the real and imaginary parts of a complex one: z = x[:D/2] + i x[D/2:], and likewise w
    from y. With q = <z, w> = sum_k z[k] conj(w[k]) the score is |Re q + Im q|, where Re q is the cosine and
    Im q = sum_k (x[k + D/2] y[k] - x[k] y[k + D/2]). (Li and Li, "AnglE-optimized Text Embeddings", 2024, in the form
    its published code computes; dividing by norms once, beforehand, neither overflows nor divides by zero.)
    Re q + Im q is Re <(1 - i) z, w>: the real part of a single product, with z rotated by -45 degrees and scaled by
    sqrt(2).

    The score is 1 for equal vectors, 0 for a zero vector, and at most sqrt(2), reached where z is w rotated by 45
    degrees. It is not symmetric in x and y.
    """
    real, imaginary = x.chunk(2, dim=-1)
    rotated = torch.cat([real + imaginary, imaginary - real], dim=-1)
    return (rotated * y).sum(-1).abs()
