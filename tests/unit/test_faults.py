# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault the test hub knows, on both hubs' protocols and through both clients: the file comes whole, or a message
says what is wrong, where, and what to do. Never a wrong file in its place."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.hubs import HubError
from ansible_collections.onprem.llm.plugins.module_utils.model_store import curl, sources
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Source, StoreError

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples
import server

REPO, NAME = "tiny/llama", "m.gguf"
WHERE = f"{REPO}/{NAME}"
SIZE = 300_000
TOKEN = "hub-t0ken"
AGAIN = "if it stays so, the source serves the file wrongly: use another one"

#: kind -> (value, seconds, what the message says when each answer is like that; empty: the file comes all the same)
FAULTS: dict[str, tuple[int, float, str]] = {
    "wrong": (200_000, 0, "the bytes are not the ones promised: expected sha256 .* Run again; if it stays so"),
    "cut": (100_000, 0, ""),
    "stall": (100_000, 0, ""),
    "slow": (500, 0, r"only \d+ bytes came in \d seconds.* use another source"),
    "unsized": (100_000, 0, ""),
    "truncated": (1000, 0, f"the server offers 299000 bytes, where 300000 were expected. .*{AGAIN}"),
    "no-range": (0, 0, ""),
    "other-range": (7, 0, ""),
    "claim": (SIZE + 5, 0, f"the server offers 300005 bytes, where 300000 were expected.*{AGAIN}"),
    "empty": (0, 0, f"the server offers 0 bytes, where 300000 were expected.*{AGAIN}"),
    "page": (0, 0, f"a web page came instead of the file, a login page or proxy stands between.*{AGAIN}"),
    "missing": (0, 0, "HTTP 404 Not Found. There is no such file, repository or revision: check `repo`"),
    "refused": (403, 0, "HTTP 403 Forbidden. The source asks for a token, or refuses the one it got"),
    "busy": (0, 0, "HTTP 429 Too Many Requests. The source limits how often it may be asked"),
    "busy-date": (0, 0, "HTTP 429 Too Many Requests. The source limits how often it may be asked"),
    "loop": (0, 0, "redirected 10 times, at last to .* Check the address of the source"),
    "astray": (0, 0, r"\(it leads to http.*\). Check the address, and that this host reaches it"),
    "bad-hash": (0, 0, "the bytes are not the ones promised"),
    "list-refused": (403, 0, "could not be listed. .*HTTP 403 Forbidden. The source asks for a token"),
    "list-busy": (0, 0, "could not be listed. .*HTTP 429 Too Many Requests. The source limits"),
    "list-page": (0, 0, "could not be listed. .*did not answer with JSON but with '<!DOCTYPE"),
    "list-cut": (0, 0, "could not be listed. .*the answer ended after"),
}


def test_every_fault_of_the_hub_is_here() -> None:
    assert set(FAULTS) == set(server.FAULTS)
    assert {kind for kind, (_value, _seconds, said) in FAULTS.items() if said} - {"slow"} == server.HOPELESS


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[server.Hub]:
    folder = tmp_path / "root/models" / REPO
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(samples.gguf(rows=4000, tensors=1)[:SIZE].ljust(SIZE, b"x"))
    with server.running(tmp_path / "root", token=TOKEN) as running:
        running.cdn = running.url.replace("127.0.0.1", "localhost")
        yield running


@pytest.fixture(params=["urllib", "libcurl"])
def transport(request: pytest.FixtureRequest) -> transfer.Transport:
    if request.param == "urllib":
        return transfer.Urllib("")
    pytest.importorskip("pycurl")
    return curl.Curl(stall_seconds=2)


