"""Names of repositories, checked by one function for the settings and for a push from Python."""

from __future__ import annotations

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
