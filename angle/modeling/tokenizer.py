"""Texts -> tokens: the template, where it may be cut, and the maximum length, kept with the model as its contract."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from angle.errors import ConfigError
from angle.structures import Tokens

CONTRACT_FILE = "angle_config.json"
DEFAULT_MAX_LENGTH = 512
#: Number of texts passed to the tokenizer at once: bounds the memory of its Python lists.
TOKENIZE_AT_ONCE = 20_000


@dataclass(frozen=True)
class TokenContract:
    """How texts must be presented to a model, and how its states become an embedding. Saved with the model."""

    pooling: str
    max_length: int
    prompt: str | None = None
    padding_side: str = "right"
    is_llm: bool = False
    bidirectional_from: int | None = None
    """BiLLM: the first layer that attends in both directions."""
    load_kbit: int | None = None
    """The bits of the frozen weights that an adapter was trained on."""
    special_tokens: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The tokens that the tokenizer puts before and after every text."""
    layers: int | None = None
    """How many of the original model's first layers were kept; None for all."""
    dimensions: int | None = None
    """How many of the first dimensions make up an embedding; None for all."""

    def __str__(self) -> str:
        """Return the contract in human-readable form."""
        template = "" if self.prompt is None else f", template {self.prompt!r}"
        after = self.special_tokens[1]
        end = f", {' '.join(after)} after a text" if self.pooling == "last" and after else ""
        layers = "" if self.bidirectional_from is None else f", both directions from layer {self.bidirectional_from}"
        bits = "" if self.load_kbit is None else f", trained on {self.load_kbit}-bit weights"
        depth = "" if self.layers is None else f", first {self.layers} layers"
        width = "" if self.dimensions is None else f", first {self.dimensions} dimensions"
        return f"{self.pooling} pooling{depth}{width}, at most {self.max_length} tokens{template}{end}{layers}{bits}"

    @classmethod
    def load(cls, folder: Path) -> TokenContract:
        """Read what `save` wrote."""
        content = json.loads((folder / CONTRACT_FILE).read_text(encoding="utf-8"))
        before, after = content.pop("special_tokens")
        return cls(**content, special_tokens=(tuple(before), tuple(after)))

    def save(self, folder: Path) -> None:
        """Write the contract into a model folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / CONTRACT_FILE).write_text(text + "\n", encoding="utf-8")


def template_fields(prompt: str) -> list[str]:
    """Return the names in a template's braces, `text` among them.

    Raises:
        ConfigError: braces do not pair up, or hold more than a name.

    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise ConfigError(
            f"model.prompt={prompt!r} cannot be read: {error}; write a literal brace twice: {{{{ or }}}}."
        ) from None
    if "text" not in fields or not all(name.isidentifier() for name in fields):
        raise ConfigError(
            f"model.prompt={prompt!r} needs {{text}}, and braces may hold only {{text}} and names of "
            f"columns; write a literal brace twice: {{{{ or }}}}."
        )
    return fields


