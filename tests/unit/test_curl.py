# SPDX-License-Identifier: GPL-3.0-or-later
"""libcurl as a Transport: what only it does. What it shares with urllib is in test_transfer.py and test_faults.py."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_doctor_front import Authority

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import curl
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import StoreError

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import server

pycurl = pytest.importorskip("pycurl")

DATA = os.urandom(3_000_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[server.Hub]:
    (tmp_path / "root/artifacts").mkdir(parents=True)
    (tmp_path / "root/artifacts/f").write_bytes(DATA)
    with server.running(tmp_path / "root") as running:
        yield running


def body(answer: transfer.Answer) -> bytes:
    with closing(answer):
        blocks = []
        while block := answer.read(100_000):
            assert len(block) <= 100_000
            blocks.append(block)
        return b"".join(blocks)


def test_blocks_as_large_as_asked_for(hub: server.Hub) -> None:
    answer = curl.Curl().open(f"{hub.url}/artifacts/f", {}, 5)
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(DATA)))
    assert body(answer) == DATA
    assert answer.read(10) == b""


def test_a_connection_is_used_again(hub: server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    one = curl.Curl()
    clients = set()
    verify, asked = hub.verify_request, f"{hub.url}/artifacts/f"

    def seen(request: Any, client_address: Any) -> bool:
        clients.add(client_address)
        return verify(request, client_address)

    monkeypatch.setattr(hub, "verify_request", seen)
    for _each in range(3):
        assert body(one.open(asked, {}, 5)) == DATA
        time.sleep(0.05)  # the handle comes back when its thread has ended
    assert len(clients) == 1


def test_several_files_at_once(hub: server.Hub) -> None:
    one = curl.Curl()
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda _n: body(one.open(f"{hub.url}/artifacts/f", {}, 5)), range(16)))
    assert all(hashlib.sha256(each).hexdigest() == SHA for each in bodies)


def test_a_reader_that_rests_does_not_fill_the_memory(hub: server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curl, "BUFFER", 100_000)
    answer = curl.Curl().open(f"{hub.url}/artifacts/f", {}, 5)
    time.sleep(0.3)
    assert answer.buffer._held <= 100_000 + (1 << 14)
    assert body(answer) == DATA


def test_of_a_small_file_less_is_on_its_way(hub: server.Hub, tmp_path: Path) -> None:
    """A kill loses what the buffer holds."""
    (tmp_path / "root/artifacts/g").write_bytes(DATA * 20)
    answer = curl.Curl().open(f"{hub.url}/artifacts/g", {}, 5)
    time.sleep(0.3)
    assert answer.buffer._held <= len(DATA) * 20 // 256 + (1 << 14)
    answer.close()


def test_a_reader_that_leaves_ends_the_transfer(hub: server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curl, "BUFFER", 100_000)
    before = set(threading.enumerate())
    answer = curl.Curl().open(f"{hub.url}/artifacts/f", {}, 5)
    assert answer.read(10)
    answer.close()
    ours = [thread for thread in set(threading.enumerate()) - before if "_run" in thread.name]
    for thread in ours:
        thread.join(5)
        assert not thread.is_alive()


def test_the_rate_limit_is_that_of_all_files_together(hub: server.Hub) -> None:
    limited = curl.Curl(rate_limit=4_000_000)
    waits: list[float] = []
    clock = [0.0]
    limited._limit = curl._Limit(4_000_000, now=lambda: clock[0], sleep=waits.append)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _n: body(limited.open(f"{hub.url}/artifacts/f", {}, 5)), range(2)))
    # The clock stands still: the last of the 6 MB is due after 1.5 seconds.
    assert max(waits) == pytest.approx(1.5)


def test_nothing_but_http(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"secret")
    with pytest.raises(OSError, match=r"[Pp]rotocol"):
        curl.Curl().open((tmp_path / "f").as_uri(), {}, 5)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OSError, match=rf"connect to 127.0.0.1(:| port ){port}"):
        curl.Curl().open(f"http://127.0.0.1:{port}/", {}, 5)


def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        curl.Curl(stall_seconds=1).open(f"http://127.0.0.1:{silent.getsockname()[1]}/", {}, 1)


def test_a_header_cannot_be_smuggled_in(hub: server.Hub) -> None:
    url = f"{hub.url}/artifacts/f"
    with pytest.raises(OSError, match="line end"):
        curl.Curl().open(url, {"Authorization": "Bearer a\r\nX-Other: b"}, 5)


class Proxy(http.server.BaseHTTPRequestHandler):
    """Fetches for others, and opens tunnels."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path} {self.headers.get('Proxy-Authorization', '')}".strip())
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"proxy")

    def do_CONNECT(self) -> None:
        self.asked.append(f"CONNECT {self.path}")
        self.send_response(200, "Connection established")
        self.send_header("X-Of-The-Proxy", "yes")
        self.end_headers()
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port))) as far:
            far.sendall(self.connection.recv(1 << 16))
            far.shutdown(socket.SHUT_WR)
            while block := far.recv(1 << 16):
                self.wfile.write(block)
        self.close_connection = True

    def log_message(self, *_args: object) -> None: ...


@contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Proxy,), {"asked": asked})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{running.server_port}", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.mark.parametrize("client", [curl.Curl, transfer.Urllib])
def test_a_proxy_and_who_is_asked_without_it(
    hub: server.Hub, client: type[curl.Curl] | type[transfer.Urllib], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{hub.url}/artifacts/f"
    with proxy() as (address, asked):
        through = client(proxy=f"http://me:pw@{address}")
        assert body(through.open(url, {}, 5)) == b"proxy"
        assert asked == [f"GET {url} Basic bWU6cHc="]
        assert body(client(proxy=f"http://{address}", no_proxy="localhost,127.0.0.1").open(url, {}, 5)) == DATA
        monkeypatch.setenv("http_proxy", f"http://{address}")
        assert body(client(proxy="").open(url, {}, 5)) == DATA, "an empty proxy is none, whatever the environment says"
        assert len(asked) == 1


@pytest.mark.parametrize("client", [curl.Curl, transfer.Urllib])
def test_a_mirror_of_the_fleet_is_asked_past_the_proxy(
    hub: server.Hub, client: type[curl.Curl] | type[transfer.Urllib]
) -> None:
    url = f"{hub.url}/artifacts/f"
    with proxy() as (address, asked):
        assert body(client(proxy=f"http://{address}").open(url, {}, 5, transfer.Way(fleet=True))) == DATA
        assert asked == []


def test_a_mirror_of_the_fleet_is_not_limited(hub: server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = curl.Curl(rate_limit=1)
    waits: list[float] = []
    limited._limit = curl._Limit(1, sleep=waits.append)
    assert body(limited.open(f"{hub.url}/artifacts/f", {}, 5, transfer.Way(fleet=True))) == DATA
    assert waits == []


def test_a_mirror_of_the_fleet_that_is_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is off does not refuse: nothing comes back at all."""
    monkeypatch.setattr(transfer, "SOON", 0.2)
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    url, crowd = f"http://127.0.0.1:{full.getsockname()[1]}/", []
    for _each in range(8):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(full.getsockname())
        crowd.append(one)
    try:
        for transport in (curl.Curl(), transfer.Urllib()):
            pauses: list[float] = []
            away = transfer.Source(way=transfer.Way(fleet=True), sleep=pauses.append)
            with pytest.raises(transfer.TransferError, match="See whether that host is up") as refusal:
                transfer.fetch_text(url, away, transport)
            assert refusal.value.unreachable and pauses == []
    finally:
        for one in (full, *crowd):
            one.close()


@pytest.mark.parametrize("client", [curl.Curl, transfer.Urllib])
def test_a_source_with_an_authority_of_its_own(
    hub: server.Hub, client: type[curl.Curl] | type[transfer.Urllib], tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other CA")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("mirror"))
    safe = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "root/artifacts"))
    )
    safe.socket = context.wrap_socket(safe.socket, server_side=True)
    threading.Thread(target=safe.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"https://127.0.0.1:{safe.server_port}/f"
    try:
        assert body(client().open(url, {}, 5, transfer.Way(ca=str(authority.file)))) == DATA
        for way in (transfer.DEFAULT_WAY, transfer.Way(ca=str(other.file))):
            with pytest.raises(OSError, match="certificate"):
                client().open(url, {}, 5, way)
    finally:
        safe.shutdown()
        safe.server_close()


@pytest.mark.parametrize("client", [curl.Curl, transfer.Urllib])
@pytest.mark.parametrize("password", ["pa ss", "geheim/x", "geheim#1"])
def test_a_mistyped_password_is_not_quoted(client: type[curl.Curl] | type[transfer.Urllib], password: str) -> None:
    once = transfer.Source(attempts=1, timeout=1)
    for url, proxy in (
        ("http://127.0.0.1:1/", f"http://me:{password}@127.0.0.1:1"),
        (f"http://me:{password}@127.0.0.1:1/", ""),
        ("http://127.0.0.1:1/", f"htp://me:{password}@127.0.0.1:1"),
    ):
        with pytest.raises((transfer.TransferError, StoreError)) as refusal:
            transfer.fetch_text(url, once, client(proxy=proxy))
        assert password not in str(refusal.value) and password[:3] not in str(refusal.value)


def test_the_answer_of_a_tunnel_is_not_that_of_the_server(hub: server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tunnelled(curl.Curl):
        def _set(self, handle: object, *rest: object) -> None:
            super()._set(handle, *rest)  # type: ignore[arg-type]
            handle.setopt(pycurl.HTTPPROXYTUNNEL, 1)  # type: ignore[attr-defined]

    with proxy() as (address, asked):
        answer = Tunnelled(proxy=f"http://{address}").open(f"{hub.url}/artifacts/nothing-here", {}, 5)
        assert (answer.status, answer.headers["X-Of-The-Proxy"]) == (404, None)
        assert asked == [f"CONNECT {hub.url.removeprefix('http://')}"]
        answer.close()


def test_without_libcurl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curl, "pycurl", None)
    with pytest.raises(curl.MissingError, match="install the package python3-pycurl"):
        curl.Curl()
