"""Token types: numbers that some tokenizers give to tokens beside their ids, and some models add an embedding for.

Those of the tokens before and after every text, and of its own, are the same for all texts, so they are made where a
model is called, from the texts' lengths. Zero everywhere is as good as none: so models are trained that have types, and
those that have none would take another embedding for them (GPT-2 that of token 0).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from angle.errors import ConfigError
from angle.modeling.layers import base_model
from angle.modeling.special_tokens import encode_a_word
from angle.structures import Lengths, to_device


@dataclass(frozen=True)
class TokenTypes:
    """The types of the tokens that a tokenizer puts before every text, of the text's own, and of those after it."""

    prefix: tuple[int, ...]
    text: int
    suffix: tuple[int, ...]

    def of_texts(self, lengths: Lengths, device: torch.device) -> Tensor:
        """Return (T,): the types of all tokens of texts of these lengths (N,), one text after the other."""
        positions = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        from_end = np.repeat(lengths, lengths) - 1 - positions
        types = np.full(len(positions), self.text)
        for position, token_type in enumerate(self.prefix):
            types[positions == position] = token_type
        for position, token_type in enumerate(reversed(self.suffix)):
            types[from_end == position] = token_type
        return to_device(types, device)


def find_token_types(backbone: Any, tokenizer: Any, ids: Tensor) -> TokenTypes | None:
    """Return the types that a tokenizer gives to tokens, None if the model's states do not depend on them.

    Args:
        backbone: a model, without adapters.
        tokenizer: a transformers tokenizer.
        ids: (T,) tokens to try them on.

    Raises:
        ConfigError: the model fails with these types.

    """
    if "token_type_ids" not in inspect.signature(base_model(backbone).forward).parameters:
        return None
    encoded, start, end = encode_a_word(tokenizer)
    types = encoded.get("token_type_ids", [])
    if not any(types):
        return None
    token_types = TokenTypes(tuple(types[:start]), types[start], tuple(types[end:]))
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
    try:
        with torch.no_grad():
            plain = backbone(**inputs).last_hidden_state
            inputs["token_type_ids"] = token_types.of_texts(np.array([len(ids)]), ids.device)[None]
            typed = backbone(**inputs).last_hidden_state
    except Exception:  # such as an index beyond a table
        raise ConfigError(
            f"The tokenizer gives tokens the types {', '.join(map(str, sorted({*types})))}, with which "
            f"{type(backbone).__name__} fails: give another one by model.tokenizer_name_or_path=..."
        ) from None
    return None if torch.equal(plain, typed) else token_types
