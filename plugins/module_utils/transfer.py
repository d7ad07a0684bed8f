# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes from a URL into a file: resumed, checked while they stream, and complete or not there at all.

What is not yet complete and verified lies beside the target as ``NAME.part``. A run that is killed leaves
that file; the next one goes on from its end.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

BLOCK = 1 << 20
#: What a kill can lose at most: bytes are written when this many came.
WIRE_BLOCK = 1 << 17
#: A file list or a page of one is never larger than this.
TEXT_LIMIT = 64 << 20
#: Answers that another attempt will not change.
FINAL = (400, 401, 404, 405, 410, 451)

SECRET_WORDS = re.compile(r"token|key|sig|secret|pass|cred|auth", re.IGNORECASE)


class TransferError(Exception):
    """A transfer that did not succeed; the message names the URL without credentials."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable
        """Nobody answered at all: the network or the server is away, the request itself may be right."""


class ChecksumError(TransferError):
    """The bytes came, and are not the bytes that were promised. They were set aside."""


class BusyError(TransferError):
    """Another process works in the same folder and gets nowhere."""


@contextmanager
def alone(folder: Path, progress: Path, patience: float = 300.0) -> Iterator[None]:
    """Be the only one that fetches into a folder. The lock goes with the process, however it ends.

    Who holds it is most likely what a killed run left behind on this host: it goes on fetching, and what it fetches
    is what we want. So it is waited for as long as the files under ``progress`` grow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        seen, since = -1, time.monotonic()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                here = _bytes_in(progress)
                if here != seen:
                    seen, since = here, time.monotonic()
                elif time.monotonic() - since > patience:
                    raise BusyError(
                        f"another process is fetching into {folder} and brought nothing for {patience:.0f} seconds. "
                        f"End it (`fuser {folder}` shows it) and run again."
                    ) from None
                time.sleep(min(1.0, patience))
        yield
    finally:
        os.close(handle)


def _bytes_in(place: Path) -> int:
    total = 0
    for path in (place, *place.rglob("*")):
        with suppress(OSError):  # files come and go while we look
            total += path.stat().st_size
    return total


def redact(url: str) -> str:
    """The URL without user name, password, or query values that look like a secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = parts.query
    if SECRET_WORDS.search(query):
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, "***" if SECRET_WORDS.search(name) else value) for name, value in pairs], safe="*/")
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


def secrets_of(*urls: str) -> set[str]:
    """The passwords and tokens written into URLs, so that a caller can keep them out of its output."""
    found = set()
    for url in filter(None, urls):
        parts = urlsplit(url)
        found.add(unquote(parts.password or ""))
        found.add(parts.password or "")
        found.update(value for name, value in parse_qsl(parts.query) if SECRET_WORDS.search(name))
    return found - {""}


def human(size: int) -> str:
    """A size for people, in powers of ten, as disks and hubs count."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


