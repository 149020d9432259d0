"""Alignment with a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from angle.config.pooling import POOLING_NAMES
from angle.config.values import (
    DTYPES,
    KBITS,
    SELF_TEACHER,
    check_fields,
    declared,
    expand_home,
    refuse_fields_while_off,
)
from angle.errors import ConfigError


@dataclass
class TeacherConfig:
    """Alignment with the hidden states of a frozen teacher, which reads the same token ids as the student."""

    enabled: bool = False
    """Whether the alignment is part of the loss."""
    name_or_path: str | None = None
    """The teacher, as in model.name_or_path; `self`: the student as it was before training."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that ships with the teacher's repository."""
    pooling: str = declared("auto", choices=("auto", "tokens", *POOLING_NAMES))
    """How to pool the teacher's hidden states into the embedding that the student's is aligned with, as in
    pooling.strategy; `tokens`: align the hidden states of every token instead."""
    weight: float = declared(1.0, at_least=0)
    """Weight of the alignment in the loss."""
    temperature: float = declared(1.0, at_least=0)
    """Temperature of the divergence between the two softmaxes over dimensions; 0: no divergence."""
    mse_w: float = declared(0.0, at_least=0)
    """Weight of the mean squared error in the alignment."""
    projection: bool = False
    """Train a linear map from the student's dimensions to the teacher's."""
    dtype: str | None = declared(None, choices=DTYPES)
    """Type of the teacher's weights: float32, bfloat16, float16 or auto (as stored); null: float32, or the student's
    type for `self`."""
    load_kbit: int | None = declared(None, choices=KBITS)
    """4 or 8: quantise the teacher's weights to 4 or 8 bits; null: not quantised, or as the student for `self`."""
    cache: bool = False
    """Compute the teacher's embeddings of all texts once, before training and without autocast, and keep them on
    disk."""

    def __post_init__(self) -> None:
        self.name_or_path = expand_home("teacher.name_or_path", self.name_or_path)
        refuse_fields_while_off("teacher", self, "teacher=self")
        check_fields("teacher", self)
        if not self.enabled:
            return
        if self.name_or_path is None:
            raise ConfigError(
                "teacher.name_or_path is missing: give the teacher, for example "
                "teacher.name_or_path=WhereIsAI/UAE-Large-V1, or type teacher=self."
            )
        if self.name_or_path == SELF_TEACHER and self.revision is not None:
            raise ConfigError(
                f"teacher.revision={self.revision} cannot work with teacher.name_or_path={SELF_TEACHER}, which is of "
                f"the student's own: leave one out."
            )
        if not self.weight or not (self.temperature or self.mse_w):
            raise ConfigError(
                f"teacher.weight={self.weight:g} with teacher.temperature={self.temperature:g} and "
                f"teacher.mse_w={self.mse_w:g} aligns nothing: set teacher.weight, and one of the others, above 0, or "
                f"type teacher=none."
            )
        if self.cache and self.pooling == "tokens":
            raise ConfigError(
                "teacher.cache=true cannot work with teacher.pooling=tokens, whose states would fill the disk: leave "
                "one out."
            )
