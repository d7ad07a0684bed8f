# SPDX-License-Identifier: GPL-3.0-or-later
"""A model hub and a download server for tests: ModelScope's and Hugging Face's APIs as recorded, over a folder, with
faults on demand.

The folder holds

    models/<owner>/<name>/…   repositories; every one has one branch (master, or main as Hugging Face calls it) and
                              commits, named by the content
    artifacts/…               plain files, under /artifacts/: artifacts, or a mirror of published models

What is served as ModelScope serves it: the file list with Size and Sha256, cut at 3000 entries without a word; large
files by a redirect to a content address that understands ranges; small ones inline, with 200 whatever range was asked
for. And as Hugging Face serves it (HF_ENDPOINT): revision to commit, file lists in pages that a Link header joins,
large files by a redirect with X-Repo-Commit, X-Linked-Size and X-Linked-ETag, small ones named by git's hash.

Files may be added while it runs. Nothing is read into memory whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

#: Files a hub keeps outside git, and so serves by redirect.
LARGE = (".gguf", ".safetensors", ".bin")
BRANCH = "master"
HF_BRANCH = "main"
BLOCK = 1 << 18
#: While the rate is limited, what the server counts as sent must not lie in a socket's buffer.
LIMITED_BUFFER = 1 << 16
PAGE = b"<!DOCTYPE html><title>Sign in to this network</title>"

#: What can go wrong. Each may be named KIND-once: then it happens to the first answer for a file, and not again.
FAULTS = {
    "wrong": "the byte at VALUE differs",
    "cut": "the connection ends after VALUE bytes of an answer",
    "stall": "nothing more comes after VALUE bytes of an answer, for SECONDS (0: as long as the client waits)",
    "slow": "VALUE bytes per second",
    "unsized": "no length is announced, and the answer ends after VALUE bytes (0: whole)",
    "truncated": "the file ends VALUE bytes early, and the length announced says the same",
    "no-range": "200 and the whole file, whatever range was asked for",
    "other-range": "206 and the bytes VALUE further on than those asked for",
    "claim": "the file is VALUE bytes long: zeros follow what is there",
    "empty": "200 and no bytes at all",
    "page": "200 and a web page",
    "missing": "404, for a file or a repository",
    "refused": "the status VALUE",
    "busy": "429 with Retry-After: VALUE seconds",
    "busy-date": "429 with Retry-After: the date VALUE seconds from now",
    "loop": "a redirect to the same address, for ever",
    "astray": "a redirect to an address where nobody listens",
    "bad-hash": "the file list names a sha256 the file does not have",
    "list-refused": "the file list is answered with the status VALUE",
    "list-busy": "the file list is answered with 429 and Retry-After: VALUE seconds",
    "list-page": "200 and a web page instead of the file list",
    "list-cut": "the file list breaks off in the middle",
}
#: With one of these, each time, nobody can have the file from here: to report success would be a lie.
HOPELESS = frozenset(FAULTS) - {"cut", "stall", "slow", "unsized", "no-range", "other-range"}


@dataclass
class Fault:
    """What goes wrong for each path (``<owner>/<name>/<path>``) that contains ``where``."""

    kind: str
    where: str
    value: int = 0
    seconds: float = 0.0
    spent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.kind.removesuffix("-once") not in FAULTS:
            raise ValueError(f"no fault '{self.kind}'; there is: {', '.join(FAULTS)}, each also as KIND-once")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """KIND:PATH-PART[:VALUE[:SECONDS]]"""
        kind, where, value, seconds = (*text.split(":"), "", "", "")[:4]
        return cls(kind, where, int(value or 0), float(seconds or 0))


@dataclass(frozen=True)
class Content:
    """A file as it is served."""

    path: Path
    size: int
    sha256: str
    git_blob: str
    """Git's hash of the file, or of the pointer that stands for it in git."""


def pointer(sha256: str, size: int) -> bytes:
    """What git holds instead of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Tree:
    """The folder. Each file is hashed once, when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hashed: dict[tuple[str, int, int], Content] = {}
        self._commits: dict[tuple[str, str], dict[str, Content]] = {}
        self._hashing = threading.Lock()

    def content(self, path: Path) -> Content:
        found = path.stat()
        key = (str(path), found.st_size, found.st_mtime_ns)
        if key not in self._hashed:
            with self._hashing:
                if key not in self._hashed:
                    self._hashed[key] = self._hash(path, found.st_size)
        return self._hashed[key]

    @staticmethod
    def _hash(path: Path, size: int) -> Content:
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        large = path.name.endswith(LARGE)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
                if not large:
                    git.update(block)
        if large:
            text = pointer(sha256.hexdigest(), size)
            git = hashlib.sha1(b"blob %d\0" % len(text) + text)
        return Content(path, size, sha256.hexdigest(), git.hexdigest())

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
            str(path.relative_to(folder)): self.content(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".new"  # samples.seeded is still writing it
        }

    def commit(self, name: str) -> str:
        """Like git's: the name of the content."""
        files = self.repo(name) or {}
        text = "".join(f"{path} {file.sha256}\n" for path, file in files.items())
        commit = hashlib.sha1(text.encode()).hexdigest()
        self._commits[name, commit] = files
        return commit

    def at(self, name: str, revision: str, branch: str) -> tuple[str, dict[str, Content]] | None:
        """Commit and files of a revision: the branch as it is now, or a commit somebody was told of before."""
        now = self.commit(name)
        commit = now if revision == branch else revision
        files = self._commits.get((name, commit))
        return None if files is None else (commit, files)


