# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree hash of a file: which of its pieces are damaged, and what a swarm calls it.

SHA-256 over blocks of 16 KiB, joined in pairs, as BitTorrent v2 has it (BEP 52). The nodes that each stand for one
piece of the file are kept; from them follow the root, and with it the same torrent on every host.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Pieces

BLOCK = 16 << 10
"""Bytes under one leaf of the tree."""
LARGEST = 64 << 20
MOST = 1024
"""Pieces of a file, unless they are as large as may be."""
NODE = 32
"""Bytes of a hash."""
CHUNK = 1 << 20
"""Bytes hashed at once."""
AHEAD = 4
"""Chunks that may wait for the hashing thread."""


def piece_size(size: int) -> int:
    """Bytes of a piece of a file of ``size`` bytes: a power of two from 16 KiB to 64 MiB."""
    piece = BLOCK
    while piece * MOST < size and piece < LARGEST:
        piece *= 2
    return piece


def _leaves(data: bytes | bytearray | memoryview) -> bytes:
    view = memoryview(data)
    return b"".join([sha256(view[at : at + BLOCK]).digest() for at in range(0, len(view), BLOCK)])


def _join(nodes: bytes, pad: bytes, width: int) -> bytes:
    """The node over ``width`` nodes, of which those that are not there are ``pad``."""
    nodes += pad * (width - len(nodes) // NODE)
    while len(nodes) > NODE:
        nodes = b"".join([sha256(nodes[at : at + 2 * NODE]).digest() for at in range(0, len(nodes), 2 * NODE)])
    return nodes


def piece_hash(block: bytes | bytearray, piece_size: int) -> str:
    """The hash of one whole piece, of which only a file's last may be shorter than ``piece_size``."""
    return _join(_leaves(block), bytes(NODE), piece_size // BLOCK).hex()


def root(size: int, pieces: Pieces) -> bytes:
    """The 32 bytes BitTorrent v2 names a file by. An empty file has none: ValueError."""
    if not size:
        raise ValueError("an empty file has no root")
    pad = bytes(NODE)
    for _level in range((pieces.size // BLOCK).bit_length() - 1):
        pad = sha256(pad + pad).digest()
    return _join(bytes.fromhex("".join(pieces.hashes)), pad, 1 << (len(pieces.hashes) - 1).bit_length())


class TreeHash:
    """The pieces of a file whose ``size`` bytes are handed over in order.

    A thread of its own does the hashing, beside whatever else is done with the bytes. It ends with the object.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._piece = piece_size(size)
        self._held: list[bytes] = []
        self._holding = 0
        self._seen = 0
        self._nodes = bytearray()
        self._hashes: list[str] = []
        self._thread = ThreadPoolExecutor(1, "tree-hash")
        self._running: deque[Future[bytes]] = deque()

    def update(self, block: bytes) -> None:
        """The next bytes of the file; they must not be changed afterwards."""
        self._seen += len(block)
        self._held.append(block)
        self._holding += len(block)
        if self._holding >= CHUNK:
            data = b"".join(self._held)
            whole = len(data) // BLOCK * BLOCK
            self._held = [data[whole:]]
            self._holding = len(data) - whole
            self._hash(memoryview(data)[:whole])

    def pieces(self) -> Pieces:
        """When every byte was handed over; before, ValueError."""
        if self._seen != self._size:
            raise ValueError(f"{self._seen} of {self._size} bytes were seen")
        rest, self._held, self._holding = b"".join(self._held), [], 0
        if rest:
            self._hash(memoryview(rest))
        while self._running:
            self._collect()
        if self._nodes:
            self._hashes.append(_join(bytes(self._nodes), bytes(NODE), self._piece // BLOCK).hex())
            self._nodes.clear()
        self._thread.shutdown()
        return Pieces(self._piece, tuple(self._hashes))

    def _hash(self, data: memoryview) -> None:
        self._running.append(self._thread.submit(_leaves, data))
        if len(self._running) > AHEAD:
            self._collect()

    def _collect(self) -> None:
        self._nodes += self._running.popleft().result()
        width = self._piece // BLOCK * NODE
        while len(self._nodes) >= width:
            self._hashes.append(_join(bytes(self._nodes[:width]), b"", 0).hex())
            del self._nodes[:width]


def damaged(path: Path, size: int, pieces: Pieces) -> list[int]:
    """The indices of the pieces of a file that are not what they were, also those that cannot be read.

    A file that is not there is damaged as a whole; one that is too long, in its last piece.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return list(range(len(pieces.hashes)))
    try:
        wrong = [index for index, known in enumerate(pieces.hashes) if _read_piece(file, index, pieces.size) != known]
        last = len(pieces.hashes) - 1
        if os.fstat(file).st_size > size and last >= 0 and last not in wrong:
            wrong.append(last)
        return wrong
    finally:
        os.close(file)


def _read_piece(file: int, index: int, piece: int) -> str:
    """The hash of a piece as it lies there; empty when the disk cannot read it."""
    start = index * piece
    try:
        leaves = b"".join(_leaves(block) for block in _blocks(file, start, piece))
    except OSError:
        return ""
    # Others have use for the memory; what an engine has mapped stays.
    os.posix_fadvise(file, start, piece, os.POSIX_FADV_DONTNEED)
    return _join(leaves, bytes(NODE), piece // BLOCK).hex()


def _blocks(file: int, start: int, size: int) -> Iterator[bytes]:
    for at in range(start, start + size, CHUNK):
        block = os.pread(file, min(CHUNK, start + size - at), at)
        if not block:
            return
        yield block
