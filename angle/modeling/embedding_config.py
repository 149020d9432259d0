"""The settings saved with a model that determine its embeddings: how texts are tokenised, and how they are pooled."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from angle.config import START_INDEX_VARIABLE
from angle.errors import ConfigError
from angle.modeling.locations import EMBEDDING_CONFIG_FILE, TINY, read_json
from angle.modeling.pooling import is_pooling
from angle.modeling.sentence_transformers_files import SIMILARITIES, read_modules, read_settings, unsupported_pooling
from angle.prompts import PROMPT_NAMES

#: (prefix tokens, suffix tokens): those that a tokenizer puts before and after every text.
SpecialTokens = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class EmbeddingConfig:
    """The settings saved with the model that determine its embeddings.

    `Encoder.embedding_config` is complete: None means that there is no prompt, and so on. One that was read from a
    folder or repository may be partial: there, None means that the entry is missing.
    """

    pooling: str | None = None
    max_length: int | None = None
    prompt: str | None = None
    padding_side: str | None = None
    is_llm: bool | None = None
    bidirectional_from: int | None = None
    """BiLLM: the first layer that attends in both directions; None for no such layer."""
    load_kbit: int | None = None
    """The bits of the frozen weights that an adapter was trained on; None if they were not quantised."""
    special_tokens: SpecialTokens | None = None
    """(prefix tokens, suffix tokens): those that the tokenizer puts before and after every text."""
    layers: int | None = None
    """How many of the original model's first layers were kept; None for all."""
    dimensions: int | None = None
    """How many of the first dimensions make up an embedding; None for all."""
    base_fingerprint: str | None = None
    """Hash of the weights that an adapter was trained on; None for a model without adapters."""
    lower_case: bool | None = None
    """Whether the tokenizer must be made to lower-case texts; None to leave it as it is."""
    normalize: bool | None = None
    """Whether embeddings are scaled to unit length, after they are cut to `dimensions`; None for no."""
    similarity: str | None = None
    """How the embeddings are meant to be compared: cosine, dot, euclidean or manhattan; None for cosine."""
    prompts: Mapping[str, str] | None = None
    """Templates, or the words before a text, by name; None for no such names. Those of roles and columns are used as in
    `angle.config.ModelConfig`; others were read from a sentence-transformers folder, and are handed on to the next."""

    def __str__(self) -> str:
        """Return the settings in human-readable form."""
        end = self.special_tokens[1] if self.special_tokens and self.pooling == "last" else ()
        parts = [
            f"{self.pooling} pooling",
            self.layers is not None and f"first {self.layers} layers",
            self.dimensions is not None and f"first {self.dimensions} dimensions",
            self.normalize and "unit length",
            f"at most {self.max_length} tokens",
            self.prompt is not None and f"template {self.prompt!r}",
            *(f"{name} {self.prompts[name]!r}" for name in PROMPT_NAMES if self.prompts and name in self.prompts),
            self.similarity is not None and f"compared by {self.similarity}",
            end and f"{' '.join(end)} after a text",
            self.bidirectional_from is not None and f"both directions from layer {self.bidirectional_from}",
            self.load_kbit is not None and f"trained on {self.load_kbit}-bit weights",
        ]
        return ", ".join(part for part in parts if part)

    @classmethod
    def parse(cls, content: Any, source: str) -> EmbeddingConfig:
        """Return the settings in the content of an `angle_config.json`, ours or angle_emb's.

        Args:
            content: the parsed JSON. Other entries are ignored.
            source: the file's name, for messages.

        Raises:
            ConfigError: an entry has a value that cannot be.

        """
        if not isinstance(content, dict):
            raise ConfigError(f"{source} holds no JSON object, which it must: copy or download it again.")
        entries = dict(content)
        entries.setdefault("pooling", entries.get("pooling_strategy"))  # angle_emb's name
        if entries.get("apply_billm"):  # angle_emb keeps the start index only in the environment
            start = os.environ.get(START_INDEX_VARIABLE, "0")
            if not start.removeprefix("-").isdecimal():
                raise ConfigError(f"{START_INDEX_VARIABLE}={start} cannot work: it must be the index of a layer.")
            entries["bidirectional_from"] = int(start)
        values = {field.name: entries.get(field.name) for field in dataclasses.fields(cls)}
        for name, (expected, is_valid) in _ENTRY_CHECKS.items():
            if values[name] is not None and not is_valid(values[name]):
                raise ConfigError(
                    f"{source} has {name}={json.dumps(values[name])}, but it must be {expected}: correct the entry, "
                    f"or remove it."
                )
        if values["pooling"] is not None:
            values["pooling"] = str(values["pooling"])
        if values["is_llm"] is not None:
            values["is_llm"] = bool(values["is_llm"])
        if values["bidirectional_from"] is not None and values["bidirectional_from"] < 0:
            values["bidirectional_from"] = None
        if values["special_tokens"] is not None:
            prefix, suffix = values["special_tokens"]
            values["special_tokens"] = tuple(prefix), tuple(suffix)
        return cls(**values)

    def save(self, folder: Path) -> None:
        """Write the settings into a model folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / EMBEDDING_CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _are_special_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(side, list) and all(isinstance(token, str) for token in side) for side in value)
    )


def _are_prompts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(prompt, str) for prompt in value.values())


#: What each entry of the file must be: as a message says it, and as a predicate.
_ENTRY_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "pooling": ("the name of a pooling or the index of a token", lambda value: isinstance(value, str | int)),
    "max_length": ("a whole number above 0", _is_positive),
    "prompt": ("a template with {text}", lambda value: isinstance(value, str) and "{text}" in value),
    "padding_side": ("left or right", lambda value: value in ("left", "right")),
    "is_llm": ("true or false", lambda value: value in (True, False)),
    "bidirectional_from": ("the index of a layer", _is_whole),
    "load_kbit": ("4, 8 or null", lambda value: value in (4, 8)),
    "special_tokens": ("two lists of tokens, those before and those after a text", _are_special_tokens),
    "layers": ("a whole number above 0", _is_positive),
    "dimensions": ("a whole number above 0", _is_positive),
    "base_fingerprint": ("a hash in hexadecimal digits", lambda value: isinstance(value, str)),
    "lower_case": ("true or false", lambda value: isinstance(value, bool)),
    "normalize": ("true or false", lambda value: isinstance(value, bool)),
    "similarity": (f"one of {', '.join(SIMILARITIES)}", lambda value: value in SIMILARITIES),
    "prompts": ("an object of texts by their names", _are_prompts),
}


def read_embedding_config(
    name_or_path: str, revision: str | None = None, *, needs_pooling: bool = True
) -> EmbeddingConfig:
    """Return the settings saved with a model: in its angle_config.json, or as a sentence-transformers folder.

    Args:
        name_or_path: a model folder or a hub name.
        revision: its revision on the hub.
        needs_pooling: whether an unknown or unsupported pooling is an error; else it is None.

    Raises:
        ConfigError: an entry is invalid, or this version does not support it.

    """
    embedding_config, problem = _read(name_or_path, revision)
    if problem is not None and needs_pooling:
        raise ConfigError(problem)
    return embedding_config


def _read(name: str, revision: str | None) -> tuple[EmbeddingConfig, str | None]:
    """Return the settings, and why the pooling is unknown although the model has one."""
    if name == TINY:
        return EmbeddingConfig(pooling="avg"), None
    try:
        content = read_json(name, EMBEDDING_CONFIG_FILE, revision)
        modules = read_modules(name, revision) if content is None else None
        if modules is not None:
            values, problem = read_settings(name, modules, revision)
            return EmbeddingConfig(**values), problem
    except OSError:
        return EmbeddingConfig(), (
            f"The pooling of {name} is unknown: the hub cannot be reached, and the model's settings are not in the "
            f"cache. Go online once, or type pooling=avg, pooling=cls or pooling=last."
        )
    embedding_config = (
        EmbeddingConfig() if content is None else EmbeddingConfig.parse(content, f"{EMBEDDING_CONFIG_FILE} of {name}")
    )
    if embedding_config.pooling is None or is_pooling(embedding_config.pooling):
        return embedding_config, None
    return replace(embedding_config, pooling=None), unsupported_pooling(name, embedding_config.pooling)