def special_tokens(tokenizer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens that a tokenizer puts before and after every text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    text = [place for place, special in enumerate(encoded["special_tokens_mask"]) if not special]
    return tuple(tokens[: text[0]]), tuple(tokens[text[-1] + 1 :])


def ends_in_words(prompt: str | None) -> bool:
    """Return whether a template has words after its last field, so that every text ends with the same token."""
    return prompt is not None and list(string.Formatter().parse(prompt))[-1][1] is None


class TextTokenizer:
    """A tokenizer with a template and a maximum length. Truncation cuts the text, never the template."""

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        prompt: str | None = None,
        end_token: bool | None = None,
        table_size: Callable[[], int | None] | None = None,
    ) -> None:
        """Wrap a fast transformers tokenizer.

        Args:
            tokenizer: the tokenizer.
            max_length: maximum number of tokens of a text, template included.
            prompt: the template.
            end_token: whether to end every text with the end token; None to leave that to the tokenizer.
            table_size: returns how many tokens the model has embeddings for, None if any number.

        Raises:
            ConfigError: the tokenizer is not fast, the template leaves no room for a text, or the end token does not
                exist or cannot be left out.

        """
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} is no fast tokenizer, so texts cannot be cut at a token: "
                f"give one with a tokenizer.json by model.tokenizer_name_or_path=..."
            )
        self.tokenizer = tokenizer
        if end_token is not None:
            self._set_end_token(end_token)
        self.max_length = max_length
        self.prompt = prompt
        self.table_size = table_size
        # If the text is the only field and ends the template, the tokenizer cuts nothing but the text.
        self._cut_by_tokenizer = (
            prompt is not None
            and template_fields(prompt) == ["text"]
            and not ends_in_words(prompt)
            and tokenizer.truncation_side == "right"
        )
        self.columns = tuple(name for name in template_fields(prompt) if name != "text") if prompt else ()
        if prompt is not None:
            bare = prompt.format(**dict.fromkeys(("text", *self.columns), ""))
            self._template_length = len(self._ids([bare], truncate=False)[0])
            if self._template_length >= max_length:
                raise ConfigError(
                    f"model.max_length={max_length} leaves no room for a text: the template {prompt!r} alone takes "
                    f"{self._template_length} tokens; raise model.max_length or shorten model.prompt."
                )

    @property
    def pad_id(self) -> int:
        """The token that pads; as it is masked, any that the model knows will do."""
        own = self.tokenizer.pad_token_id
        return own if own is not None and self._knows(own) else 0

    def _knows(self, token: int) -> bool:
        """Return whether the model has an embedding for a token."""
        size = None if self.table_size is None else self.table_size()
        return size is None or token < size

    @property
    def special_tokens(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tokens that the tokenizer puts before and after every text."""
        return special_tokens(self.tokenizer)

    def _set_end_token(self, wanted: bool) -> None:
        """Let the tokenizer end every text with its end token, even after it is saved and loaded elsewhere."""
        from tokenizers.processors import Sequence as Steps
        from tokenizers.processors import TemplateProcessing

        end, after = self.tokenizer.eos_token, self.special_tokens[1]
        if wanted == (end is not None and end in after):
            return
        if end is None or not wanted:
            what = "has no end token" if end is None else f"puts {end} after every text itself"
            raise ConfigError(
                f"model.end_token={str(wanted).lower()} cannot work: the tokenizer {what}; leave the setting out."
            )
        backend = self.tokenizer.backend_tokenizer
        ends = TemplateProcessing(
            single=f"$A {end}", pair=f"$A $B:1 {end}:1", special_tokens=[(end, self.tokenizer.eos_token_id)]
        )
        backend.post_processor = Steps([backend.post_processor, ends] if backend.post_processor else [ends])

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the tokens of a text."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        rules = {key: value for key, value in state.items() if key not in ("truncation", "padding")}  # of the last call
        parts = [json.dumps(rules), str(self.max_length), repr(self.prompt), self.tokenizer.truncation_side]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def copy(self) -> TextTokenizer:
        """Return a copy for another thread: a call, and `save`, change the limits of the underlying tokenizer."""
        duplicate = copy.copy(self)
        duplicate.tokenizer = copy.deepcopy(self.tokenizer)
        return duplicate

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a model folder, without the limits of the last call."""
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.save_pretrained(folder)

    def __call__(self, texts: Sequence[str], extras: Sequence[Mapping[str, str]] | None = None) -> Tokens:
        """Return the tokens of texts; `extras` has the template's further columns, one mapping per text.

        Raises:
            ValueError: a text gives no token at all, or further columns leave no room for it.
            ConfigError: a text has a token that the model has no embedding for.

        """
        chunks, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            here = slice(start, start + TOKENIZE_AT_ONCE)
            rendered = self.render(texts[here], extras[here] if extras else None)
            ids = self._ids(rendered, truncate=True)
            lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
            if not lengths[-1].all():
                empty = texts[start + int(np.argmin(lengths[-1]))]
                raise ValueError(f"the text {empty!r} gives no token with this tokenizer")
            chunks.append(np.fromiter((i for row in ids for i in row), np.int32, int(lengths[-1].sum())))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
        tokens = Tokens(np.concatenate(chunks), offsets)
        self.check_known(tokens)
        return tokens

    def check_known(self, tokens: Tokens) -> None:
        """Raise ConfigError for a token beyond the model's table, which a GPU would report late and as an assertion."""
        last = int(tokens.ids.max(initial=0))
        if not self._knows(last):
            assert self.table_size is not None
            raise ConfigError(
                f"The tokenizer writes {self.tokenizer.convert_ids_to_tokens(last)!r} as number {last}, counted from "
                f"0, but the model has embeddings for {self.table_size():,} tokens: give a tokenizer without added "
                f"tokens by model.tokenizer_name_or_path, or a model whose table was made larger for them."
            )

    def render(self, texts: Sequence[str], extras: Sequence[Mapping[str, str]] | None = None) -> list[str]:
        """Return each text inside the template, cut where the tokenizer would otherwise cut the template too."""
        if self.prompt is None:
            return list(texts)
        if self._cut_by_tokenizer:
            return [self.prompt.format(text=text) for text in texts]
        if extras is None:
            extras = [{}] * len(texts)
        used = self._template_length + np.zeros(len(texts), np.int64)
        for column in self.columns:
            values = [extra[column] for extra in extras]
            used += [len(row) for row in self._ids(values, truncate=False, special=False)]
        room = self.max_length - used
        if room.min(initial=1) < 1:
            row = int(room.argmin())
            raise ValueError(
                f"the template's columns {dict(extras[row])} leave no room for a text in "
                f"model.max_length={self.max_length} tokens"
            )
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        all_spans, limits = encoded["offset_mapping"], room.tolist()
        rendered = [
            self._fill(text, extra, spans, limit)
            for text, extra, spans, limit in zip(texts, extras, all_spans, limits, strict=True)
        ]
        # Where text and template meet, their pieces may merge and the count may differ: cut those texts further.
        long = [row for row, ids in enumerate(self._ids(rendered, truncate=False)) if len(ids) > self.max_length]
        for row in long:
            limit = min(limits[row], len(all_spans[row]))
            while len(self._ids([rendered[row]], truncate=False)[0]) > self.max_length:
                limit -= 1
                if limit < 1:
                    raise ValueError(
                        f"the template {self.prompt!r} leaves no room for {texts[row]!r} in "
                        f"model.max_length={self.max_length} tokens"
                    )
                rendered[row] = self._fill(texts[row], extras[row], all_spans[row], limit)
        return rendered

    def _fill(self, text: str, extra: Mapping[str, str], spans: Sequence[tuple[int, int]], limit: int) -> str:
        """Return the template around the first or last `limit` tokens of the text, whose places are `spans`."""
        assert self.prompt is not None
        if len(spans) > limit:
            left = self.tokenizer.truncation_side == "left"
            text = text[spans[-limit][0] :] if left else text[: spans[limit - 1][1]]
        return self.prompt.format(text=text, **{name: extra[name] for name in self.columns})

    def _ids(self, texts: list[str], *, truncate: bool, special: bool = True) -> list[list[int]]:
        limits = {"truncation": True, "max_length": self.max_length} if truncate else {}
        encoded = self.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **limits,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids
