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
from angle.config import SELF_TEACHER, BillmConfig, ModelConfig, PoolingConfig, TeacherConfig
from angle.errors import ConfigError
from angle.modeling.adapters import disable_trained_adapter
from angle.modeling.encoder import Encoder
from angle.structures import Lengths, Tokens, to_device

#: Settings that exist for the teacher as they do for the model.
SHARED_SETTINGS = ("name_or_path", "revision", "trust_remote_code", "dtype", "load_kbit")

#: Texts encoded at a time for the cache.
CACHE_BATCH_SIZE = 64


class Teacher:
    """Provides the states that the student's are aligned with."""

    def __init__(
        self, encoder: Encoder, *, distillation_level: str = "texts", shares_student_encoder: bool = False
    ) -> None:
        """Use an encoder as the teacher.

        Args:
            encoder: the teacher, or the student.
            distillation_level: "texts" or "tokens": whether embeddings or the states of individual tokens are compared.
            shares_student_encoder: whether the encoder is the student itself, with its trained adapter disabled
                for the teacher.

        """
        self.encoder: Encoder | None = encoder
        self.distillation_level = distillation_level
        self.fingerprints = encoder.fingerprints
        self.embedding_dim = (
            int(encoder.backbone.config.hidden_size) if distillation_level == "tokens" else encoder.dimensions
        )
        self._shares_student_encoder = shares_student_encoder
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
            with self._trained_adapter_disabled(encoder):
                states: Tensor
                if self.distillation_level == "tokens":
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
        key = hashlib.sha256(f"{encoder.embedding_config}/{encoder.backbone.config.to_json_string()}".encode())
        key.update(np.ascontiguousarray(tokens.ids).tobytes())
        key.update(np.ascontiguousarray(tokens.offsets).tobytes())
        with self._trained_adapter_disabled(encoder):
            for parameter in encoder.parameters():
                if not (self._shares_student_encoder and parameter.requires_grad):
                    key.update(parameter.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
            path = cache_folder("teachers") / f"{key.hexdigest()}.npy"
            embeddings = load_array(path)
            if embeddings is None or embeddings.shape != (len(tokens), self.embedding_dim):
                embeddings = encoder.encode_tokens(tokens, CACHE_BATCH_SIZE, as_trained=True).numpy()
                save_array(path, embeddings)
        self._cached_embeddings = embeddings
        if not self._shares_student_encoder:
            self.encoder = None

    def _trained_adapter_disabled(self, encoder: Encoder) -> AbstractContextManager[None]:
        """Disable the trained adapter, if the teacher shares the student's encoder."""
        return disable_trained_adapter(encoder.backbone) if self._shares_student_encoder else nullcontext()


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
        ConfigError: a teacher that cannot read the student's tokens, or whose states have another number of dimensions.

    """
    distillation_level = "tokens" if config.pooling == "tokens" else "texts"
    same_states = (
        config.pooling in ("auto", "tokens", student.pooling)
        and config.dtype in (None, model.dtype)
        and config.load_kbit in (None, student.load_kbit)
    )
    if config.name_or_path == SELF_TEACHER and new_adapter and same_states:
        return Teacher(student, distillation_level=distillation_level, shares_student_encoder=True)
    encoder = _load_encoder(config, student, model, billm)
    _check_same_tokens(str(config.name_or_path), encoder, student)
    teacher = Teacher(encoder, distillation_level=distillation_level)
    student_dim = student.backbone.config.hidden_size if distillation_level == "tokens" else student.dimensions
    if teacher.embedding_dim != student_dim and not config.projection:
        raise ConfigError(
            f"teacher.name_or_path={config.name_or_path} has {teacher.embedding_dim} dimensions and the student "
            f"{student_dim}: type teacher.projection=true to train a linear map between them, or "
            f"choose a teacher with as many."
        )
    return teacher


def _load_encoder(config: TeacherConfig, student: Encoder, model: ModelConfig, billm: BillmConfig) -> Encoder:
    """Return the teacher's own encoder, frozen: another model, or a copy of the student's."""
    pooling = PoolingConfig("auto" if config.pooling == "tokens" else config.pooling)
    teacher_billm: BillmConfig | None = None
    if config.name_or_path == SELF_TEACHER:
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
    token = next((token for token, token_id in student_vocab.items() if teacher_vocab.get(token) != token_id), None)
    if token is not None:
        token_id = teacher_vocab.get(token)
        raise ConfigError(
            f"teacher.name_or_path={name} has another tokenizer ({len(teacher_vocab):,} tokens, the student's has "
            f"{len(student_vocab):,}; {token!r} is number {student_vocab[token]} for the student and "
            f"{'no token' if token_id is None else f'number {token_id}'} for the teacher), so the student's tokens "
            f"would mean something else to it: choose a teacher with the student's tokenizer."
        )
    limit = teacher.position_limit
    if limit is not None and student.tokenizer.max_length > limit:
        raise ConfigError(
            f"model.max_length={student.tokenizer.max_length} cannot work: the teacher has positions for {limit} "
            f"tokens; type model.max_length={limit}."
        )
