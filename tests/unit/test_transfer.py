# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads from a server that misbehaves: the right bytes arrive, or nothing does."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from email.message import Message
from email.utils import formatdate
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import curl

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import server

DATA = os.urandom(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
NAME = "file.bin"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[server.Hub]:
    (tmp_path / "root/artifacts").mkdir(parents=True)
    (tmp_path / "root/artifacts" / NAME).write_bytes(DATA)
    with server.running(tmp_path / "root") as running:
        yield running


class Get:
    """One download of the file; ``pauses`` are the seconds it would have waited."""

    def __init__(
        self, hub: server.Hub, folder: Path, attempts: int = 3, transport: transfer.Transport | None = None
    ) -> None:
        self.url = f"{hub.url}/artifacts/{NAME}"
        self.target, self.part = folder / NAME, folder / (NAME + ".part")
        self.pauses: list[float] = []
        self.transport = transport
        self.seen: list[list[bytes]] = []
        self.arrived = 0
        self.source = transfer.Source(attempts=attempts, timeout=5, sleep=self.pauses.append, chance=lambda: 1.0)

    def __call__(self, *, sha256: str = SHA, size: int | None = len(DATA)) -> transfer.Received:
        return transfer.download(
            self.url,
            self.target,
            self.source,
            size=size,
            sha256=sha256,
            transport=self.transport,
            watch=self.watch,
            arrived=self.count,
        )

    def watch(self) -> Callable[[bytes], None]:
        self.seen.append([])
        return self.seen[-1].append

    def count(self, count: int) -> None:
        self.arrived += count

    def nothing_published(self) -> bool:
        return not self.target.exists()


@pytest.fixture(params=["urllib", "libcurl"])
def get(hub: server.Hub, tmp_path: Path, request: pytest.FixtureRequest) -> Get:
    if request.param == "urllib":
        return Get(hub, tmp_path / "here")
    pytest.importorskip("pycurl")
    return Get(hub, tmp_path / "here", transport=curl.Curl(stall_seconds=5))


def seen(get: Get) -> list[bytes]:
    """What a watcher saw each time the file began."""
    return [b"".join(blocks) for blocks in get.seen]


def ranges(hub: server.Hub) -> list[str]:
    return [asked for _path, asked in hub.requests]


def test_a_file(hub: server.Hub, get: Get) -> None:
    assert get() == transfer.Received(SHA, len(DATA), len(DATA))
    assert get.target.read_bytes() == DATA
    assert not get.part.exists()


@pytest.mark.parametrize("at", [1, 65_536, 150_000, len(DATA) - 1])
def test_a_cut_is_continued_where_it_was(hub: server.Hub, get: Get, at: int) -> None:
    hub.faults = [server.Fault("cut-once", NAME, at)]
    assert get().transferred == len(DATA) == get.arrived  # not one byte twice
    assert ranges(hub) == ["", f"bytes={at}-"]
    assert seen(get) == [DATA]
    assert get.target.read_bytes() == DATA


def test_a_part_of_an_earlier_run_is_continued(hub: server.Hub, get: Get) -> None:
    get.part.parent.mkdir()
    get.part.write_bytes(DATA[:200_000])
    assert get().transferred == 100_000 == get.arrived
    assert get.target.read_bytes() == DATA
    assert seen(get) == [DATA], "the bytes that lay here are seen too"


def test_a_complete_part_needs_no_request(hub: server.Hub, get: Get) -> None:
    get.part.parent.mkdir()
    get.part.write_bytes(DATA)
    assert get().transferred == 0
    assert hub.requests == []


@pytest.mark.parametrize("left", [DATA[:1000], DATA + b"more", b"\0" * len(DATA), b"\0" * 200_000])
def test_what_an_earlier_run_left_damaged_is_fetched_again(hub: server.Hub, get: Get, left: bytes) -> None:
    """As after a power cut: the server is judged by its own bytes."""
    get.part.parent.mkdir()
    get.part.write_bytes(left)
    get()
    assert get.target.read_bytes() == DATA
    assert seen(get)[-1] == DATA


def test_200_instead_of_206_starts_over(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("no-range", NAME)]
    get.part.parent.mkdir()
    get.part.write_bytes(b"x" * 100_000)
    assert get().transferred == len(DATA)
    assert get.target.read_bytes() == DATA
    assert seen(get) == [b"x" * 100_000, DATA]


def test_a_server_that_starts_over_and_breaks_off_is_given_up(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("no-range", NAME), server.Fault("cut", NAME, 1000)]
    with pytest.raises(transfer.TransferError) as failure:
        get()
    assert "the answer ended after 1000 of 300000 bytes" in str(failure.value)
    assert "1.0 kB are kept in" in str(failure.value)
    assert len(hub.requests) == 3
    assert get.nothing_published()


def test_progress_counts_as_success(hub: server.Hub, get: Get) -> None:
    """A line that drops every 60 kB brings the file, with more cuts than attempts."""
    hub.faults = [server.Fault("cut", NAME, 60_000)]
    assert get().transferred == len(DATA)
    assert len(hub.requests) == 5


def test_an_empty_answer(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("empty", NAME)]
    with pytest.raises(transfer.TransferError, match="the server offers 0 bytes, where 300000 were expected"):
        get()
    with pytest.raises(transfer.TransferError, match="the answer was empty"):
        get(size=None)
    assert get.nothing_published()
    assert not get.part.exists()
    assert get.pauses[:2] == [1.0, 2.0]


def test_wrong_bytes_are_deleted(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("wrong", NAME)]
    with pytest.raises(transfer.ChecksumError) as failure:
        get()
    said = re.escape(f"{get.url}: the bytes are not the ones promised: expected sha256 {SHA}, got sha256 ")
    assert re.match(said + r"[0-9a-f]{64} \(300\.0 kB\)\. They were deleted\. Run again;", str(failure.value))
    assert get.nothing_published()
    assert not get.part.exists()
    hub.faults = []
    get()
    assert get.target.read_bytes() == DATA


def test_a_longer_file_than_announced(hub: server.Hub, get: Get) -> None:
    with pytest.raises(transfer.TransferError, match="the server offers 300000 bytes, where 1000 were expected"):
        get(size=1000)
    assert get.nothing_published()


@pytest.mark.parametrize("kind", ["missing", "page"])
def test_answers_that_are_not_the_file(hub: server.Hub, get: Get, kind: str) -> None:
    hub.faults = [server.Fault(kind, NAME)]
    with pytest.raises(
        transfer.TransferError, match="HTTP 404" if kind == "missing" else "a web page came instead of the file"
    ):
        get()
    assert get.nothing_published()
    if kind == "missing":
        assert len(hub.requests) == 1  # asking again would not help


def test_a_busy_server_is_asked_again_when_it_says(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("busy-once", NAME)]
    get()
    assert get.pauses == [0.0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "86400"}, 600),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=12;t=55'}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_a_server_wants_us_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    pauses: list[float] = []
    transfer.Source(sleep=pauses.append, chance=lambda: 0.0).pause(3, message)
    assert pauses == [2.0 if seconds is None else seconds]  # by itself the third pause is 2 to 4 seconds


