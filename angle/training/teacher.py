"""The teacher: a frozen model that reads the student's tokens."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from angle.cache import cache_folder, load_array, save_array
from angle.config import SELF, ModelConfig, PoolingConfig, TrainConfig
from angle.errors import ConfigError
from angle.modeling.adapters import without_trained
from angle.modeling.backbone import position_limit
from angle.modeling.encoder import Encoder
from angle.structures import Lengths, Tokens, to_device

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Settings that exist for the teacher as they do for the model.
SHARED = ("name_or_path", "revision", "trust_remote_code", "dtype", "load_kbit")

#: Texts encoded at a time for the cache.
BATCH = 64


class Teacher:
    """Provides the states that the student's are aligned with."""

    def __init__(self, encoder: Encoder, *, tokens: bool = False, is_student: bool = False) -> None:
        """Use an encoder as the teacher.

        Args:
            encoder: the teacher, or the student.
            tokens: whether individual tokens are aligned.
            is_student: whether the encoder is the student itself, with its trained adapter disabled for the teacher.

        """
        self.encoder: Encoder | None = encoder
        self.width = int(encoder.backbone.config.hidden_size) if tokens else encoder.dimensions
        self.of_tokens, self._is_student = tokens, is_student
        self._kept: npt.NDArray[np.float32] | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor, lengths: Lengths, texts: npt.NDArray[np.int64]) -> Tensor:
        """Return the states (N, D), or (T, D) for tokens, without dropout or gradient.

        Args:
            ids: (T,) tokens of all texts.
            lengths: (N,) number of tokens of each text.
            texts: (N,) their indices in the training data.

        """
        if self._kept is not None:
            return to_device(np.array(self._kept[texts]), ids.device)
        encoder = self.encoder
        assert encoder is not None
        was_training = encoder.training
        encoder.eval()
        try:
            with without_trained(encoder.backbone) if self._is_student else nullcontext():
                states: Tensor = encoder.with_token_states(ids, lengths)[1] if self.of_tokens else encoder(ids, lengths)
        finally:
            encoder.train(was_training)
        return states.float()

    def keep(self, tokens: Tokens) -> None:
        """Compute the embeddings of all texts, or load them from disk, and release the encoder."""
        encoder = self.encoder
        assert encoder is not None
        key = hashlib.sha256(f"{encoder.contract}/{encoder.backbone.config.to_json_string()}".encode())
        key.update(np.ascontiguousarray(tokens.ids).tobytes())
        key.update(np.ascontiguousarray(tokens.offsets).tobytes())
        with without_trained(encoder.backbone) if self._is_student else nullcontext():
            for parameter in encoder.parameters():
                if not (self._is_student and parameter.requires_grad):
                    key.update(parameter.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
            path = cache_folder("teachers") / f"{key.hexdigest()}.npy"
            self._kept = load_array(path)
            if self._kept is None or self._kept.shape != (len(tokens), self.width):
                self._kept = encoder.encode_tokens(tokens, BATCH).numpy()
                save_array(path, self._kept)
        if not self._is_student:
            self.encoder = None


def load_teacher(config: TrainConfig, student: Encoder, accelerator: Accelerator) -> Teacher | None:
    """Return the teacher that the settings request, or None if they request none.

    Raises:
        ConfigError: a teacher that cannot read the student's tokens, or whose states have another width.

    """
    wanted = config.teacher
    if not wanted.enabled:
        return None
    tokens = wanted.pooling == "tokens"
    like_student = (
        wanted.pooling in ("auto", "tokens", student.pooling)
        and wanted.dtype in (None, config.model.dtype)
        and wanted.load_kbit in (None, student.load_kbit)
    )
    if wanted.name_or_path == SELF and config.lora.enabled and like_student:
        return Teacher(student, tokens=tokens, is_student=True)
    pooling = PoolingConfig("auto" if tokens else wanted.pooling)
    if wanted.name_or_path == SELF:
        model, billm = config.model, config.billm
        pooling = PoolingConfig(student.pooling) if pooling.strategy == "auto" else pooling
    else:
        name, trusted = str(wanted.name_or_path), wanted.trust_remote_code
        model, billm = ModelConfig(name, revision=wanted.revision, trust_remote_code=trusted), None
        model.kernels = config.model.kernels
    model = replace(
        model,
        dtype=wanted.dtype or model.dtype,
        load_kbit=model.load_kbit if wanted.load_kbit is None else wanted.load_kbit,
        gradient_checkpointing=False,
    )
    try:
        encoder = Encoder.load(model, pooling, billm=billm)
    except ConfigError as error:
        raise ConfigError(_of_teacher(str(error))) from None
    encoder.requires_grad_(False).eval().to(accelerator.device)
    _check_tokens(str(wanted.name_or_path), encoder, student)
    teacher = Teacher(encoder, tokens=tokens)
    width = student.backbone.config.hidden_size if tokens else student.dimensions
    if teacher.width != width and not wanted.projection:
        raise ConfigError(
            f"teacher.name_or_path={wanted.name_or_path} has {teacher.width} dimensions and the student {width}: type "
            f"teacher.projection=true to train a linear map between them, or choose a teacher of the same width."
        )
    return teacher


def _of_teacher(sentence: str) -> str:
    """Rephrase a sentence about a model's settings as one about the teacher's."""
    sentence = sentence.replace(", or billm=all", "").replace(" pooling=", " teacher.pooling=")
    for setting, its in (("pooling.strategy", "pooling"), *((f"model.{name}", name) for name in SHARED)):
        sentence = sentence.replace(setting, f"teacher.{its}")
    return sentence


def _check_tokens(name: str, teacher: Encoder, student: Encoder) -> None:
    """Check that the student's token ids mean the same to the teacher."""
    theirs, ours = (encoder.tokenizer.tokenizer.get_vocab() for encoder in (teacher, student))
    other = next((token for token, number in ours.items() if theirs.get(token) != number), None)
    if other is not None:
        known = theirs.get(other)
        raise ConfigError(
            f"teacher.name_or_path={name} has another tokenizer ({len(theirs):,} tokens, the student's has "
            f"{len(ours):,}; {other!r} is number {ours[other]} for the student and "
            f"{'no token' if known is None else f'number {known}'} for the teacher), so the student's tokens would "
            f"mean something else to it: choose a teacher with the student's tokenizer."
        )
    limit = position_limit(teacher.backbone)
    if limit is not None and student.tokenizer.max_length > limit:
        raise ConfigError(
            f"model.max_length={student.tokenizer.max_length} cannot work: the teacher has positions for {limit} "
            f"tokens; type model.max_length={limit}."
        )
