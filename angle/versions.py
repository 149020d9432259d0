"""The versions that results came from."""

from __future__ import annotations

import platform
from importlib.metadata import version

#: What decides on results, beside Python.
PACKAGES = ("angle-hydra", "torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "numpy")


def installed_versions() -> dict[str, str]:
    """Return the installed version of Python and of each of `PACKAGES`."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
