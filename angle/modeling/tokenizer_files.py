"""What is wrong with the files of a tokenizer: tokens and rules that would take minutes, or all memory, to use."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from angle.errors import ConfigError
from angle.modeling.consistency import read_if_there
from angle.modeling.locations import TINY
from angle.modeling.weight_files import model_folder

TOKENIZER_FILE = "tokenizer.json"
#: Tokens that may be added to a vocabulary: loading these takes about 10 seconds.
MAX_ADDED_TOKENS = 50_000
#: How many times as long a text may become by a tokenizer's rules. (Unicode's normal forms can take 18 characters.)
MAX_GROWTH = 10_000
#: The rules in the file.
RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
#: What follows the name of one: a token of the vocabulary may have the same name, but has a number.
RULE_START = re.compile(rb"\s*:\s*(?=\{)")
#: How many times as long a text becomes at most by rules of a type; others leave it as long, or nearly so.
GROWTH_OF_TYPE = {
    "NFC": 3.0, "NFD": 4.0, "NFKC": 18.0, "NFKD": 18.0, "Precompiled": 18.0, "ByteLevel": 4.0, "Lowercase": 3.0,
    "BertNormalizer": 12.0,
}  # fmt: skip


def check_tokenizer_files(name: str, revision: str | None = None) -> None:
    """Check what the files of a tokenizer say, before anything of it is loaded.

    Raises:
        ConfigError: more tokens are added than can be loaded in seconds, rules make texts too long for the memory, or
            a file is damaged.

    """
    folder = None if name == TINY else model_folder(name, revision)
    file = None if folder is None else folder / TOKENIZER_FILE
    content = file.read_bytes() if file is not None and file.is_file() else b""
    _check_added_tokens(name, revision, content)
    for kind, rule in _rules(content):
        if _has_damaged_table(rule):
            raise ConfigError(
                f"{TOKENIZER_FILE} of {name} is damaged: its precompiled_charsmap is no table of characters; copy or "
                f"download it again."
            )
        growth = _growth(rule)
        if growth > MAX_GROWTH:
            raise ConfigError(
                f"The {kind} in {TOKENIZER_FILE} of {name} makes a text up to {growth:,.0f} times as "
                f"long, and at most {MAX_GROWTH:,} times is loaded: give another tokenizer by "
                f"model.tokenizer_name_or_path=..."
            )


def _check_added_tokens(name: str, revision: str | None, content: bytes) -> None:
    """Check the number of tokens beside the vocabulary; `content` is that of tokenizer.json."""
    added = read_if_there(name, "tokenizer_config.json", revision).get("added_tokens_decoder")
    count = max(
        len(read_if_there(name, "added_tokens.json", revision)),
        len(added) if isinstance(added, dict) else 0,
        content.count(b'"single_word"'),  # not parsed, which takes seconds where the vocabulary is large
    )
    if count > MAX_ADDED_TOKENS:
        raise ConfigError(
            f"The tokenizer of {name} adds {count:,} tokens to its vocabulary, and at most {MAX_ADDED_TOKENS:,} are "
            f"loaded in seconds: make them part of the vocabulary itself, or give another tokenizer by "
            f"model.tokenizer_name_or_path=..."
        )


def _rules(content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the kind and the value of each rule in tokenizer.json, which is not parsed whole: that takes seconds."""
    starts = {len(content): ("", len(content))}
    for kind in RULES:
        name, position = f'"{kind}"'.encode(), -1
        while (position := content.find(name, position + 1)) >= 0:
            if match := RULE_START.match(content, position + len(name)):
                starts[position] = kind, match.end()
    for position, end in pairwise(sorted(starts)):
        kind, start = starts[position]
        try:
            yield kind, json.JSONDecoder().raw_decode(content[start:end].decode("utf-8", "replace"))[0]
        except (ValueError, RecursionError):  # damage is reported when the file is loaded
            continue


def _has_damaged_table(rule: Any) -> bool:
    """Return whether a table of SentencePiece's in a rule claims another size than it has, which Rust aborts at."""
    if isinstance(rule, list):
        return any(map(_has_damaged_table, rule))
    if not isinstance(rule, dict):
        return False
    table = rule.get("precompiled_charsmap")
    if isinstance(table, str):
        try:
            content = base64.b64decode(table, validate=True)
        except ValueError:
            return True
        size = int.from_bytes(content[:4], "little")
        return len(content) < 4 or size % 4 != 0 or size > len(content) - 4
    return any(map(_has_damaged_table, rule.values()))


def _growth(rule: Any) -> float:
    """Return an upper bound of how many times as long a text becomes by a rule: one after the other, they multiply."""
    if isinstance(rule, list):
        growth = 1.0
        for part in rule:
            growth *= _growth(part)
        return growth
    if not isinstance(rule, dict):
        return 1.0
    growth = GROWTH_OF_TYPE.get(str(rule.get("type")), 1.0)
    for parts in ("normalizers", "pretokenizers", "processors", "decoders"):
        growth *= _growth(rule.get(parts))
    if rule.get("type") == "Replace":
        pattern, content = rule.get("pattern"), str(rule.get("content", ""))
        replaced = len(str(pattern["String"])) if isinstance(pattern, dict) and "String" in pattern else 0
        # An expression, and an empty string, may match between any two characters.
        growth *= max(1.0, len(content) / replaced) if replaced else 1.0 + len(content)
    growth *= 1.0 + len(str(rule.get("prepend", "")))
    template = rule.get("single")
    return growth * max(1, len(template)) if isinstance(template, list) else growth
