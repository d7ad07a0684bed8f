# SPDX-License-Identifier: GPL-3.0-or-later
"""libcurl as the Transport of model files.

libcurl runs in a thread of its own and fills a small buffer, so that the network goes on while blocks are hashed and
written. What the buffer holds, and no more, is what a kill can lose.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from email.message import Message
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import transfer

try:
    import pycurl
except ImportError:
    pycurl = None

#: CURLOPT_SUPPRESS_CONNECT_HEADERS, which pycurl has no name for: a proxy's own answer is not the server's.
SUPPRESS_CONNECT_HEADERS = 265
#: Seconds.
LONGEST_CONNECT = 30.0
#: Bytes between the network and the disk at most, for each file: a kill loses them, so of a small file it is less.
BUFFER = 1 << 20
SMALLEST_BUFFER = 1 << 16
#: libcurl's numbers (CURLE_URL_MALFORMAT, CURLE_COULDNT_RESOLVE_PROXY).
BAD_ADDRESS = {
    3: "the address cannot be understood",
    5: "the proxy's address cannot be understood, or its name not be found",
}


class MissingError(Exception):
    """libcurl is not installed."""


class _Limit:
    """Bytes per second, shared by all who use it."""

    def __init__(
        self, rate: int, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate, self._lock = rate, threading.Lock()
        self._now, self._sleep = now, sleep
        self._free = now()

    def pay(self, count: int) -> None:
        """Returns when the bytes may have come."""
        if not self._rate:
            return
        with self._lock:
            # What was not used is lost, but for a tenth of a second.
            self._free = max(self._free, self._now() - 0.1) + count / self._rate
            wait = self._free - self._now()
        if wait > 0:
            self._sleep(wait)


class _Buffer:
    """Bytes on their way from libcurl's thread to the reader."""

    def __init__(self, pace: transfer.Pace) -> None:
        self._pace = pace
        self._blocks: deque[bytes] = deque()
        self._held, self._most = 0, BUFFER
        self._ended = self._closed = False
        self._error: OSError | None = None
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        return self._closed

    def expect(self, size: int) -> None:
        """So many bytes will come."""
        self._most = min(max(size // 256, SMALLEST_BUFFER), BUFFER)

    @property
    def _worth_waking(self) -> int:
        """The reader is woken when so many bytes wait for it, or a tenth of a second has passed."""
        return self._most // 4

    def put(self, block: bytes) -> bool:
        """Waits while the buffer is full; False when nobody reads any more."""
        with self._changed:
            before = self._held
            self._blocks.append(block)
            self._held += len(block)
            if before < self._worth_waking <= self._held:
                self._changed.notify_all()
            while self._held > self._most and not self._closed:
                self._changed.wait()
            return not self._closed

    def end(self, error: OSError | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def take(self, limit: int) -> bytes:
        """The bytes that wait here, some at least; none at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._held >= self._worth_waking or self._ended, timeout=0.1)
                if self._held or self._ended:
                    break
                self._pace.came(0)
            if not self._held and self._error is not None:
                raise self._error
            blocks, taken = [], 0
            while self._blocks and taken < limit:
                block = self._blocks.popleft()
                if len(block) > limit - taken:
                    self._blocks.appendleft(block[limit - taken :])
                    block = block[: limit - taken]
                blocks.append(block)
                taken += len(block)
            if self._held > self._most >= self._held - taken:
                self._changed.notify_all()
            self._held -= taken
        if taken:
            self._pace.came(taken)
        return b"".join(blocks)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._blocks.clear()
            self._changed.notify_all()


class _Answer:
    """An answer whose body arrives in another thread."""

    def __init__(self, pace: transfer.Pace) -> None:
        self.status = 0
        self.headers = Message()
        self.buffer = _Buffer(pace)
        self._begun = threading.Event()
        self._failed: OSError | None = None

    def read(self, limit: int, /) -> bytes:
        return self.buffer.take(limit)

    def close(self) -> None:
        self.buffer.close()

    # What libcurl calls, in its thread ---------------------------------------------------------------

    def line(self, raw: bytes) -> None:
        """A line of the header; a status line begins it anew, as after 100."""
        text = raw.decode("iso-8859-1").strip()
        if text.startswith("HTTP/"):
            self.status, self.headers = int(text.split()[1]), Message()
        elif not text and self.status >= 200:
            length = str(self.headers.get("Content-Length", ""))
            self.buffer.expect(int(length) if length.isdigit() else BUFFER)
            self._begun.set()
        elif ":" in text:
            name, _, value = text.partition(":")
            self.headers[name.strip()] = value.strip()

    def end(self, error: OSError | None) -> None:
        if not self._begun.is_set():
            self._failed = error or OSError("the server answered nothing")
        self.buffer.end(error)
        self._begun.set()

    def wait(self, seconds: float) -> None:
        """Until the header is here; OSError when it is clear that none will come."""
        if not self._begun.wait(seconds):
            self.close()
            raise TimeoutError(f"no answer came for {seconds:.0f} seconds")
        if self._failed is not None:
            raise self._failed


class Curl:
    """libcurl, for as many files at once as there are threads. The rate limit is that of all together."""

    def __init__(
        self,
        rate_limit: int = 0,
        proxy: str = "",
        no_proxy: str = "",
        stall_seconds: float = 60,
        minimum_rate: int = 1024,
    ) -> None:
        """Rates in bytes per second; slower than ``minimum_rate`` for ``stall_seconds`` is a stall."""
        if pycurl is None:
            raise MissingError(
                "libcurl for Python is missing: install the package python3-pycurl (Debian, Ubuntu) on this host"
            )
        self._limit = _Limit(rate_limit)
        self._proxy, self._no_proxy = proxy, no_proxy
        self._stall_seconds, self._minimum_rate = stall_seconds, minimum_rate
        self._idle: list[Any] = []  # handles keep their connections

    def open(
        self, url: str, headers: dict[str, str], timeout: float, way: transfer.Way = transfer.DEFAULT_WAY
    ) -> _Answer:
        """One request; its body comes as it is read. ``timeout``, in seconds, is for the connection."""
        try:
            handle = self._idle.pop()
        except IndexError:
            handle = pycurl.Curl()
        if any("\n" in text or "\r" in text for text in headers.values()):
            raise OSError("libcurl refuses the request: a header holds a line end")
        timeout = min(timeout, transfer.SOON if way.fleet else LONGEST_CONNECT)
        answer = _Answer(transfer.Pace(self._stall_seconds, self._minimum_rate))
        try:
            self._set(handle, url, headers, timeout, answer, way)
        except (pycurl.error, ValueError) as error:
            raise OSError("libcurl refuses the request: a setting or the address cannot be used") from error
        threading.Thread(target=self._run, args=(handle, answer), daemon=True).start()
        answer.wait(timeout + self._stall_seconds)
        return answer

    def _set(
        self, handle: Any, url: str, headers: dict[str, str], timeout: float, answer: _Answer, way: transfer.Way
    ) -> None:
        c = pycurl

        def write(block: bytes) -> int:
            if not way.fleet:
                self._limit.pay(len(block))
            return len(block) if answer.buffer.put(block) else -1

        for option, value in (
            (c.URL, url),
            (c.HTTPHEADER, [f"{name}: {text}" for name, text in headers.items()]),
            (c.HTTPGET, 1),
            (c.FOLLOWLOCATION, 0),
            (c.PROTOCOLS, c.PROTO_HTTP | c.PROTO_HTTPS),
            # One file is one stream: the newer protocols bring nothing here but their own windows.
            (c.HTTP_VERSION, c.CURL_HTTP_VERSION_1_1),
            (c.NOSIGNAL, 1),
            (c.TCP_KEEPALIVE, 1),
            (c.CONNECTTIMEOUT_MS, max(int(timeout * 1000), 1)),
            (c.BUFFERSIZE, 512 << 10),
            (c.PROXY, "" if way.fleet else self._proxy),
            (c.NOPROXY, self._no_proxy),
            (SUPPRESS_CONNECT_HEADERS, 1),
            (c.HEADERFUNCTION, answer.line),
            (c.WRITEFUNCTION, write),
            (c.NOPROGRESS, 0),
            (c.XFERINFOFUNCTION, lambda *_: int(answer.buffer.closed)),
            *([(c.CAINFO, way.ca)] if way.ca else []),
        ):
            handle.setopt(option, value)

    def _run(self, handle: Any, answer: _Answer) -> None:
        error: OSError | None = None
        try:
            handle.perform()
        except pycurl.error as failure:
            code, message = failure.args[:2]
            if code == pycurl.E_OPERATION_TIMEDOUT:
                error = TimeoutError(message)
            elif code in BAD_ADDRESS:  # libcurl's own words quote what may be a password
                error = OSError(f"{BAD_ADDRESS[code]}. {transfer.CODED}")
            elif code != pycurl.E_PARTIAL_FILE:  # who reads sees that the body is short
                error = OSError(re.sub(r"'[^']*@[^']*'", "***", message))
        except BaseException as failure:  # a thread has nobody to tell but the reader
            error = OSError(f"libcurl: {failure}")
        answer.end(error)
        handle.reset()
        self._idle.append(handle)
