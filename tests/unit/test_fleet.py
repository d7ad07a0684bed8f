# SPDX-License-Identifier: GPL-3.0-or-later
"""Who fetches and who takes from whom: as decided, and by several hosts on the loopback."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from test_swarm import free_port, until

from ansible_collections.onprem.llm.plugins.module_utils.model_store import announce, types
from ansible_collections.onprem.llm.plugins.module_utils.model_store import fleet as fleets
from ansible_collections.onprem.llm.plugins.module_utils.model_store.announce import Peer, State
from ansible_collections.onprem.llm.plugins.module_utils.model_store.fleet import (
    Fleet,
    ahead,
    decide,
    hopeless,
    unserved,
)
from ansible_collections.onprem.llm.plugins.module_utils.model_store.pieces import TreeHash
from ansible_collections.onprem.llm.plugins.module_utils.model_store.store import working
from ansible_collections.onprem.llm.plugins.module_utils.transfer import part_of

# --- decided


def fleet(*words: str) -> list[Peer]:
    """Hosts a, b, c, … by one word each: what they say of file k, or dead, unknown, failed; + for dead with a word."""
    peers = []
    for name, word in zip("abcdefgh", words, strict=False):
        life = word if word in ("dead", "unknown") else "live"
        files = {} if word in ("dead", "unknown", "failed", "-") else {"k": word}
        peers.append(Peer(name, life, State(name, 1, files, {"k": "403"} if word == "failed" else {})))
    return peers


@pytest.mark.parametrize(
    ("words", "me", "choice"),
    [
        ("wanted wanted wanted", "a", "fetch"),
        ("wanted wanted wanted", "b", "wait"),
        ("fetching wanted wanted", "c", "follow"),
        ("fetching following wanted", "c", "follow"),
        ("wanted fetching wanted", "a", "follow"),  # who took over goes on though the first is back
        ("complete fetching wanted", "c", "take"),
        ("wanted wanted complete", "a", "take"),
        ("dead wanted wanted", "b", "fetch"),
        ("dead following following", "c", "wait"),
        ("unknown wanted wanted", "b", "wait"),
        ("wanted wanted unknown", "a", "wait"),  # it may have the file
        ("wanted dead", "a", "fetch"),
        ("failed wanted wanted", "b", "fetch"),
        ("failed failed wanted", "c", "fetch"),
        ("- wanted wanted", "b", "fetch"),  # does not want this one
    ],
)
def test_the_choice(words: str, me: str, choice: str) -> None:
    assert decide("k", me, fleet(*words.split())) == choice


def test_only_the_living_are_asked() -> None:
    dead = Peer("a", "dead", State("a", 1, {"k": "complete"}))
    assert decide("k", "b", [dead, *fleet("-", "wanted")[1:]]) == "fetch"


@pytest.mark.parametrize(
    ("words", "me", "chain"),
    [
        ("fetching following following following", "d", "c b a"),
        ("fetching following following following", "b", "a"),
        ("following following fetching following", "b", "a d c"),
        ("following following fetching following", "c", ""),
        ("fetching dead wanted following", "d", "a"),
        ("following following", "b", ""),
        ("complete following following following", "d", "c b a"),
        ("complete following complete following", "d", "c a"),
        ("complete following complete following", "b", "a c"),
    ],
)
def test_the_chain(words: str, me: str, chain: str) -> None:
    assert ahead("k", me, fleet(*words.split())) == chain.split()


@pytest.mark.parametrize(
    ("words", "still"),
    [
        ("complete complete complete", False),
        ("complete wanted complete", True),
        ("complete following complete", True),
        ("complete dead complete", False),
        ("complete unknown complete", True),
        ("complete failed -", False),
    ],
)
def test_who_is_still_to_be_served(words: str, still: bool) -> None:
    assert unserved(["k"], "a", fleet(*words.split())) is still
    assert not unserved([], "a", fleet("complete", "wanted"))


def test_when_two_found_no_source_the_others_need_not_ask() -> None:
    gone = [Peer(name, "dead", State(name, 1, {}, {"k": f"{name}: timed out"}, {"k": "unreachable"})) for name in "ab"]
    c, d = (
        Peer("c", "live", State("c", 1, {"k": "wanted"})),
        Peer("d", "live", State("d", 1, {}, {"k": "403"}, {"k": ""})),
    )
    assert hopeless("k", "c", [*gone, c, d]) == "a: timed out (so it was on a and b; this host did not ask again)"
    assert not hopeless("k", "c", [gone[0], c, d])
    assert not hopeless("k", "b", [*gone, c, d]), "one's own failure is no second opinion"


@pytest.mark.parametrize("spelling", ["fd00:0:0:0:0:0:0:1", "fd00::1", "FD00::0001"])
def test_an_address_is_known_in_every_spelling(spelling: str) -> None:
    assert announce.same(spelling) == announce.same("fd00::1") != announce.same("fd00::2")


# --- done

SIZE = 3_000_000
DATA = random.Random(4).randbytes(SIZE)
KEY = sha256(DATA).hexdigest()


def tree(data: bytes) -> types.Pieces:
    made = TreeHash(len(data))
    made.update(data)
    return made.pieces()


PIECES = tree(DATA)


class Host:
    """One host of the fleet, and a hub that it alone sees."""

    def __init__(self, which: int, names: str, ports: tuple[int, int], folder: Path) -> None:
        peers = tuple((name, f"127.0.0.{n + 1}") for n, name in enumerate(names))
        self.folder = folder / names[which]
        self.folder.mkdir(exist_ok=True)
        self.target = self.folder / "file"
        told = types.Fleet(names[which], f"127.0.0.{which + 1}", peers, *ports)
        self.fleet = Fleet(told, self.folder / ".fleet")
        self.fetched = 0
        self.seen = bytearray()

    def watch(self) -> Callable[[bytes], None]:
        self.seen.clear()
        return self.seen.extend

    def write(self, until: int) -> None:
        """Fetch from the hub to this byte."""
        part = part_of(self.target)
        with open(part, "ab") as file:
            start = file.tell()
            file.write(DATA[start:until])
        self.fetched += max(until - start, 0)

    def want(self) -> str:
        return self.fleet.want(KEY, SIZE, self.target, lambda state, here: None, self.watch)

    def have(self) -> None:
        assert self.target.read_bytes() == DATA
        self.fleet.have(KEY, self.target, SIZE, PIECES)

    def finish_fetching(self) -> None:
        self.write(SIZE)
        part_of(self.target).rename(self.target)
        self.have()

    def give(self) -> str:
        self.fleet.finish()
        return "given"

    def run(self) -> str:
        """All that a transfer does."""
        how = self.want()
        if how == "fetch":
            self.finish_fetching()
        else:
            self.have()
        self.fleet.finish()
        return how


def until_seen(size: int, *hosts: Host) -> None:
    until(lambda: all(len(host.seen) == size for host in hosts))


Make = Callable[[int, str], Host]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """make(which of the hosts, all their names)"""
    monkeypatch.setattr(announce, "REFUSING", 0.5)
    ports, made = (free_port(), free_port()), []

    def make(which: int, names: str) -> Host:
        made.append(Host(which, names, ports, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.fleet.close()


@pytest.fixture
def go() -> Iterator[Callable[[Callable[[], str]], Future[str]]]:
    pool = ThreadPoolExecutor(16)
    yield pool.submit
    pool.shutdown(wait=False, cancel_futures=True)


Go = Callable[[Callable[[], str]], "Future[str]"]


def test_the_hub_is_asked_once(make: Make, go: Go) -> None:
    hosts = [make(n, "abcd") for n in range(4)]
    for host in hosts:
        host.fleet.wants([KEY])
    how = [one.result(60) for one in [go(host.run) for host in hosts]]
    assert how == ["fetch", "done", "done", "done"]
    assert sum(host.fetched for host in hosts) == SIZE
    assert all(host.target.read_bytes() == DATA for host in hosts)


def test_the_bytes_are_followed_while_they_come(make: Make, go: Go) -> None:
    a, b, c = (make(n, "abc") for n in range(3))
    for host in (a, b, c):
        host.fleet.wants([KEY])
    assert a.want() == "fetch"
    others = [go(b.want), go(c.want)]
    for here in (1_000_000, 2_000_000, SIZE):
        a.write(here)
        until_seen(here, b, c)
    assert not any(one.done() for one in others), "nobody has seen yet that the bytes are right"
    part_of(a.target).rename(a.target)
    a.have()
    assert [one.result(60) for one in others] == ["done", "done"]
    assert b.target.read_bytes() == c.target.read_bytes() == b.seen == c.seen == DATA
    assert (b.fleet.received, c.fleet.received) == (SIZE, SIZE)
    until(lambda: a.fleet.sent + b.fleet.sent == 2 * SIZE)
    assert b.fleet.sent == SIZE, "a chain: each takes from the one before it"


def test_the_next_goes_on_where_the_first_died(make: Make, go: Go) -> None:
    a, b, c = (make(n, "abc") for n in range(3))
    for host in (a, b, c):
        host.fleet.wants([KEY])
    assert a.want() == "fetch"
    others = [go(b.run), go(c.run)]
    a.write(2_000_000)
    until_seen(2_000_000, b, c)
    a.fleet.close()
    assert [one.result(60) for one in others] == ["fetch", "done"]
    assert b.fetched == SIZE - 2_000_000
    # The dead one comes back with what it had, and finds it complete elsewhere.
    b.fleet.close()
    a = make(0, "ab")
    b2 = make(1, "ab")
    b2.have()
    b2.fleet.wants([])
    a.fleet.wants([KEY])
    assert a.want() == "done"
    assert a.target.read_bytes() == DATA
    until(lambda: 0 < a.fleet.received <= SIZE - 2_000_000 + PIECES.size)


def test_a_port_that_is_taken_is_named(make: Make, tmp_path: Path) -> None:
    a = make(0, "ab")
    told = a.fleet._fleet
    with pytest.raises(types.StoreError, match=f"127.0.0.1:{told.swarm_port}, where .*ss -ltnp sport = :"):
        Fleet(told, tmp_path / "second")
    a.fleet.wants([])
    second = Fleet(dataclasses.replace(told, swarm_port=free_port()), tmp_path / "second")
    try:
        with pytest.raises(types.StoreError, match=f"127.0.0.1:{told.announce_port}, where"):
            second.wants([])
    finally:
        second.close()


def test_when_the_first_fails_the_next_tries_and_doubts_what_came(make: Make, go: Go) -> None:
    a, b, c = (make(n, "abc") for n in range(3))
    for host in (a, b, c):
        host.fleet.wants([KEY])
    assert a.want() == "fetch"
    taking = [go(b.want), go(c.want)]
    part_of(a.target).write_bytes(bytes(1_000_000))
    until_seen(1_000_000, b, c)
    a.fleet.failed(KEY, "the bytes are not the ones promised", "wrong")
    assert taking[0].result(60) == "fetch"
    part_of(b.target).unlink()  # transfer.download finds that out by itself
    b.finish_fetching()
    assert taking[1].result(60) == "done"
    assert c.target.read_bytes() == DATA


@pytest.mark.parametrize("end", ["dies", "fails"])
def test_two_that_follow_each_other_do_not_wait_for_ever(
    make: Make, go: Go, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(announce, "UNHEARD", 1.0)
    monkeypatch.setattr(fleets, "STALLED", 1.0)
    b, c = make(1, "abc"), make(2, "abc")
    for host in (b, c):
        host.fleet.wants([KEY])
    assert b.want() == "fetch", "a was not heard"
    following = go(c.want)
    b.write(2_000_000)
    until_seen(2_000_000, c)
    a = make(0, "abc")
    a.fleet.wants([KEY])
    first = go(a.want)
    until_seen(2_000_000, a)
    if end == "dies":
        b.fleet.close()
    else:
        b.fleet.failed(KEY, "403")
    assert first.result(30) == "fetch"
    a.finish_fetching()
    assert following.result(30) == "done"
    assert a.fetched == SIZE - 2_000_000
    assert c.target.read_bytes() == DATA


def test_what_came_is_kept_when_no_source_answers(make: Make, go: Go) -> None:
    a, b, c = (make(n, "abc") for n in range(3))
    for host in (a, b, c):
        host.fleet.wants([KEY])
    assert a.want() == "fetch"
    taking = [go(b.want), go(c.want)]
    a.write(2_000_000)
    until_seen(2_000_000, b, c)
    a.fleet.failed(KEY, "timed out", "unreachable")
    assert taking[0].result(30) == "fetch"
    b.finish_fetching()
    assert taking[1].result(30) == "done"
    assert b.fetched == SIZE - 2_000_000
    assert c.fleet.received == SIZE, "nothing came twice"


def test_the_third_does_not_try_what_two_could_not(make: Make, go: Go) -> None:
    a, b, c = (make(n, "abc") for n in range(3))
    for host in (a, b, c):
        host.fleet.wants([KEY])
    assert a.want() == "fetch"
    second, third = go(b.want), go(c.want)
    a.fleet.failed(KEY, "hub: timed out", "unreachable")
    assert second.result(30) == "fetch"
    b.fleet.failed(KEY, "hub: timed out", "unreachable")
    with pytest.raises(types.StoreError, match=r"hub: timed out \(so it was on a and b; this host did not ask again\)"):
        third.result(30)


def test_hosts_that_never_answered_are_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "UNHEARD", 1.5)
    a, b = make(0, "abc"), make(1, "abc")
    b.fleet.wants([])
    told: list[str] = []
    a.fleet.wants([KEY], told.append)
    until(lambda: bool(told))
    port = a.fleet._fleet.announce_port
    assert f"from c at 127.0.0.3:{port} (" in told[0]
    assert "Connection refused" in told[0]
    assert "each of them fetches for itself" in told[0]
    assert "b at" not in told[0]


def test_one_busy_with_another_file_is_waited_for(make: Make, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "UNASKED", 3.0)
    a, b = make(0, "ab"), make(1, "ab")
    a.target.write_bytes(DATA)
    a.have()
    b.fleet.wants([KEY, "other"])
    a.fleet.wants([])
    other = b.folder / "other"
    assert b.fleet.want("other", 10_000, other, lambda state, here: None) == "fetch"
    giving = go(a.give)
    end = time.monotonic() + 6
    with open(part_of(other), "ab") as file:
        while time.monotonic() < end:
            file.write(b"x")
            file.flush()
            time.sleep(0.1)
    assert not giving.done()
    giving.result(30)  # and not for ever, when nothing moves


def test_small_files_do_not_wait_for_a_chain(make: Make, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "SETTLE", 60.0)
    a, b = make(0, "ab"), make(1, "ab")
    data = [random.Random(n).randbytes(2_000) for n in range(20)]
    keys = [sha256(one).hexdigest() for one in data]
    for key, one in zip(keys, data, strict=True):
        (a.folder / key).write_bytes(one)
        a.fleet.have(key, a.folder / key, len(one), tree(one))
    a.fleet.wants([])
    b.fleet.wants(keys)
    for key, one in zip(keys, data, strict=True):
        wanted = go(partial(b.fleet.want, key, len(one), b.folder / key, lambda state, here: None))
        assert wanted.result(30) == "done"
        assert (b.folder / key).read_bytes() == one
    assert b.fleet.received == 20 * 2_000
    assert len(b.fleet._streams) <= 2, "those that ended are forgotten"


def test_who_has_nothing_yet_is_not_asked_all_the_time(make: Make, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    follow = announce.Watcher.follow
    monkeypatch.setattr(announce.Watcher, "follow", lambda self, *what: asked.append(self.name) or follow(self, *what))
    a, b = make(0, "ab"), make(1, "ab")
    for host in (a, b):
        host.fleet.wants([KEY])
    assert a.want() == "fetch"  # and mends: nothing is written from start to end
    taking = go(b.want)
    until(lambda: len(asked) == 2)
    assert not taking.done()
    time.sleep(1.0)
    assert len(asked) == 2
    a.finish_fetching()
    assert taking.result(30) == "done"


@pytest.mark.parametrize(("life", "told"), [("dead", []), ("live", [KEY])])
def test_only_the_living_are_asked_for_pieces(
    make: Make, monkeypatch: pytest.MonkeyPatch, life: str, told: list[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(announce.Watcher, "peer", lambda self: Peer("a", life, State("a", 1, {KEY: "complete"})))
    monkeypatch.setattr(announce.Watcher, "pieces", lambda self, key: asked.append(key))
    b = make(1, "ab")
    b.fleet.wants([KEY])
    b.fleet._join(fleets._Coming(KEY, SIZE, b.target, b.watch))
    assert asked == told


def test_one_that_has_it_gives_it_to_all_and_goes_when_they_have_it(make: Make, go: Go) -> None:
    hosts = [make(n, "abcd") for n in range(4)]
    *takers, giver = hosts
    giver.target.write_bytes(DATA)
    giver.have()
    giver.fleet.wants([])
    giving = go(giver.give)
    for host in takers:
        host.fleet.wants([KEY])
    assert [one.result(60) for one in [go(host.run) for host in takers]] == ["done"] * 3
    giving.result(60)
    until(lambda: giver.fleet.sent >= SIZE)
    assert sum(host.fetched for host in hosts) == 0


def test_what_lies_here_in_part_is_kept(make: Make) -> None:
    a, b = make(0, "ab"), make(1, "ab")
    a.target.write_bytes(DATA)
    a.have()
    a.fleet.wants([])
    part_of(b.target).write_bytes(DATA[:2_000_000])
    b.fleet.wants([KEY])
    assert b.want() == "done"
    assert b.target.read_bytes() == DATA
    assert not part_of(b.target).exists()
    until(lambda: 0 < b.fleet.received <= SIZE - 2_000_000 + PIECES.size)


def test_a_damaged_published_file_is_mended_in_place(make: Make) -> None:
    a, b = make(0, "ab"), make(1, "ab")
    a.target.write_bytes(DATA)
    a.have()
    a.fleet.wants([])
    published = b.folder / "published"
    published.write_bytes(DATA[:1_500_000] + b"\0" + DATA[1_500_001:])
    published.chmod(0o444)
    os.link(published, working(b.target))
    b.fleet.wants([KEY])
    assert b.want() == "done"
    assert published.read_bytes() == DATA
    assert published.samefile(b.target)
    until(lambda: 0 < b.fleet.received <= 2 * PIECES.size)


def test_two_files_may_be_wanted_at_once_and_an_empty_one_needs_nobody(make: Make, go: Go) -> None:
    a, b = make(0, "ab"), make(1, "ab")
    for host in (a, b):
        host.fleet.wants([KEY, "other"])
    assert a.fleet.want("other", 10, a.folder / "other", lambda state, here: None) == "fetch"
    assert a.want() == "fetch"
    assert a.fleet.want("empty", 0, a.folder / "empty", lambda state, here: None) == "done"
    assert (a.folder / "empty").read_bytes() == b""


def test_close_ends_who_waits(make: Make, go: Go) -> None:
    a, b = make(0, "ab"), make(1, "ab")
    a.fleet.wants([KEY])
    b.fleet.wants([KEY])
    waiting = go(b.want)
    assert a.want() == "fetch"
    begun = time.monotonic()
    threading.Timer(0.2, b.fleet.close).start()
    with pytest.raises(types.StoreError, match="stopped; what came is kept"):
        waiting.result(60)
    assert time.monotonic() - begun < 30


# --- told


def ask(own: str, port: int, path: str) -> tuple[int, dict[str, object]]:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(own, 0))
    try:
        line.request("GET", path)
        answer = line.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        line.close()


def test_what_is_told_and_to_whom(make: Make) -> None:
    a = make(0, "ab")
    a.target.write_bytes(DATA)
    a.have()
    a.fleet.wants(["other"])
    port = a.fleet._fleet.announce_port
    status, told = ask("127.0.0.2", port, "/state")
    assert (status, told["name"], told["files"]) == (200, "a", {KEY: "complete", "other": "wanted"})
    status, told = ask("127.0.0.2", port, f"/pieces/{KEY}")
    assert (status, told["size"], told["pieces"]) == (200, SIZE, list(PIECES.hashes))
    for path in ("/pieces/none", "/bytes/none", "/", "/../etc/passwd"):
        assert ask("127.0.0.2", port, path)[0] == 404
    assert ask("127.0.0.9", port, "/state") == (403, {"error": "not a host of this fleet"})
