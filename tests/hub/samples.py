# SPDX-License-Identifier: GPL-3.0-or-later
"""GGUF files made by hand: small, complete, and wrong wherever a test wants them to be."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def pair(key: str, value: Any) -> bytes:
    """A metadata pair: text, a number (u32), a small number (u16, as (number,)) or a list of texts."""
    if isinstance(value, str):
        return string(key) + struct.pack("<I", 8) + string(value)
    if isinstance(value, tuple):
        return string(key) + struct.pack("<IH", 2, value[0])
    if isinstance(value, list):
        return string(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))
    return string(key) + struct.pack("<II", 4, value)


def gguf(
    *,
    metadata: dict[str, Any] | None = None,
    tensors: int = 2,
    rows: int = 64,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    first: int = 0,
) -> bytes:
    """A file with F16 tensors of 32 x ``rows``, named from ``first`` on."""
    pairs = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b"]} if metadata is None else metadata
    size = 32 * rows * 2
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (tensors, len(pairs))))
    head += b"".join(pair(key, value) for key, value in pairs.items())
    for number in range(tensors):
        head += string(f"blk.{first + number}.weight") + struct.pack("<IQQIQ", 2, 32, rows, 1, number * size)
    head += b"\0" * (-len(head) % 32)
    return head + (bytes(range(256)) * (size * tensors // 256 + 1))[: size * tensors]


def split(folder: Path, prefix: str, count: int, *, rows: int = 64) -> list[Path]:
    """``count`` files that belong together, as llama-gguf-split writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        of = {"split.no": (number,), "split.count": (count,), "split.tensors.count": 2 * count}
        arch = {"general.architecture": "llama"} if number == 0 else {}
        path = folder / f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"
        path.write_bytes(gguf(metadata={**arch, **of}, rows=rows + number, first=2 * number))
        paths.append(path)
    return paths