def test_a_date_to_come_back_at() -> None:
    pauses: list[float] = []
    asked = Message()
    for date in (formatdate(time.time() + 90, usegmt=True), formatdate(time.time() - 90, usegmt=True)):
        del asked["Retry-After"]
        asked["Retry-After"] = date
        transfer.Source(sleep=pauses.append, chance=lambda: 0.0).pause(1, asked)
    assert 85 <= pauses[0] <= 90 and pauses[1] == 0


def test_pauses_grow_and_are_not_the_same_on_every_host() -> None:
    for chance, expected in ((0.0, [0.5, 1, 2, 4, 30]), (1.0, [1, 2, 4, 8, 60])):
        pauses: list[float] = []
        source = transfer.Source(sleep=pauses.append, chance=lambda chance=chance: chance)  # type: ignore[misc]
        for failures in (1, 2, 3, 4, 50):
            source.pause(failures, None)
        assert pauses == expected


def test_a_full_disk_is_no_trouble_of_the_line(hub: server.Hub, get: Get) -> None:
    """Not asked again, not explained away; what was written stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(hub.requests) == 1 and get.pauses == []
    assert get.part.stat().st_size == 100_000
    assert get().transferred == 200_000
    assert get.target.read_bytes() == DATA


def test_what_came_is_brought_to_the_disk_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that stops loses a hundredth of the file at most, 64 MiB of a large one."""
    done = threading.Semaphore(0)
    monkeypatch.setattr(os, "fdatasync", lambda _file: done.release())
    with open(tmp_path / "f", "w+b") as file:
        for size, step in ((300 << 20, (300 << 20) // 200), (100 << 30, 64 << 20), (None, 1 << 20)):
            flusher = transfer._Flusher(file, size)
            flusher.wrote(step - 1)
            assert not done.acquire(timeout=0.05)
            flusher.wrote(1)
            assert done.acquire(timeout=5)
            flusher.close()


def test_parts_of_a_file(hub: server.Hub, get: Get) -> None:
    arrived: list[int] = []

    def part(start: int, end: int) -> bytes:
        return transfer.fetch_range(get.url, get.source, start, end, transport=get.transport, arrived=arrived.append)

    assert part(1000, 2000) == DATA[1000:2000]
    assert sum(arrived) == 1000
    assert part(0, len(DATA)) == DATA
    hub.faults = [server.Fault("no-range", NAME)]
    assert part(1000, 2000) == DATA[1000:2000]
    hub.faults = [server.Fault("cut-once", NAME, 500)]
    assert part(1000, 2000) == DATA[1000:2000]
    hub.faults = [server.Fault("other-range", NAME, 7)]
    with pytest.raises(transfer.TransferError, match="another range than the one asked for"):
        part(1000, 2000)
    hub.faults = []
    with pytest.raises(transfer.TransferError, match=f"ended after {len(DATA) - 1000} of"):
        part(1000, len(DATA) + 1)


def test_files_of_this_host(tmp_path: Path) -> None:
    here, target = tmp_path / "a file", tmp_path / "t"
    here.write_bytes(DATA)
    transfer.part_of(target).write_bytes(DATA[:1000])
    source = transfer.Source(attempts=2, sleep=lambda _seconds: None)
    got = transfer.download(here.as_uri(), target, source, size=len(DATA), sha256=SHA)
    assert got.transferred == len(DATA) - 1000
    assert transfer.fetch_range(here.as_uri(), source, 5, 9) == DATA[5:9]
    with pytest.raises(transfer.TransferError, match=r"No such file or directory.*Check the path") as failure:
        transfer.download((tmp_path / "none").as_uri(), target, source)
    assert failure.value.missing and not failure.value.unreachable


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://a.test/x/y", "/z?q=1", "https://a.test/z?q=1"),
        ("https://a.test/x", "https://b.test/y z#there", "https://b.test/y%20z"),
        ("http://a.test/x", "https://b.test/y", "https://b.test/y"),
        ("https://a.test/x", "https://me:pw@b.test/y", "https://b.test/y"),
    ],
)
def test_where_a_redirect_leads(url: str, location: str, target: str) -> None:
    assert transfer.following(url, location) == target


