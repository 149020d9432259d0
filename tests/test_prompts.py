"""Which template a column or a role gets."""

from __future__ import annotations

import pytest

from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.prompts import Prompts, prompt_for

PROMPTS = {"query": "q: ", "document": "d {text}!", "negative": "", "text2": "second: "}


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("query", "q: {text}"),
        ("text", "q: {text}"),  # the only query
        ("document", "d {text}!"),
        ("positive", "d {text}!"),
        ("positive_3", "d {text}!"),
        ("negative", None),  # its own, which is empty
        ("negative_12", None),
        ("text1", "default {text}"),
        ("text2", "second: {text}"),
    ],
)
def test_a_column_gets_its_own_template_or_its_role_s_or_the_default(name: str, template: str | None) -> None:
    assert prompt_for(name, PROMPTS, "default {text}") == template
    assert prompt_for(name, {}, "default {text}") == "default {text}"
    assert prompt_for(name, {}, None) is None


def test_names_and_columns_are_those_of_the_contract() -> None:
    assert ModelConfig(prompts={"text": "q: ", "document": "C"}).prompts == {"query": "q: ", "document": Prompts.C}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            {"qurey": "q: "},
            "model.prompts has qurey, which is no role or column; did you mean query? Choose query, document, "
            'positive, negative, text1 or text2, for example \'model.prompts={query: "query: ", document: '
            '"passage: "}\'.',
        ),
        ({"text": "a", "query": "b"}, "model.prompts has query twice, once as query: leave one of them out."),
        (
            {"query": "q {text:.3}"},
            "model.prompts.query='q {text:.3}' needs {text}, and braces may hold only {text} and names of columns; "
            "write a literal brace twice: {{ or }}.",
        ),
    ],
)
def test_wrong_prompts_are_refused(prompts: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig(prompts=prompts)
    assert str(error.value) == message
