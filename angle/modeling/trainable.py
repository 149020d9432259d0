"""The module that is trained: an encoder, with what the loss needs of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from angle.modeling.encoder import Encoder
from angle.structures import Lengths, Tokens


class TrainableEncoder(nn.Module):
    """An encoder that returns embeddings at the loss's depths and, with a teacher, the states to compare with its."""

    def __init__(
        self,
        encoder: Encoder,
        depths: Sequence[int] | None = None,
        distillation_level: str | None = None,
        projection_dim: int | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: the encoder.
            depths: as in `Encoder.forward`.
            distillation_level: "texts" or "tokens": whether embeddings or token states are distilled; None for neither.
            projection_dim: dimension of the teacher's states, to train a linear map to them; None for no such map.

        """
        super().__init__()
        self.encoder = encoder
        self.depths = depths
        self.distillation_level = distillation_level
        states_dim = encoder.backbone.config.hidden_size if distillation_level == "tokens" else encoder.dimensions
        self.projection = None if projection_dim is None else nn.Linear(states_dim, projection_dim).to(encoder.device)

    def encode_tokens(self, tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        """Return what the encoder's method does. Calling it through this module gathers sharded weights."""
        return self.encoder.encode_tokens(tokens, depths=depths)

    def forward(self, ids: Tensor, lengths: Lengths) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings, as `Encoder.forward`, and the states to distil: (N, D), (T, D) for tokens, or None."""
        if self.distillation_level is None:
            return self.encoder(ids, lengths, self.depths), None
        if self.distillation_level == "tokens":
            embeddings, states = self.encoder.with_token_states(ids, lengths, self.depths)
            states = states.float()
        else:
            embeddings = self.encoder(ids, lengths, self.depths)
            states = embeddings if self.depths is None else embeddings[:, -1]
        return embeddings, states if self.projection is None else self.projection(states)
