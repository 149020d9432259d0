"""The embeddings of tokens: those of tokens that no training text has are left out of training.

Their gradient is 0 in every step, so AdamW without weight decay never changes them. Training them would still cost
memory and time for gradients and moments, and processes would exchange those gradients: most of what a small model
with a large vocabulary takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

#: Share of the vocabulary below which it pays: the rows that are trained are held in two places, but each trained row
#: takes four times its size (itself, its gradient and two moments).
PAYS_BELOW = 3 / 4
#: Number of tokens looked at together: as indices, numpy takes 8 bytes for each.
AT_ONCE = 2**24


class PartlyTrainedEmbedding(nn.Embedding):
    """An embedding table, (V, D), of which only some rows are trained; saved as a plain table."""

    index: Tensor
    """(V,) the place of each token in `trained`, or -1."""
    trained: nn.Parameter
    """(K, D), the rows that are trained."""

    def train_only(self, rows: Tensor) -> None:
        """Freeze the table, and train a copy of these rows (K,), in their place."""
        self.weight.requires_grad_(False)
        self.trained = nn.Parameter(self.weight[rows])
        index = rows.new_full((self.num_embeddings,), -1)
        index[rows] = torch.arange(len(rows), device=rows.device)
        self.register_buffer("index", index, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings (..., D) of tokens (...)."""
        places = self.index[input]
        trained = embedding(places.clamp_min(0), self.trained)
        return torch.where((places >= 0).unsqueeze(-1), trained, super().forward(input))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        trained = destination.pop(f"{prefix}trained")
        table = destination[f"{prefix}weight"]
        destination[f"{prefix}weight"] = table.index_copy(0, (self.index >= 0).nonzero()[:, 0], trained)


def token_table(model: Any) -> Any:
    """Return the module that has the embeddings of tokens; None for a model that hashes characters, such as Canine."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def known_tokens(model: Any) -> int | None:
    """Return how many tokens the model has embeddings for now; None if any number."""
    return getattr(token_table(model), "num_embeddings", None)


def train_only_tokens(model: Any, ids: npt.NDArray[np.int32]) -> None:
    """Leave the embeddings of all other tokens out of training, if this changes nothing but the cost.

    Args:
        model: a transformer, with or without adapters.
        ids: (T,) the tokens of all training texts.

    """
    table = token_table(model)
    if type(table) is not nn.Embedding or table.max_norm or table.scale_grad_by_freq or table.sparse:
        return
    sharing = [weight for _, weight in model.named_parameters(remove_duplicate=False) if weight is table.weight]
    if not table.weight.requires_grad or len(sharing) > 1:
        return
    occurs = np.zeros(table.num_embeddings, bool)
    for part in np.array_split(ids, -(-len(ids) // AT_ONCE)):
        occurs[part] = True
    if table.padding_idx is not None:
        occurs[table.padding_idx] = False  # never trained, even where texts have it
    if occurs.mean() < PAYS_BELOW:
        table.__class__ = PartlyTrainedEmbedding
        assert isinstance(table, PartlyTrainedEmbedding)
        table.train_only(torch.from_numpy(occurs.nonzero()[0]).to(table.weight.device))


def partly_trained(model: nn.Module) -> PartlyTrainedEmbedding | None:
    """Return the embedding table of a model if only some of its rows are trained."""
    return next((part for part in model.modules() if isinstance(part, PartlyTrainedEmbedding)), None)
