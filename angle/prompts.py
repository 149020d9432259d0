"""Templates of texts: what their braces may hold, and those with names."""

from __future__ import annotations

import string

from angle.errors import ConfigError


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


def template_fields(prompt: str) -> list[str]:
    """Return the names in a template's braces, `text` among them.

    Raises:
        ConfigError: braces do not pair up, or hold more than a name. A width or a conversion would change the text.

    """
    try:
        fields = [part[1:] for part in string.Formatter().parse(prompt) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"model.prompt={prompt!r} cannot be read: {error}; write a literal brace twice: {{{{ or }}}}."
        ) from None
    names = [str(name) for name, _, _ in fields]
    plain = all(not spec and conversion is None for _, spec, conversion in fields)
    if "text" not in names or not plain or not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"model.prompt={prompt!r} needs {{text}}, and braces may hold only {{text}} and names of "
            f"columns; write a literal brace twice: {{{{ or }}}}."
        )
    return names
