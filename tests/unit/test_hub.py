# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub of the tests answers as the real ones do, and lies exactly as it is told to."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import sys
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples
import server

from ansible_collections.onprem.llm.plugins.module_utils import gguf, hubs

REPO = "onprem/m-GGUF"
SHARD = "F16/m-F16-00001-of-00002.gguf"
MODELSCOPE = f"/api/v1/models/{REPO}"
BYTES = MODELSCOPE + f"/repo?Revision=master&FilePath={SHARD}"
RESOLVE = f"/{REPO}/resolve/main/{SHARD}"


class Answer:
    """What came: status, headers with lower-case names, body; ``cut`` when less came than announced."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.cut = False
        try:
            self.body = answer.read()
        except http.client.IncompleteRead as error:
            self.body, self.cut = error.partial, True

    def json(self) -> Any:
        return json.loads(self.body)


def ask(hub: server.Hub, path: str, *, method: str = "GET", follow: bool = False, **headers: str) -> Answer:
    address = urlsplit(path)
    connection = http.client.HTTPConnection(address.netloc or urlsplit(hub.url).netloc, timeout=20)
    try:
        connection.request(
            method,
            address.path + ("?" + address.query if address.query else ""),
            headers={**headers, "Connection": "close"},
        )
        answer = Answer(connection.getresponse())
    finally:
        connection.close()
    return ask(hub, answer.headers["location"], method=method, **headers) if follow and answer.status == 302 else answer


def stored(hub: server.Hub, **headers: str) -> Answer:
    """The bytes of the shard, from where the hub redirects to."""
    return ask(hub, BYTES, follow=True, **headers)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root/models" / REPO
    samples.split(folder / "F16", "m-F16", 2)
    (folder / "README.md").write_text("# m\n")
    (tmp_path / "root/artifacts").mkdir()
    return tmp_path / "root"


@pytest.fixture
def hub(root: Path) -> Iterator[server.Hub]:
    with server.running(root) as running:
        yield running


@pytest.fixture
def data(root: Path) -> bytes:
    return (root / "models" / REPO / SHARD).read_bytes()


# Protocols -----------------------------------------------------------------------------------------------------------


def test_modelscope_redirects_large_files_and_sends_small_ones_whole(hub: server.Hub, data: bytes) -> None:
    sha256 = hashlib.sha256(data).hexdigest()
    redirect = ask(hub, BYTES)
    assert redirect.status == 302 and redirect.headers["x-linked-etag"] == sha256
    part = stored(hub, Range="bytes=10-19")
    assert (part.status, part.body) == (206, data[10:20])
    assert (
        part.headers["content-range"] == f"bytes 10-19/{len(data)}" and part.headers["x-linked-etag"] == f'"{sha256}"'
    )
    past = stored(hub, Range=f"bytes={len(data)}-")
    assert past.status == 416 and past.headers["content-range"] == f"bytes */{len(data)}"
    small = ask(hub, f"{MODELSCOPE}/repo?Revision=master&FilePath=README.md", Range="bytes=2-")
    assert (small.status, small.body) == (200, b"# m\n")


def test_modelscopes_file_list_ends_at_3000_entries_without_a_word(root: Path) -> None:
    folder = root / "models/onprem/many"
    for number in range(3100):
        path = folder / f"{number % 3}/{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    with server.running(root) as hub:
        files = ask(hub, "/api/v1/models/onprem/many/repo/files?Revision=master&Recursive=True").json()["Data"]["Files"]
        assert len(files) == 3000
        part = ask(hub, "/api/v1/models/onprem/many/repo/files?Revision=master&Recursive=True&Root=1").json()
        assert len(part["Data"]["Files"]) == 1033 and {file["Type"] for file in part["Data"]["Files"]} == {"blob"}
        flat = ask(hub, "/api/v1/models/onprem/many/repo/files?Revision=master&Recursive=False").json()["Data"]["Files"]
        assert [(file["Path"], file["Type"]) for file in flat] == [("0", "tree"), ("1", "tree"), ("2", "tree")]


def test_hugging_face_names_commit_size_and_hash_with_the_redirect(hub: server.Hub, data: bytes) -> None:
    sha256 = hashlib.sha256(data).hexdigest()
    hub.cdn = f"http://localhost:{hub.server_address[1]}"
    hub.xet = True
    commit = ask(hub, f"/api/models/{REPO}/revision/main").json()["sha"]
    assert hubs.is_commit(commit) and ask(hub, f"/api/models/{REPO}").json()["sha"] == commit
    for method in ("HEAD", "GET"):
        redirect = ask(hub, RESOLVE, method=method)
        assert redirect.status == 302 and redirect.headers["location"].startswith(hub.cdn + "/cdn/")
        assert redirect.headers["x-repo-commit"] == commit and redirect.headers["x-linked-size"] == str(len(data))
        assert redirect.headers["x-linked-etag"] == redirect.headers["etag"] == f'"{sha256}"'
        assert "x-xet-hash" in redirect.headers
    assert ask(hub, RESOLVE.replace("main", commit), follow=True).body == data
    small = ask(hub, f"/{REPO}/resolve/main/README.md")
    assert small.headers["etag"] == '"' + hashlib.sha1(b"blob 4\0# m\n").hexdigest() + '"'


def test_hugging_face_lists_in_pages(hub: server.Hub, data: bytes) -> None:
    hub.page = 2
    first = ask(hub, f"/api/models/{REPO}/tree/main?recursive=true")
    assert 'rel="next"' in first.headers["link"]
    second = ask(hub, first.headers["link"].partition(">")[0].lstrip("<"))
    assert "link" not in second.headers
    entries = {entry["path"]: entry for entry in first.json() + second.json()}
    assert list(entries) == ["F16", SHARD, SHARD.replace("00001-", "00002-"), "README.md"]
    large = entries[SHARD]
    text = server.pointer(hashlib.sha256(data).hexdigest(), len(data))
    assert large["lfs"] == {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": len(text)}
    assert large["oid"] == hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
    flat = ask(hub, f"/api/models/{REPO}/tree/main").json()
    assert [entry["type"] for entry in flat] == ["directory", "file"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/no/such", "RepoNotFound"),
        (f"/api/models/{REPO}/revision/v9", "RevisionNotFound"),
        (f"/{REPO}/resolve/main/none.txt", "EntryNotFound"),
    ],
)
def test_hugging_face_says_what_is_missing(hub: server.Hub, path: str, code: str) -> None:
    answer = ask(hub, path)
    assert answer.status == 404 and answer.headers["x-error-code"] == code


def test_a_commit_stays_what_it_was(hub: server.Hub, root: Path) -> None:
    before = ask(hub, f"/api/models/{REPO}/revision/main").json()["sha"]
    (root / "models" / REPO / "new.txt").write_text("new")
    after = ask(hub, f"/api/models/{REPO}/revision/main").json()["sha"]
    assert before != after
    assert "new.txt" not in ask(hub, f"/api/models/{REPO}/tree/{before}?recursive=1").body.decode()
    assert ask(hub, f"/{REPO}/resolve/{after}/new.txt").body == b"new"
    assert ask(hub, f"/{REPO}/resolve/{before}/new.txt").status == 404


def test_a_token_is_asked_for_and_does_not_travel(hub: server.Hub) -> None:
    hub.token = "s3cret"
    assert ask(hub, BYTES).status == ask(hub, RESOLVE).status == 401
    bearer = {"Authorization": "Bearer s3cret"}
    assert ask(hub, BYTES, **bearer).status == ask(hub, RESOLVE, **bearer).status == 302
    assert ask(hub, BYTES, Cookie="a=b; m_session_id=s3cret").status == 302
    assert ask(hub, RESOLVE, Cookie="m_session_id=s3cret").status == 401
    hub.cookie = True
    assert ask(hub, BYTES, **bearer).status == 401
    hub.cookie, hub.cdn = False, f"http://localhost:{hub.server_address[1]}"
    assert stored(hub, **bearer).status == 400


# Faults --------------------------------------------------------------------------------------------------------------


def test_faults_are_named(hub: server.Hub) -> None:
    assert server.Fault.parse("stall-once:m-F16:1000:2.5") == server.Fault("stall-once", "m-F16", 1000, 2.5)
    with pytest.raises(ValueError, match="no fault 'sulk'; there is: wrong, cut"):
        server.Fault.parse("sulk:m")
    assert set(server.FAULTS) > server.HOPELESS


@pytest.mark.parametrize(
    ("fault", "status", "change"),
    [
        ("wrong", 200, lambda data: bytes([data[0] ^ 1]) + data[1:]),
        ("wrong:m-F16:7000", 200, lambda data: data[:7000] + bytes([data[7000] ^ 1]) + data[7001:]),
        ("cut:m-F16:5000", 200, lambda data: data[:5000]),
        ("unsized:m-F16:5000", 200, lambda data: data[:5000]),
        ("unsized", 200, lambda data: data),
        ("truncated:m-F16:1000", 200, lambda data: data[:-1000]),
        ("claim:m-F16:9000", 200, lambda data: (data + bytes(9000))[:9000]),
        ("empty", 200, lambda data: b""),
        ("page", 200, lambda data: server.PAGE),
        ("stall:m-F16:100:0.1", 200, lambda data: data),
        ("slow:m-F16:100000", 200, lambda data: data),
    ],
)
@pytest.mark.parametrize("sendfile", [True, False])
def test_what_is_sent_instead(
    hub: server.Hub, data: bytes, fault: str, status: int, change: Any, sendfile: bool
) -> None:
    hub.sendfile = sendfile
    hub.faults = [server.Fault.parse(fault if ":" in fault else fault + ":m-F16")]
    answer = stored(hub)
    assert (answer.status, answer.body) == (status, change(data))
    assert answer.cut == fault.startswith("cut") and ("content-length" in answer.headers) != fault.startswith("unsized")
    assert hub.sent_for[f"{REPO}/{SHARD}"] == hub.sent == len(answer.body)


def test_faults_of_ranges(hub: server.Hub, data: bytes) -> None:
    hub.faults = [server.Fault("no-range", SHARD)]
    assert stored(hub, Range="bytes=100-").body == data
    hub.faults = [server.Fault("other-range", SHARD, 7)]
    assert stored(hub, Range="bytes=100-199").body == data[107:207]
    hub.faults = [server.Fault("wrong", SHARD, 150)]
    assert stored(hub, Range="bytes=200-").body == data[200:] and stored(hub, Range="bytes=100-").body != data[100:]


def test_faults_of_answers(hub: server.Hub) -> None:
    for fault, status in (("refused", 403), ("missing", 404), ("busy", 429), ("busy-date", 429)):
        hub.faults = [server.Fault(fault, SHARD, 403 if fault == "refused" else 5)]
        answer = stored(hub)
        assert answer.status == status
        if fault == "busy":
            assert answer.headers["retry-after"] == "5"
        if fault == "busy-date":
            assert 0 < parsedate_to_datetime(answer.headers["retry-after"]).timestamp() - time.time() <= 5
    hub.faults = [server.Fault("loop", SHARD)]
    assert ask(hub, BYTES).headers["location"] == hub.url + BYTES
    hub.faults = [server.Fault("astray", SHARD)]
    with pytest.raises(ConnectionRefusedError):
        ask(hub, BYTES, follow=True)


@pytest.mark.parametrize("path", [f"{MODELSCOPE}/repo/files?Revision=master", f"/api/models/{REPO}/tree/main"])
def test_faults_of_file_lists(hub: server.Hub, path: str) -> None:
    whole = ask(hub, path).body
    for fault, status in (("list-refused", 403), ("list-busy", 429), ("list-page", 200), ("list-cut", 200)):
        hub.faults = [server.Fault(f"{fault}-once", REPO, 403)]
        answer = ask(hub, path)
        assert answer.status == status and answer.body != whole and answer.cut == (fault == "list-cut")
        assert ask(hub, path).body == whole


def test_bad_hash_and_once(hub: server.Hub, data: bytes) -> None:
    hub.faults = [server.Fault("bad-hash", SHARD)]
    sha256 = hashlib.sha256(data).hexdigest()
    assert sha256[::-1] in ask(hub, f"{MODELSCOPE}/repo/files?Recursive=true").body.decode()
    assert sha256[::-1] in ask(hub, f"/api/models/{REPO}/tree/main?recursive=true").body.decode()
    hub.faults = [server.Fault("cut-once", "m-F16", 10)]
    assert ask(hub, BYTES, method="HEAD", follow=True).status == 200  # spends nothing
    assert stored(hub).cut and not stored(hub).cut


def test_a_stall_lasts_until_the_client_leaves(hub: server.Hub) -> None:
    hub.faults = [server.Fault("stall", SHARD, 100)]
    location = urlsplit(ask(hub, BYTES).headers["location"])
    before = threading.active_count()
    with socket.create_connection((location.hostname, location.port), timeout=0.2) as line:
        line.sendall(f"GET {location.path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        received = b""
        with pytest.raises(TimeoutError):
            while True:
                received += line.recv(4096)
        assert len(received.partition(b"\r\n\r\n")[2]) == 100
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline, "the server still waits for a client that left"
        time.sleep(0.01)


# Size and speed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sendfile", [True, False])
def test_a_large_file_takes_no_memory(hub: server.Hub, root: Path, sendfile: bool) -> None:
    samples.seeded(root / "models" / REPO / "large.gguf", 60_000_000, 1)
    hub.sendfile = sendfile
    tracemalloc.start()
    try:
        location = ask(hub, BYTES.replace(SHARD, "large.gguf")).headers["location"]
        with urllib.request.urlopen(location) as answer:
            while answer.read(1 << 20):
                pass
        assert hub.sent == 60_000_000 and tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_the_rate_is_that_of_the_whole_server(hub: server.Hub, data: bytes) -> None:
    hub.rate = 4 * len(data)
    started = time.monotonic()
    threads = [threading.Thread(target=stored, args=(hub,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.sent == 4 * len(data) and time.monotonic() - started > 0.8
    hub.rate = 0
    assert stored(hub).body == data


def test_seeded_files_are_the_same_each_time(tmp_path: Path) -> None:
    one, two = (samples.seeded(tmp_path / name, 3_000_001, 7) for name in ("one", "two"))
    other = samples.seeded(tmp_path / "other", 3_000_001, 8)
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    assert one.stat().st_blocks * 512 >= 3_000_000
    paths = samples.seeded_split(tmp_path / "set", "big", 2, 5_000_000)
    gguf.check_set({path.name: path for path in paths})
    assert all(5_000_000 <= path.stat().st_size < 5_001_000 for path in paths)
