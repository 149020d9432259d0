"""Embeds as `python -m angle.embed WORDS` does, in blocks of 16 rows, and dies after so many: RANK:BLOCKS WORDS.

`none` in place of RANK:BLOCKS lets it live.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Run the command, and kill this process after the last block that it may write."""
    from angle.data import texts
    from angle.embedding.folder import PartialMatrix

    texts.BLOCK_ROWS = 16
    rank, _, count = sys.argv[1].partition(":")
    write, written = PartialMatrix.write, 0

    def write_and_die(matrix: PartialMatrix, *arguments: Any) -> None:
        nonlocal written
        write(matrix, *arguments)
        written += 1
        if written == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    if os.environ.get("RANK", "0") == rank:
        PartialMatrix.write = write_and_die  # type: ignore[method-assign]
    sys.argv = ["embed", *sys.argv[2:]]
    runpy.run_module("angle.embed", run_name="__main__", alter_sys=True)


main()
