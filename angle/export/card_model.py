"""What a model card says of the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from angle.export.architecture import Architecture
from angle.export.example import Example
from angle.modeling.embedding_config import EmbeddingConfig


class SentenceTransformersSupport(Enum):
    """Whether sentence-transformers can load a model."""

    AS_IS = "as it is"
    IN_VERSION_6 = "as it is, in version 6 or later"
    CONVERTED = "once it is converted"
    NEVER = "never"


LOADABLE = (SentenceTransformersSupport.AS_IS, SentenceTransformersSupport.IN_VERSION_6)


@dataclass(frozen=True)
class CardModel:
    """A model as its card describes it."""

    name: str
    """user/name on the hub, or the name of the folder."""
    embedding_config: EmbeddingConfig
    base: str
    """The model it was trained from: a name on the hub, `tiny`, or an absolute path."""
    has_adapters: bool
    hidden_size: int | None
    """Width of the model's hidden states, None if only the base model's configuration has it."""
    sentence_transformers: SentenceTransformersSupport
    architecture: Architecture | None = None
    """What its own weights are; None if that is not known."""
    example: Example | None = None
    """What it makes of the example sentences; None if that is not known."""
    is_on_hub: bool = True
    onnx: tuple[str, ...] = ()
    """The paths of its ONNX files, in the folder."""

    @property
    def is_loadable(self) -> bool:
        """Whether sentence-transformers loads it as it is."""
        return self.sentence_transformers in LOADABLE

    @property
    def dimensions(self) -> int | None:
        """Width of an embedding, None if it is not known."""
        measured = None if self.example is None else self.example.dimensions
        return self.embedding_config.dimensions or self.hidden_size or measured
