"""What is trained: an encoder, wrapped the way its objective needs it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from angle.modeling.encoder import Encoder
from angle.structures import Lengths, Tokens


class TrainableEncoder(nn.Module):
    """An encoder that returns embeddings at a loss's depths, and states to compare with those of a teacher."""

    def __init__(
        self,
        encoder: Encoder,
        depths: Sequence[int] | None = None,
        aligns: str | None = None,
        projected_to: int | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: the encoder.
            depths: as in `Encoder.forward`.
            aligns: "texts" or "tokens", whichever is aligned with a teacher; None without a teacher.
            projected_to: the teacher's width if it differs; a linear map to the teacher's states is then trained.

        """
        super().__init__()
        self.encoder = encoder
        self.depths = depths
        self.aligns = aligns
        width = encoder.backbone.config.hidden_size if aligns == "tokens" else encoder.dimensions
        self.projection = None if projected_to is None else nn.Linear(width, projected_to).to(encoder.device)

    def encode_tokens(self, tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        """Return what the encoder's method does. Calling it through this module gathers sharded weights."""
        return self.encoder.encode_tokens(tokens, depths=depths)

    def forward(self, ids: Tensor, lengths: Lengths) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings, as `Encoder.forward`, and the states to align: (N, D), (T, D) for tokens, or None."""
        if self.aligns is None:
            return self.encoder(ids, lengths, self.depths), None
        if self.aligns == "tokens":
            embeddings, states = self.encoder.with_token_states(ids, lengths, self.depths)
            states = states.float()
        else:
            embeddings = self.encoder(ids, lengths, self.depths)
            states = embeddings if self.depths is None else embeddings[:, -1]
        return embeddings, states if self.projection is None else self.projection(states)
