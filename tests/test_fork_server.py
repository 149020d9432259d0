"""A command from the fork server is what a new interpreter would be."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import fork_server
import pytest

SCRIPT = """
import atexit, json, os, signal, sys, threading
import numpy

atexit.register(print, "shut down")
print(json.dumps({
    "main": [__name__, os.path.basename(__file__), sys.modules["__main__"].__dict__ is globals()],
    "arguments": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
    "folder": os.getcwd(), "path": sys.path[0], "environment": dict(os.environ),
    "streams": [[one.isatty(), one.encoding, one.line_buffering] for one in (sys.stdin, sys.stdout, sys.stderr)],
    "signals": [str(signal.getsignal(one)) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
    "threads": threading.active_count(), "child": os.waitpid(os.spawnl(os.P_NOWAIT, "/bin/false", "false"), 0)[1],
    "files": len(os.listdir("/proc/self/fd")), "ours": "angle" in sys.modules,
}, sort_keys=True), flush=True)
print("to stderr, dïr", file=sys.stderr)
"""


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "sys.exit('a sentence')", "os.kill(os.getpid(), 9)", "1 / 0"])
def test_forked_command_behaves_like_a_new_process(tmp_path: Path, end: str, as_module: bool) -> None:
    (tmp_path / "script.py").write_text(f"{SCRIPT}{end}\n")
    words = [*(["-m", "script"] if as_module else [str(tmp_path / "script.py")]), "a b", "c"]
    env = fork_server.environment(WANDB_MODE="offline")
    done = fork_server.run(words, tmp_path, env, timeout=60)
    # It has no standard input, and no pytest as its parent.
    new = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (new.returncode, new.stdout)
    assert done.stderr.splitlines()[0] == "to stderr, dïr"
    assert done.stderr.splitlines()[-1] == new.stderr.splitlines()[-1]


def test_environment_is_set_before_libraries_are_imported(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("from huggingface_hub import constants; print(constants.ENDPOINT)")
    env = fork_server.environment(HF_ENDPOINT="http://127.0.0.1:9")
    assert fork_server.run([str(tmp_path / "script.py")], tmp_path, env, timeout=60).stdout == "http://127.0.0.1:9\n"


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(300)")
    with pytest.raises(subprocess.TimeoutExpired):
        fork_server.run([str(tmp_path / "script.py")], tmp_path, fork_server.environment(), timeout=2)
    process = Path("/proc", (tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while process.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
