"""Named prompt templates."""

from __future__ import annotations


class Prompts:
    """The templates of angle_emb: A and B make a decoder sum up a text in one word, C marks a search query."""

    A = 'Summarize sentence "{text}" in one word:"'
    B = 'You can only output one word. Summarize "{text}":"'
    C = "Represent this sentence for searching relevant passages: {text}"

    @classmethod
    def list_prompts(cls) -> None:
        """Print the templates."""
        for name in NAMED_PROMPTS:
            print(f"Prompts.{name}", "=", repr(getattr(cls, name)))


#: Names that `model.prompt` accepts in place of a template.
NAMED_PROMPTS = {"A": Prompts.A, "B": Prompts.B, "C": Prompts.C}
