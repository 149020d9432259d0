"""What a library call turns off in other libraries is on again afterwards, as it was before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

from angle.config import LoraConfig, ModelConfig, SourceConfig
from angle.data.sources import open_tables
from angle.modeling.encoder import Encoder
from angle.quiet import quiet_datasets, quiet_hub, quiet_transformers

LOGGERS = ("transformers", "huggingface_hub", "bitsandbytes")


def state() -> dict[str, Any]:
    """Return the settings of other libraries that hold for the whole process."""
    return {
        "levels": [logging.getLogger(name).level for name in LOGGERS],
        "transformers": transformers.utils.logging.is_progress_bar_enabled(),
        "hub": not are_progress_bars_disabled(),
        "datasets": datasets.is_progress_bar_enabled(),
    }


@pytest.fixture(autouse=True)
def before() -> dict[str, Any]:
    """Turn everything on, whatever an earlier test has left behind, and return the state."""
    transformers.logging.set_verbosity_warning()
    transformers.utils.logging.enable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
    datasets.enable_progress_bars()
    return state()


def test_loading_and_saving_an_encoder(before: dict[str, Any], tmp_path: Path) -> None:
    Encoder.load("tiny").save(tmp_path / "saved")
    Encoder.load(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="could not be loaded"):
        Encoder.load(str(tmp_path))
    assert state() == before


def test_loading_4_bit_weights(before: dict[str, Any], folder_of: Callable[[str], str]) -> None:
    import bitsandbytes.nn.modules as layers

    check = layers.has_avx512bf16
    encoder = Encoder.load(ModelConfig(folder_of("llama"), load_kbit=4), lora=LoraConfig(enabled=True))
    assert state() == before
    assert layers.has_avx512bf16 is check  # other models of this process may want their weights repacked
    linear = [module for module in encoder.modules() if isinstance(module, layers.Linear4bit)]
    assert linear
    assert not any(module.support_avx512bf16_for_cpu for module in linear)


def test_a_data_set_of_the_hub(before: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> datasets.Dataset:
        assert not datasets.is_progress_bar_enabled()
        return datasets.Dataset.from_dict({"text1": ["a"], "text2": ["b"], "label": [1.0]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    open_tables(SourceConfig("user/name"), "train")
    assert state() == before


def test_quiet_suppresses_output() -> None:
    with quiet_transformers(), quiet_datasets():
        inside = state()
    assert inside == {
        "levels": [logging.ERROR, logging.ERROR, logging.NOTSET],
        "transformers": False,
        "hub": False,
        "datasets": False,
    }


@pytest.mark.parametrize("quiet", [quiet_hub, quiet_transformers, quiet_datasets])
def test_quiet_keeps_what_was_off(quiet: Callable[[], Any]) -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    before = state()
    with quiet():
        assert logging.getLogger("transformers").level == logging.CRITICAL
    assert state() == before


def test_the_hub_s_bars_alone_stay_off() -> None:
    disable_progress_bars()
    before = state()
    with quiet_transformers(), quiet_datasets():
        pass
    assert state() == before
    assert (before["transformers"], before["datasets"]) == (True, True)
