"""One of the processes that `conftest.run_ranks` starts: calls a function of a test file."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    file, name, arguments = sys.argv[1:]
    sys.path[:0] = [str(Path(file).parent), str(Path(__file__).parent.parent)]
    getattr(importlib.import_module(Path(file).stem), name)(*json.loads(arguments))
