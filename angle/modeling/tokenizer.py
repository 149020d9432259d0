"""Texts -> tokens: the template, where texts are truncated, and the maximum length."""

from __future__ import annotations

import copy
import hashlib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from angle.errors import ConfigError
from angle.modeling.embedding_config import SpecialTokens
from angle.modeling.special_tokens import call_tokenizer, processors_before_end_token, special_tokens_around
from angle.prompts import prompt_for, template_fields
from angle.structures import Lengths, Tokens

DEFAULT_MAX_LENGTH = 512
#: Number of texts passed to the tokenizer at once: bounds the memory of its Python lists.
TOKENIZE_BATCH = 20_000
#: Number of tokens that are compared at once.
COUNTED_TOKENS = 2**24


def ends_with_literal(prompt: str | None) -> bool:
    """Return whether a template has words after its last field, so that every text ends with the same token."""
    return prompt is not None and list(string.Formatter().parse(prompt))[-1][1] is None


class TextTokenizer:
    """A tokenizer with a template and a maximum length. Truncation shortens the text, never the template."""

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        prompt: str | None = None,
        end_token: bool | None = None,
        num_embeddings: Callable[[], int | None] | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        """Wrap a fast transformers tokenizer.

        Args:
            tokenizer: the tokenizer.
            max_length: maximum number of tokens of a text, template included.
            prompt: the template.
            end_token: True to end every text with the end token, False to undo what an earlier True has done to the
                tokenizer, also before it was saved; None for neither.
            num_embeddings: returns how many tokens the model has embeddings for, None if any number.
            prompts: templates of roles and columns, for `named`; see `angle.config.ModelConfig`.

        Raises:
            ConfigError: the tokenizer is not fast, the template leaves no room for a text, or there is no end token.

        """
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, so texts cannot be truncated at a token: "
                f"give one with a tokenizer.json by model.tokenizer_name_or_path=..."
            )
        self.tokenizer = tokenizer
        if end_token is not None:
            self._set_end_token(end_token)
        self.max_length = max_length
        self.prompts = dict(prompts or {})
        #: Whether texts are lower-cased by what `angle_config.json` says: saved tokenizers do not all keep it.
        self.lower_case: bool | None = None
        self.num_embeddings = num_embeddings
        self._set_prompt(prompt)

    def _set_prompt(self, prompt: str | None) -> None:
        """Take a template.

        Raises:
            ConfigError: it leaves no room for a text.

        """
        self.prompt, tokenizer, max_length = prompt, self.tokenizer, self.max_length
        # If the text is the only field and ends the template, the tokenizer truncates nothing but the text.
        self._tokenizer_truncates = (
            prompt is not None
            and template_fields(prompt) == ["text"]
            and not ends_with_literal(prompt)
            and tokenizer.truncation_side == "right"
        )
        self.columns = tuple(name for name in template_fields(prompt) if name != "text") if prompt else ()
        empty = "" if prompt is None else prompt.format(**dict.fromkeys(("text", *self.columns), ""))
        self._empty_text = self._token_ids([empty], truncate=False)[0]
        self._template_length = len(self._empty_text)
        self._around_text = None if prompt is None else self._split_around_text(prompt)
        if self._template_length >= max_length:
            around = f"the template {prompt!r} alone takes" if prompt else "the tokens around every text take"
            raise ConfigError(
                f"model.max_length={max_length} leaves no room for a text: {around} {self._template_length} tokens; "
                f"raise model.max_length{' or shorten model.prompt' if prompt else ''}."
            )

    def _split_around_text(self, prompt: str) -> tuple[str, list[int], list[int]] | None:
        """Return the words before the text, the special tokens before these, and the tokens after the text.

        None if tokens are not cut between those: by a tokenizer that cuts at the left, in a template with other columns
        or with the text twice, or where the end of a text may change what follows.
        """
        parts = list(string.Formatter().parse(prompt))
        names = [name for _, name, *_ in parts]
        if self.tokenizer.truncation_side == "left" or [name for name in names if name] != ["text"]:
            return None
        before = "".join(words for words, *_ in parts[: names.index("text") + 1])
        (head,) = self._token_ids([f"{before}a"], truncate=False, special_tokens=False)
        (whole,) = self._token_ids([prompt.format(text="a")], truncate=False)
        starts = [start for start in range(len(whole)) if whole[start : start + len(head)] == head]
        return (before, whole[: starts[0]], whole[starts[0] + len(head) :]) if starts else None

    def with_prompts(self, prompt: str | None, prompts: Mapping[str, str]) -> TextTokenizer:
        """Return this tokenizer with other templates of some roles; given a template for all others, with only these.

        Raises:
            ConfigError: as `named`.

        """
        other = copy.copy(self)
        other.prompts = {**(self.prompts if prompt is None else {}), **prompts}
        if prompt is not None:
            other._set_prompt(prompt)
        return other

    def named(self, name: str) -> TextTokenizer:
        """Return this tokenizer with the template of a column or of a role.

        Raises:
            ConfigError: that template cannot be read, or leaves no room for a text.

        """
        prompt = prompt_for(name, self.prompts, self.prompt)
        if prompt == self.prompt:
            return self
        other = copy.copy(self)
        other._set_prompt(prompt)
        return other

    @property
    def pad_id(self) -> int:
        """The token that pads; as it is masked, any that the model has an embedding for will do."""
        pad_id = self.tokenizer.pad_token_id
        return pad_id if pad_id is not None and self._has_embedding(pad_id) else 0

    def _has_embedding(self, token_id: int) -> bool:
        """Return whether the model has an embedding for a token."""
        limit = None if self.num_embeddings is None else self.num_embeddings()
        return limit is None or token_id < limit

    @property
    def special_tokens(self) -> SpecialTokens:
        """(prefix tokens, suffix tokens): those that the tokenizer puts before and after every text."""
        return special_tokens_around(self.tokenizer)

    @property
    def ends_with_end_token(self) -> bool:
        """Whether every text ends with the end token, by the tokenizer's own doing or by ours."""
        return self.tokenizer.eos_token is not None and self.tokenizer.eos_token in self.special_tokens[1]

    def _set_end_token(self, enabled: bool) -> None:
        """Let the tokenizer end every text with its end token, even after it is saved and loaded elsewhere; or undo it.

        One that the tokenizer writes by itself is neither doubled nor taken away.
        """
        from tokenizers.processors import Sequence as ProcessorSequence
        from tokenizers.processors import TemplateProcessing

        eos_token, backend = self.tokenizer.eos_token, self.tokenizer.backend_tokenizer
        if enabled == self.ends_with_end_token:
            return
        if enabled:
            if eos_token is None:
                raise ConfigError(
                    "model.end_token=true cannot work: the tokenizer has no end token; leave the setting out."
                )
            append_eos = TemplateProcessing(
                single=f"$A {eos_token}",
                pair=f"$A $B:1 {eos_token}:1",
                special_tokens=[(eos_token, self.tokenizer.eos_token_id)],
            )
            backend.post_processor = ProcessorSequence(
                [backend.post_processor, append_eos] if backend.post_processor else [append_eos]
            )
            return
        count = processors_before_end_token(backend.post_processor, eos_token)
        if count is not None:
            remaining = [backend.post_processor[number] for number in range(count)]
            backend.post_processor = ProcessorSequence(remaining) if remaining else None

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the tokens of a text."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        rules = {key: value for key, value in state.items() if key not in ("truncation", "padding")}  # of the last call
        parts = [json.dumps(rules), str(self.max_length), repr(self.prompt), self.tokenizer.truncation_side]
        if self._around_text is not None and not self._tokenizer_truncates:
            parts.append("cut between tokens")  # tokens in the cache may have been cut otherwise
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def copy(self) -> TextTokenizer:
        """Return a copy for another thread: a call, and `save`, change the limits of the underlying tokenizer."""
        duplicate = copy.copy(self)
        duplicate.tokenizer = copy.deepcopy(self.tokenizer)
        return duplicate

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a model folder, without the truncation and padding of the last call."""
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.save_pretrained(folder)

    def __call__(self, texts: Sequence[str], extras: Sequence[Mapping[str, str]] | None = None) -> Tokens:
        """Return the tokens of texts; `extras` has the template's further columns, one mapping per text.

        Raises:
            ValueError: a text gives no token at all, or further columns leave no room for it.
            ConfigError: a text has a token that the model has no embedding for.

        """
        ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for start in range(0, len(texts), TOKENIZE_BATCH):
            batch = slice(start, start + TOKENIZE_BATCH)
            rows = self._rows(texts[batch], extras[batch] if extras else None)
            lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            if not lengths[-1].all():
                empty = texts[start + int(np.argmin(lengths[-1]))]
                raise ValueError(
                    f"the text {empty!r} gives no token with this tokenizer: leave it out, or give all texts a "
                    f"template or an end token"
                )
            ids.append(np.fromiter((token_id for row in rows for token_id in row), np.int32, int(lengths[-1].sum())))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
        tokens = Tokens(np.concatenate(ids), offsets)
        self.check_known(tokens)
        return tokens

    def tokens_of_rows(
        self, rows: Sequence[str | Mapping[str, str]], extras: Sequence[Mapping[str, str]] | None
    ) -> Tokens:
        """Return the tokens of texts, or of mappings of `text` and, unless there are `extras`, the further columns."""
        if extras is None and self.columns:
            extras = [{} if isinstance(row, str) else row for row in rows]
        return self([row if isinstance(row, str) else row["text"] for row in rows], extras)

    def unknown_fraction(self, tokens: Tokens) -> float:
        """Return the fraction of tokens that stand for what the vocabulary does not have, without those around texts.

        Tokenizers that can write any text have no such token, or use one of another meaning for it.
        """
        tokenizer = self.tokenizer
        unknown = tokenizer.unk_token_id
        if unknown in (None, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            return 0.0
        chunks = range(0, len(tokens.ids), COUNTED_TOKENS)
        count = sum(int(np.count_nonzero(tokens.ids[start : start + COUNTED_TOKENS] == unknown)) for start in chunks)
        count -= len(tokens) * self._empty_text.count(unknown)
        return max(0, count) / max(1, len(tokens.ids) - len(tokens) * len(self._empty_text))

    def check_known(self, tokens: Tokens) -> None:
        """Raise ConfigError for a token without an embedding, which a GPU would report late and as an assertion."""
        largest = int(tokens.ids.max(initial=0))
        if not self._has_embedding(largest):
            assert self.num_embeddings is not None
            raise ConfigError(
                f"The tokenizer writes {self.tokenizer.convert_ids_to_tokens(largest)!r} as number {largest}, counted "
                f"from 0, but the model has embeddings for {self.num_embeddings():,} tokens: give a tokenizer without "
                f"added tokens by model.tokenizer_name_or_path, or a model whose table was made larger for them."
            )

    def _rows(self, texts: Sequence[str], extras: Sequence[Mapping[str, str]] | None) -> list[list[int]]:
        """Return the tokens of each text inside the template."""
        if self.prompt is None:
            return self._token_ids(list(texts), truncate=True)
        if self._tokenizer_truncates:
            return self._token_ids([self.prompt.format(text=text) for text in texts], truncate=True)
        if self._around_text is None:
            return self._token_ids(self._render(texts, extras or [{}] * len(texts)), truncate=True)
        rows = self._token_ids([self.prompt.format(text=text) for text in texts], truncate=False)
        long = [number for number, row in enumerate(rows) if len(row) > self.max_length]
        if not long:
            return rows
        before, start, end = self._around_text
        heads = self._token_ids([f"{before}{texts[number]}" for number in long], truncate=False, special_tokens=False)
        for number, head in zip(long, heads, strict=True):
            rows[number] = [*start, *head[: self.max_length - len(start) - len(end)], *end]
        return rows

    def _render(self, texts: Sequence[str], extras: Sequence[Mapping[str, str]]) -> list[str]:
        """Return each text inside the template, so truncated that the template stays whole.

        Raises:
            ValueError: the template, with its further columns filled in, leaves no room for a text.

        """
        limits = self._text_limits(extras).tolist()
        encoded = call_tokenizer(
            self.tokenizer,
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        spans = encoded["offset_mapping"]
        rendered = [
            self._fill_template(text, extra, offsets, limit)
            for text, extra, offsets, limit in zip(texts, extras, spans, limits, strict=True)
        ]
        # Where text and template meet, their tokens may merge, and the count may differ: truncate those texts further.
        for row, ids in enumerate(self._token_ids(rendered, truncate=False)):
            limit = min(limits[row], len(spans[row]))
            length = len(ids)
            while length > self.max_length:
                limit -= 1
                if limit < 1:
                    raise ValueError(
                        f"the template {self.prompt!r} leaves no room for {texts[row]!r} in "
                        f"model.max_length={self.max_length} tokens"
                    )
                rendered[row] = self._fill_template(texts[row], extras[row], spans[row], limit)
                length = self._count(rendered[row])
        return rendered

    def _text_limits(self, extras: Sequence[Mapping[str, str]]) -> Lengths:
        """Return how many tokens of each text (N,) fit in, beside the template and its further columns."""
        used = self._template_length + np.zeros(len(extras), np.int64)
        for column in self.columns:
            values = [extra[column] for extra in extras]
            used += [len(ids) for ids in self._token_ids(values, truncate=False, special_tokens=False)]
        limits: Lengths = self.max_length - used
        if limits.min(initial=1) < 1:
            raise ValueError(
                f"the template's columns {dict(extras[int(limits.argmin())])} leave no room for a text in "
                f"model.max_length={self.max_length} tokens"
            )
        return limits

    def _fill_template(self, text: str, extra: Mapping[str, str], spans: Sequence[tuple[int, int]], limit: int) -> str:
        """Return the template around at most `limit` tokens of a text; `spans` are its tokens' (start, end)."""
        assert self.prompt is not None
        if len(spans) > limit:
            from_left = self.tokenizer.truncation_side == "left"
            text = text[spans[-limit][0] :] if from_left else text[: spans[limit - 1][1]]
        return self.prompt.format(text=text, **{name: extra[name] for name in self.columns})

    def _count(self, text: str) -> int:
        """Return the number of tokens of a text, special tokens included."""
        return len(self._token_ids([text], truncate=False)[0])

    def _token_ids(self, texts: list[str], *, truncate: bool, special_tokens: bool = True) -> list[list[int]]:
        truncation = {"truncation": True, "max_length": self.max_length} if truncate else {}
        encoded = call_tokenizer(
            self.tokenizer,
            texts,
            add_special_tokens=special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            **truncation,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids
