"""A small Hugging Face hub on this machine: of its HTTP interface, what making, filling and loading a model takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import local_server
import yaml

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
class Hub(local_server.State):
    """What the server holds, what was asked of it, and how it shall fail."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    role: str = "write"
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
    with local_server.serve(_Handler, hub):
        yield hub


class _Handler(local_server.Handler):
    state: Hub

    def respond(self, body: bytes) -> None:
        """Answer a request."""
        path = urlsplit(self.path).path
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
        return self.answer({"error": "no such route"}, 404)

    @property
    def _is_logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str) -> Repository | None:
        """Return a repository; answer that there is none where nobody may know of it."""
        found = self.state.repositories.get(name)
        if found is None or (found.private and not self._is_logged_in):
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        return found

    def _whoami(self, _: bytes) -> None:
        if not self._is_logged_in:
            return self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        token = {"displayName": "test", "role": self.state.role}
        return self.answer({"type": "user", "name": "user", "orgs": [{"name": "team"}], "auth": {"accessToken": token}})

    def _validate(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        metadata = yaml.safe_load(card.split("---\n")[1])
        base = metadata.get("base_model", "user/name")
        wrong = [] if re.fullmatch(r"([\w.-]+/)?[\w.-]+", base) else [{"message": f"base_model {base} is no model"}]
        self.answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.state.repositories:
            return self.answer({"error": "You already created this model repo"}, 409)
        self.state.created.append(asked)
        self.state.repositories[name] = Repository(asked.get("visibility") == "private")
        return self.answer({"url": f"{self.state.url}/{name}"})

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
        self.answer({"files": files})

    def _batch(self, body: bytes, _: str) -> None:
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.state.large:
                item["actions"] = {"upload": {"href": f"{self.state.url}/large/{item['oid']}?Signature=secret"}}
        self.answer({"transfer": "basic", "objects": objects})

    def _put(self, body: bytes, oid: str) -> None:
        assert _sha256(body) == oid
        self.state.large[oid] = body
        self.answer({})

    def _commit(self, body: bytes, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return None
        if self.state.fail_commits:
            self.state.fail_commits -= 1
            return self.answer({"error": f"Too much to do, {TOKEN}"}, 503)
        header, *lines = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit") not in (None, repository.sha):
            return self.answer({"error": "A commit has happened since"}, 412)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.state.large[value["oid"]]
            else:
                del repository.files[value["path"]]
        repository.commits.append({"title": header["value"]["summary"], "sha": repository.sha})
        if self.state.lose_answers:
            self.state.lose_answers -= 1
            return self.answer({"error": "The gateway gave up"}, 504)
        return self.answer(
            {"commitUrl": f"{self.state.url}/{name}/commit/{repository.sha}", "commitOid": repository.sha}
        )

    def _info(self, _: bytes, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        siblings = [
            {"rfilename": path} | ({"lfs": _pointer(content)} if path.endswith(".safetensors") else {})
            for path, content in repository.files.items()
        ]
        self.answer({"id": name, "private": repository.private, "sha": repository.sha, "siblings": siblings})

    def _tree(self, _: bytes, name: str, folder: str | None) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        inside = f"{(folder or '').strip('/')}/".lstrip("/")
        self.answer(
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
            self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=repository.sha)
        else:
            self.answer(content, ETag=f'"{_sha256(content)}"', X_Repo_Commit=repository.sha)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _pointer(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": _sha256(content), "pointerSize": 130}
