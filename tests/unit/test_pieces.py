# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree hash: as BitTorrent v2 has it, the same whatever the blocks it comes in, and honest about damage."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import libtorrent
import pytest

from ansible_collections.onprem.llm.plugins.module_utils.model_store import pieces as p
from ansible_collections.onprem.llm.plugins.module_utils.model_store.pieces import TreeHash
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Pieces

KIB = 1 << 10
SIZES = [
    1,
    16 * KIB - 1,
    16 * KIB,
    16 * KIB + 1,
    48 * KIB,
    1 << 20,
    (1 << 20) + 1,
    16 << 20,
    (16 << 20) + 1,
    40_000_001,
]


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def tree(data: bytes, block: int = 1 << 20) -> Pieces:
    hashed = TreeHash(len(data))
    for at in range(0, len(data), block):
        hashed.update(data[at : at + block])
    return hashed.pieces()


@pytest.mark.parametrize(
    ("size", "piece", "count"),
    [
        (0, 16 * KIB, 0),
        (1, 16 * KIB, 1),
        (16 << 20, 16 * KIB, 1024),
        ((16 << 20) + 1, 32 * KIB, 513),
        (48_000_000_000, 64 << 20, 716),
        (700_000_000_000, 64 << 20, 10431),
    ],
)
def test_the_size_of_a_piece(size: int, piece: int, count: int) -> None:
    assert p.piece_size(size) == piece
    assert -(-size // piece) == count


@pytest.mark.filterwarnings("ignore:create_torrent constructor:DeprecationWarning")  # Debian's has no other
@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_bittorrent_computes(size: int, tmp_path: Path) -> None:
    data = content(size)
    (tmp_path / "file").write_bytes(data)
    mine = tree(data)
    storage = libtorrent.file_storage()
    storage.add_file("file", size)
    made = libtorrent.create_torrent(storage, mine.size, libtorrent.create_torrent.v2_only)
    libtorrent.set_piece_hashes(made, str(tmp_path))
    torrent = made.generate()
    root = p.root(size, mine)
    assert torrent[b"info"][b"file tree"][b"file"][b""][b"pieces root"] == root
    if len(mine.hashes) > 1:
        assert torrent[b"piece layers"][root].hex() == "".join(mine.hashes)
    else:
        assert root.hex() == mine.hashes[0]


@pytest.mark.parametrize("block", [1000, 16 * KIB, 100_000, 5 << 20])
def test_the_blocks_it_comes_in_do_not_matter(block: int) -> None:
    data = content(6_000_000)
    assert tree(data, block) == tree(data)


def test_a_piece_alone_has_the_hash_it_has_in_the_file() -> None:
    data = content(40_000_001)
    known = tree(data)
    alone = [p.piece_hash(data[at : at + known.size], known.size) for at in range(0, len(data), known.size)]
    assert tuple(alone) == known.hashes


def test_an_empty_file_has_no_pieces_and_no_root() -> None:
    assert tree(b"") == Pieces(16 * KIB, ())
    with pytest.raises(ValueError, match="an empty file has no root"):
        p.root(0, tree(b""))


def test_half_a_file_has_no_pieces() -> None:
    hashed = TreeHash(100)
    hashed.update(b"x" * 50)
    with pytest.raises(ValueError, match="50 of 100 bytes were seen"):
        hashed.pieces()


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, bytes, Pieces]:
    data = content(20_000_001)
    path = tmp_path / "file"
    path.write_bytes(data)
    return path, data, tree(data)


def flip(path: Path, *places: int) -> None:
    with path.open("r+b") as opened:
        for at in places:
            opened.seek(at)
            byte = opened.read(1)[0]
            opened.seek(at)
            opened.write(bytes([byte ^ 1]))


def test_a_whole_file_is_not_damaged(file: tuple[Path, bytes, Pieces]) -> None:
    path, data, known = file
    assert p.damaged(path, len(data), known) == []


def test_the_damaged_pieces_are_found(file: tuple[Path, bytes, Pieces]) -> None:
    path, data, known = file
    flip(path, 0, 3 * known.size - 1, 3 * known.size, len(data) - 1)
    assert p.damaged(path, len(data), known) == [0, 2, 3, len(known.hashes) - 1]


def test_a_file_that_was_cut_a_longer_one_and_none(file: tuple[Path, bytes, Pieces]) -> None:
    path, data, known = file
    last = len(known.hashes) - 1
    with path.open("ab") as opened:
        opened.write(b"more")
    assert p.damaged(path, len(data), known) == [last]
    os.truncate(path, 5 * known.size + 1)
    assert p.damaged(path, len(data), known) == list(range(5, last + 1))
    path.unlink()
    assert p.damaged(path, len(data), known) == list(range(last + 1))


def test_what_the_disk_cannot_read_is_damaged(
    file: tuple[Path, bytes, Pieces], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data, known = file
    really = os.pread

    def pread(handle: int, size: int, at: int) -> bytes:
        if at == 2 * known.size:
            raise OSError(5, "Input/output error")
        return really(handle, size, at)

    monkeypatch.setattr(os, "pread", pread)
    assert p.damaged(path, len(data), known) == [2]


def test_no_thread_is_left_by_a_file_that_was_given_up() -> None:
    before = threading.active_count()
    for _attempt in range(20):
        abandoned = TreeHash(10 << 20)
        abandoned.update(bytes(2 << 20))
        del abandoned
    tree(content(2 << 20))
    # The workers end when they see that nobody holds them.
    for _wait in range(100):
        if threading.active_count() <= before:
            break
        threading.Event().wait(0.05)
    assert threading.active_count() <= before
