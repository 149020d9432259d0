"""Whether texts are in a model's language: how much of them its tokenizer does not know."""

from __future__ import annotations

from angle.errors import DataError

#: Fractions of unknown tokens above which texts are noted, and refused: half of their words would mean nothing.
NOTED_UNKNOWN, MAX_UNKNOWN = 0.1, 0.5


def check_language(unknown: float, name: str) -> None:
    """Raise DataError if too large a fraction of the tokens of `name` is unknown to the tokenizer."""
    if unknown > MAX_UNKNOWN:
        raise DataError(
            f"{name} is not in the model's language: {unknown:.0%} of its tokens are unknown to the tokenizer, and at "
            f"most {MAX_UNKNOWN:.0%} may be; choose another model, or the right tokenizer by "
            f"model.tokenizer_name_or_path=..."
        )


def note_on_unknown(unknown: float, name: str) -> str | None:
    """Return what to say of texts if this fraction of their tokens is unknown to the tokenizer: much, not too much."""
    if unknown <= NOTED_UNKNOWN:
        return None
    return (
        f"{unknown:.0%} of the tokens of {name} are unknown to the tokenizer, so texts that differ in them "
        f"alone look the same to the model; more than {MAX_UNKNOWN:.0%} would be refused"
    )
