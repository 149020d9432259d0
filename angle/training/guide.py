"""The guide: a frozen model that tells which texts of a batch are no negatives of each other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from angle.cache import cache_folder, load_array, save_array
from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.modeling.tokenizer import TextTokenizer

#: Texts encoded at a time.
BATCH_SIZE = 64


class Guide:
    """Embeds texts with its own tokenizer, template and pooling, and keeps the embeddings on disk."""

    def __init__(self, encoder: Encoder) -> None:
        """Use a frozen encoder as the guide."""
        self._encoder = encoder
        self.fingerprints = encoder.fingerprints
        digest = hashlib.sha256(f"{encoder.embedding_config}/{encoder.backbone.config.to_json_string()}".encode())
        for parameter in encoder.parameters():
            digest.update(parameter.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
        self._key = digest.hexdigest()

    def __call__(self, texts: Sequence[str], have_roles: bool) -> npt.NDArray[np.float32]:
        """Return the embeddings (N, K, D) of texts, of unit length, computed or from disk.

        Args:
            texts: N texts.
            have_roles: whether they are queries and documents. Then each is embedded as both, if the guide has
                templates for these (K is 2); else K is 1.

        Raises:
            ConfigError: a text gives no token, or leaves no room in the template.

        """
        tokenizer = self._encoder.tokenizer
        tokenizers = [tokenizer.named(role) for role in ("query", "document")] if have_roles else [tokenizer]
        if len({each.prompt for each in tokenizers}) == 1:
            tokenizers = tokenizers[:1]
        embeddings = [self._embeddings(texts, each) for each in tokenizers]
        return np.stack(embeddings, axis=1) if len(embeddings) > 1 else embeddings[0][:, None]  # which stays on disk

    def _embeddings(self, texts: Sequence[str], tokenizer: TextTokenizer) -> npt.NDArray[np.float32]:
        digest = hashlib.sha256(f"{self._key}/{tokenizer.fingerprint}".encode())
        for text in texts:
            digest.update(f"{len(text)}/".encode() + text.encode())
        path = cache_folder("guides") / f"{digest.hexdigest()}.npy"
        embeddings = load_array(path)
        if embeddings is None or embeddings.shape != (len(texts), self._encoder.dimensions):
            encoded = self._encoder.encode(list(texts), None, BATCH_SIZE, tokenizer=tokenizer)
            embeddings = torch.nn.functional.normalize(encoded, dim=-1).numpy()
            save_array(path, embeddings)
        return embeddings


def load_guide(name: str, model: ModelConfig, device: torch.device) -> Guide:
    """Return the guide on a device.

    Args:
        name: on the hub, a model or a run folder.
        model: the settings of the model that is trained, whose choice of kernels holds for the guide too.
        device: where it runs.

    Raises:
        ConfigError: the guide cannot be loaded.

    """
    try:
        encoder = Encoder.load(ModelConfig(name, kernels=model.kernels))
    except ConfigError as error:
        raise ConfigError(f"loss.guide={name} cannot be loaded: {error}") from None
    return Guide(encoder.requires_grad_(False).eval().to(device))
