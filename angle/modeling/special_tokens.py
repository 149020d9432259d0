"""What a transformers tokenizer puts around a text, found by calling it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from angle.errors import ConfigError, first_line, is_failure
from angle.modeling.embedding_config import SpecialTokens

#: The words of a vocabulary that are tried as a text, at most, to see what is put around it.
MAX_PROBES = 10_000


def call_tokenizer(tokenizer: Any, texts: str | list[str], **options: Any) -> Any:
    """Return what a transformers tokenizer makes of texts.

    Raises:
        ConfigError: its rules fail on one of them.

    """
    try:
        return tokenizer(texts, verbose=False, **options)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ConfigError(
            f"The tokenizer of {tokenizer.name_or_path} fails on a text ({first_line(error)}): give another by "
            f"model.tokenizer_name_or_path=..."
        ) from error


def special_tokens_around(tokenizer: Any) -> SpecialTokens:
    """Return (prefix tokens, suffix tokens): what a transformers tokenizer puts before and after every text.

    Raises:
        ConfigError: its vocabulary has no word that a text could be written with.

    """
    encoded, start, end = encode_a_word(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    return tuple(tokens[:start]), tuple(tokens[end:])


def encode_a_word(tokenizer: Any) -> tuple[Mapping[str, list[int]], int, int]:
    """Return what a transformers tokenizer makes of some word that it knows, and where in there the word lies.

    Raises:
        ConfigError: its vocabulary has none.

    """
    special_ids = set(tokenizer.all_special_ids)
    for token_id in range(min(len(tokenizer), MAX_PROBES)):
        if token_id in special_ids:
            continue
        encoded = call_tokenizer(tokenizer, tokenizer.decode([token_id]), return_special_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
        positions = [position for position, special in enumerate(mask) if not special]
        if any(ids[position] not in special_ids for position in positions):  # not just unknown
            return encoded, positions[0], positions[-1] + 1
    raise ConfigError(
        f"{type(tokenizer).__name__} has a vocabulary of {len(tokenizer)} tokens, with none of which a text can be "
        f"written; transformers makes up such a one where a folder has no tokenizer.json: copy the tokenizer's files "
        f"there, or give its folder by model.tokenizer_name_or_path=..."
    )


def processors_before_end_token(post_processor: Any, eos_token: str) -> int | None:
    """Return how many steps of a post-processor precede one that just appends the end token; None without such."""
    state = json.loads(post_processor.__getstate__())
    steps = state.get("processors", [])
    appended = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos_token, "type_id": 0}}]
    return len(steps) - 1 if steps and steps[-1].get("single") == appended else None
