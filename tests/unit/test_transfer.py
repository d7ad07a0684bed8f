# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads from a server that misbehaves: the right bytes arrive, or nothing does."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import transfer

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

    def __init__(self, hub: server.Hub, folder: Path, attempts: int = 3) -> None:
        self.url = f"{hub.url}/artifacts/{NAME}"
        self.target, self.part = folder / NAME, folder / (NAME + ".part")
        self.rejected = folder / "rejected" / NAME
        self.pauses: list[float] = []
        self.source = transfer.Source(attempts=attempts, timeout=5, sleep=self.pauses.append)

    def __call__(self, *, sha256: str = SHA, size: int | None = len(DATA)) -> transfer.Received:
        return transfer.download(self.url, self.target, self.source, size=size, sha256=sha256, rejected=self.rejected)

    def nothing_published(self) -> bool:
        return not self.target.exists()


@pytest.fixture
def get(hub: server.Hub, tmp_path: Path) -> Get:
    return Get(hub, tmp_path / "here")


def ranges(hub: server.Hub) -> list[str]:
    return [asked for _path, asked in hub.requests]


def test_a_file(hub: server.Hub, get: Get) -> None:
    assert get() == transfer.Received(SHA, len(DATA), len(DATA))
    assert get.target.read_bytes() == DATA
    assert not get.part.exists()


@pytest.mark.parametrize("at", [1, 65_536, 150_000, len(DATA) - 1])
def test_a_cut_is_continued_where_it_was(hub: server.Hub, get: Get, at: int) -> None:
    hub.faults = [server.Fault("cut-once", NAME, at)]
    assert get().transferred == len(DATA)  # not one byte twice
    assert ranges(hub) == ["", f"bytes={at}-"]
    assert get.target.read_bytes() == DATA


def test_a_part_of_an_earlier_run_is_continued(hub: server.Hub, get: Get) -> None:
    get.part.parent.mkdir()
    get.part.write_bytes(DATA[:200_000])
    assert get().transferred == 100_000
    assert get.target.read_bytes() == DATA


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
    assert not get.rejected.exists()


def test_200_instead_of_206_starts_over(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("no-range", NAME)]
    get.part.parent.mkdir()
    get.part.write_bytes(b"x" * 100_000)
    assert get().transferred == len(DATA)
    assert get.target.read_bytes() == DATA


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
    with pytest.raises(transfer.TransferError, match="the answer ended after 0 of 300000 bytes"):
        get()
    with pytest.raises(transfer.TransferError, match="the answer was empty"):
        get(size=None)
    assert get.nothing_published()
    assert not get.part.exists()
    assert get.pauses[:2] == [1.0, 2.0]


def test_wrong_bytes_are_set_aside(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("wrong", NAME)]
    with pytest.raises(transfer.ChecksumError) as failure:
        get()
    got = hashlib.sha256(get.rejected.read_bytes()).hexdigest()
    for named in (get.url, f"expected sha256 {SHA}", f"got sha256 {got}", str(get.rejected)):
        assert named in str(failure.value)
    assert get.nothing_published()
    assert not get.part.exists()
    hub.faults = []
    get()
    assert get.target.read_bytes() == DATA


def test_a_longer_file_than_announced(hub: server.Hub, get: Get) -> None:
    with pytest.raises(transfer.TransferError, match="more bytes came than the 1000 announced"):
        get(size=1000)
    assert get.nothing_published()


@pytest.mark.parametrize("kind", ["missing", "page"])
def test_answers_that_are_not_the_file(hub: server.Hub, get: Get, kind: str) -> None:
    hub.faults = [server.Fault(kind, NAME)]
    with pytest.raises(transfer.TransferError, match="HTTP 404" if kind == "missing" else "the answer ended after"):
        get()
    assert get.nothing_published()
    if kind == "missing":
        assert len(hub.requests) == 1  # asking again would not help


def test_a_busy_server_is_asked_again_when_it_says(hub: server.Hub, get: Get) -> None:
    hub.faults = [server.Fault("busy-once", NAME)]
    get()
    assert get.pauses == [0.0]


def test_nobody_there(get: Get, hub: server.Hub) -> None:
    get.url = get.url.replace(str(hub.server_address[1]), "1")
    with pytest.raises(transfer.TransferError) as failure:
        get()
    assert failure.value.unreachable


def test_git_names_of_small_files(tmp_path: Path, hub: server.Hub) -> None:
    (hub.tree.root / "artifacts/small").write_bytes(b"hello\n")
    url, rejected = f"{hub.url}/artifacts/small", tmp_path / "rejected"
    source = transfer.Source(attempts=1)
    git = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    transfer.download(url, tmp_path / "a", source, size=6, git_blob=git, rejected=rejected)
    with pytest.raises(transfer.ChecksumError, match="expected git blob 0000"):
        transfer.download(url, tmp_path / "b", source, size=6, git_blob="0" * 40, rejected=rejected)


def test_a_redirect_to_another_host_does_not_get_the_token(tmp_path: Path, hub: server.Hub) -> None:
    seen: list[str | None] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
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
    body, _headers = transfer.fetch_text(start, transfer.Source(token="secret", attempts=1))
    for each in servers:
        each.shutdown()
        each.server_close()
    assert (body, seen) == (b"ok", ["Bearer secret", None])


def test_a_name_and_password_in_the_url_are_sent_as_such() -> None:
    request = transfer.Source(token="unused").request("https://robot:hunter%402@host.test/a?b=c")
    assert request.full_url == "https://host.test/a?b=c"
    assert request.get_header("Authorization") == "Basic cm9ib3Q6aHVudGVyQDI="  # robot:hunter@2


def test_credentials_do_not_show() -> None:
    url = "https://robot:hunter2@host.test:8443/a?Revision=master&X-Signature=abc&access_token=def"
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


CHILD = """
import sys
from pathlib import Path
from ansible_collections.onprem.llm.plugins.module_utils import transfer
url, target, sha256 = sys.argv[1:]
transfer.download(url, Path(target), transfer.Source(), size=300000, sha256=sha256, rejected=Path(target + ".rejected"))
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