class Pace:
    """Bytes per second of all connections together."""

    #: Sleeping is coarse: who is ahead by less goes on at once.
    SLACK = 0.002
    #: Seconds for which a rate not used can be used later, as the buffers of a line allow.
    KEPT = 0.05

    def __init__(self) -> None:
        self.rate = 0
        self._next = 0.0
        self._lock = threading.Lock()

    def block(self) -> int:
        """How much to send at once."""
        return max(4096, min(BLOCK, self.rate // 800)) if self.rate else BLOCK

    def wait(self, size: int) -> None:
        """Until ``size`` bytes may be sent."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - self.KEPT) + size / self.rate
            ahead = self._next - now
        if ahead > self.SLACK:
            time.sleep(ahead)


class Hub(ThreadingHTTPServer):
    """The server. What has no underscore may be read and changed while it runs."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, root: Path, address: tuple[str, int] = ("127.0.0.1", 0), token: str = "") -> None:
        self.tree = Tree(root)
        self.token = token
        """Whoever has not got it, as Bearer or as the cookie m_session_id, is answered 401."""
        self.cookie = False
        """ModelScope's older pages: the token counts only as a cookie."""
        self.cdn = ""
        """Where large files are redirected to, as http://host:port; empty: this very server. Any other name of this
        server will do: what is asked for there must not bring the token."""
        self.xet = False
        """Name a Xet hash for large files, as Hugging Face does for its own storage protocol."""
        self.page = 1000
        """Entries on a page of Hugging Face's file list."""
        self.listing_limit = 3000
        """Entries after which ModelScope's file list ends."""
        self.sendfile = True
        """Let the kernel move the bytes, where no fault alters them."""
        self.pace = Pace()
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """(path with query, Range header or '')"""
        self.headers: list[dict[str, str]] = []
        """The headers of the same request, with lower-case names."""
        self.sent = 0
        """Bytes of files sent so far."""
        self.sent_for: Counter[str] = Counter()
        """The same for each file: <owner>/<name>/<path>, or the path of an artifact."""
        self._lock = threading.Lock()
        super().__init__(address, Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def rate(self) -> int:
        """Bytes per second the whole server sends at most; 0: no limit."""
        return self.pace.rate

    @rate.setter
    def rate(self, value: int) -> None:
        self.pace.rate = value

    def fault(self, kind: str, where: str) -> Fault | None:
        """The fault that now happens to a path, if any; one of KIND-once is spent by asking."""
        for fault in self.faults:
            if fault.kind.removesuffix("-once") != kind or fault.where not in where:
                continue
            if fault.kind == kind:
                return fault
            with self._lock:
                if where not in fault.spent:
                    fault.spent.add(where)
                    return fault
        return None

    def note(self, path: str, headers: dict[str, str]) -> None:
        with self._lock:
            self.requests.append((path, headers.get("range", "")))
            self.headers.append(headers)

    def count(self, name: str, size: int) -> None:
        with self._lock:
            self.sent += size
            self.sent_for[name] += size

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
        self.server.note(unquote(self.path), {name.lower(): value for name, value in self.headers.items()})
        if path == "/health":
            return self.send(200, {"Success": True})
        if path.startswith("/artifacts/"):
            file = self.server.tree.below("artifacts", path.removeprefix("/artifacts/"))
            return self.file(self.server.tree.content(file) if file and file.is_file() else None, path)
        if path.startswith("/cdn/"):
            return self.storage(path.removeprefix("/cdn/"))
        if found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/(repo/files|repo|revisions)", path):
            return self.modelscope(found[1], found[2], query)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            return self.huggingface(found[1], found[2] or "revision", found[3] or HF_BRANCH, found[4] or "", query)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.huggingface(found[1], "resolve", found[2], found[3], query)
        return self.send(404, {"Success": False, "Message": "no such page"})

    # ModelScope ------------------------------------------------------------------------------------------------------

    def modelscope(self, repo: str, what: str, query: dict[str, str]) -> None:
        if not self.allowed(cookie=True):
            return self.send(401, {"Success": False, "Message": "a token is required"})
        if self.server.tree.repo(repo) is None or (what != "repo" and self.server.fault("missing", repo)):
            return self.send(404, {"Success": False, "Message": f"model {repo} not found"})
        if what == "revisions":
            branch = {"Revision": BRANCH, "CreatedAt": 0}
            return self.send(200, {"Success": True, "Data": {"RevisionMap": {"Branches": [branch], "Tags": []}}})
        revision = query.get("Revision", BRANCH)
        found = self.server.tree.at(repo, revision, BRANCH)
        if found is None:
            return self.send(404, {"Success": False, "Message": f"revision {revision} not found"})
        commit, files = found
        if what == "repo/files":
            return self.listing(repo, {"Success": True, "Data": {"Files": self.entries(repo, commit, files, query)}})
        name = query.get("FilePath", "")
        if name not in files:
            return self.send(404, {"Success": False, "Message": f"file {name} not found"})
        if not name.endswith(LARGE):
            return self.file(files[name], f"{repo}/{name}", ranges=False)
        return self.redirect(files[name], f"{repo}/{name}", {"X-Linked-ETag": files[name].sha256})

    def entries(self, repo: str, commit: str, files: dict[str, Content], query: dict[str, str]) -> list[dict[str, Any]]:
        root = query.get("Root", "").strip("/")
        recursive = query.get("Recursive", "").lower() == "true"
        return [
            {
                "Path": path,
                "Name": path.rpartition("/")[2],
                "Type": "blob" if file else "tree",
                "Size": file.size if file else 0,
                "Sha256": self.listed_sha256(repo, path, file) if file else "",
                "Revision": commit,
                "CommittedDate": 0,
            }
            for path, file in below(files, root, recursive)
        ][: self.server.listing_limit]

    # Hugging Face ----------------------------------------------------------------------------------------------------

    def huggingface(self, repo: str, what: str, revision: str, path: str, query: dict[str, str]) -> None:
        tree = self.server.tree
        if not self.allowed():
            return self.refuse(401, "Invalid username or password.", "")
        if tree.repo(repo) is None or (what != "resolve" and self.server.fault("missing", repo)):
            return self.refuse(404, "Repository not found", "RepoNotFound")
        found = tree.at(repo, revision, HF_BRANCH)
        if found is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        commit, files = found
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self.listing(
                repo, {"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings}
            )
        if what == "tree":
            return self.tree_page(repo, files, path, query)
        file = files.get(path)
        if file is None:
            return self.refuse(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})
        if not path.endswith(LARGE):
            return self.file(file, f"{repo}/{path}", {"X-Repo-Commit": commit, "ETag": f'"{file.git_blob}"'})
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.sha256}"',
            "ETag": f'"{file.sha256}"',
        }
        if self.server.xet:
            headers["X-Xet-Hash"] = xet_hash(file)
            headers["Link"] = (
                f'<http://{self.headers["Host"]}/api/models/{repo}/xet-read-token/{commit}>; rel="xet-auth"'
            )
        return self.redirect(file, f"{repo}/{path}", headers)

    def tree_page(self, repo: str, files: dict[str, Content], root: str, query: dict[str, str]) -> None:
        found = list(below(files, root, query.get("recursive", "").lower() in ("true", "1")))
        start = int(query.get("cursor", 0))
        page = []
        for path, file in found[start : start + self.server.page]:
            if file is None:
                name = hashlib.sha1(path.encode()).hexdigest()
                page.append({"type": "directory", "oid": name, "size": 0, "path": path})
                continue
            entry = {"type": "file", "oid": file.git_blob, "size": file.size, "path": path}
            if path.endswith(LARGE):
                sha256 = self.listed_sha256(repo, path, file)
                entry["lfs"] = {"oid": sha256, "size": file.size, "pointerSize": len(pointer(sha256, file.size))}
                if self.server.xet:
                    entry["xetHash"] = xet_hash(file)
            page.append(entry)
        headers = {}
        if start + self.server.page < len(found):
            following = urlencode({**query, "cursor": start + self.server.page})
            headers["Link"] = f'<http://{self.headers["Host"]}{urlsplit(self.path).path}?{following}>; rel="next"'
        return self.listing(repo, page, headers)

    def refuse(self, status: int, text: str, code: str, headers: dict[str, str] | None = None) -> None:
        more = {"X-Error-Message": text, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        return self.send(status, {"error": text}, more)

    # Both ------------------------------------------------------------------------------------------------------------

    def allowed(self, *, cookie: bool = False) -> bool:
        if not self.server.token:
            return True
        as_cookie = f"m_session_id={self.server.token}" in self.headers.get("Cookie", "").split("; ")
        as_bearer = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        return (cookie and as_cookie) or (as_bearer and not (cookie and self.server.cookie))

    def listed_sha256(self, repo: str, path: str, file: Content) -> str:
        return file.sha256[::-1] if self.server.fault("bad-hash", f"{repo}/{path}") else file.sha256

    def listing(self, repo: str, answer: Any, headers: dict[str, str] | None = None) -> None:
        """Send a file list or what leads to it, with whatever fault is switched on for the repository."""
        hub = self.server
        if fault := hub.fault("list-refused", repo):
            return self.send(fault.value, {"Success": False, "Message": "not now"})
        if fault := hub.fault("list-busy", repo):
            return self.send(429, {"Success": False, "Message": "too many requests"}, {"Retry-After": str(fault.value)})
        body = json.dumps(answer).encode()
        if hub.fault("list-page", repo):
            return self.body(200, PAGE, {"Content-Type": "text/html"})
        cut = len(body) // 2 if hub.fault("list-cut", repo) else None
        return self.body(200, body, {"Content-Type": "application/json", **(headers or {})}, cut=cut)

    def redirect(self, file: Content, name: str, headers: dict[str, str]) -> None:
        """To where the bytes of a large file are."""
        location = (
            f"{self.server.cdn or 'http://' + self.headers['Host']}/cdn/{file.sha256}/{quote(name)}?Signature=xyz"
        )
        if self.server.fault("loop", name):
            location = f"http://{self.headers['Host']}{self.path}"
        elif self.server.fault("astray", name):
            location = f"http://127.0.0.1:9/cdn/{file.sha256}/{quote(name)}?Signature=xyz"
        return self.body(302, b"", {"Location": location, **headers})

    def storage(self, what: str) -> None:
        """Storage elsewhere: it refuses a token that is not its own."""
        if self.server.cdn and ("Authorization" in self.headers or "Cookie" in self.headers):
            return self.send(400, {"Message": "only one authorization is allowed"})
        sha256, _, name = what.partition("/")
        path = self.server.tree.below("models", *name.split("/"))
        file = self.server.tree.content(path) if path and path.is_file() else None
        if file is None or file.sha256 != sha256:
            return self.file(None, name)
        headers = {
            "ETag": f'"{sha256}"',
            "X-Linked-ETag": f'"{sha256}"',
            "X-Linked-Size": str(file.size),
        }
        if not self.server.cdn:  # a client that stays on this host reads here what the redirect said
            headers["X-Repo-Commit"] = self.server.tree.commit("/".join(name.split("/")[:2]))
        return self.file(file, name, headers)

    def send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self.body(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def body(self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            if cut is not None:
                self.hang_up()

    def file(
        self, file: Content | None, name: str, headers: dict[str, str] | None = None, *, ranges: bool = True
    ) -> None:
        """Send a file, or the part of it that was asked for, with whatever fault is switched on for it."""
        hub = self.server
        if file is None or hub.fault("missing", name):
            return self.send(404, {"Success": False, "Message": f"{name} not found"})
        if self.command == "HEAD":  # faults that happen once wait for who wants the bytes
            return self.headed(200, {**(headers or {}), "Content-Length": str(file.size)})
        if fault := hub.fault("busy", name):
            return self.body(429, b"", {"Retry-After": str(fault.value)})
        if fault := hub.fault("busy-date", name):
            return self.body(429, b"", {"Retry-After": formatdate(time.time() + fault.value, usegmt=True)})
        if fault := hub.fault("refused", name):
            return self.send(fault.value, {"Message": f"{name} is not for you"})
        small = PAGE if hub.fault("page", name) else b"" if hub.fault("empty", name) else None
        size = len(small) if small is not None else file.size
        if fault := hub.fault("claim", name):
            size = fault.value
        if fault := hub.fault("truncated", name):
            size = max(size - fault.value, 0)
        start, end, status = 0, size, 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found and ranges and not hub.fault("no-range", name):
            start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
            if fault := hub.fault("other-range", name):
                start, end = start + fault.value, min(end + fault.value, size)
            if start >= size:
                return self.body(416, b"", {"Content-Range": f"bytes */{size}"})
            status = 206
        unsized = hub.fault("unsized", name)
        about = {"Content-Type": "application/octet-stream", **(headers or {})}
        if status == 206:
            about["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if unsized:
            about["Connection"] = "close"
        else:
            about["Content-Length"] = str(end - start)
        self.headed(status, about)
        if unsized and unsized.value:
            end = min(end, start + unsized.value)
        wrong = hub.fault("wrong", name)
        with open(file.path, "rb") as handle:
            self.transmit(Body(handle.fileno(), file.size, small, wrong.value if wrong else -1), start, end, name)
        if unsized:
            self.close_connection = True
        return None

    def headed(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()

    def transmit(self, body: Body, start: int, end: int, name: str) -> None:
        """Send the bytes from ``start`` to ``end``."""
        hub = self.server
        cut, stall, slow = (hub.fault(kind, name) for kind in ("cut", "stall", "slow"))
        last = min([end, *(start + fault.value for fault in (cut, stall) if fault)])
        self.send_bytes(body, start, last, name, slow.value if slow else 0)
        if stall and last == start + stall.value:
            self.wait_for_client(stall.seconds)
            if stall.seconds and not cut:
                self.send_bytes(body, last, end, name, 0)
        if cut:
            self.hang_up()

    def send_bytes(self, body: Body, start: int, end: int, name: str, slow: int) -> None:
        hub, at = self.server, start
        if hub.rate or slow:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LIMITED_BUFFER)
        while at < end:
            size = min(max(slow // 20, 1) if slow else hub.pace.block(), end - at)
            hub.pace.wait(size)
            hub.count(name, size)  # before the client can see the bytes
            if hub.sendfile and body.plain(at, size):
                self.send_file(body.handle, at, size)
            else:
                self.connection.sendall(body.read(at, size))
            at += size
            if slow:
                time.sleep(0.05)

    def send_file(self, handle: int, at: int, size: int) -> None:
        end = at + size
        while at < end:
            sent = os.sendfile(self.connection.fileno(), handle, at, end - at)
            if sent == 0:
                raise ConnectionError("the file became shorter while it was served")
            at += sent

    def wait_for_client(self, seconds: float) -> None:
        """Until the client goes away, or the time is over."""
        select.select([self.connection], [], [], seconds or None)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Body:
    """The bytes of an answer: those of a file, but for what a fault changes."""

    handle: int
    size: int
    instead: bytes | None = None
    wrong: int = -1

    def plain(self, at: int, size: int) -> bool:
        return self.instead is None and at + size <= self.size and not at <= self.wrong < at + size

    def read(self, at: int, size: int) -> bytes:
        block = os.pread(self.handle, size, at) if self.instead is None else self.instead[at : at + size]
        block += bytes(size - len(block))
        if at <= self.wrong < at + size:
            there = self.wrong - at
            block = block[:there] + bytes([block[there] ^ 1]) + block[there + 1 :]
        return block


def xet_hash(file: Content) -> str:
    """Stands for the hash of Hugging Face's own storage protocol, which is not spoken here."""
    return hashlib.sha256(file.sha256.encode()).hexdigest()


def below(files: dict[str, Content], root: str, recursive: bool) -> Iterator[tuple[str, Content | None]]:
    """Files and folders (None) under a folder of a repository, each once."""
    seen = set()
    for path, file in files.items():
        if root and not path.startswith(root + "/"):
            continue
        names = path.split("/")
        depth = root.count("/") + 1 if root else 0
        for here in range(depth + 1, len(names) + 1):
            name = "/".join(names[:here])
            if (here > depth + 1 and not recursive) or name in seen:
                continue
            seen.add(name)
            yield name, file if here == len(names) else None


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
