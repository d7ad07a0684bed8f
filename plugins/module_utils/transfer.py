# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes from a URL into a file: resumed, checked while they stream, and complete or not there at all.

What is not yet complete and verified lies beside the target as ``NAME.part``. A run that is killed leaves
that file; the next one goes on from its end.

What talks to the server is a Transport: urllib here, libcurl in model_store/curl.py. Redirects, credentials, attempts,
resuming and verifying are the same for both and are decided here.
"""

from __future__ import annotations

import email.utils
import fcntl
import hashlib
import http.client
import os
import random
import re
import ssl
import string
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urljoin, urlsplit, urlunsplit

BLOCK = 1 << 20
#: Most bytes of one read from the line: what a kill can lose of those that came.
WIRE_BLOCK = 1 << 17
#: Larger writes cost Linux several times the time: it looks for large pages to hold them.
WRITE_BLOCK = 1 << 15
#: A file list or a page of one is never larger than this.
TEXT_LIMIT = 64 << 20
#: How a web page begins, whatever it says its type is.
PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|head|body)", re.IGNORECASE)
#: Redirects of one request.
HOPS = 10
#: Seconds: no server makes us wait longer than this between two attempts.
LONGEST_PAUSE = 600.0
#: Seconds in which a host of the own fleet answers, or is not there.
SOON = 5.0
#: Answers that another attempt will not change.
FINAL = (400, 401, 404, 405, 410, 451)

#: Bytes we let pass to reach those we want, where a server ignores ranges.
WORTH_SKIPPING = 64 << 20

T = TypeVar("T")

#: What to do about an address that cannot be understood.
CODED = "Special characters in its user name and password are written in percent code, / as %2F"

SECRET_WORDS = re.compile(r"token|key|sig|secret|pass|cred|auth", re.IGNORECASE)


class RedirectError(OSError):
    """The server leads somewhere we do not follow."""


class AwayError(OSError):
    """Nobody answered at a host of the own fleet."""


#: What a line or a server does wrong, as Python's own client and ours report it.
TROUBLE = (OSError, http.client.HTTPException)
#: Of these the ones that come from somebody who answered.
ANSWERED = (urllib.error.HTTPError, RedirectError, FileNotFoundError)


class TransferError(Exception):
    """A transfer that did not succeed; the message names the URL without credentials."""

    def __init__(self, message: str, cause: Exception | None = None) -> None:
        super().__init__(message)
        self.unreachable = isinstance(cause, TROUBLE) and not isinstance(cause, ANSWERED)
        """Nobody answered at all: the network or the server is away, the request itself may be right."""
        self.final = final(cause)
        """Asking again will not help: the request is wrong."""
        absent = isinstance(cause, urllib.error.HTTPError) and cause.code in (404, 410)
        self.missing = absent or isinstance(cause, FileNotFoundError)
        """There is no such file."""


class ChecksumError(TransferError):
    """The bytes came, and are not the bytes that were promised. They were deleted."""


class BusyError(TransferError):
    """Another process works in the same folder and gets nowhere."""


def lock(handle: int, patience: float, sign: Callable[[], int] = lambda: 0, pause: float = 0.2) -> None:
    """Wait for the lock of an open file. TimeoutError when ``sign`` stayed the same for ``patience`` seconds."""
    seen: int | None = None
    since = time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            here = sign()
            if here != seen:
                seen, since = here, time.monotonic()
            elif time.monotonic() - since > patience:
                raise TimeoutError from None
            time.sleep(pause)


@contextmanager
def alone(folder: Path, progress: Path, patience: float = 300.0) -> Iterator[None]:
    """Be the only one that fetches into a folder. The lock goes with the process, however it ends.

    Who holds it is most likely what a killed run left behind on this host: it goes on fetching, and what it fetches
    is what we want. So it is waited for as long as the files under ``progress`` grow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            lock(handle, patience, lambda: _bytes_in(progress), min(1.0, patience))
        except TimeoutError:
            raise BusyError(
                f"another process is fetching into {folder} and brought nothing for {patience:.0f} seconds. "
                f"End it (`fuser {folder}` shows it) and run again."
            ) from None
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
    if "@" in url and re.search(r":[^]@]*[^]@\d][^]@]*$", parts.netloc):
        return f"{parts.scheme}://***"  # a password that holds / ? or # as it is: what ends where cannot be told
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


