# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers read through HTTP Range: what it costs, and what is said when the server does not do its part."""

from __future__ import annotations

import itertools
import random
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import gguf, ranges, transfer

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "hub")]

import headers
import samples
import server
import tiny_models

QUICK = transfer.Source(attempts=2, timeout=10.0, sleep=lambda seconds: None)
NAME = "llama-70b-q4_k_m"


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.Handler, "log_message", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A header of 7.6 MB and a whole tiny file, under artifacts/."""
    root = tmp_path_factory.mktemp("hub")
    (root / "artifacts").mkdir()
    headers.write(NAME, root / "artifacts", vocabulary=True)[0].rename(root / "artifacts/large.gguf")
    tiny_models.write("llama", root / "artifacts/tiny.gguf")
    return root


@pytest.fixture
def hub(folder: Path) -> Iterator[server.Hub]:
    with server.running(folder) as running:
        running.faults.append(server.Fault("claim", "large", 49_000_000_000))
        yield running


def opened(hub: server.Hub, name: str, traffic: ranges.Traffic | None = None) -> ranges.RemoteFile:
    return ranges.RemoteFile(f"{hub.url}/artifacts/{name}", QUICK, traffic or ranges.Traffic())


def refusal(hub: server.Hub, name: str = "large.gguf", traffic: ranges.Traffic | None = None) -> str:
    with pytest.raises((ranges.RangeError, gguf.GgufError)) as caught, opened(hub, name, traffic) as file:
        gguf.read_header(file)
    said = str(caught.value)
    assert said.startswith(f"{hub.url}/artifacts/{name}: "), "the message names the URL"
    return said.removeprefix(f"{hub.url}/artifacts/{name}: ")


def test_a_remote_header_is_the_local_one(hub: server.Hub, folder: Path) -> None:
    with opened(hub, "tiny.gguf") as file:
        assert gguf.read_header(file) == gguf.read_header(folder / "artifacts/tiny.gguf")
    with opened(hub, "large.gguf") as file:
        assert gguf.read_header(file) == gguf.read_header(folder / "artifacts/large.gguf", complete=False)


def test_windows_grow_and_follow_each_other(hub: server.Hub, folder: Path) -> None:
    traffic = ranges.Traffic()
    data = (folder / "artifacts/large.gguf").read_bytes()
    with opened(hub, "large.gguf", traffic) as file:
        for at in range(0, 4_000_000, 9_000):
            assert file.read(at, 9_000) == data[at : at + 9_000]
    asked = [tuple(map(int, given.removeprefix("bytes=").split("-"))) for _path, given in hub.requests]
    assert [last - first + 1 for first, last in asked] == [1 << 16, *(1 << n for n in range(16, 20)), *[1 << 20] * 3]
    assert all(then[0] == here[1] + 1 for here, then in itertools.pairwise(asked)), "nothing is read twice"
    assert traffic.requests == len(asked) and traffic.transferred == hub.sent


def test_long_lists_are_passed_by_leaps(hub: server.Hub) -> None:
    traffic = ranges.Traffic()
    with opened(hub, "large.gguf", traffic) as file:
        assert gguf.read_header(file, tables={}).tensor_count == 724
    assert traffic.transferred < 1_500_000 and traffic.requests < 15, "of 7.6 MB"


def test_a_hub_that_ignores_range_is_read_from_the_beginning_and_left(hub: server.Hub) -> None:
    hub.faults.append(server.Fault("no-range", "large"))
    traffic = ranges.Traffic()
    with opened(hub, "large.gguf", traffic) as file:
        assert gguf.read_header(file).architecture == "llama"
        assert file.whole
    assert traffic.requests == 1 and traffic.transferred < 9_000_000


def test_a_hub_that_ignores_range_is_left_when_the_budget_is_spent(hub: server.Hub) -> None:
    hub.faults.append(server.Fault("no-range", "large"))
    traffic = ranges.Traffic(1_000_000)
    assert refusal(hub, traffic=traffic) == (
        "the header does not end within the 1.0 MB that may be read, and the server ignores Range"
    )
    assert traffic.transferred == 1_000_000


def test_a_header_longer_than_the_budget(hub: server.Hub) -> None:
    traffic = ranges.Traffic(500_000)
    assert refusal(hub, traffic=traffic) == "the header does not end within the 500.0 kB that may be read"
    assert traffic.transferred == hub.sent == 500_000


def test_a_web_page_instead_of_the_file(hub: server.Hub) -> None:
    hub.faults = [server.Fault("page", "tiny")]
    assert refusal(hub, "tiny.gguf") == (
        "a web page came instead of the file: '<!DOCTYPE html><title>Sign in to this network</title>'… A login page or "
        "a proxy stands between; open the address in a browser"
    )


def test_something_else_instead_of_the_file(hub: server.Hub, folder: Path) -> None:
    (folder / "artifacts/text.gguf").write_bytes(b'{"Code": 10010205001, "Message": "no"}')
    assert refusal(hub, "text.gguf") == "byte 0: begins with b'{\"Co', a GGUF file begins with b'GGUF'"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "HTTP 401 Unauthorized. The repository asks for a token, or the token has no right to it"),
        (403, "HTTP 403 Forbidden. The repository asks for a token, or the token has no right to it"),
        (404, "HTTP 404 Not Found. Check `repo`, `revision` and `entry`"),
        (451, "HTTP 451 Unavailable For Legal Reasons"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(hub: server.Hub, status: int, message: str) -> None:
    hub.faults.append(server.Fault("refused", "large", status))
    assert refusal(hub) == message
    assert len(hub.requests) == 1


def test_a_busy_hub_is_asked_again(hub: server.Hub) -> None:
    hub.faults.append(server.Fault("busy-once", "tiny"))
    with opened(hub, "tiny.gguf") as file:
        assert gguf.read_header(file).architecture == "llama"


def test_an_empty_answer(hub: server.Hub) -> None:
    hub.faults = [server.Fault("empty", "tiny")]
    assert refusal(hub, "tiny.gguf") == "HTTP 416, there is no byte 0: the file is empty or was replaced"
    hub.faults.append(server.Fault("no-range", "tiny"))
    assert refusal(hub, "tiny.gguf") == "byte 0: the magic needs 4 bytes, the file has 0 more: truncated or corrupt"


def test_a_truncated_file(hub: server.Hub, folder: Path) -> None:
    data = (folder / "artifacts/tiny.gguf").read_bytes()
    (folder / "artifacts/short.gguf").write_bytes(data[:5000])
    assert "the file has" in refusal(hub, "short.gguf")
    (folder / "artifacts/short.gguf").write_bytes(data[:-1])
    assert f"the file at {len(data) - 1}: truncated or corrupt" in refusal(hub, "short.gguf")


def test_an_answer_that_breaks_off(hub: server.Hub) -> None:
    hub.faults.append(server.Fault("cut-once", "tiny", 1000))
    with opened(hub, "tiny.gguf") as file:
        assert gguf.read_header(file).architecture == "llama"
    hub.faults.append(server.Fault("cut", "large", 1000))
    assert refusal(hub) == "the answer ended after 1000 of 65536 bytes. Check the address and that this host reaches it"
    hub.faults.append(server.Fault("no-range", "large"))
    assert refusal(hub) == "the answer ended after 1000 of 49000000000 bytes"


def test_a_range_that_was_not_asked_for(hub: server.Hub) -> None:
    hub.faults.append(server.Fault("other-range", "large", 7))
    said = refusal(hub)
    assert said == "bytes 0 to 65535 were asked for, it says it sends 'bytes 7-65542/49000000000'"


def test_nobody_there() -> None:
    with pytest.raises(ranges.RangeError, match="Connection refused") as caught:
        ranges.RemoteFile("http://127.0.0.1:9/m.gguf", QUICK, ranges.Traffic())
    assert caught.value.unreachable


def test_secrets_stay_out_of_messages(hub: server.Hub) -> None:
    hub.faults.append(server.Fault("refused", "large", 403))
    address = hub.url.replace("http://", "http://me:hunter2@") + "/artifacts/large.gguf?token=s3cret"
    with pytest.raises(ranges.RangeError) as caught:
        ranges.RemoteFile(address, transfer.Source(token="t0ken"), ranges.Traffic())
    said = str(caught.value)
    assert said.startswith(f"{hub.url}/artifacts/large.gguf?token=***: HTTP 403")
    assert not any(secret in said for secret in ("hunter2", "s3cret", "t0ken", "me:"))


# --- servers that lie about ranges

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def lying(*answers: Answer) -> Iterator[str]:
    """A server that gives these answers in turn, the last one for ever."""
    given = list(answers)

    class Liar(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, said, body = given.pop(0) if len(given) > 1 else given[0]
            self.send_response(status)
            for name, value in said.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Liar)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/m.gguf"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


WINDOW = b"GGUF" + bytes((1 << 16) - 4)
FIRST = (206, {"Content-Range": "bytes 0-65535/1000000", "Content-Length": "65536"}, WINDOW)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(206, {}, WINDOW)], "answered with status 206 and Content-Range '' to a range request"),
        (
            [(206, {"Content-Range": "bytes 0-65535/*"}, WINDOW)],
            "answered with status 206 and Content-Range 'bytes 0-65535/*' to a range request",
        ),
        (
            [(206, {"Content-Range": "bytes 0-999999/1000000"}, WINDOW)],
            "bytes 0 to 65535 were asked for, it says it sends 'bytes 0-999999/1000000'",
        ),
        (
            [(206, {"Content-Range": "bytes 0-65535/100"}, WINDOW)],
            "bytes 0 to 65535 were asked for, it says it sends 'bytes 0-65535/100'",
        ),
        (
            [FIRST, (206, {"Content-Range": "bytes 65536-131071/2000000"}, WINDOW)],
            "its size was 1000000 bytes and now is 2000000: it was replaced while it was read",
        ),
        ([(200, {}, WINDOW)], "the server does not say how long the file is"),
        ([(204, {}, b"")], "answered with status 204 and Content-Range '' to a range request"),
    ],
    ids=["no-range-said", "no-size", "more-than-asked", "beyond-the-end", "replaced", "no-length", "no-content"],
)
def test_a_lie_is_named(answers: list[Answer], message: str) -> None:
    with lying(*answers) as url:
        with pytest.raises(ranges.RangeError) as caught, ranges.RemoteFile(url, QUICK, ranges.Traffic()) as file:
            file.read(0, 100_000)
        assert str(caught.value) == f"{url}: {message}"


def test_fewer_bytes_than_asked_for_are_taken_and_the_rest_asked_for() -> None:
    second = (206, {"Content-Range": "bytes 65536-99999/100000"}, b"x" * 34464)
    first = (206, {"Content-Range": "bytes 0-65535/100000"}, WINDOW)
    with lying(first, second) as url, ranges.RemoteFile(url, QUICK, ranges.Traffic()) as file:
        assert file.read(0, 100_000) == WINDOW + b"x" * 34464


# --- long lists


def listed(strings: list[bytes]) -> bytes:
    """A file with one list of these strings between two keys, and one tensor."""
    out = [b"GGUF", struct.pack("<IQQ", 3, 1, 3), samples.pair("general.architecture", "llama")]
    out += [samples.string("list"), struct.pack("<IIQ", 9, 8, len(strings))]
    out += [struct.pack("<Q", len(string)) + string for string in strings]
    out += [samples.pair("split.count", (1,)), samples.string("blk.0.weight"), struct.pack("<IQIQ", 1, 64, 0, 0)]
    header = b"".join(out)
    return header + bytes(-len(header) % 32) + bytes(256)


def words(count: int, seed: int) -> list[bytes]:
    """As in a vocabulary: longer towards the end, now and then very long, some that look like keys."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        length = int(dice.lognormvariate(0.7 + 1.6 * number / count, 0.6)) + 1
        if dice.random() < 0.001:
            length = dice.randrange(100, 2000)
        text = dice.randbytes(length) if dice.random() < 0.3 else b" " * length
        found.append(dice.choice([text, text, b"self.size", b"e.g"]))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_a_leap_ends_where_reading_ends(hub: server.Hub, folder: Path, seed: int) -> None:
    (folder / f"artifacts/list{seed}.gguf").write_bytes(listed(words(200_000, seed)))
    traffic, tables = ranges.Traffic(), {}
    with opened(hub, f"list{seed}.gguf", traffic) as file:
        assert gguf.read_header(file, tables=tables) == gguf.read_header(folder / f"artifacts/list{seed}.gguf")
        assert traffic.transferred < file.size / 3


