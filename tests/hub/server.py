# SPDX-License-Identifier: GPL-3.0-or-later
"""A model hub and a download server for tests: ModelScope's API as recorded, over a folder, with faults on demand.

The folder holds

    models/<owner>/<name>/…   repositories; every one has the branch master and one commit, named by its content
    artifacts/…               plain files, under /artifacts/

What is served as ModelScope serves it: the file list with Size and Sha256; large files by a redirect to a content
address that understands ranges; small ones inline, with 200 whatever range was asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: Files a hub keeps outside git, and so serves by redirect.
LARGE = (".gguf", ".safetensors", ".bin")
BRANCH = "master"
BLOCK = 1 << 16

FAULTS = {
    "wrong": "the first byte differs",
    "cut": "the connection ends after VALUE bytes, each time",
    "cut-once": "the same, but only once per file",
    "no-range": "200 and the whole file, whatever range was asked for",
    "other-range": "206 and the bytes VALUE further on than those asked for",
    "claim": "the file is VALUE bytes long: zeros follow what is there",
    "refused": "the status VALUE",
    "empty": "200 and no bytes at all",
    "missing": "404",
    "page": "200 and a web page",
    "slow": "VALUE bytes per second",
    "busy-once": "429, once per file",
    "bad-hash": "the file list names a sha256 the file does not have",
}


@dataclass
class Fault:
    """What goes wrong for each path that contains ``where``."""

    kind: str
    where: str
    value: int = 0
    spent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise ValueError(f"no fault '{self.kind}'; there is: {', '.join(FAULTS)}")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """KIND:PATH-PART[:VALUE]"""
        kind, _, rest = text.partition(":")
        where, _, value = rest.partition(":")
        return cls(kind, where, int(value or 0))


@dataclass(frozen=True)
class Content:
    path: Path
    size: int
    sha256: str


class Tree:
    """The folder, hashed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hashed: dict[tuple[str, int, int], str] = {}

    def content(self, path: Path) -> Content:
        found = path.stat()
        key = (str(path), found.st_size, found.st_mtime_ns)
        if key not in self._hashed:
            self._hashed[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        return Content(path, found.st_size, self._hashed[key])

    def below(self, *parts: str) -> Path | None:
        """A path inside the folder, or None for one outside or absent."""
        path = self.root.joinpath(*parts)
        inside = path.resolve().is_relative_to(self.root.resolve())
        return path if inside and path.exists() else None

    def repo(self, name: str) -> dict[str, Content] | None:
        folder = self.below("models", *name.split("/"))
        if folder is None or not folder.is_dir():
            return None
        return {
            str(path.relative_to(folder)): self.content(path) for path in sorted(folder.rglob("*")) if path.is_file()
        }

    def commit(self, name: str) -> str:
        """Like git's: the name of the content."""
        files = self.repo(name) or {}
        return hashlib.sha1("".join(f"{path} {file.sha256}\n" for path, file in files.items()).encode()).hexdigest()

    def by_sha256(self, sha256: str) -> Content | None:
        for path in self.root.joinpath("models").rglob("*"):
            if path.is_file() and self.content(path).sha256 == sha256:
                return self.content(path)
        return None


class Hub(ThreadingHTTPServer):
    """The server. ``faults`` and ``requests`` may be read and changed while it runs."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, root: Path, address: tuple[str, int] = ("127.0.0.1", 0), token: str = "") -> None:
        self.tree = Tree(root)
        self.token = token
        self.cdn = ""
        """Where large files are redirected to; empty: this very server."""
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """(path with query, Range header or '')"""
        self.sent = 0
        """Bytes of files sent so far."""
        super().__init__(address, Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def fault(self, kind: str, where: str) -> Fault | None:
        return next((fault for fault in self.faults if fault.kind == kind and fault.where in where), None)

    def once(self, kind: str, where: str) -> Fault | None:
        fault = self.fault(kind, where)
        if fault is None or where in fault.spent:
            return None
        fault.spent.add(where)
        return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to report."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.client_address[0]} {format % args}", flush=True)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.server.requests.append((unquote(self.path), self.headers.get("Range", "")))
        if path == "/health":
            return self.send(200, {"Success": True})
        if path.startswith("/artifacts/"):
            file = self.server.tree.below("artifacts", path.removeprefix("/artifacts/"))
            return self.file(self.server.tree.content(file) if file and file.is_file() else None, path)
        if path.startswith("/cdn/"):
            # Storage elsewhere refuses a token that is not its own.
            if self.server.cdn and "Authorization" in self.headers:
                return self.send(400, {"Message": "only one authorization is allowed"})
            sha256, _, name = path.removeprefix("/cdn/").partition("/")
            return self.file(self.server.tree.by_sha256(sha256), name)
        found = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/(repo/files|repo|revisions)", path)
        if found is None:
            return self.send(404, {"Success": False, "Message": "no such page"})
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.send(401, {"Success": False, "Message": "a token is required"})
        return self.api(found[1], found[2], query)

    def api(self, repo: str, what: str, query: dict[str, str]) -> None:
        files = self.server.tree.repo(repo)
        if files is None or self.server.fault("missing", repo):
            return self.send(404, {"Success": False, "Message": f"model {repo} not found"})
        commit = self.server.tree.commit(repo)
        if what == "revisions":
            branch = {"Revision": BRANCH, "CreatedAt": 0}
            return self.send(200, {"Success": True, "Data": {"RevisionMap": {"Branches": [branch], "Tags": []}}})
        if query.get("Revision", BRANCH) not in (BRANCH, commit):
            return self.send(404, {"Success": False, "Message": f"revision {query['Revision']} not found"})
        if what == "repo/files":
            return self.send(200, {"Success": True, "Data": {"Files": self.entries(files, commit, query)}})
        name = query.get("FilePath", "")
        file = files.get(name)
        if file is None:
            return self.send(404, {"Success": False, "Message": f"file {name} not found"})
        if not name.endswith(LARGE):
            return self.file(file, name, ranges=False)
        self.send_response(302)
        self.send_header("Location", f"{self.server.cdn}/cdn/{file.sha256}/{name}")
        self.send_header("X-Linked-ETag", file.sha256)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def entries(self, files: dict[str, Content], commit: str, query: dict[str, str]) -> list[dict[str, Any]]:
        root = query.get("Root", "").strip("/")
        recursive = query.get("Recursive", "").lower() == "true"
        listed: dict[str, dict[str, Any]] = {}
        for path, file in files.items():
            if root and not path.startswith(root + "/"):
                continue
            names = path.split("/")
            for depth in range(1, len(names) + 1):
                here = "/".join(names[:depth])
                inside = here if not root else here.removeprefix(root + "/") if here.startswith(root + "/") else ""
                if not inside or ("/" in inside and not recursive):
                    continue
                blob = depth == len(names)
                sha256 = file.sha256[::-1] if self.server.fault("bad-hash", path) else file.sha256
                listed[here] = {
                    "Path": here,
                    "Name": names[depth - 1],
                    "Type": "blob" if blob else "tree",
                    "Size": file.size if blob else 0,
                    "Sha256": sha256 if blob else "",
                    "Revision": commit,
                }
        return list(listed.values())[:3000]

    def send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def file(self, file: Content | None, name: str, *, ranges: bool = True) -> None:
        """Send a file, or the part of it that was asked for, with whatever fault is switched on for it."""
        hub = self.server
        if file is None or hub.fault("missing", name):
            return self.send(404, {"Success": False, "Message": f"{name} not found"})
        if hub.once("busy-once", name):
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        refused = hub.fault("refused", name)
        if refused:
            return self.send(refused.value, {"Message": f"{name} is not for you"})
        body = file.path.read_bytes()
        if hub.fault("page", name):
            body = b"<!DOCTYPE html><title>Sign in to this network</title>"
        if hub.fault("wrong", name):
            body = bytes([body[0] ^ 1]) + body[1:]
        if hub.fault("empty", name):
            body = b""
        claim, other = hub.fault("claim", name), hub.fault("other-range", name)
        size = claim.value if claim else len(body)
        start, end = 0, size
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found and ranges and not hub.fault("no-range", name):
            start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
            if other:
                start, end = start + other.value, min(end + other.value, size)
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command != "HEAD":
            self.transmit(body, start, end, name)
        return None

    def transmit(self, body: bytes, start: int, end: int, name: str) -> None:
        """Send the bytes from ``start`` to ``end``, zeros where the body has none."""
        cut = self.server.fault("cut", name) or self.server.once("cut-once", name)
        slow = self.server.fault("slow", name)
        if cut:
            end = min(end, start + cut.value)
        size = max(slow.value // 20, 1) if slow else BLOCK
        for at in range(start, end, size):
            block = body[at : min(at + size, end)]
            block += bytes(min(size, end - at) - len(block))
            self.server.sent += len(block)
            self.wfile.write(block)
            if slow:
                time.sleep(0.05)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def running(root: Path, token: str = "") -> Iterator[Hub]:
    """A hub on a free port of this machine, for as long as the block runs."""
    hub = Hub(root, token=token)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