class Answer(Protocol):
    """What a server answers to one request."""

    status: int
    headers: Message

    def read(self, limit: int, /) -> bytes:
        """The next bytes of the body, one at least and ``limit`` at most; none at its end, early or not.

        OSError when they stop coming.
        """

    def close(self) -> None:
        """Nothing more will be read."""


@dataclass(frozen=True)
class Way:
    """How one host is reached, where it is not as all others are."""

    ca: str = ""
    """File with the authority that vouches for it; empty: those that the system trusts."""
    fleet: bool = False
    """It is of the own fleet: no proxy, no rate limit, and it answers soon or is not there."""


DEFAULT_WAY = Way()


class Transport(Protocol):
    """What sends a request and brings the answer, whatever its status; redirects are not its business."""

    def open(self, url: str, headers: dict[str, str], timeout: float, way: Way = DEFAULT_WAY) -> Answer:
        """OSError when nobody answers; ``timeout`` in seconds without a byte."""


class _AsItComes(urllib.request.HTTPErrorProcessor):
    """Hands over every answer, redirects and refusals too."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    def https_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response


class Pace:
    """Ends what stands still, or only drips."""

    def __init__(self, seconds: float, minimum_rate: int) -> None:
        self._seconds, self._least = seconds, seconds * minimum_rate
        self._last = self._since = time.monotonic()
        self._came = 0

    def came(self, count: int) -> None:
        """So many bytes came. TimeoutError when for ``seconds`` none did, or fewer than the rate asks for."""
        now = time.monotonic()
        if count:
            self._last = now
            self._came += count
        elif now - self._last >= self._seconds:
            raise TimeoutError(f"nothing came for {self._seconds:.0f} seconds")
        if now - self._since >= self._seconds:
            if self._came < self._least:
                raise TimeoutError(f"only {self._came} bytes came in {now - self._since:.0f} seconds")
            self._since, self._came = now, 0


class _Response:
    """An answer that came through urllib."""

    def __init__(self, response: Any, timeout: float, minimum_rate: int) -> None:
        self.status: int = response.status
        self.headers: Message = response.headers
        self._response = response
        self._pace = Pace(timeout, minimum_rate)

    def read(self, limit: int, /) -> bytes:
        block: bytes = self._response.read1(min(limit, WIRE_BLOCK))
        if block:  # of a line that is silent the socket's own timeout knows
            self._pace.came(len(block))
        return block

    def close(self) -> None:
        self._response.close()


class Urllib:
    """Python's own client: needs nothing, and is enough for lists and single files."""

    def __init__(self, proxy: str | None = None, no_proxy: str = "", minimum_rate: int = 1024) -> None:
        """``proxy``: None is as the environment says, empty is none; ``no_proxy``: hosts and domains, by commas."""
        self._proxy, self._no_proxy, self._minimum_rate = proxy, no_proxy, minimum_rate

    def open(self, url: str, headers: dict[str, str], timeout: float, way: Way = DEFAULT_WAY) -> Answer:
        handlers: list[urllib.request.BaseHandler] = [_AsItComes()]
        if way.ca:
            handlers.append(urllib.request.HTTPSHandler(context=_trusting(way.ca)))
        if way.fleet:
            timeout = min(timeout, SOON)
            handlers.append(urllib.request.ProxyHandler({}))
        elif self._proxy is not None:
            host = urlsplit(url).netloc
            direct = not self._proxy or urllib.request.proxy_bypass_environment(host, {"no": self._no_proxy})  # type: ignore[attr-defined]
            ways = {} if direct else {"http": self._proxy, "https": self._proxy}
            handlers.append(urllib.request.ProxyHandler(ways))
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener(*handlers).open(request, timeout=timeout)
        return _Response(response, timeout, self._minimum_rate)


