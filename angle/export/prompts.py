"""Templates as sentence-transformers has them: words before a text by name, and the words after it as tokens.

Its prompts are words before a text. What a template has after {text} becomes part of the tokenizer: a post-processor
writes these tokens after every text, also after one that was truncated, as it writes an end token.
"""

from __future__ import annotations

import copy
import string
from typing import Any

from angle.errors import ConfigError
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.sentence_transformers_files import ROLE_PROMPTS, TEMPLATE_PROMPT
from angle.modeling.special_tokens import call_tokenizer, encode_a_word
from angle.modeling.tokenizer import TextTokenizer
from angle.prompts import PLAIN, as_template, escaped, prompt_for

#: How texts end: a tokenizer may join what they end with and the words after them into one token.
ENDINGS = ("a", "7", "a.", "a?", "a!", 'a"', "a'", "a)", "a,", "a:", "é", "…", "%")


def split_template(template: str | None) -> tuple[str, str]:
    """Return the words before and after the text.

    Raises:
        ConfigError: the template has further columns, or the text twice.

    """
    parts = list(string.Formatter().parse(template or PLAIN))
    fields = [number for number, part in enumerate(parts) if part[1] is not None]
    if len(fields) != 1:
        raise ConfigError(
            f"The template {template!r} has no equivalent in sentence-transformers, whose prompts are words around one "
            f"text: train with a template that has {{text}} once and no other columns."
        )
    before, after = parts[: fields[0] + 1], parts[fields[0] + 1 :]
    return "".join(part[0] for part in before), "".join(part[0] for part in after)


def prompt_settings(embedding_config: EmbeddingConfig) -> dict[str, Any]:
    """Return the prompts that are asked for by name, and which of them stands for the template, by default.

    sentence-transformers has empty ones for queries and documents if there are none, so these two are always written
    where a template is.
    """
    named = {name: as_template(prompt) for name, prompt in (embedding_config.prompts or {}).items()}
    prefix = split_template(embedding_config.prompt)[0]
    if not prefix and not named:
        return {"prompts": {}, "default_prompt_name": None}
    prompts = {name: split_template(template)[0] for name, template in named.items()}
    for role in ROLE_PROMPTS:
        prompts[role] = split_template(prompt_for(role, named, embedding_config.prompt))[0]
    default = None
    if prefix:
        default = next((name for name in named if prompts[name] == prefix), TEMPLATE_PROMPT)
        prompts[default] = prefix
    return {"prompts": prompts, "default_prompt_name": default}


def words_after_text(embedding_config: EmbeddingConfig) -> str:
    """Return the words that all templates have after the text.

    Raises:
        ConfigError: they differ.

    """
    named = {name: as_template(prompt) for name, prompt in (embedding_config.prompts or {}).items()}
    templates = [embedding_config.prompt, *named.values()]
    suffixes = {split_template(template)[1]: template or PLAIN for template in templates}
    if len(suffixes) > 1:
        first, second, *_ = suffixes.values()
        raise ConfigError(
            f"The templates {first!r} and {second!r} end in different words, which has no equivalent in "
            f"sentence-transformers, whose folders can put only one end after all texts: train with the same words "
            f"after {{text}} in model.prompt and model.prompts."
        )
    return next(iter(suffixes))


def with_suffix_tokens(tokenizer: TextTokenizer, suffix: str) -> TextTokenizer:
    """Return a tokenizer that writes the tokens of `suffix` after every text, whose templates lack it.

    Raises:
        ConfigError: the tokens depend on how the text ends.

    """
    from tokenizers.processors import TemplateProcessing

    inner = copy.deepcopy(tokenizer.tokenizer)
    encoded, start, end = encode_a_word(inner)
    ids, types = encoded["input_ids"], encoded.get("token_type_ids") or [0]
    around = {"before": ids[:start], "after": _suffix_ids(tokenizer, suffix) + ids[end:]}
    before, text, after = (f"{name}:{types[0]}" for name in ("before", "$A", "after"))
    # One for all: what one post-processor adds would be a second text to the next.
    inner.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{before} {text} {after}" if around["before"] else f"{text} {after}",
        pair=f"{text} $B:1 {after}",
        special_tokens=[
            {"id": name, "ids": each, "tokens": inner.convert_ids_to_tokens(each)} for name, each in around.items()
        ],
    )
    prompt = _without_suffix(tokenizer.prompt)
    prompts = {name: _without_suffix(as_template(each)) for name, each in tokenizer.prompts.items()}
    result = TextTokenizer(inner, tokenizer.max_length, prompt, None, tokenizer.num_embeddings, prompts)
    result.lower_case = tokenizer.lower_case
    return result


def _without_suffix(template: str | None) -> str:
    return f"{escaped(split_template(template)[0])}{PLAIN}"


def _suffix_ids(tokenizer: TextTokenizer, suffix: str) -> list[int]:
    """Return the tokens of the words after a text."""

    def ids(text: str) -> list[int]:
        encoded: list[int] = call_tokenizer(tokenizer.tokenizer, text, add_special_tokens=False)["input_ids"]
        return encoded

    prefix = split_template(tokenizer.prompt)[0]
    heads = [f"{prefix}{ending}" for ending in ENDINGS]
    found = ids(f"{heads[0]}{suffix}")[len(ids(heads[0])) :]
    joined = next((head for head in heads if ids(f"{head}{suffix}") != ids(head) + found), None)
    if joined is not None:
        raise ConfigError(
            f"The template {tokenizer.prompt!r} has no equivalent in sentence-transformers, whose folders write the "
            f"same tokens after every text, but this tokenizer joins {suffix!r} with a text that ends in "
            f"{joined[-1]!r}: use the model as it is, with angle's Encoder, or train with a space or a line break "
            f"after {{text}}."
        )
    return found
