# SPDX-License-Identifier: GPL-3.0-or-later
"""Files made by hand: small GGUF files, complete and wrong wherever a test wants them to be, and large files of any
size whose bytes a seed names."""

from __future__ import annotations

import os
import random
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


def head(
    *,
    metadata: dict[str, Any] | None = None,
    tensors: int = 2,
    rows: int = 64,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    first: int = 0,
) -> bytes:
    """What comes before the bytes of F16 tensors of 32 x ``rows``, named from ``first`` on."""
    pairs = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b"]} if metadata is None else metadata
    start = b"GGUF" + struct.pack("<IQQ", version, *(counts or (tensors, len(pairs))))
    start += b"".join(pair(key, value) for key, value in pairs.items())
    for number in range(tensors):
        start += string(f"blk.{first + number}.weight") + struct.pack("<IQQIQ", 2, 32, rows, 1, number * 64 * rows)
    return start + b"\0" * (-len(start) % 32)


def gguf(*, tensors: int = 2, rows: int = 64, **of: Any) -> bytes:
    """A whole file of that kind."""
    size = 64 * rows * tensors
    return head(tensors=tensors, rows=rows, **of) + (bytes(range(256)) * (size // 256 + 1))[:size]


def shard(number: int, count: int, *, tensors: int = 2) -> dict[str, Any]:
    """What distinguishes one of ``count`` files that belong together, as llama-gguf-split writes them."""
    of = {"split.no": (number,), "split.count": (count,), "split.tensors.count": tensors * count}
    arch = {"general.architecture": "llama"} if number == 0 else {}
    return {"metadata": {**arch, **of}, "first": tensors * number, "tensors": tensors}


def shard_name(prefix: str, number: int, count: int) -> str:
    return f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"


def split(folder: Path, prefix: str, count: int, *, rows: int = 64) -> list[Path]:
    """``count`` small files that belong together."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / shard_name(prefix, number, count) for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(gguf(rows=rows + number, **shard(number, count)))
    return paths


def seeded(path: Path, size: int, seed: int = 0, start: bytes = b"") -> Path:
    """A file of ``size`` bytes with no holes that does not compress: ``start``, then what the seed says.

    It appears when it is complete; one of that name and size is kept.
    """
    if path.exists() and path.stat().st_size == size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.new"
    source = random.Random(seed)
    with open(temporary, "wb") as file:
        file.write(start[:size])
        while left := size - file.tell():
            file.write(source.randbytes(min(1 << 20, left)))
    os.replace(temporary, path)
    return path


def seeded_split(folder: Path, prefix: str, count: int, size: int, seed: int = 0) -> list[Path]:
    """``count`` GGUF files that belong together, each of ``size`` bytes or up to 1 kB more."""
    paths = [folder / shard_name(prefix, number, count) for number in range(count)]
    rows = max(size // 128, 1)
    for number, path in enumerate(paths):
        start = head(rows=rows, **shard(number, count))
        seeded(path, len(start) + 128 * rows, seed * 1000 + number, start)
    return paths
