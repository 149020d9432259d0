"""The distinct texts of a corpus: each is tokenised once in each template that it stands in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from angle.cache import cache_folder
from angle.data.token_cache import cached_tokens
from angle.structures import Tokens


class Tokenizer(Protocol):
    """Turns texts into tokens; see `angle.modeling.tokenizer.TextTokenizer`."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the tokens of a text."""

    @property
    def prompt(self) -> str | None:
        """The template."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The additional columns that the template uses."""

    def named(self, name: str) -> Tokenizer:
        """Return the tokenizer of a column's texts, which may have a template of their own."""

    def __call__(self, texts: Sequence[str], extras: Sequence[Mapping[str, str]] | None = None) -> Tokens:
        """Return the tokens of texts."""

    def check_known(self, tokens: Tokens) -> None:
        """Raise ConfigError, a ValueError, if the model has no embedding for one of the tokens."""

    def unknown_fraction(self, tokens: Tokens) -> float:
        """Return the fraction of tokens that stand for what the vocabulary does not have."""


def template_columns(tokenizer: Tokenizer, roles: Sequence[str]) -> tuple[str, ...]:
    """Return the further columns that the templates of these roles (columns of rows) use."""
    return tuple(dict.fromkeys(column for role in roles for column in tokenizer.named(role).columns))


class DistinctTexts:
    """The distinct texts of rows, numbered in the order in which they were added."""

    def __init__(self, tokenizer: Tokenizer, roles: Sequence[str]) -> None:
        """Start without any; `tokenizer` knows the template of each role (column) of a row."""
        self._tokenizers = [tokenizer]  # one a template; the first is that of all that have none of their own
        #: For each role, the number of its template.
        self.template_of_role: list[int] = []
        for role in roles:
            own = tokenizer.named(role)
            prompts = [each.prompt for each in self._tokenizers]
            if own.prompt not in prompts:
                self._tokenizers.append(own)
                prompts.append(own.prompt)
            self.template_of_role.append(prompts.index(own.prompt))
        #: For each template, the further columns that it uses.
        self.columns = [each.columns for each in self._tokenizers]
        self._ids: dict[tuple[int | str, ...], int] = {}  # by template, text and further columns

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, template: int, text: str, extras: Sequence[str]) -> int:
        """Return the number of a text in a template, whose further columns have these values."""
        return self._ids.setdefault((template, text, *extras), len(self._ids))

    def equal_ids(self) -> npt.NDArray[np.int64]:
        """Return (N,): for each text, the first one that is the same text, whatever template it stands in."""
        if len(self._tokenizers) == 1:
            return np.arange(len(self))
        first: dict[tuple[int | str, ...], int] = {}
        return np.fromiter((first.setdefault(key[1:], number) for key, number in self._ids.items()), np.int64)

    def texts(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Return the texts themselves, each once and without its template, and (N,) which of them each is."""
        place: dict[str, int] = {}
        index = np.fromiter((place.setdefault(str(key[1]), len(place)) for key in self._ids), np.int64)
        return list(place), index

    def hashes(self) -> npt.NDArray[np.int64]:
        """Return (N,): 64 bits of a hash of each text, whatever template it stands in."""
        digests = (
            hashlib.blake2b("\0".join(map(str, parts)).encode(errors="surrogatepass"), digest_size=8).digest()
            for _, *parts in self._ids
        )
        return np.frombuffer(b"".join(digests), np.int64)

    def digest_parts(self) -> Iterator[bytes]:
        """Yield what a hash of all texts is made of, and of the templates that only some of them stand in."""
        for template, *parts in self._ids:
            prompt = f"\2{self._tokenizers[int(template)].prompt}\0" if template else ""
            text = "\0".join(map(str, parts))
            yield f"{prompt}{text}\1".encode(errors="surrogatepass")

    def tokens(self, digest: str, *, cache: bool) -> Tokens:
        """Return the tokens of all texts; `digest` is their hash.

        Raises:
            ValueError: a text gives no tokens, or one that the model has no embedding for.

        """
        # With the lengths, because a text may hold the characters that separate texts in the digest.
        lengths = np.fromiter((len(part) for _, *parts in self._ids for part in map(str, parts)), np.int64)
        fingerprints = "/".join(each.fingerprint for each in self._tokenizers)
        key = hashlib.sha256(f"{fingerprints}/{digest}/".encode() + lengths.tobytes()).hexdigest()
        folder = cache_folder("tokens") / key
        tokens = cached_tokens(folder, self._tokenize, len(self)) if cache else self._tokenize()
        self._tokenizers[0].check_known(tokens)  # the cache knows the tokenizer, but not the model
        return tokens

    def _tokenize(self) -> Tokens:
        parts, order = [], []
        for number, tokenizer in enumerate(self._tokenizers):
            keys = [key for key in self._ids if key[0] == number]
            order += [self._ids[key] for key in keys]
            extras = [dict(zip(tokenizer.columns, map(str, key[2:]), strict=True)) for key in keys]
            parts.append(tokenizer([str(key[1]) for key in keys], extras if tokenizer.columns else None))
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([part.lengths for part in parts])
        joined = Tokens(np.concatenate([part.ids for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))
        return joined.take(np.argsort(order))

    def unknown_fraction(self, tokens: Tokens) -> float:
        """Return the fraction of their tokens that stand for what the vocabulary does not have."""
        if len(self._tokenizers) == 1:
            return self._tokenizers[0].unknown_fraction(tokens)
        templates = np.fromiter((int(key[0]) for key in self._ids), np.int64)
        parts = [tokens.take(np.flatnonzero(templates == number)) for number in range(len(self._tokenizers))]
        counts = [len(part.ids) for part in parts]
        fractions = [each.unknown_fraction(part) for each, part in zip(self._tokenizers, parts, strict=True)]
        return float(np.average(fractions, weights=counts)) if any(counts) else 0.0
