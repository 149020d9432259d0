"""What differs between a converted folder and the sentence-transformers folder that its model was trained from."""

from __future__ import annotations

from dataclasses import dataclass

from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.modeling.embedding_config import EmbeddingConfig, read_embedding_config
from angle.modeling.locations import adapter_base, locate_model
from angle.modeling.pooling import POOLINGS
from angle.modeling.sentence_transformers_files import SIMILARITIES, read_modules

LENGTH = "length of embeddings"
#: What is not worth telling that it was kept.
ALL, OWN, NONE = NOTHING = ("all", "their own", "none")


@dataclass(frozen=True)
class Changes:
    """The settings of a base model that a converted folder has too, and those that it has not."""

    kept: tuple[str, ...]
    changed: tuple[str, ...]


def origin_of(model: ModelConfig) -> str:
    """Return the name of the model that a model comes from: of an adapter its base, else its own."""
    name = model.name_or_path
    base = adapter_base(locate_model(name), model.revision)
    return name if base is None else base[0]


def changes_from(origin: str, made: EmbeddingConfig) -> Changes | None:
    """Return what a folder keeps of its origin's settings; None if these are unknown, or are none to keep.

    Args:
        origin: what the model was trained or converted from.
        made: the settings of the folder.

    """
    try:
        origin = locate_model(origin)
        if read_modules(origin, None) is None:
            return None
        before = read_embedding_config(origin, needs_pooling=False)
    except (ConfigError, OSError):  # it is no longer there, or the hub cannot be reached
        return None
    old, new = _described(before), _described(made)
    if before.normalize and not made.normalize:
        new[LENGTH] = f"{new[LENGTH]} (normalize=true adds the module)"
    known = [name for name in new if old[name] is not None]
    return Changes(
        kept=tuple(f"{name} {old[name]}" for name in known if old[name] == new[name] and old[name] not in NOTHING),
        changed=tuple(f"{name} {old[name]} -> {new[name]}" for name in known if old[name] != new[name]),
    )


def _described(settings: EmbeddingConfig) -> dict[str, str | None]:
    """Return each setting in words, by what it is about; None where a model does not say."""
    pooling = POOLINGS.get(settings.pooling or "")
    modes = settings.pooling if pooling is None else " + ".join(pooling.sentence_transformers)
    return {
        "pooling": modes,
        "dimensions": ALL if settings.dimensions is None else f"the first {settings.dimensions}",
        LENGTH: "1 (Normalize)" if settings.normalize else OWN,
        "similarity": settings.similarity or SIMILARITIES[0],
        "max. length": None if settings.max_length is None else f"{settings.max_length} tokens",
        "template": NONE if settings.prompt in (None, "{text}") else repr(settings.prompt),
        "prompts": ", ".join(f"{name} {text!r}" for name, text in (settings.prompts or {}).items()) or NONE,
    }
