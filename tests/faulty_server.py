"""A server that is there and does not work, in each of the ways in which servers do not."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: How it fails; one that refuses does not listen.
FAULTS = (
    "refuses", "hangs", "half an answer", "a byte at a time", "500", "no JSON",
    "resets", "redirects for ever", "answers for ever", "429 for an hour", "JSON of another kind", "nothing",
)  # fmt: skip
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
_ANSWERS = {
    "half an answer": _HEAD + b"1000\r\n\r\n{",
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "no JSON": _HEAD + b"7\r\n\r\n<html>!",
    "redirects for ever": b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "answers for ever": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n[",
    "429 for an hour": b"HTTP/1.1 429 Too Many\r\nRetry-After: 3600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "JSON of another kind": _HEAD + b"4\r\n\r\nnull",
    "nothing": _HEAD + b"0\r\n\r\n",
}
#: Of a socket: end the connection without having sent everything (SO_LINGER: on, for 0 seconds).
_RESET = struct.pack("ii", 1, 0)


@contextmanager
def serve(fault: str) -> Iterator[str]:
    """Run a server while the context is open, and yield its address."""
    closed = threading.Event()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))

        def serve_one(client: socket.socket) -> None:
            with client, suppress(OSError):
                client.recv(65536)
                answer(client, fault, closed)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve_one, args=(server.accept()[0],), daemon=True).start()

        if fault != "refuses":
            server.listen(16)
            threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        closed.set()


def answer(client: socket.socket, fault: str, closed: threading.Event) -> None:
    """Answer a request as a server with a fault does, for as long as `closed` is not set."""
    client.sendall(_ANSWERS.get(fault, b""))
    if fault == "a byte at a time":
        for byte in _HEAD + b"20000\r\n\r\n" + b" " * 20000:
            client.sendall(bytes([byte]))
            if closed.wait(0.1):
                return
    while fault == "answers for ever" and not closed.wait(0.01):
        client.sendall(b" " * 4096)
    if fault in ("hangs", "half an answer"):
        closed.wait()
    if fault in ("refuses", "resets"):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