class Fetch:
    """One model from one hub, as the transfer program does it."""

    def __init__(self, hub: server.Hub, kind: str, folder: Path, transport: transfer.Transport) -> None:
        self.source = Source("hub", kind, hub.url, token=TOKEN)
        self.model = Model("m", REPO, "master", sources=(self.source,))
        self.target, self.transport = folder / NAME, transport
        self.pauses: list[float] = []
        self.manner = transfer.Source(attempts=4, timeout=2, sleep=self.pauses.append, chance=lambda: 0.0)

    def impatient(self) -> None:
        """For servers that let us wait."""
        self.manner = replace(self.manner, timeout=0.4)
        if isinstance(self.transport, curl.Curl):
            self.transport = curl.Curl(stall_seconds=0.4)

    def __call__(self) -> transfer.Received:
        listed, _warnings = sources.listing(self.model, self.transport, self.manner)
        located, paths = sources.found(listed, self.source, self.transport, self.manner)
        assert paths == {NAME}
        identity = sources.with_token(located, self.manner)
        (file,) = listed.files
        return transfer.download(
            sources.url(listed, located, NAME),
            self.target,
            identity,
            size=file.size,
            sha256=file.sha256,
            transport=self.transport,
        )


@pytest.fixture(params=["modelscope", "huggingface"])
def fetch(hub: server.Hub, tmp_path: Path, request: pytest.FixtureRequest, transport: transfer.Transport) -> Fetch:
    return Fetch(hub, request.param, tmp_path / "here", transport)


def whole(hub: server.Hub, fetch: Fetch) -> bool:
    return fetch.target.read_bytes() == (hub.tree.root / "models" / REPO / NAME).read_bytes()


def switch_on(hub: server.Hub, fetch: Fetch, kind: str, name: str) -> None:
    if kind in ("slow", "stall"):
        fetch.impatient()
    value, seconds, _said = FAULTS[kind]
    hub.faults = [server.Fault(name, REPO if kind.startswith("list-") else WHERE, value, seconds)]
    if kind in ("no-range", "other-range"):  # these show only when something was cut before
        hub.faults.append(server.Fault("cut-once", WHERE, 100_000))


@pytest.mark.parametrize("kind", FAULTS)
def test_each_time(hub: server.Hub, fetch: Fetch, kind: str) -> None:
    switch_on(hub, fetch, kind, kind)
    said = FAULTS[kind][2]
    if not said:
        fetch()
        assert whole(hub, fetch)
        return
    with pytest.raises((transfer.TransferError, StoreError, HubError)) as failure:
        fetch()
    message = str(failure.value)
    assert re.search(said, message), message
    assert REPO in message and hub.url in message, "names what, and where"
    assert NAME in message or kind.startswith("list-")
    assert TOKEN not in message and "Signature=xyz" not in message
    assert not fetch.target.exists()
    assert len(hub.requests) < 60, "it gives up"
    hub.faults = []
    fetch()
    assert whole(hub, fetch)


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind not in ("wrong", "missing", "loop", "bad-hash")])
def test_once(hub: server.Hub, fetch: Fetch, kind: str) -> None:
    """What happens once costs an attempt and not the transfer. What cannot be believed is not asked again at once."""
    switch_on(hub, fetch, kind, f"{kind}-once")
    if kind == "list-page":
        with pytest.raises(StoreError, match="did not answer with JSON"):
            fetch()
    fetch()
    assert whole(hub, fetch)


@pytest.mark.parametrize(("kind", "seconds"), [("busy", 7), ("busy-date", 7), ("list-busy", 7)])
def test_a_server_that_says_when_to_come_back(hub: server.Hub, fetch: Fetch, kind: str, seconds: int) -> None:
    hub.faults = [server.Fault(f"{kind}-once", REPO, seconds)]
    fetch()
    assert seconds - 2 <= max(fetch.pauses) <= seconds


def test_a_list_that_is_refused_is_asked_four_times(hub: server.Hub, fetch: Fetch) -> None:
    hub.faults = [server.Fault("list-refused", REPO, 403)]
    with pytest.raises(StoreError):
        fetch()
    assert len(hub.requests) >= 4
    assert fetch.pauses == [0.5, 1.0, 2.0]


def test_nothing_is_fetched_twice_after_a_cut(hub: server.Hub, fetch: Fetch) -> None:
    hub.faults = [server.Fault("cut-once", WHERE, 123_456)]
    assert fetch().transferred == SIZE
    assert hashlib.sha256(fetch.target.read_bytes()).hexdigest()
