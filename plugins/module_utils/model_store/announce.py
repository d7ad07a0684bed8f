# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts of a fleet tell each other over HTTP: which files they have, want, fetch, or could not get.

    GET /state?seen=VERSION  a State; when the asker has seen this version, only after a change or HOLD seconds
    GET /pieces/KEY          {"size": bytes of the file, "piece_size": bytes, "pieces": [SHA-256 of each, ...]}
    GET /bytes/KEY?from=N    a file, complete or still coming in, from byte N on, as it comes

Only addresses of the fleet are answered, and nothing can be changed from outside.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Pieces

HOLD = 2.0
#: Seconds until a host that does not answer counts as dead; one whose program refuses, and one never heard of.
SILENT, REFUSING, UNHEARD = 10.0, 3.0, 30.0
#: A state is never larger than this.
LIMIT = 64 << 20
BLOCK = 1 << 18
#: Seconds between looks at a file that grows.
GROWTH = 0.02


@dataclass(frozen=True)
class State:
    """What one host says about itself."""

    name: str = ""
    version: int = 0
    """Another number after every change."""
    files: dict[str, str] = field(default_factory=dict)
    """For each key: complete, wanted, fetching (from a hub), or following (taking the bytes of who is fetching)."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a file could not be had."""
    causes: dict[str, str] = field(default_factory=dict)
    """For some of those, a word: wrong (the bytes are not the ones promised), or unreachable (no source answered)."""
    came: int = 0
    """Bytes that came so far, from anywhere: it grows while this host gets on."""


@dataclass(frozen=True)
class Peer:
    """One host of the fleet, as seen from another."""

    name: str
    life: str
    """live, dead, or unknown: not heard yet, and it may only be starting."""
    state: State


@dataclass(frozen=True)
class Growing:
    """A file that is written from its start to its end: as much of it as is there is right."""

    path: Path
    size: int
    """What it will be in the end."""


class Board:
    """Our own state; every change wakes who waits for one."""

    def __init__(self, name: str) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.state = State(name, version=time.time_ns())
        self.sizes: dict[str, tuple[int, Pieces]] = {}
        self.growing: dict[str, Growing] = {}
        self.sent = 0
        """Bytes of growing files."""
        self.came: Callable[[], int] = lambda: 0
        self.wakes = 0
        """How often somebody was woken."""
        self.closed = False

    def set(self, key: str, word: str | None) -> None:
        """complete, wanted or fetching; None takes the file off the board."""
        self.update({key: word})

    def update(self, words: dict[str, str | None]) -> None:
        with self.changed:
            files = {**self.state.files, **words}
            self._put(files={key: word for key, word in files.items() if word})

    def fail(self, key: str, message: str, cause: str) -> None:
        with self.changed:
            self._put(failed={**self.state.failed, key: message}, causes={**self.state.causes, key: cause})

    def _put(self, **news: Any) -> None:
        with self.changed:
            self.state = replace(self.state, **news, version=self.state.version + 1)
            self.wake()

    def wake(self) -> None:
        with self.changed:
            self.wakes += 1
            self.changed.notify_all()

    def close(self) -> None:
        self.closed = True
        self.wake()

    def answer(self, seen: int) -> State:
        with self.changed:
            end = time.monotonic() + HOLD
            while not self.closed and self.state.version == seen and (left := end - time.monotonic()) > 0:
                self.changed.wait(left)
            return replace(self.state, came=self.came())


