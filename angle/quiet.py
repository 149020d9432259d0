"""Keep other libraries quiet for a while, and leave them as they were: their settings belong to the whole process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Let the named loggers report errors only."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the progress bars of downloads and uploads off the console, and a line for each retry: errors say enough."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    with quiet_loggers("huggingface_hub"):
        _set_bars(disable_progress_bars)
        try:
            yield
        finally:
            _set_bars(disable_progress_bars if disabled else enable_progress_bars)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the console; what matters is checked and reported."""
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    with quiet_hub(), quiet_loggers("transformers"):
        _set_bars(transformers_logging.disable_progress_bar)
        try:
            yield
        finally:
            if enabled:
                _set_bars(transformers_logging.enable_progress_bar)  # those of the hub too, until `quiet_hub` ends


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the progress bars of the library datasets, and of what it downloads, off the console."""
    import datasets

    enabled = datasets.is_progress_bar_enabled()
    with quiet_hub():
        _set_bars(datasets.disable_progress_bars)
        try:
            yield
        finally:
            if enabled:
                _set_bars(datasets.enable_progress_bars)


def _set_bars(switch: Callable[[], object]) -> None:
    """Turn progress bars on or off; where an environment variable decides, it does so without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        switch()
