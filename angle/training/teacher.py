"""The teacher: a frozen model that reads the student's tokens."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from angle.cache import cache_folder, load_array, save_array
from angle.config import SELF, BillmConfig, ModelConfig, PoolingConfig, TeacherConfig
from angle.errors import ConfigError
from angle.modeling.adapters import disable_trained_adapter
from angle.modeling.backbone import position_limit
from angle.modeling.encoder import Encoder
from angle.structures import Lengths, Tokens, to_device

#: Settings that exist for the teacher as they do for the model.
SHARED_SETTINGS = ("name_or_path", "revision", "trust_remote_code", "dtype", "load_kbit")

#: Texts encoded at a time for the cache.
CACHE_BATCH_SIZE = 64


class Teacher:
    """Provides the states that the student's are aligned with."""

    def __init__(self, encoder: Encoder, *, alignment: str = "texts", is_student: bool = False) -> None:
        """Use an encoder as the teacher.

        Args:
            encoder: the teacher, or the student.
            alignment: "texts" or "tokens": whether embeddings or the states of individual tokens are aligned.
            is_student: whether the encoder is the student itself, with its trained adapter disabled for the teacher.

        """
        self.encoder: Encoder | None = encoder
        self.alignment = alignment
        self.width = int(encoder.backbone.config.hidden_size) if alignment == "tokens" else encoder.dimensions
        self._is_student = is_student
        self._cached_embeddings: npt.NDArray[np.float32] | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor, lengths: Lengths, text_ids: npt.NDArray[np.int64]) -> Tensor:
        """Return the states (N, D), or (T, D) for tokens, without dropout or gradient.

        Args:
            ids: (T,) tokens of all texts.
            lengths: (N,) number of tokens of each text.
            text_ids: (N,) indices of the texts in the training data.

        """
        if self._cached_embeddings is not None:
            return to_device(np.array(self._cached_embeddings[text_ids]), ids.device)
        encoder = self.encoder
        assert encoder is not None
        was_training = encoder.training
        encoder.eval()
        try:
            with self._before_training(encoder):
                states: Tensor
                if self.alignment == "tokens":
                    _, states = encoder.with_token_states(ids, lengths)
                else:
                    states = encoder(ids, lengths)
        finally:
            encoder.train(was_training)
        return states.float()

    def cache_embeddings(self, tokens: Tokens) -> None:
        """Compute the embeddings of all texts, or load them from disk, and release the encoder."""
        encoder = self.encoder
        assert encoder is not None
        key = hashlib.sha256(f"{encoder.contract}/{encoder.backbone.config.to_json_string()}".encode())
        key.update(np.ascontiguousarray(tokens.ids).tobytes())
        key.update(np.ascontiguousarray(tokens.offsets).tobytes())
        with self._before_training(encoder):
            for parameter in encoder.parameters():
                if not (self._is_student and parameter.requires_grad):
                    key.update(parameter.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
            path = cache_folder("teachers") / f"{key.hexdigest()}.npy"
            embeddings = load_array(path)
            if embeddings is None or embeddings.shape != (len(tokens), self.width):
                embeddings = encoder.encode_tokens(tokens, CACHE_BATCH_SIZE).numpy()
                save_array(path, embeddings)
        self._cached_embeddings = embeddings
        if not self._is_student:
            self.encoder = None

    def _before_training(self, encoder: Encoder) -> AbstractContextManager[None]:
        """Disable the student's trained adapter, if the student is the teacher."""
        return disable_trained_adapter(encoder.backbone) if self._is_student else nullcontext()


def load_teacher(
    config: TeacherConfig, student: Encoder, model: ModelConfig, billm: BillmConfig, *, new_adapter: bool
) -> Teacher:
    """Return the teacher, on the student's device.

    Args:
        config: which teacher, and how it is used.
        student: the encoder that is trained.
        model: the student's settings, which are also the teacher's for `teacher.name_or_path=self`.
        billm: the same.
        new_adapter: whether the student trains a new adapter; without it, the student is what it was before training.

    Raises:
        ConfigError: a teacher that cannot read the student's tokens, or whose states have another width.

    """
    alignment = "tokens" if config.pooling == "tokens" else "texts"
    same_states = (
        config.pooling in ("auto", "tokens", student.pooling)
        and config.dtype in (None, model.dtype)
        and config.load_kbit in (None, student.load_kbit)
    )
    if config.name_or_path == SELF and new_adapter and same_states:
        return Teacher(student, alignment=alignment, is_student=True)
    encoder = _load_encoder(config, student, model, billm)
    _check_same_tokens(str(config.name_or_path), encoder, student)
    teacher = Teacher(encoder, alignment=alignment)
    width = student.backbone.config.hidden_size if alignment == "tokens" else student.dimensions
    if teacher.width != width and not config.projection:
        raise ConfigError(
            f"teacher.name_or_path={config.name_or_path} has {teacher.width} dimensions and the student {width}: type "
            f"teacher.projection=true to train a linear map between them, or choose a teacher of the same width."
        )
    return teacher


def _load_encoder(config: TeacherConfig, student: Encoder, model: ModelConfig, billm: BillmConfig) -> Encoder:
    """Return the teacher's own encoder, frozen: another model, or a copy of the student's."""
    pooling = PoolingConfig("auto" if config.pooling == "tokens" else config.pooling)
    teacher_billm: BillmConfig | None = None
    if config.name_or_path == SELF:
        teacher_billm = billm
        pooling = PoolingConfig(student.pooling) if pooling.strategy == "auto" else pooling
    else:
        model = ModelConfig(
            str(config.name_or_path),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            kernels=model.kernels,
        )
    model = replace(
        model,
        dtype=config.dtype or model.dtype,
        load_kbit=model.load_kbit if config.load_kbit is None else config.load_kbit,
        gradient_checkpointing=False,
    )
    try:
        encoder = Encoder.load(model, pooling, billm=teacher_billm)
    except ConfigError as error:
        raise ConfigError(_with_teacher_settings(str(error))) from None
    return encoder.requires_grad_(False).eval().to(student.device)


def _with_teacher_settings(message: str) -> str:
    """Rephrase a message about a model's settings as one about the teacher's."""
    message = message.replace(", or billm=all", "").replace(" pooling=", " teacher.pooling=")
    for setting, name in (("pooling.strategy", "pooling"), *((f"model.{name}", name) for name in SHARED_SETTINGS)):
        message = message.replace(setting, f"teacher.{name}")
    return message


def _check_same_tokens(name: str, teacher: Encoder, student: Encoder) -> None:
    """Check that the student's token ids mean the same to the teacher."""
    teacher_vocab, student_vocab = (encoder.tokenizer.tokenizer.get_vocab() for encoder in (teacher, student))
    token = next((token for token, number in student_vocab.items() if teacher_vocab.get(token) != number), None)
    if token is not None:
        number = teacher_vocab.get(token)
        raise ConfigError(
            f"teacher.name_or_path={name} has another tokenizer ({len(teacher_vocab):,} tokens, the student's has "
            f"{len(student_vocab):,}; {token!r} is number {student_vocab[token]} for the student and "
            f"{'no token' if number is None else f'number {number}'} for the teacher), so the student's tokens would "
            f"mean something else to it: choose a teacher with the student's tokenizer."
        )
    limit = position_limit(teacher.backbone)
    if limit is not None and student.tokenizer.max_length > limit:
        raise ConfigError(
            f"model.max_length={student.tokenizer.max_length} cannot work: the teacher has positions for {limit} "
            f"tokens; type model.max_length={limit}."
        )
