"""Names of repositories, checked by one function for the settings and for a push from Python."""

from __future__ import annotations

import re
from typing import Any

import pytest

from angle.config import HubConfig
from angle.config.hub import check_model_id
from angle.errors import ConfigError
from angle.export.hub import check_push


def test_valid_model_id_is_accepted() -> None:
    check_model_id("user/my-encoder_1.0")


@pytest.mark.parametrize("name", ["name", "user/", "a/b/c", "user/n--n", "user/x.git"])
def test_settings_and_a_push_refuse_the_same_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rf"^hub.model_id={name} cannot work: write user/name, at most 96 letters"
    with pytest.raises(ConfigError, match=expected):
        HubConfig(push=True, model_id=name)

    def refuse(_: HubConfig) -> None:
        pytest.fail("settings were built only to be checked")

    monkeypatch.setattr(HubConfig, "__post_init__", refuse)
    with pytest.raises(ConfigError, match=expected):
        check_push(name, private=True)


def test_licences_and_languages_are_those_that_the_hub_takes() -> None:
    hub = HubConfig(license="apache-2.0", language=["en", "pt-BR", "zh-Hant", "multilingual", False])
    assert hub.languages() == ["en", "pt-BR", "zh-Hant", "multilingual", "no"]  # YAML reads Norwegian as false
    assert HubConfig(language="de").languages() == ["de"]
    assert HubConfig().languages() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"license": "Apache 2.0"}, "hub.license=Apache 2.0 is not known to the hub; did you mean apache-2.0? Choose"),
        (
            {"license": "mine"},
            "hub.license=mine is not known to the hub. Choose for example apache-2.0, mit, cc-by-4.0",
        ),
        ({"language": "English"}, "hub.language=English is no code of a language: write for example en, de, zh"),
        ({"language": ["en", "de_DE"]}, "hub.language=de_DE is no code of a language: write for example en, de"),
    ],
)
def test_other_licences_and_languages_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        HubConfig(**settings)