@pytest.mark.parametrize(
    ("url", "location", "message"),
    [
        ("https://a.test/x", "http://b.test/y", "leads to http://b.test/y, which is not encrypted"),
        ("http://a.test/x", "file:///etc/shadow", "leads to 'file:///etc/shadow', which is no web address"),
        ("http://a.test/x", "ftp://b.test/", "no web address"),
        ("http://a.test/x", "https:///y", "no web address"),
    ],
)
def test_where_no_redirect_is_followed(url: str, location: str, message: str) -> None:
    with pytest.raises(transfer.RedirectError, match=message):
        transfer.following(url, location)


def test_what_stands_still_or_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = transfer.Pace(60, 1000)
    for second, came in ((10, 0), (50, 61_000), (61, 0), (100, 5)):
        clock[0] = second
        pace.came(came)
    clock[0] = 125
    with pytest.raises(TimeoutError, match="only 5 bytes came in 64 seconds"):
        pace.came(0)
    pace = transfer.Pace(60, 0)
    clock[0] = 185
    with pytest.raises(TimeoutError, match="nothing came for 60 seconds"):
        pace.came(0)


def test_nobody_there(get: Get, hub: server.Hub) -> None:
    get.url = get.url.replace(str(hub.server_address[1]), "1")
    with pytest.raises(transfer.TransferError) as failure:
        get()
    assert failure.value.unreachable


