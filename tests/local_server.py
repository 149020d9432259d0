"""What the small servers on this machine share: a service that answers, until it is told to break."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import faulty_server

_FREE_PORTS: list[int] = []


@dataclass
class State:
    """What was asked of a server, and how it shall break."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    fault: str | None = None
    """One of faulty_server.FAULTS: how all is answered from the request on that has `breaks_at` in it."""
    breaks_at: str = ""
    broken: bool = False
    closed: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(handler: type[Handler], state: State) -> Iterator[None]:
    """Run a server while the context is open."""
    # A port that was used before makes the environment of before, for which there is a fork server.
    port = _FREE_PORTS.pop() if _FREE_PORTS else 0
    server = _Server(("127.0.0.1", port), type("BoundHandler", (handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        state.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()
        _FREE_PORTS.append(server.server_port)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Keep the console clean: a client may end at any time."""


class Handler(BaseHTTPRequestHandler):
    """Answers every request by `respond`."""

    state: Any
    protocol_version = "HTTP/1.1"

    def respond(self, body: bytes) -> None:
        """Answer a request."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer, as for every other method."""
        body, state = self._body(), self.state
        state.requests.append(f"{self.command} {self.path}")
        state.broken |= state.fault is not None and state.breaks_at in state.requests[-1]
        if not state.broken:
            return self.respond(body)
        self.close_connection = True
        if state.fault == "refuses":
            self.server.shutdown()
            self.server.server_close()
        return faulty_server.answer(self.connection, state.fault, state.closed)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Keep the console clean."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        """Send what `respond` decided."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
