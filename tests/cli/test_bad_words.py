"""Words that Hydra, Python or a launcher would take for something else: they work, or are refused in a sentence."""

from __future__ import annotations

import pytest

from angle.config import ModelConfig
from angle.errors import ConfigError

BRACES = "needs {text}, and braces may hold only {text} and names of columns; write a literal brace twice: {{ or }}."
#: Each would change texts, or write a width of spaces before them.
TEMPLATES = [
    "{text:>1000000000}", "{text:1000000000}", "{text!r}", "{text!s}", "{text!a}", "{text:.3}", "{text:{width}}",
    "{text:%}", "{text.upper}", "{text[0]}", "{} {text}", "{0} {text}", "{text} {title!r}", "{text} {title:>9}",
]  # fmt: skip


@pytest.mark.parametrize("prompt", TEMPLATES)
def test_templates_take_names_only(prompt):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(prompt=prompt)
    assert str(caught.value) == f"model.prompt={prompt!r} {BRACES}"
