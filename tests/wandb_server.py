"""A small Weights & Biases on this machine: of its HTTP interface, what recording and resuming a run takes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import local_server


@dataclass
class Server(local_server.State):
    """What the server was sent."""

    history: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """Of each run, what it logged, by its number there."""

    def environment(self) -> dict[str, str]:
        """What a process needs to record here, logged in."""
        return {
            "WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """Return what a run logged, without what Weights & Biases adds."""
        lines = [self.history[run][number] for number in sorted(self.history[run])]
        return [{name: value for name, value in line.items() if not name.startswith("_")} for line in lines]


@contextmanager
def serve() -> Iterator[Server]:
    """Run a server while the context is open."""
    server = Server()
    with local_server.serve(_Handler, server):
        yield server


class _Handler(local_server.Handler):
    state: Server

    def respond(self, body: bytes) -> None:
        """Answer a request."""
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/graphql":
            query = json.loads(body)
            self.answer({"data": self._graphql(query["operationName"], query.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if lines is not None:
                run = self.state.history.setdefault(self.path.split("/")[-2], {})
                run |= {lines["offset"] + i: json.loads(line) for i, line in enumerate(lines["content"])}
            self.answer({"exitcode": None, "limits": {}})
        else:
            self.answer({})

    def _graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or variables.get("run")
        project = {"id": "p", "name": "angle", "entity": {"id": "e", "name": "user"}}
        if operation == "Viewer":
            return {"viewer": {"id": "u", "entity": "user", "username": "user", "flags": "{}", "teams": {"edges": []}}}
        if operation == "UpsertBucket":
            self.state.history.setdefault(name, {})
            bucket = {"id": name, "name": name, "displayName": name, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if operation == "RunResumeStatus" and name in self.state.history:
            lines = self.state.history[name]
            tail = json.dumps([json.dumps(lines[max(lines)])] if lines else [])
            bucket = {
                "id": name, "name": name, "displayName": name, "summaryMetrics": "{}", "config": "{}", "tags": [],
                "historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0, "historyTail": tail,
                "eventsTail": "[]", "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": project | {"bucket": bucket}}
        if operation == "RunResumeStatus":
            return {"model": project | {"bucket": None}}
        if operation == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.state.url}/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        return {}
