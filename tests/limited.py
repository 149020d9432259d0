"""Runs a script of the repository, or -m and a module, that can write no file beyond a size, as on a full disk.

BYTES SCRIPT WORDS
"""

from __future__ import annotations

import resource
import runpy
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # cut off, it would end whoever imports the module next
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
    script, *words = sys.argv[2:]
    sys.path[0] = str(REPO)
    if script == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(REPO / script), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")