class _SameHostAuthorization(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but hands the token to nobody but the host it was meant for."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if following is not None:
            old, new = urlsplit(req.full_url), urlsplit(newurl)
            if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                following.remove_header("Authorization")
        return following


def opener() -> urllib.request.OpenerDirector:
    """What opens every URL: redirects are followed, the token stays with its host."""
    return urllib.request.build_opener(_SameHostAuthorization)


@dataclass(frozen=True)
class Source:
    """How to ask: patience and identity. The defaults suit a slow line."""

    token: str = ""
    attempts: int = 5
    timeout: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def request(self, url: str, start: int = 0) -> urllib.request.Request:
        # No compression: the bytes on the wire must be the bytes that are hashed.
        headers = {"User-Agent": "onprem.llm", "Accept-Encoding": "identity"}
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        if user:
            headers["Authorization"] = "Basic " + b64encode(unquote(user).encode()).decode()
            url = urlunsplit(parts._replace(netloc=host))
        elif self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if start:
            headers["Range"] = f"bytes={start}-"
        return urllib.request.Request(url, headers=headers)

    def pause(self, failures: int, headers: Message | None) -> None:
        """Wait before the next attempt: as long as the server asks, else twice as long each time."""
        asked = str(headers.get("Retry-After", "")) if headers is not None else ""
        self.sleep(min(float(asked), 300.0) if asked.isdigit() else min(2.0 ** (failures - 1), 60.0))


def explain(error: Exception) -> str:
    """What went wrong, without a URL."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def final(error: Exception) -> bool:
    """Whether another attempt would be answered the same."""
    return isinstance(error, urllib.error.HTTPError) and error.code in FINAL


def fetch_text(url: str, source: Source) -> tuple[bytes, dict[str, str]]:
    """A small answer (a file list) and its headers with lower-case names."""
    failures = 0
    while True:
        try:
            with opener().open(source.request(url), timeout=source.timeout) as answer:
                body: bytes = answer.read(TEXT_LIMIT + 1)
                announced = answer.headers.get("Content-Length")
                if announced is not None and announced.isdigit() and len(body) < int(announced):
                    raise http.client.IncompleteRead(body, int(announced) - len(body))
                if len(body) > TEXT_LIMIT:
                    raise TransferError(f"{redact(url)} answered with more than {human(TEXT_LIMIT)}")
                return body, {name.lower(): value for name, value in answer.headers.items()}
        except (OSError, http.client.HTTPException) as error:
            failures += 1
            if final(error) or failures >= source.attempts:
                away = not isinstance(error, urllib.error.HTTPError)
                raise TransferError(f"{redact(url)}: {explain(error)}", unreachable=away) from error
            source.pause(failures, getattr(error, "headers", None))


class Hashes:
    """sha256, and git's name of the content where that is what the hub gave."""

    def __init__(self, size: int | None, git_blob: str = "") -> None:
        self._sha256 = hashlib.sha256()
        self._git = None
        if git_blob and size is not None:
            self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        self.size = 0

    def update(self, block: bytes) -> None:
        self._sha256.update(block)
        if self._git is not None:
            self._git.update(block)
        self.size += len(block)

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def wrong(self, sha256: str, git_blob: str) -> tuple[str, str] | None:
        """(expected, got) when the content is not what was promised."""
        if sha256 and self.sha256() != sha256:
            return f"sha256 {sha256}", f"sha256 {self.sha256()}"
        if git_blob and self._git is not None and self._git.hexdigest() != git_blob:
            return f"git blob {git_blob}", f"git blob {self._git.hexdigest()}"
        return None


def hash_file(path: Path, hashes: Hashes) -> Hashes:
    """Read a file into the hashes."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            hashes.update(block)
    return hashes


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def part_of(target: Path) -> Path:
    """Where the bytes of a target lie until it is complete."""
    return target.with_name(target.name + ".part")


@dataclass(frozen=True)
class Received:
    """What a finished download was."""

    sha256: str
    size: int
    transferred: int
    """Bytes that came over the line now; less than size after a resume."""


def download(
    url: str,
    target: Path,
    source: Source,
    *,
    size: int | None = None,
    sha256: str = "",
    git_blob: str = "",
    rejected: Path,
) -> Received:
    """Fetch a URL into ``target``, which appears complete and verified, or not at all.

    Bytes that fail their checksum are moved to ``rejected`` and ChecksumError is raised.
    """
    part = part_of(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    shown = redact(url)
    failures = transferred = furthest = 0
    resumed = again = False
    while True:
        start = part.stat().st_size if part.exists() else 0
        if size is not None and start > size:
            start = 0
        hashes = Hashes(size, git_blob)
        error: Exception | None = None
        headers: Message | None = None
        with open(part, "r+b" if part.exists() else "w+b") as file:
            if start:
                resumed = True
                while block := file.read(BLOCK):
                    hashes.update(block)
            file.truncate(start)
            complete = size is not None and start == size
            problem = ""
            if not complete:
                try:
                    with opener().open(source.request(url, start), timeout=source.timeout) as answer:
                        headers = answer.headers
                        if start and not _continues(answer, start, size):
                            # The server sent the whole file (200), or another range than asked for.
                            start, hashes = 0, Hashes(size, git_blob)
                            file.seek(0)
                            file.truncate(0)
                            resumed = False
                            if answer.status == 206:
                                raise OSError("the server answered with another range than the one asked for")
                        expected = size if size is not None else _announced(answer, start)
                        while block := answer.read(WIRE_BLOCK):
                            hashes.update(block)
                            transferred += len(block)
                            if expected is not None and hashes.size > expected:
                                break
                            file.write(block)
                    if expected is not None and hashes.size > expected:
                        file.truncate(0)
                        problem = f"more bytes came than the {expected} announced"
                    elif expected is not None and hashes.size < expected:
                        problem = f"the answer ended after {hashes.size} of {expected} bytes"
                    elif hashes.size == 0 and size != 0:
                        problem = "the answer was empty"
                except (OSError, http.client.HTTPException) as caught:
                    error, problem = caught, explain(caught)
                    if isinstance(caught, urllib.error.HTTPError):
                        headers = caught.headers
                        if caught.code == 416:  # what lies here is longer than what is there
                            file.truncate(0)
            file.flush()
            os.fsync(file.fileno())
        if problem:
            # Only bytes further than ever before count as progress: a server that starts over and breaks off
            # at the same place each time must not be asked for ever.
            reached = part.stat().st_size
            failures = 1 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if (error is not None and final(error)) or failures >= source.attempts:
                kept = ""
                if reached:
                    kept = f"; {human(reached)} are kept in {part}, the next run goes on from there"
                else:
                    part.unlink()
                away = error is not None and not isinstance(error, urllib.error.HTTPError)
                raise TransferError(f"{shown}: {problem}{kept}", unreachable=away) from error
            source.pause(failures, headers)
            continue
        wrong = hashes.wrong(sha256, git_blob)
        if wrong is None:
            os.replace(part, target)
            sync_folder(target.parent)
            return Received(hashes.sha256(), hashes.size, transferred)
        if resumed and not again:
            # What an earlier run left may have been damaged by a power cut: judge by a whole answer.
            part.unlink()
            resumed, again = False, True
            continue
        rejected.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, rejected)
        raise ChecksumError(
            f"{shown}: the bytes are not the ones promised: expected {wrong[0]}, got {wrong[1]} "
            f"({human(hashes.size)}). They were set aside as {rejected} and are not used. Run again; if it stays so, a "
            "proxy or mirror on the way changes them, or the checksum that was promised is wrong"
        )


def _announced(answer: Any, start: int) -> int | None:
    length = answer.headers.get("Content-Length")
    return start + int(length) if length is not None and length.isdigit() else None


def _continues(answer: Any, start: int, size: int | None) -> bool:
    """Whether the answer is the rest of the file from ``start`` on."""
    if answer.status != 206:
        return False
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    if found is None or int(found.group(1)) != start:
        return False
    return size is None or found.group(2) in ("*", str(size))