@pytest.mark.parametrize(
    "strings",
    [[b""] * 300_000, [b"x" * 3000] * 1000, [struct.pack("<Q", 5)] * 200_000, [b"x" * 20] * 60_000 + [b""] * 60_000],
    ids=["empty", "long", "like-lengths", "empty-at-the-end"],
)
def test_a_list_that_allows_no_leap_is_read(hub: server.Hub, folder: Path, strings: list[bytes]) -> None:
    (folder / "artifacts/odd.gguf").write_bytes(listed(strings))
    with opened(hub, "odd.gguf") as file:
        assert gguf.read_header(file, tables={}) == gguf.read_header(folder / "artifacts/odd.gguf")


# --- tables that several files share


def test_the_tokenizer_of_a_second_variant_is_not_fetched_again(hub: server.Hub) -> None:
    tables: gguf.Tables = {}
    with opened(hub, "large.gguf") as file:
        first = gguf.read_header(file, tables=tables)
    again = ranges.Traffic()
    with opened(hub, "large.gguf", again) as file:
        assert gguf.read_header(file, tables=tables) == first
    assert again.transferred < 400_000


def test_another_tokenizer_of_as_many_tokens_is_read_after_all(hub: server.Hub, folder: Path) -> None:
    with opened(hub, "large.gguf") as file:
        right = gguf.read_header(file)
    tables: gguf.Tables = {("tokenizer.ggml.tokens", 128256): 1_000_003, ("tokenizer.ggml.merges", 280147): 77}
    with opened(hub, "large.gguf") as file:
        assert gguf.read_header(file, tables=tables) == right
