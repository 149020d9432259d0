"""A small Hugging Face hub on this machine: of its HTTP interface, what making, filling and loading a model takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

_FREE_PORTS: list[int] = []
TOKEN = "hf_thisIsTheOneThatNobodyMaySee"


@dataclass
class Repository:
    """A model repository: one branch, of which only the newest state is kept."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[dict[str, str]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        """A checksum of everything in it, as long as that of a commit."""
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds, what was asked of it, and how it shall fail."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    role: str = "write"
    requests: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    fail_commits: int = 0
    """So many of the next commits are answered with an error."""
    lose_answers: int = 0
    """So many of the next commits are carried out, and answered with an error all the same."""

    def environment(self) -> dict[str, str]:
        """What a process needs to use this hub, logged in."""
        return {
            "HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub while the context is open."""
    hub = Hub()
    # A port that was used before makes the environment of before, for which there is a fork server.
    port = _FREE_PORTS.pop() if _FREE_PORTS else 0
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        _FREE_PORTS.append(server.server_port)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer, as for every other method."""
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Keep the console clean."""

    def _serve(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        routes = {
            r"GET /api/whoami-v2": self._whoami,
            r"POST /api/validate-yaml": self._validate,
            r"POST /api/repos/create": self._create,
            r"PUT /large/(\w+)": self._put,
            r"POST /([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch": self._batch,
            r"POST /api/models/([\w.-]+/[\w.-]+)/preupload/main": self._preupload,
            r"POST /api/models/([\w.-]+/[\w.-]+)/commit/main": self._commit,
            r"GET /api/models/([\w.-]+/[\w.-]+)(?:/revision/\w+)?": self._info,
            r"GET /api/models/([\w.-]+/[\w.-]+)/tree/\w+(/.*)?": self._tree,
            r"(?:GET|HEAD) /([\w.-]+/[\w.-]+)/resolve/\w+/(.+)": self._resolve,
        }
        for pattern, answer in routes.items():
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                return answer(body, *found.groups())
        return self._answer({"error": "no such route"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _is_logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str) -> Repository | None:
        """Return a repository; answer that there is none where nobody may know of it."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._is_logged_in):
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        return found

    def _whoami(self, _: bytes) -> None:
        if not self._is_logged_in:
            return self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        token = {"displayName": "test", "role": self.hub.role}
        return self._answer(
            {"type": "user", "name": "user", "orgs": [{"name": "team"}], "auth": {"accessToken": token}}
        )

    def _validate(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        metadata = yaml.safe_load(card.split("---\n")[1])
        base = metadata.get("base_model", "user/name")
        wrong = [] if re.fullmatch(r"([\w.-]+/)?[\w.-]+", base) else [{"message": f"base_model {base} is no model"}]
        self._answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._answer({"error": "You already created this model repo"}, 409)
        self.hub.created.append(asked)
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        return self._answer({"url": f"{self.hub.url}/{name}"})

    def _preupload(self, body: bytes, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        files = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(".safetensors")
            known = repository.files.get(file["path"])
            oid = None if known is None else _sha256(known) if large else _blob(known)
            files.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._answer({"files": files})

    def _batch(self, body: bytes, _: str) -> None:
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.large:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/large/{item['oid']}?Signature=secret"}}
        self._answer({"transfer": "basic", "objects": objects})

    def _put(self, body: bytes, oid: str) -> None:
        assert _sha256(body) == oid
        self.hub.large[oid] = body
        self._answer({})

    def _commit(self, body: bytes, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return None
        if self.hub.fail_commits:
            self.hub.fail_commits -= 1
            return self._answer({"error": f"Too much to do, {TOKEN}"}, 503)
        header, *lines = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit") not in (None, repository.sha):
            return self._answer({"error": "A commit has happened since"}, 412)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.large[value["oid"]]
            else:
                del repository.files[value["path"]]
        repository.commits.append({"title": header["value"]["summary"], "sha": repository.sha})
        if self.hub.lose_answers:
            self.hub.lose_answers -= 1
            return self._answer({"error": "The gateway gave up"}, 504)
        return self._answer(
            {"commitUrl": f"{self.hub.url}/{name}/commit/{repository.sha}", "commitOid": repository.sha}
        )

    def _info(self, _: bytes, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        siblings = [
            {"rfilename": path} | ({"lfs": _pointer(content)} if path.endswith(".safetensors") else {})
            for path, content in repository.files.items()
        ]
        self._answer({"id": name, "private": repository.private, "sha": repository.sha, "siblings": siblings})

    def _tree(self, _: bytes, name: str, folder: str | None) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        inside = f"{(folder or '').strip('/')}/".lstrip("/")
        self._answer(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
                | ({"lfs": {"oid": _sha256(content)} | _pointer(content)} if path.endswith(".safetensors") else {})
                for path, content in repository.files.items()
                if path.startswith(inside)
            ]
        )

    def _resolve(self, _: bytes, name: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        content = repository.files.get(path)
        if content is None:
            self._answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=repository.sha)
        else:
            self._answer(content, ETag=f'"{_sha256(content)}"', X_Repo_Commit=repository.sha)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _pointer(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": _sha256(content), "pointerSize": 130}