def same(address: str) -> str:
    """An address as all write it: IPv6 has many spellings."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address


class Server:
    """Answers the fleet until closed."""

    def __init__(self, board: Board, address: str, port: int, clients: Collection[str]) -> None:
        known = {same(client) for client in clients}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                kind, _, key = url.path.lstrip("/").partition("/")
                if same(self.client_address[0]) not in known:
                    self._say(403, {"error": "not a host of this fleet"})
                elif kind == "state":
                    seen = parse_qs(url.query).get("seen", ["0"])[0]
                    self._say(200, asdict(board.answer(int(seen) if seen.isdigit() else 0)))
                elif kind == "pieces" and key in board.sizes:
                    size, pieces = board.sizes[key]
                    self._say(200, {"size": size, "piece_size": pieces.size, "pieces": pieces.hashes})
                elif kind == "bytes" and key in board.growing:
                    start = parse_qs(url.query).get("from", ["0"])[0]
                    self._stream(key, board.growing[key], int(start) if start.isdigit() else 0)
                else:
                    self._say(404, {"error": "not here"})

            def _say(self, code: int, what: dict[str, Any]) -> None:
                if board.closed:
                    self.close_connection = True
                    return
                body = json.dumps(what).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self, key: str, growing: Growing, at: int) -> None:
                self.close_connection = True
                if not growing.path.exists():
                    return self._say(404, {"error": "not here"})
                with open(growing.path, "rb") as file:
                    self.send_response(200)
                    self.send_header("Content-Length", str(max(growing.size - at, 0)))
                    self.end_headers()
                    while at < growing.size:
                        here = min(os.fstat(file.fileno()).st_size, growing.size)
                        if board.closed or board.growing.get(key) is not growing:
                            return None  # looked at after the size: it may grow in another way now
                        if here > at:
                            count = self.connection.sendfile(file, at, min(here - at, 1 << 20))
                            at += count
                            with board.changed:
                                board.sent += count
                        elif growing.path.exists() and not os.path.samestat(
                            os.fstat(file.fileno()), growing.path.stat()
                        ):
                            return None  # it was begun anew
                        else:
                            time.sleep(GROWTH)
                return None

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # an asker that went away

        self._server = Listener((address, port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="announce", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Stream:
    """Takes a growing file from a peer, on to the end of ours. Ends when it is whole, or the peer ends it."""

    def __init__(
        self,
        name: str,
        line: http.client.HTTPConnection,
        key: str,
        path: Path,
        size: int,
        see: Callable[[bytes], None],
        seen: int,
        ended: Callable[[], None],
    ) -> None:
        """``see`` is shown every byte from ``seen`` on, also those that lie in the file already."""
        self.name = name
        self.received = 0
        self.error: OSError | None = None
        """Of our disk."""
        self._stop = self._over = False
        self._ended = ended
        self._socket: socket.socket | None = None
        self._line, self._key, self._path, self._size, self._see, self._seen = line, key, path, size, see, seen
        self._thread = threading.Thread(target=self._run, name=f"follow {name}", daemon=True)
        self._thread.start()

    def going(self) -> bool:
        return not self._over

    def stop(self) -> None:
        self._stop = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        try:
            with open(self._path, "r+b", buffering=0) as file:
                file.seek(self._seen)
                while block := file.read(BLOCK):
                    self._see(block)
                for block in self._blocks(file.tell()):
                    rest = memoryview(block)
                    while rest:
                        rest = rest[file.write(rest) :]
                    self._see(block)
                    self.received += len(block)
        except OSError as error:
            self.error = error
        finally:
            self._line.close()
            self._over = True
            self._ended()

    def _blocks(self, start: int) -> Iterator[bytes]:
        """What comes from byte ``start`` on; it ends early when the line does."""
        left = self._size - start
        try:
            self._line.request("GET", f"/bytes/{self._key}?from={start}")
            self._socket = self._line.sock
            answer = self._line.getresponse()
            self._socket.settimeout(None)  # as long as the peer lives, bytes may come late
            while answer.status == 200 and left and not self._stop:
                block = answer.read1(min(BLOCK, left))
                if not block:
                    return
                left -= len(block)
                yield block
        except (OSError, http.client.HTTPException):
            return


class Watcher:
    """Keeps one peer's state, as fresh as the network allows."""

    def __init__(self, name: str, address: str, port: int, own: str, changed: Callable[[], None]) -> None:
        self.name, self._address, self._port, self._own, self._changed = name, address, port, own, changed
        self._state = State(name)
        self._begun = time.monotonic()
        self._heard: float | None = None
        self._refused: float | None = None
        self._trouble = "no answer yet"
        self._told = "unknown"
        self._closed = threading.Event()
        threading.Thread(target=self._run, name=f"watch {name}", daemon=True).start()

    def peer(self) -> Peer:
        now = time.monotonic()
        if self._heard is None:
            life = "unknown" if now - self._begun < UNHEARD else "dead"
        elif self._refused is not None:
            life = "live" if now - max(self._heard, self._refused) < REFUSING else "dead"
        else:
            life = "live" if now - self._heard < SILENT else "dead"
        return Peer(self.name, life, self._state)

    def unheard(self) -> str:
        """Why the peer was never heard; empty when it was."""
        return f"{self.name} at {self._address}:{self._port} ({self._trouble})" if self._heard is None else ""

    def pieces(self, key: str) -> tuple[int, Pieces] | None:
        """(size of the file, its pieces), or None when the peer does not say."""
        try:
            found = self._get(self._connect(), f"/pieces/{key}")
            size, pieces = int(found["size"]), Pieces(int(found["piece_size"]), tuple(map(str, found["pieces"])))
            sound = all(len(bytes.fromhex(digest)) == 32 for digest in pieces.hashes)
            return (size, pieces) if sound and len(pieces.hashes) == -(-size // pieces.size) else None
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, ZeroDivisionError):
            return None

    def follow(self, key: str, path: Path, size: int, see: Callable[[bytes], None], seen: int) -> Stream:
        """Take a growing file on to the end of ``path``; ``see`` is shown all bytes from ``seen`` on."""
        return Stream(self.name, self._connect(), key, path, size, see, seen, self._changed)

    def close(self) -> None:
        self._closed.set()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, self._port, timeout=HOLD + 4, source_address=(self._own, 0))

    def _get(self, line: http.client.HTTPConnection, path: str) -> Any:
        line.request("GET", path)
        answer = line.getresponse()
        body = answer.read(LIMIT)
        if answer.status != 200:
            raise OSError(f"HTTP {answer.status}")
        return json.loads(body)

    def _run(self) -> None:
        line = self._connect()
        while not self._closed.is_set():
            try:
                said = self._get(line, f"/state?seen={self._state.version}")
                state = State(
                    self.name,
                    int(said["version"]),
                    dict(said["files"]),
                    dict(said["failed"]),
                    dict(said.get("causes", {})),
                    int(said.get("came", 0)),
                )
                new = state.version != self._state.version or self.peer().life != "live"
                self._heard, self._refused, self._state = time.monotonic(), None, state
                if new:
                    self._changed()
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                line.close()
                self._trouble = str(error) or type(error).__name__
                if isinstance(error, ConnectionError) and self._refused is None:
                    self._refused = time.monotonic()
                elif isinstance(error, TimeoutError):
                    self._refused = None
                self._closed.wait(0.3)
        line.close()
