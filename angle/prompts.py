"""Templates of texts: what their braces may hold, those with names, and which of them a column's texts get."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping

from angle.errors import ConfigError, did_you_mean


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

#: The role of a column: of two texts in different roles, one is looked for with the other. Those of format A have none.
ROLES = {"text": "query", "positive": "document", "negative": "document"}
#: Names under which `model.prompts` may have a template. The column `text` is the only query, so it has no other name.
PROMPT_NAMES = ("query", "document", "positive", "negative", "text1", "text2")
#: The template that changes nothing.
PLAIN = "{text}"


def prompt_name(name: str) -> str:
    """Return the name that a column, such as text or negative_2, or a role has in `PROMPT_NAMES`."""
    column = name.rstrip("0123456789").removesuffix("_") if "_" in name else name
    return "query" if column == "text" else column


def prompt_for(name: str, prompts: Mapping[str, str], default: str | None) -> str | None:
    """Return the template of a column or a role: its own, else that of its role, else the default; None for none."""
    name = prompt_name(name)
    for each in (name, ROLES.get(name, name)):
        if each in prompts:
            template = as_template(prompts[each], f"model.prompts.{each}")
            return None if template == PLAIN else template
    return default


def check_role(role: str, own: Collection[str]) -> None:
    """Raise ConfigError for what is no role, no column and none of the names that a model has templates of its own for.

    Args:
        role: the name to check.
        own: the model's names.

    """
    known = tuple(dict.fromkeys((*PROMPT_NAMES, *own)))
    if prompt_name(role) not in known:
        raise ConfigError(f"role={role!r} is not known{did_you_mean(role, known) or '.'} Choose {', '.join(known)}.")


def as_template(prompt: str, setting: str = "model.prompt") -> str:
    """Return a template, which words without any braces become by standing before the text.

    Raises:
        ConfigError: as `template_fields`.

    """
    prompt = NAMED_PROMPTS.get(prompt, prompt)
    template = prompt if "{" in prompt or "}" in prompt else f"{prompt}{PLAIN}"
    template_fields(template, setting)
    return template


def escaped(words: str) -> str:
    """Return words as they stand in a template."""
    return words.replace("{", "{{").replace("}", "}}")


def checked_prompts(prompts: Mapping[str, str], setting: str = "model.prompts") -> dict[str, str]:
    """Return templates by role, which stand at a setting, by the names in `PROMPT_NAMES`.

    Raises:
        ConfigError: another name, the same one twice, or a template that cannot be read.

    """
    checked: dict[str, str] = {}
    for given, prompt in prompts.items():
        name = prompt_name(given)
        if name not in PROMPT_NAMES:
            known = f"{', '.join(PROMPT_NAMES[:-1])} or {PROMPT_NAMES[-1]}"
            raise ConfigError(
                f"{setting} has {given}, which is no role or column{did_you_mean(given, PROMPT_NAMES) or '.'} "
                f'Choose {known}, for example \'{setting}={{query: "query: ", document: "passage: "}}\'.'
            )
        if name in checked:
            raise ConfigError(f"{setting} has {name} twice, once as {given}: leave one of them out.")
        as_template(prompt, f"{setting}.{given}")
        checked[name] = NAMED_PROMPTS.get(prompt, prompt)
    return checked


def template_fields(prompt: str, setting: str = "model.prompt") -> list[str]:
    """Return the names in a template's braces, `text` among them; `setting` is where it stands, for messages.

    Raises:
        ConfigError: braces do not pair up, or hold more than a name. A width or a conversion would change the text.

    """
    try:
        fields = [part[1:] for part in string.Formatter().parse(prompt) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"{setting}={prompt!r} cannot be read: {error}; write a literal brace twice: {{{{ or }}}}."
        ) from None
    names = [str(name) for name, _, _ in fields]
    plain = all(not spec and conversion is None for _, spec, conversion in fields)
    if "text" not in names and names and plain and all(name.isidentifier() for name in names):
        raise ConfigError(f"{setting}={prompt!r} has {{{names[0]}}}, but not {{text}}: write that where the text goes.")
    if "text" not in names or not plain or not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"{setting}={prompt!r} needs {{text}}, and braces may hold only {{text}} and names of "
            f"columns; write a literal brace twice: {{{{ or }}}}."
        )
    return names