def test_git_names_of_small_files(tmp_path: Path, hub: server.Hub) -> None:
    (hub.tree.root / "artifacts/small").write_bytes(b"hello\n")
    url = f"{hub.url}/artifacts/small"
    source = transfer.Source(attempts=1)
    git = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    transfer.download(url, tmp_path / "a", source, size=6, git_blob=git)
    with pytest.raises(transfer.ChecksumError, match="expected git blob 0000"):
        transfer.download(url, tmp_path / "b", source, size=6, git_blob="0" * 40)


def test_a_redirect_to_another_host_does_not_get_the_token(get: Get) -> None:
    tokens: list[str | None] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.extend((self.headers.get("Authorization"), self.headers.get("Cookie")))
            self.send_response(302 if self.path == "/start" else 200)
            if self.path == "/start":
                self.send_header("Location", other + "/end")
            self.send_header("Content-Length", "0" if self.path == "/start" else "2")
            self.end_headers()
            if self.path != "/start":
                self.wfile.write(b"ok")

        def log_message(self, *_args: object) -> None: ...

    servers = [http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) for _each in range(2)]
    other = f"http://127.0.0.1:{servers[1].server_port}"
    for each in servers:
        threading.Thread(target=each.serve_forever, daemon=True).start()
    start = f"http://127.0.0.1:{servers[0].server_port}/start"
    source = transfer.Source(token="secret", cookie="m_session_id", attempts=1)
    body, _headers = transfer.fetch_text(start, source, get.transport)
    for each in servers:
        each.shutdown()
        each.server_close()
    assert (body, tokens) == (b"ok", ["Bearer secret", "m_session_id=secret", None, None])


def test_a_name_and_password_in_the_url_are_sent_as_such() -> None:
    url, headers = transfer.Source(token="unused").identity("https://robot:hunter%402@host.test/a?b=c")
    assert url == "https://host.test/a?b=c"
    assert headers == {"Authorization": "Basic cm9ib3Q6aHVudGVyQDI="}  # robot:hunter@2


def test_credentials_do_not_show() -> None:
    url = "https://robot:hunter2@host.test:8443/a?Revision=master&X-Signature=abc&access_token=def"
    for broken in ("http://me:geheim/x@proxy:3128", "http://me:geheim#1@proxy", "http://me:geheim?@proxy"):
        assert transfer.redact(broken) == "http://***"
    assert transfer.redact("https://host:8443/@scope/x") == "https://host:8443/@scope/x"
    assert transfer.redact("http://[fd00::1]:8470/a@b") == "http://[fd00::1]:8470/a@b"
    assert transfer.redact(url) == ("https://host.test:8443/a?Revision=master&X-Signature=***&access_token=***")
    assert transfer.secrets_of(url) == {"hunter2", "abc", "def"}


def test_two_at_once_are_one_after_the_other(tmp_path: Path) -> None:
    part = tmp_path / "file.part"
    order = []

    def first() -> None:
        with transfer.alone(tmp_path, part):
            for _step in range(3):
                with open(part, "ab") as file:
                    file.write(b"x")
                time.sleep(0.1)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    time.sleep(0.05)
    with pytest.raises(transfer.BusyError, match="brought nothing for 0 seconds"), transfer.alone(tmp_path, part, 0.01):
        pass
    with transfer.alone(tmp_path, part):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_range_is_in_memory_once(tmp_path: Path) -> None:
    """A piece of a large model has 64 MB."""
    path, size = tmp_path / "file", 32 << 20
    with open(path, "wb") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        assert len(transfer.fetch_range(path.as_uri(), transfer.Source(), 0, size)) == size
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()


CHILD = """
import sys
from pathlib import Path
from ansible_collections.onprem.llm.plugins.module_utils import transfer
url, target, sha256 = sys.argv[1:]
transfer.download(url, Path(target), transfer.Source(), size=300000, sha256=sha256)
"""


def test_a_killed_process_is_continued_by_the_next(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("slow", NAME, 400_000)]
    repository = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, get.url, str(get.target), SHA],
        env={**os.environ, "PYTHONPATH": str(repository / "collections")},
    )
    deadline = time.monotonic() + 20
    while not (get.part.exists() and get.part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert get.nothing_published()
    hub.faults = []
    kept = get.part.stat().st_size
    assert 0 < kept < len(DATA)
    assert get().transferred == len(DATA) - kept
    assert get.target.read_bytes() == DATA
