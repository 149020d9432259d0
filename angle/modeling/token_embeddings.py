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

#: The fraction of the vocabulary that texts must stay below for this to pay: the rows that are trained are held twice,
#: but each trained row takes four times its size (itself, its gradient and two moments).
MAX_USED_FRACTION = 3 / 4
#: Number of tokens counted at once: as indices, numpy takes 8 bytes for each.
CHUNK_TOKENS = 2**24


class PartlyTrainedEmbedding(nn.Embedding):
    """An embedding table, (V, D), of which only some rows are trained; saved as a plain table."""

    trainable_index: Tensor
    """(V,): the row of each token in `trainable_weight`, or -1."""
    trainable_weight: nn.Parameter
    """(K, D): the rows that are trained."""

    def train_only(self, rows: Tensor) -> None:
        """Freeze the table, and train a copy of these rows (K,) in their place."""
        self.weight.requires_grad_(False)
        self.trainable_weight = nn.Parameter(self.weight[rows])
        trainable_index = rows.new_full((self.num_embeddings,), -1)
        trainable_index[rows] = torch.arange(len(rows), device=rows.device)
        self.register_buffer("trainable_index", trainable_index, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings (..., D) of tokens (...)."""
        rows = self.trainable_index[input]
        trainable_weight = embedding(rows.clamp_min(0), self.trainable_weight)
        return torch.where((rows >= 0).unsqueeze(-1), trainable_weight, super().forward(input))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        trainable_weight = destination.pop(f"{prefix}trainable_weight")
        table = destination[f"{prefix}weight"]
        destination[f"{prefix}weight"] = table.index_copy(
            0, (self.trainable_index >= 0).nonzero()[:, 0], trainable_weight
        )


def token_embedding(model: Any) -> Any:
    """Return the module that has the embeddings of tokens; None for a model that hashes characters, such as Canine."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def num_token_embeddings(model: Any) -> int | None:
    """Return how many tokens the model has embeddings for now; None if any number."""
    return getattr(token_embedding(model), "num_embeddings", None)


def freeze_unused_tokens(model: Any, ids: npt.NDArray[np.int32]) -> None:
    """Leave the embeddings of tokens that no text has out of training, if this changes nothing but the cost.

    Args:
        model: a transformer, with or without adapters.
        ids: (T,) the tokens of all training texts.

    """
    table = token_embedding(model)
    if type(table) is not nn.Embedding or table.max_norm or table.scale_grad_by_freq or table.sparse:
        return
    tied = [weight for _, weight in model.named_parameters(remove_duplicate=False) if weight is table.weight]
    if not table.weight.requires_grad or len(tied) > 1:
        return
    is_used = np.zeros(table.num_embeddings, bool)
    for chunk in np.array_split(ids, -(-len(ids) // CHUNK_TOKENS)):
        is_used[chunk] = True
    if table.padding_idx is not None:
        is_used[table.padding_idx] = False  # never trained, even where texts have it
    if is_used.mean() < MAX_USED_FRACTION:
        table.__class__ = PartlyTrainedEmbedding
        assert isinstance(table, PartlyTrainedEmbedding)
        table.train_only(torch.from_numpy(is_used.nonzero()[0]).to(table.weight.device))


def partly_trained_embedding(model: nn.Module) -> PartlyTrainedEmbedding | None:
    """Return the token embedding of a model if only some of its rows are trained."""
    return next((module for module in model.modules() if isinstance(module, PartlyTrainedEmbedding)), None)
