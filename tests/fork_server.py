"""Real commands that start at once: processes forked from a server that has imported the libraries already.

Most of a short command's time goes into importing torch and transformers. `run` gives what `subprocess.run` would give
with a new interpreter, but the process is a fork of a server that each pytest worker has. Arguments, folder,
environment, output and `__main__` are the command's, this project is imported from its files, and the interpreter shuts
down as always. Between server and command stands a guard, which waits for the command and reports how it ended. The
server ends with pytest.

A fork cannot undo what a library reads from the environment when it is imported, so there is a server for each
environment, without what is read late. What is about starting itself (how fast help comes, what is imported and
printed on the way, signals, a launcher and the ranks that it starts) gets a new interpreter, by `subprocess`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

#: Variables that are read while a command runs, and by none of LIBRARIES when it is imported.
READ_LATE = {
    "ANGLE_CACHE", "BiLLM_START_INDEX", "NETRC", "PYTEST_CURRENT_TEST", "SIGNALLED", "WANDB_API_KEY", "WANDB_MODE",
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip
#: Beginnings of more of them: what launchers say to accelerate.
READ_LATE_PREFIXES = ("ACCELERATE_", "FSDP_")
#: What most commands import. None of these starts a thread, which a fork would lose; pyarrow, and so datasets, does.
LIBRARIES = (
    "accelerate", "hydra.main", "safetensors.torch", "scipy.stats", "torch._dynamo",
    "transformers.models.bert.modeling_bert", "transformers.tokenization_utils_tokenizers",
)  # fmt: skip

_STARTING = threading.Lock()


def environment(**env: str) -> dict[str, str]:
    """Return the environment of a command that a test starts: this one, without a GPU, on one thread.

    Two threads on two cores that others want too wait for each other, and one is nearly as fast; and numpy would start
    its threads when it is imported, which a fork would lose. A process of Weights & Biases belongs to who started it.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return inherited | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | env


def run(
    words: Sequence[str], folder: Path, env: Mapping[str, str], timeout: float, stdout: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in a folder: WORDS are a script, or -m and a module, and its arguments.

    `env` is one of `environment`. What it prints is returned, unless `stdout` is a file descriptor to print to.

    Raises:
        TimeoutExpired: it ran for longer than `timeout` seconds, and was killed.

    """
    late = {name for name in env if name in READ_LATE or name.startswith(READ_LATE_PREFIXES)}
    early = frozenset((name, value) for name, value in env.items() if name not in late)
    with _STARTING:
        server = _server(early)
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(reading) as reports:
        request = json.dumps([list(words), str(folder), dict(env)]).encode()
        socket.send_fds(server.requests, [request], [out.fileno() if stdout is None else stdout, err.fileno(), writing])
        os.close(writing)
        pid = int(reports.readline() or "0")
        assert pid, "the server ended before the command started; see what it printed"
        if not select.select([reading], [], [], timeout)[0]:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(words), timeout)
        code = os.waitstatus_to_exitcode(int(reports.readline()))
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(words), code, out.read(), err.read())


class _Server(NamedTuple):
    """A server as pytest sees it; it ends when `requests` is closed."""

    requests: socket.socket
    process: subprocess.Popen[bytes]


@functools.lru_cache(maxsize=3)
def _server(env: frozenset[tuple[str, str]]) -> _Server:
    """Start a server in an environment."""
    requests, incoming = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # one packet, one request
    command = [sys.executable, __file__, str(incoming.fileno())]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=dict(env), pass_fds=[incoming.fileno()], **quiet)
    incoming.close()
    return _Server(requests, process)


def _serve(server: socket.socket) -> list[str]:
    """Fork for every request until pytest ends; return, in the forked process, the words of its command."""
    for name in LIBRARIES:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a library starts a thread, which a fork would lose"
    gc.freeze()  # a collection would write to all that is shared with the forked processes
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how guards end
    while True:
        request, descriptors, _, _ = socket.recv_fds(server, 2**20, 3)
        if not request:  # pytest has ended
            os._exit(0)
        out, err, report = descriptors
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            if (command := os.fork()) == 0:
                os.dup2(out, 1)
                os.dup2(err, 2)
                for descriptor in descriptors:
                    os.close(descriptor)
                words, folder, env = json.loads(request)
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(env)
                return words
            with contextlib.suppress(BrokenPipeError):  # nobody listens any more after a timeout
                os.write(report, f"{command}\n".encode())
                os.write(report, f"{os.waitpid(command, 0)[1]}\n".encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(words: list[str]) -> None:
    """Do what `python WORDS` does."""
    if words[0] == "-m":
        sys.path[0], sys.argv = os.getcwd(), words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(words[0]).parent), words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
