# SPDX-License-Identifier: GPL-3.0-or-later
"""Pieces of a file, from the disk or from a web server, without fetching the whole of it.

A remote file is read by HTTP Range requests in windows that grow from 64 KiB to 1 MiB, so that a header of several MB
costs few requests and a short one few bytes. All files that share a ``Traffic`` share its budget.
"""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ansible_collections.onprem.llm.plugins.module_utils import transfer

FIRST_WINDOW = 1 << 16
LARGEST_WINDOW = 1 << 20


class RangeError(Exception):
    """The bytes cannot be had; the message names the URL without credentials."""

    def __init__(self, message: str, *, unreachable: bool = False, missing: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable
        """Nobody answered at all: asking for another file there will not help."""
        self.missing = missing
        """There is no such file."""


@dataclass
class Traffic:
    """What came over the network, and how much may."""

    budget: int = 10_000_000
    transferred: int = 0
    """Bytes."""
    requests: int = 0

    @property
    def left(self) -> int:
        return max(self.budget - self.transferred, 0)

    def said(self) -> str:
        return f"{transfer.human(self.transferred)} read in {self.requests} requests"


class File:
    """A file of known size that is read in windows, mostly forward."""

    name: str
    """What messages call it."""
    size: int
    whole: bool = False
    """The server sends the whole file whatever part is asked for."""
    costly: bool = False
    """Bytes come over a network."""

    def __init__(self) -> None:
        self._start, self._held = 0, b""
        self.window_size = FIRST_WINDOW
        """How much is fetched next; it doubles each time up to LARGEST_WINDOW."""

    def _fetch(self, at: int, count: int) -> bytes:
        """At least one byte from ``at`` on, at most ``count``."""
        raise NotImplementedError

    def window(self, at: int, length: int) -> tuple[bytes, int]:
        """Bytes held, and the index in them of byte ``at``, which ``length`` bytes follow. RangeError at the end."""
        index = at - self._start
        if 0 <= index <= len(self._held) - length:
            return self._held, index
        if at < 0 or at + length > self.size:
            raise RangeError(f"{self.name}: bytes {at} to {at + length} were asked for, it has {self.size}")
        if not 0 <= index <= len(self._held) + self.window_size:
            self.window_size = FIRST_WINDOW  # what lies behind a long jump may be short
        pieces = [self._held[index:]] if 0 <= index < len(self._held) else []
        have = sum(map(len, pieces))
        while have < length:
            count = min(max(length - have, self.window_size), self.size - at - have)
            self.window_size = min(self.window_size * 2, LARGEST_WINDOW)
            pieces.append(self._fetch(at + have, count))
            have += len(pieces[-1])
        self._start, self._held = at, b"".join(pieces)
        return self._held, 0

    def read(self, at: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``at`` on, or RangeError."""
        held, index = self.window(at, length)
        return held[index : index + length]

    def close(self) -> None:
        """Nothing more will be read."""

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalFile(File):
    """A file on this host."""

    def __init__(self, path: Path, name: str = "") -> None:
        super().__init__()
        self.name = name or str(path)
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115  (closed by close)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise RangeError(f"{self.name}: {error.strerror}", missing=missing) from error
        self.size = os.fstat(self._file.fileno()).st_size

    def _fetch(self, at: int, count: int) -> bytes:
        data = os.pread(self._file.fileno(), count, at)
        if not data:
            raise RangeError(f"{self.name}: byte {at} could not be read; the file shrank while it was read")
        return data

    def close(self) -> None:
        self._file.close()


class RemoteFile(File):
    """A file behind a URL. Opening it fetches its first window, and so its size."""

    costly = True

    def __init__(
        self, url: str, source: transfer.Source, traffic: Traffic, transport: transfer.Transport | None = None
    ) -> None:
        super().__init__()
        self.url, self.source, self.traffic, self.transport = url, source, traffic, transport
        self.name = transfer.redact(url)
        self.size = -1
        self._stream: transfer.Answer | None = None
        self._streamed = 0
        self._held = self._fetch(0, FIRST_WINDOW)
        if transfer.PAGE.match(self._held):
            start = self._held[:60].decode("utf-8", "replace").strip()
            raise self.fail(
                f"a web page came instead of the file: {start!r}… A login page or a proxy stands between; open the "
                "address in a browser"
            )

    def fail(self, what: str) -> RangeError:
        self.close()
        return RangeError(f"{self.name}: {what}")

    def _fetch(self, at: int, count: int) -> bytes:
        count = min(count, self.traffic.left)
        if not count:
            raise self.fail(
                f"the header does not end within the {transfer.human(self.traffic.budget)} that may be read"
                + (", and the server ignores Range" if self.whole else "")
            )
        if self._stream is not None:
            return self._from_stream(self._stream, at, count)
        failures = 0
        while True:
            self.traffic.requests += 1
            try:
                return self._ask(at, count)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                    raise self.fail(f"HTTP 416, there is no byte {at}: the file is empty or was replaced") from error
                failures += 1
                # A refusal stays one, unlike in a transfer of hours: 403 is final too.
                refused = transfer.final(error) or (isinstance(error, urllib.error.HTTPError) and error.code == 403)
                if refused or failures >= self.source.attempts:
                    away = not isinstance(error, urllib.error.HTTPError)
                    self.close()
                    message = f"{self.name}: {transfer.explain(error)}{_advice(error)}"
                    missing = isinstance(error, urllib.error.HTTPError) and error.code == 404
                    raise RangeError(message, unreachable=away and self.size < 0, missing=missing) from error
                self.source.pause(failures, getattr(error, "headers", None))

    def _ask(self, at: int, count: int) -> bytes:
        answer = transfer.ask(self.url, self.source, self.transport, span=f"bytes={at}-{at + count - 1}")
        if answer.status == 200:
            self._stream, self._streamed, self.whole = answer, 0, True
            self._is_size(answer.headers.get("Content-Length", ""))
            return self._from_stream(answer, at, count) if self.size else b""
        with closing(answer):
            given = answer.headers.get("Content-Range", "")
            found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", given.strip())
            if answer.status != 206 or found is None:
                raise self.fail(f"answered with status {answer.status} and Content-Range {given!r} to a range request")
            first, last = int(found[1]), int(found[2])
            self._is_size(found[3])
            if first != at or last != min(at + count, self.size) - 1:
                raise self.fail(f"bytes {at} to {at + count - 1} were asked for, it says it sends {given!r}")
            data = self._take(answer, last - first + 1)
        if len(data) < last - first + 1:
            raise OSError(f"the answer ended after {len(data)} of {last - first + 1} bytes")
        return data

    def _is_size(self, said: str) -> None:
        """Believe the size, unless it was another one before."""
        if not said.isdigit():
            raise self.fail("the server does not say how long the file is")
        if self.size not in (-1, int(said)):
            raise self.fail(f"its size was {self.size} bytes and now is {said}: it was replaced while it was read")
        self.size = int(said)

    def _take(self, answer: transfer.Answer, count: int) -> bytes:
        """Up to ``count`` bytes; fewer when the answer ends."""
        pieces = []
        while count:
            piece = answer.read(count)
            if not piece:
                break
            self.traffic.transferred += len(piece)
            count -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def _from_stream(self, stream: transfer.Answer, at: int, count: int) -> bytes:
        while self._streamed < at:
            passed = self._take(stream, min(at - self._streamed, LARGEST_WINDOW, self.traffic.left))
            self._streamed += len(passed)
            if not passed:
                break
        data = self._take(stream, min(count, self.traffic.left)) if self._streamed == at else b""
        self._streamed += len(data)
        if not data and not self.traffic.left:
            return self._fetch(at, count)
        if len(data) < min(count, self.size - at) and self.traffic.left:
            raise self.fail(f"the answer ended after {self._streamed} of {self.size} bytes")
        return data

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def _advice(error: Exception) -> str:
    if not isinstance(error, urllib.error.HTTPError):
        return ". Check the address and that this host reaches it"
    if error.code in (401, 403):
        return ". The repository asks for a token, or the token has no right to it"
    if error.code == 404:
        return ". Check `repo`, `revision` and `entry`"
    return ""
