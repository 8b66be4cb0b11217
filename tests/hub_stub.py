"""A stand-in for the Hugging Face Hub on 127.0.0.1: the routes that huggingface_hub uses to publish and to fetch.

Repositories, branches, commits and large files are kept in memory. A commit appears whole or not at all, as on the Hub.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_stub_token_that_nobody_may_see"
_LARGE = (".onnx", ".safetensors", ".data", ".bin")  # those of the .gitattributes that the Hub gives a repository
Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository: its commits by id, and the id that each branch is at."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Files, message: str) -> str:
        oid = hashlib.sha1(repr((branch, len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.branches.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    """The server; `failing` maps a part of a path to the status that requests to it get."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.tokens = {TOKEN: ("me",)}  # the owners that each may write to
        self.failing: dict[str, int] = {}
        self.held: threading.Event | None = None  # requests to /lfs/ wait for it
        self.reached = threading.Event()  # one waits
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []

    def new(self, name: str, files: Files | None = None, *, private: bool = False) -> Repository:
        made = self.repositories[name] = Repository(private=private)
        made.commit("main", {".gitattributes": b"", **(files or {})}, "initial commit")
        return made


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self.chunks())
        self.server.calls.append((self.command, path))
        for part, status in self.server.failing.items():
            if part in path:
                return self.error(status, "Something went wrong")
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            return self.api(parts[1:], parse_qs(address.query))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch("/".join(parts[:2]).removesuffix(".git"))
        if parts[0] == "lfs":
            if self.server.held is not None:
                self.server.reached.set()
                self.server.held.wait(60)
            self.server.large[parts[1]] = self.body
            return self.send(200)
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self.error(404, "no such route", "EntryNotFound")

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    @property
    def token(self) -> str:
        return str(self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def may_write(self, owner: str) -> bool:
        """Whether the caller may write; an error is sent if not."""
        if self.token not in self.server.tokens:
            self.error(401, "Invalid credentials in Authorization header")
        elif owner not in self.server.tokens[self.token]:
            self.error(403, f"You don't have the rights to write under {owner}, {self.token}")
        else:
            return True
        return False

    def api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        if parts == ["validate-yaml"]:
            return self.send(200, {"errors": [], "warnings": []})
        if parts == ["repos", "create"]:
            return self.create(json.loads(self.body))
        name = "/".join(parts[1:3])
        found = self.server.repositories.get(name)
        if found is None or (found.private and self.token not in self.server.tokens):
            return self.error(404 if self.token in self.server.tokens else 401, "Repository not found", "RepoNotFound")
        kind, rest = (parts[3], "/".join(parts[4:])) if len(parts) > 3 else ("revision", "main")
        if self.command == "POST" and not self.may_write(parts[1]):
            return None
        if kind == "branch":
            if rest in found.branches:
                return self.error(409, "Reference already exists")
            found.branches[rest] = found.branches["main"]
            return self.send(201, {})
        revision = parts[4] if kind == "tree" else rest
        if kind != "paths-info" and found.branches.get(revision, revision) not in found.commits:
            return self.error(404, "Invalid rev id", "RevisionNotFound")
        files = found.files(revision)
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            sha = found.branches.get(revision, revision)
            return self.send(200, {"id": name, "sha": sha, "private": found.private, "siblings": siblings, "tags": []})
        if kind == "tree":
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": _git(data), **_lfs(file, data)}
                for file, data in files.items()
            ]
            return self.send(200, entries)
        if kind == "preupload":
            wanted = json.loads(self.body)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(one["path"], files),
                }
                for one in wanted
            ]
            return self.send(200, {"files": modes})
        if kind == "commit":
            return self.commit(name, found, revision)
        self.error(404, "no such route", "EntryNotFound")

    def create(self, wanted: dict[str, Any]) -> None:
        owner = wanted["organization"]
        name = f"{owner}/{wanted['name']}"
        if not self.may_write(owner):
            return None
        if name in self.server.repositories:
            return self.send(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        self.server.new(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.send(200, {"url": f"{self.server.url}/{name}", "name": name})

    def batch(self, name: str) -> None:
        if not self.may_write(name.split("/")[0]):
            return
        objects = []
        for one in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}
            actions = {} if one["oid"] in self.server.large else {"actions": {"upload": upload}}
            objects.append({**one, **actions})
        self.send(200, {"transfer": "basic", "objects": objects})

    def commit(self, name: str, found: Repository, branch: str) -> None:
        files, message = dict(found.files(branch)), ""
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "header":
                message = value["summary"]
            elif one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                data = self.server.large[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                files[value["path"]] = data
            elif one["key"] == "deletedFile":
                del files[value["path"]]
        oid = found.commit(branch, files, message)
        self.send(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "hookOutput": ""})

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.server.repositories.get(name)
        if found is None or (found.private and self.token not in self.server.tokens):
            return self.error(401, "Repository not found", "RepoNotFound")
        sha = found.branches.get(revision, revision)
        if sha not in found.commits:
            return self.error(404, "Invalid rev id", "RevisionNotFound")
        data = found.commits[sha].get(path)
        if data is None:
            return self.error(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
        etag = hashlib.sha256(data).hexdigest() if path.endswith(_LARGE) else _git(data)
        self.send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"})

    def error(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> None:
        more = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.send(status, {"error": message}, more)

    def send(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha256(data).hexdigest()
    return {"lfs": {"oid": oid, "size": len(data), "pointerSize": 130}} if path.endswith(_LARGE) else {}


def _oid(path: str, files: Files) -> str | None:
    if path not in files:
        return None
    return hashlib.sha256(files[path]).hexdigest() if path.endswith(_LARGE) else _git(files[path])


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def environment(hub: Hub, cache: str, token: str | None = TOKEN) -> dict[str, str]:
    """Variables with which another process speaks to the hub; it reads them when it imports huggingface_hub."""
    named = {"HF_ENDPOINT": hub.url, "HF_HOME": cache, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return named | ({"HF_TOKEN": token} if token else {})


def speak_to(hub: Hub, cache: str, patch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
    """Let huggingface_hub of this process speak to the hub."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", cache)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/no token")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if token:
        patch.setenv("HF_TOKEN", token)


def front_matter(card: str) -> dict[str, Any]:
    """The front matter of a model card as huggingface_hub reads it."""
    from huggingface_hub import ModelCard

    return {key: value for key, value in vars(ModelCard(card).data).items() if value is not None}
