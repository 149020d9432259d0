"""What merging an adapter into the weights changes, measured on texts that nothing was trained on."""

from __future__ import annotations

import torch

from angle.config import ModelConfig, PoolingConfig
from angle.data import sample
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder

#: Texts to compare on: of the built-in sample's test split.
TEXTS = 200
#: The largest difference in cosine that may come of merging, by the bits of the weights below the adapter. Weights in
#: 4 bits are multiplied as the float32 ones they stand for; with weights in 8 bits, the inputs are rounded as well.
BOUNDS = {None: 1e-4, 4: 1e-4, 8: 1e-2}


def check_merging(model: ModelConfig, pooling: PoolingConfig, merged: Encoder) -> float:
    """Return the largest cosine distance of a text's embedding before and after merging.

    Args:
        model: names the adapter.
        pooling: as for `merged`.
        merged: the same with the adapter merged.

    Raises:
        ConfigError: a difference above the bound.

    """
    apart = Encoder.load(model, pooling, merge=False).eval()
    texts = list(dict.fromkeys(str(text) for text in sample.columns("A", "test")["text1"]))[:TEXTS]
    extras = [dict.fromkeys(merged.tokenizer.columns, "")] * len(texts)
    one, other = (encoder.encode(texts, extras).double() for encoder in (apart, merged))
    difference = float((1 - torch.cosine_similarity(one, other)).max())
    bound = BOUNDS[apart.load_kbit]
    if not difference <= bound:
        raise ConfigError(
            f"Merging the adapter of {model.name_or_path} changes embeddings by {difference:.1e} in cosine, where "
            f"{bound:.0e} is allowed, so nothing is written: type merge=false to keep it apart."
        )
    return difference