def _trusting(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # a file that is not there would look like one that the server has not
        raise OSError(f"the certificate authority in {ca} cannot be used: {error.strerror or error}") from error


class _Disk:
    """A file of this host, answered like a server with ranges would."""

    def __init__(self, url: str, span: str) -> None:
        path = Path(unquote(urlsplit(url).path))
        self._file = open(path, "rb")  # noqa: SIM115  (closed by close)
        size = os.fstat(self._file.fileno()).st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", span)
        start, end = (int(found[1]), min(int(found[2] or size), size - 1) + 1) if found else (0, size)
        self.status = 200 if not found else 206 if start < size else 416
        self.headers = Message()
        self._left = max(end - start, 0) if self.status != 416 else 0
        self.headers["Content-Length"] = str(self._left)
        if self.status == 206:
            self.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._file.seek(start)

    def read(self, limit: int, /) -> bytes:
        block = self._file.read(min(limit, self._left))
        self._left -= len(block)
        return block

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Source:
    """How to ask: patience and identity. The defaults suit a slow line."""

    token: str = field(default="", repr=False)
    attempts: int = 5
    timeout: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    cookie: str = ""
    """Name of the cookie that carries the token too, where a hub wants that."""
    chance: Callable[[], float] = random.random
    way: Way = DEFAULT_WAY

    def identity(self, url: str) -> tuple[str, dict[str, str]]:
        """The URL without user and password, and the headers that only its own host may see."""
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        if user:
            basic = b64encode(unquote(user).encode()).decode()
            return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {basic}"}
        if not self.token:
            return url, {}
        cookie = {"Cookie": f"{self.cookie}={self.token}"} if self.cookie else {}
        return url, {"Authorization": f"Bearer {self.token}", **cookie}

    def pause(self, failures: int, headers: Message | None) -> None:
        """Wait before the next attempt: as long as the server asks, else twice as long each time.

        A little more or less by chance, so that the hosts of a fleet do not come back all at once.
        """
        asked = _asked_pause(headers) if headers is not None else None
        if asked is not None:
            self.sleep(min(asked, LONGEST_PAUSE) * (1 + self.chance() / 10))
        else:
            self.sleep(min(2.0 ** (failures - 1), 60.0) * (0.5 + self.chance() / 2))


def _asked_pause(headers: Message) -> float | None:
    """Seconds a server asks for: in Retry-After as a number or a date, or as the rest of a rate limit's window."""
    asked = str(headers.get("Retry-After", "")).strip()
    if asked.isdigit():
        return float(asked)
    with suppress(TypeError, ValueError):
        return max(email.utils.parsedate_to_datetime(asked).timestamp() - time.time(), 0.0)
    found = re.search(r"\br=0\b.*\bt=(\d+)", str(headers.get("RateLimit", "")))
    return float(found[1]) if found else None


def ask(url: str, source: Source, transport: Transport | None = None, *, span: str = "") -> Answer:
    """One request, redirects followed; ``span`` is what a Range header says (``bytes=5-``).

    The token goes to the host it was meant for and to no other. HTTPError for a refusal, other OSErrors when nobody
    answers.
    """
    transport = transport or Urllib()
    # No compression: the bytes on the wire must be the bytes that are hashed.
    plain = {"User-Agent": "onprem.llm", "Accept-Encoding": "identity", **({"Range": span} if span else {})}
    here, secret = source.identity(url)
    if urlsplit(here).scheme == "file":
        return _Disk(here, span)
    own = urlsplit(here)[:2]
    for hop in range(HOPS + 1):
        home = urlsplit(here)[:2] == own
        try:
            headers = {**plain, **(secret if home else {})}
            answer = transport.open(here, headers, source.timeout, source.way if home else DEFAULT_WAY)
        except OSError as error:
            if not hop and source.way.fleet:
                raise AwayError(explain(error)) from error
            if not hop:
                raise
            raise OSError(f"{explain(error)} (it leads to {redact(here)})") from error
        if answer.status in (301, 302, 303, 307, 308) and answer.headers.get("Location"):
            answer.close()
            here = following(here, str(answer.headers["Location"]))
        elif answer.status >= 400:
            answer.close()
            reason = http.client.responses.get(answer.status, "")
            raise urllib.error.HTTPError(redact(here), answer.status, reason, answer.headers, None)
        else:
            return answer
    raise RedirectError(f"redirected {HOPS} times, at last to {redact(here)}")


def following(url: str, location: str) -> str:
    """Where a redirect leads. RedirectError for what is no web address, or would give up encryption."""
    target = urljoin(url, quote(location, encoding="iso-8859-1", safe=string.punctuation))
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RedirectError(f"it leads to {redact(target)!r}, which is no web address")
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise RedirectError(f"it leads to {redact(target)}, which is not encrypted; the source itself is")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def explain(error: Exception) -> str:
    """What went wrong, without a URL."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, http.client.InvalidURL):  # Python's own words quote what may be a password
        return f"the address cannot be understood. {CODED}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def final(error: Exception | None) -> bool:
    """Whether another attempt would be answered the same."""
    return isinstance(error, RedirectError | FileNotFoundError | AwayError) or (
        isinstance(error, urllib.error.HTTPError) and error.code in FINAL
    )


def advice(error: Exception | None) -> str:
    """The way out, for the end of a message; empty where none is known."""
    if isinstance(error, RedirectError):
        return ". Check the address of the source; a proxy or login page may stand between"
    if isinstance(error, FileNotFoundError):
        return ". Check the path"
    if isinstance(error, AwayError):
        return ". See whether that host is up, and its service model_mirror runs"
    if isinstance(error, TimeoutError):
        return ". The line or the server stands still: run again later, or use another source"
    if not isinstance(error, urllib.error.HTTPError):
        return ". Check the address, and that this host reaches it: name server, proxy, firewall"
    if error.code == 407:
        return ". The proxy asks for a name and password"
    if error.code in (401, 403):
        return ". The source asks for a token, or refuses the one it got: check `token_secret` of the source"
    if error.code == 404:
        return ". There is no such file, repository or revision: check `repo` and `revision`"
    if error.code == 429:
        return ". The source limits how often it may be asked: wait, or use a token or a mirror"
    return ". The server has trouble of its own: run again later, or use another source" if error.code >= 500 else ""


#: An attempt that brings less than this, or a hundredth of the file, brings it no further.
PROGRESS = 1 << 16
NOT_THE_FILE = "Run again; if it stays so, the source serves the file wrongly: use another one"
OTHER_RANGE = "the server answered with another range than the one asked for"


def _read(answer: Answer, count: int, arrived: Callable[[int], None] | None = None) -> bytearray:
    """So many bytes of the body; fewer when it ends before. They are in memory once."""
    body = bytearray()
    while len(body) < count and (block := answer.read(min(count - len(body), BLOCK))):
        body += block
        if arrived is not None:
            arrived(len(block))
    return body


def _persist(url: str, source: Source, attempt: Callable[[], T]) -> T:
    """The attempt's outcome, tried as often as the source allows; TransferError with the last trouble."""
    failures = 0
    while True:
        try:
            return attempt()
        except TROUBLE as error:
            failures += 1
            if final(error) or failures >= source.attempts:
                raise TransferError(f"{redact(url)}: {explain(error)}{advice(error)}", error) from error
            source.pause(failures, getattr(error, "headers", None))


def fetch_text(url: str, source: Source, transport: Transport | None = None) -> tuple[bytes, dict[str, str]]:
    """A small answer (a file list) and its headers with lower-case names."""

    def attempt() -> tuple[bytes, dict[str, str]]:
        with closing(ask(url, source, transport)) as answer:
            body = _read(answer, TEXT_LIMIT + 1)
            announced = _announced(answer, 0)
            if len(body) > TEXT_LIMIT:
                raise TransferError(f"{redact(url)} answered with more than {human(TEXT_LIMIT)}")
            if announced is not None and len(body) < announced:
                raise OSError(f"the answer ended after {len(body)} of {announced} bytes")
            return bytes(body), {name.lower(): value for name, value in answer.headers.items()}

    return _persist(url, source, attempt)


def fetch_range(
    url: str,
    source: Source,
    start: int,
    end: int,
    *,
    transport: Transport | None = None,
    arrived: Callable[[int], None] | None = None,
) -> bytearray:
    """The bytes of a file from ``start`` up to, not including, ``end``; TransferError when they cannot be had."""

    def attempt() -> bytearray:
        with closing(ask(url, source, transport, span=f"bytes={start}-{end - 1}")) as answer:
            if answer.status == 206 and not _continues(answer, start, None):
                raise OSError(OTHER_RANGE)
            if answer.status != 206 and start > WORTH_SKIPPING:
                raise TransferError(f"{redact(url)}: the server sends the whole file instead of the part asked for")
            if answer.status != 206:
                _read(answer, start, arrived)
            body = _read(answer, end - start, arrived)
            if len(body) < end - start:
                raise OSError(f"the answer ended after {len(body)} of {end - start} bytes")
            return body

    return _persist(url, source, attempt)


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


def write_atomically(path: Path, text: str, mode: int) -> None:
    """The file holds the old text or the new one, whatever happens."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(temporary, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def point(link: Path, target: str) -> None:
    """The link leads where it led before or to the target, whatever happens."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    sync_folder(link.parent)


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


#: Gives, when a file begins, what is to see its bytes.
Watch = Callable[[], Callable[[bytes], None]]


class _Flusher:
    """Brings a growing file to the disk while more bytes come: a host that stops loses little of it."""

    def __init__(self, file: IO[bytes], size: int | None) -> None:
        self._file = file
        self._step = min(max((size or 0) // 200, 1 << 20), 64 << 20)
        self._written = self._flushed = 0
        self._due, self._ended = threading.Event(), False
        self._thread: threading.Thread | None = None

    def wrote(self, count: int) -> None:
        self._written += count
        if self._written - self._flushed >= self._step:
            self._flushed = self._written
            self._due.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._ended:
                return
            with suppress(OSError):  # the last fsync of the file reports it
                os.fdatasync(self._file.fileno())

    def close(self) -> None:
        self._ended = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()


class _Part:
    """What lies here of a file: its bytes, and what all who look at them have seen so far."""

    def __init__(self, path: Path, size: int | None, git_blob: str, watch: Watch | None) -> None:
        self.path = path
        self._size, self._git_blob, self._watch = size, git_blob, watch
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists()
        # Unbuffered: what was written is in the file, whatever becomes of this process.
        self._file = open(path, "w+b" if fresh else "r+b", buffering=0)  # noqa: SIM115  (closed by close)
        self._flusher = _Flusher(self._file, size)
        if fresh:
            sync_folder(path.parent)
        self._begin()
        if size is not None and path.stat().st_size > size:
            self.restart()
        while block := self._file.read(BLOCK):
            self._see(block)
        self.found = self.hashes.size
        """Bytes of an earlier run that were taken over."""

    def _begin(self) -> None:
        self.hashes = Hashes(self._size, self._git_blob)
        self._seen = self._watch() if self._watch is not None else None

    def _see(self, block: bytes) -> None:
        self.hashes.update(block)
        if self._seen is not None:
            self._seen(block)

    def restart(self) -> None:
        """Forget every byte."""
        self._file.seek(0)
        self._file.truncate(0)
        self.found = 0
        self._begin()

    def add(self, block: bytes) -> None:
        left = memoryview(block)
        while left:
            left = left[self._file.write(left[:WRITE_BLOCK]) :]
        self._flusher.wrote(len(block))
        self._see(block)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._flusher.close()
        self._file.close()


def download(
    url: str,
    target: Path,
    source: Source,
    *,
    size: int | None = None,
    sha256: str = "",
    git_blob: str = "",
    transport: Transport | None = None,
    watch: Watch | None = None,
    arrived: Callable[[int], None] | None = None,
) -> Received:
    """Fetch a URL into ``target``, which appears complete and verified, or not at all.

    ``watch`` is called whenever the file begins at its first byte and gives what is then shown every byte of it in
    order, those that lay here already too. ``arrived`` is told of each block how many bytes came over the line.

    Bytes that fail their checksum are deleted and ChecksumError is raised; TransferError when they cannot be had, and
    what came of them is kept. Errors of this host's disk are raised as they are (OSError), and what was written is
    kept.
    """
    part = _Part(part_of(target), size, git_blob, watch)
    with closing(part):
        transferred = _complete(url, part, source, size, transport, arrived)
        wrong = part.hashes.wrong(sha256, git_blob)
        if wrong is not None and part.found:
            # What an earlier run left may have been damaged by a power cut: judge by a whole answer.
            part.restart()
            transferred += _complete(url, part, source, size, transport, arrived)
            wrong = part.hashes.wrong(sha256, git_blob)
        part.sync()
    if wrong is None:
        os.replace(part.path, target)
        sync_folder(target.parent)
        return Received(part.hashes.sha256(), part.hashes.size, transferred)
    part.path.unlink()
    raise ChecksumError(
        f"{redact(url)}: the bytes are not the ones promised: expected {wrong[0]}, got {wrong[1]} "
        f"({human(part.hashes.size)}). They were deleted. Run again; if it stays so, a proxy or mirror on the way "
        "changes them, or the checksum that was promised is wrong"
    )


def _complete(
    url: str,
    part: _Part,
    source: Source,
    size: int | None,
    transport: Transport | None,
    arrived: Callable[[int], None] | None,
) -> int:
    """Fetch what the part lacks, in as many attempts as bring it further; the bytes that came."""
    failures = transferred = 0
    furthest = part.hashes.size
    while size is None or part.hashes.size != size:
        trouble = _Trouble()
        with closing(_blocks(url, part, source, size, transport, trouble)) as blocks:
            for block in blocks:
                transferred += len(block)
                if arrived is not None:
                    arrived(len(block))
                part.add(block)
        if not trouble.what:
            break
        # Only bytes further than ever before count as progress, and not a few: a server that starts over and breaks
        # off at the same place each time, or drips, must not be asked for ever.
        reached = part.hashes.size
        failures = 1 if reached - furthest > min((size or 0) // 100, PROGRESS) else failures + 1
        furthest = max(furthest, reached)
        # A host of the fleet that gave bytes just now is starting anew, not away.
        restarts = isinstance(trouble.error, AwayError) and transferred
        if (final(trouble.error) and not restarts) or failures >= source.attempts:
            part.sync()
            kept = ""
            if reached:
                kept = f"; {human(reached)} are kept in {part.path}, the next run goes on from there"
            else:
                part.path.unlink()
            way_out = advice(trouble.error) if trouble.error is not None else f". {NOT_THE_FILE}"
            raise TransferError(f"{redact(url)}: {trouble.what}{kept}{way_out}", trouble.error) from trouble.error
        if trouble.what == OTHER_RANGE and failures > 1:
            part.restart()  # it insists: only the whole file can be had there
        source.pause(failures, trouble.headers)
    return transferred


@dataclass
class _Trouble:
    """Why an attempt did not bring the end of the file; ``what`` is empty when it did."""

    what: str = ""
    error: Exception | None = None
    headers: Message | None = None


def _blocks(
    url: str, part: _Part, source: Source, size: int | None, transport: Transport | None, trouble: _Trouble
) -> Generator[bytes, None, None]:
    """The bytes that follow those of the part, from one request; at the end ``trouble`` says whether these were all."""
    start = part.hashes.size
    try:
        answer = ask(url, source, transport, span=f"bytes={start}-" if start else "")
    except TROUBLE as error:
        trouble.what, trouble.error, trouble.headers = explain(error), error, getattr(error, "headers", None)
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:
            part.restart()  # what lies here is longer than what is there
        return
    with closing(answer):
        trouble.headers = answer.headers
        if answer.status == 206 and not _continues(answer, start, size):
            trouble.what = OTHER_RANGE
            return
        if start and answer.status != 206:  # the server sends the whole file, whatever was asked for
            part.restart()
            start = 0
        offered = _announced(answer, start)
        expected = size if size is not None else offered
        if offered is not None and offered != expected:
            trouble.what = f"the server offers {offered} bytes, where {expected} were expected{_page(answer)}"
            return
        while True:
            try:
                block = answer.read(BLOCK)
            except TROUBLE as error:
                trouble.what, trouble.error = explain(error), error
                return
            if not block:
                break
            if expected is not None and part.hashes.size + len(block) > expected:
                part.restart()
                trouble.what = f"more bytes came than the {expected} announced"
                return
            yield block
    if expected is not None and part.hashes.size < expected:
        trouble.what = f"the answer ended after {part.hashes.size} of {expected} bytes"
    elif part.hashes.size == 0 and size != 0:
        trouble.what = "the answer was empty"


def _page(answer: Answer) -> str:
    """A hint, when what comes is a web page."""
    try:
        start = answer.read(512)
    except TROUBLE:
        return ""
    return ": a web page came instead of the file, a login page or proxy stands between" if PAGE.match(start) else ""


def _announced(answer: Answer, start: int) -> int | None:
    length = answer.headers.get("Content-Length")
    return start + int(length) if length is not None and length.isdigit() else None


def _continues(answer: Answer, start: int, size: int | None) -> bool:
    """Whether the answer is the rest of the file from ``start`` on."""
    if answer.status != 206:
        return False
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    if found is None or int(found.group(1)) != start:
        return False
    return size is None or found.group(2) in ("*", str(size))
