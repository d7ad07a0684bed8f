# SPDX-License-Identifier: GPL-3.0-or-later
"""Files over BitTorrent between addresses of this machine's loopback."""

from __future__ import annotations

import builtins
import errno
import os
import random
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.model_store import swarm
from ansible_collections.onprem.llm.plugins.module_utils.model_store.pieces import TreeHash
from ansible_collections.onprem.llm.plugins.module_utils.model_store.swarm import Swarm
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Pieces, StoreError

pytest.importorskip("libtorrent")
KEY = "ab" * 32
PATIENCE = 60.0


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def content(size: int) -> tuple[bytes, Pieces]:
    data = random.Random(size).randbytes(size)
    tree = TreeHash(size)
    tree.update(data)
    return data, tree.pieces()


Maker = Callable[[int, int], Swarm]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    """make(which of the addresses, how many there are)"""
    port, made = free_port(), []

    def make(which: int, count: int) -> Swarm:
        others = [f"127.0.0.{n + 1}" for n in range(count) if n != which]
        made.append(Swarm(f"127.0.0.{which + 1}", port, others, tmp_path / f"links{which}", lambda: None))
        return made[-1]

    yield make
    for one in made:
        one.close()


def whole(taker: Swarm) -> bool:
    return taker.progress(KEY)[1]


@pytest.mark.parametrize("size", [1, 16384, 16385, 300_000, 20_000_000])
def test_a_file_spreads(make: Maker, tmp_path: Path, size: int) -> None:
    data, pieces = content(size)
    (tmp_path / "given").write_bytes(data)
    giver, *takers = (make(which, 3) for which in range(3))
    giver.give(KEY, tmp_path / "given", size, pieces)
    for number, taker in enumerate(takers):
        taker.take(KEY, tmp_path / f"taken{number}", size, pieces)
    until(lambda: all(whole(taker) for taker in takers))
    assert (tmp_path / "taken0").read_bytes() == (tmp_path / "taken1").read_bytes() == data
    until(lambda: sum(taker.received for taker in takers) >= 2 * size)
    until(lambda: giver.sent >= size)


def test_a_file_may_be_renamed_while_it_is_given(make: Maker, tmp_path: Path) -> None:
    data, pieces = content(3_000_000)
    (tmp_path / "staged").write_bytes(data)
    giver, taker = make(0, 2), make(1, 2)
    giver.give(KEY, tmp_path / "staged", len(data), pieces)
    (tmp_path / "staged").rename(tmp_path / "published")
    (tmp_path / "published").chmod(0o444)
    taker.take(KEY, tmp_path / "taken", len(data), pieces)
    until(lambda: whole(taker))
    assert (tmp_path / "taken").read_bytes() == data


def test_only_what_lacks_is_taken(make: Maker, tmp_path: Path) -> None:
    data, pieces = content(8_000_000)
    (tmp_path / "given").write_bytes(data)
    spoiled = bytearray(data)
    spoiled[5_000_000] ^= 1
    (tmp_path / "published").write_bytes(spoiled)
    os.link(tmp_path / "published", tmp_path / "mended")
    giver, taker = make(0, 2), make(1, 2)
    giver.give(KEY, tmp_path / "given", len(data), pieces)
    taker.take(KEY, tmp_path / "mended", len(data), pieces)
    until(lambda: whole(taker))
    taker.drop(KEY)
    assert (tmp_path / "published").read_bytes() == data, "mended in place, through the link"
    assert 0 < taker._gone[0] <= 2 * pieces.size


def test_what_rotted_is_not_given(make: Maker, tmp_path: Path) -> None:
    data, pieces = content(2_000_000)
    spoiled = bytearray(data)
    spoiled[1_000_000] ^= 1
    (tmp_path / "rotten").write_bytes(spoiled)
    (tmp_path / "sound").write_bytes(data)
    rotten, sound, taker = (make(which, 3) for which in range(3))
    rotten.give(KEY, tmp_path / "rotten", len(data), pieces)
    taker.take(KEY, tmp_path / "taken", len(data), pieces)
    until(lambda: taker.progress(KEY)[0] >= len(data) - 2 * pieces.size)
    assert not whole(taker)
    sound.give(KEY, tmp_path / "sound", len(data), pieces)
    until(lambda: whole(taker))
    assert (tmp_path / "taken").read_bytes() == data
    assert (tmp_path / "rotten").read_bytes() == spoiled, "what is given is never written to"


def test_a_stranger_gets_nothing(make: Maker, tmp_path: Path) -> None:
    data, pieces = content(100_000)
    (tmp_path / "given").write_bytes(data)
    make(0, 2).give(KEY, tmp_path / "given", len(data), pieces)
    stranger = Swarm("127.0.0.9", make(1, 2)._port, ["127.0.0.1"], tmp_path / "strange", lambda: None)
    try:
        stranger.take(KEY, tmp_path / "taken", len(data), pieces)
        time.sleep(2)
        assert stranger.progress(KEY) == (0, False)
    finally:
        stranger.close()


def test_the_folder_of_links_is_emptied(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "links0").mkdir()
    (tmp_path / "links0/left-behind").write_text("x")
    one = make(0, 2)
    data, pieces = content(1000)
    (tmp_path / "given").write_bytes(data)
    one.give(KEY, tmp_path / "given", len(data), pieces)
    assert [path.name for path in (tmp_path / "links0").iterdir()] == [KEY]
    one.close()
    assert not list((tmp_path / "links0").iterdir())
    assert (tmp_path / "given").read_bytes() == data


def test_equal_files_are_equal_torrents_whatever_they_are_called_here() -> None:
    data, pieces = content(100_000)
    assert swarm.torrent(KEY, len(data), pieces) == swarm.torrent(KEY, len(data), pieces)
    assert swarm.torrent(KEY, 16384, Pieces(16384, pieces.hashes[:1]))[b"piece layers"] == {}


def test_a_full_disk_is_an_error_of_the_disk(make: Maker, tmp_path: Path) -> None:
    """A file that may not grow stands for a disk without room."""
    _data, pieces = content(1_000_000)
    taker, before = make(1, 2), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            taker.take(KEY, tmp_path / "taken", 1_000_000, pieces)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not taker.knows(KEY)


def test_without_libtorrent_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "libtorrent":
            raise ImportError("No module named 'libtorrent'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StoreError, match="python3-libtorrent"):
        Swarm("127.0.0.1", 0, [], tmp_path / "links", lambda: None)
    with suppress(FileNotFoundError):
        assert not list((tmp_path / "links").iterdir())
