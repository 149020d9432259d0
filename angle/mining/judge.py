"""Judges: models that score queries and passages which another model has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from angle.config import JudgeConfig, ModelConfig
from angle.data.retrieval import RETRIEVAL, tokenize
from angle.errors import ConfigError, first_line
from angle.modeling.encoder import Encoder
from angle.quiet import quiet_transformers
from angle.structures import Tokens

#: Pairs of texts that are scored one after the other, as (query, passage).
TextPairs = Sequence[tuple[str, str]]
Judge = Callable[[TextPairs], npt.NDArray[np.float32]]
#: Pairs that a cross-encoder tokenises at a time, and sorts by length.
CHUNK = 4096


@quiet_transformers()
def load_judge(config: JudgeConfig, device: torch.device, batch_size: int) -> Judge:
    """Return a function that scores pairs of texts.

    Raises:
        ConfigError: the model cannot be loaded, or has not one output.

    """
    assert config.name_or_path is not None
    if config.kind == "encoder":
        encoder = Encoder.load(ModelConfig(config.name_or_path, revision=config.revision))
        encoder.to(device).eval()
        return _EncoderJudge(encoder, batch_size)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model = AutoModelForSequenceClassification.from_pretrained(config.name_or_path, revision=config.revision)
        tokenizer = AutoTokenizer.from_pretrained(config.name_or_path, revision=config.revision)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"judge.name_or_path={config.name_or_path} could not be loaded as a cross-encoder: {first_line(error)}. "
            f"Check the name, or type judge.kind=encoder if it embeds texts."
        ) from None
    if model.config.num_labels != 1:
        raise ConfigError(
            f"judge.name_or_path={config.name_or_path} has {model.config.num_labels} outputs, but a judge scores a "
            f"pair by one: give a cross-encoder for ranking, or type judge.kind=encoder if it embeds texts."
        )
    return _CrossEncoderJudge(model.to(device).eval(), tokenizer, config.max_length, batch_size)


class _EncoderJudge:
    """Scores pairs by the cosine of their embeddings; each distinct text is embedded once."""

    def __init__(self, encoder: Encoder, batch_size: int) -> None:
        self.encoder = encoder
        self.batch_size = batch_size

    def __call__(self, pairs: TextPairs) -> npt.NDArray[np.float32]:
        sides = []
        for role, texts in zip(RETRIEVAL.roles, zip(*pairs, strict=True), strict=True):
            index = {text: number for number, text in enumerate(dict.fromkeys(texts))}
            tokens: Tokens = tokenize(self.encoder.tokenizer, list(index), role)
            embeddings = F.normalize(self.encoder.encode_tokens(tokens, self.batch_size), dim=-1)
            sides.append((embeddings, [index[text] for text in texts]))
        (queries, left), (passages, right) = sides
        scores = [
            (queries[left[first : first + CHUNK]] * passages[right[first : first + CHUNK]]).sum(dim=-1)
            for first in range(0, len(pairs), CHUNK)
        ]
        result: npt.NDArray[np.float32] = torch.cat(scores).numpy()
        return result


class _CrossEncoderJudge:
    """Scores pairs by the sigmoid of a model's one output for both texts together."""

    def __init__(self, model: Any, tokenizer: Any, max_length: int, batch_size: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size

    def __call__(self, pairs: TextPairs) -> npt.NDArray[np.float32]:
        scores = np.empty(len(pairs), np.float32)
        for first in range(0, len(pairs), CHUNK):
            chunk = pairs[first : first + CHUNK]
            order = np.argsort([-len(query) - len(passage) for query, passage in chunk], kind="stable")
            outputs = torch.cat(list(self._logits([chunk[number] for number in order]))).sigmoid()
            scores[first + order] = outputs.float().cpu().numpy()
        return scores

    @torch.no_grad()
    def _logits(self, pairs: TextPairs) -> Iterator[Tensor]:
        for first in range(0, len(pairs), self.batch_size):
            queries, passages = zip(*pairs[first : first + self.batch_size], strict=True)
            inputs = self.tokenizer(
                list(queries),
                list(passages),
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            yield self.model(**inputs.to(self.model.device)).logits[:, 0]
