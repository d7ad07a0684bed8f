# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and check the header of GGUF files (versions 2 and 3), without trusting a byte of it.

The check covers what a loader relies on: counts, lengths, types and, for every tensor, that its data lies
inside the file. A truncated or damaged file so fails here, with a name and an offset, and not at load time.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
KEY_LIMIT = 1 << 16
ARRAY_DEPTH = 4

#: Value type -> struct format. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

#: ggml type -> (elements per block, bytes per block).
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip

SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Scalar = int | float | bool | str


class GgufError(Exception):
    """The file is no GGUF file a loader should be given."""


@dataclass(frozen=True)
class Header:
    """What the header says. Arrays (the tokenizer's tables) are checked and skipped."""

    version: int
    tensor_count: int
    metadata: Mapping[str, Scalar]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def split_no(self) -> int:
        """0-based."""
        return int(self.metadata.get("split.no", 0))

    @property
    def split_count(self) -> int:
        """0 or 1: the file stands alone."""
        return int(self.metadata.get("split.count", 0))


class _Cursor:
    """Reads forward through a file and never past its end."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0

    def fail(self, what: str) -> GgufError:
        return GgufError(f"{self.name}: byte {self.at}: {what}")

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            left = self.size - self.at
            raise self.fail(f"{what} needs {count} bytes, the file has {left} more: truncated or corrupt")

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        data = self.file.read(count)
        if len(data) != count:
            raise self.fail(f"{what} could not be read")
        self.at += count
        return data

    def skip(self, count: int, what: str) -> None:
        self.need(count, what)
        self.file.seek(count, os.SEEK_CUR)
        self.at += count

    def number(self, form: str, what: str) -> int:
        form = "<" + form
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def string(self, limit: int, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > limit:
            raise self.fail(f"{what} claims a length of {length}, more than the {limit} allowed")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error

    def value(self, kind: int, what: str) -> Scalar:
        if kind == STRING:
            return self.string(self.size, what)
        form = "<" + SCALARS[kind]
        result: Scalar = struct.unpack(form, self.take(struct.calcsize(form), what))[0]
        return result

    def skip_array(self, what: str, depth: int = 1) -> None:
        kind = self.number("I", f"the element type of {what}")
        count = self.number("Q", f"the length of {what}")
        if kind in SCALARS:
            self.skip(count * struct.calcsize("<" + SCALARS[kind]), what)
        elif kind == STRING:
            self.need(count * 8, what)
            for _index in range(count):
                self.skip(self.number("Q", what), what)
        elif kind == ARRAY and depth < ARRAY_DEPTH:
            self.need(count * 12, what)
            for _index in range(count):
                self.skip_array(what, depth + 1)
        else:
            raise self.fail(f"{what} has elements of the unknown type {kind}")


def read_header(path: Path, name: str = "") -> Header:
    """Read and check one file. ``name`` is what messages call it."""
    with open(path, "rb") as file:
        return _read(_Cursor(file, name or str(path)))


def _read(cursor: _Cursor) -> Header:
    magic = cursor.take(4, "the magic")
    if magic != MAGIC:
        cursor.at = 0
        raise cursor.fail(f"begins with {magic!r}, a GGUF file begins with {MAGIC!r}")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        cursor.at = 4
        big = version & 0xFFFF == 0
        raise cursor.fail("big-endian files are not supported" if big else f"version {version} is not 2 or 3")
    tensor_count = cursor.number("Q", "the number of tensors")
    pair_count = cursor.number("Q", "the number of metadata pairs")
    # The smallest pair takes 13 bytes, the smallest tensor entry 32.
    if pair_count * 13 + tensor_count * 32 > cursor.size:
        counts = f"{tensor_count} tensors and {pair_count} metadata pairs"
        raise cursor.fail(f"{counts} do not fit into {cursor.size} bytes: corrupt")

    metadata: dict[str, Scalar] = {}
    for _index in range(pair_count):
        key = cursor.string(KEY_LIMIT, "a metadata key")
        what = f"the metadata value '{key}'"
        kind = cursor.number("I", f"the type of {what}")
        if kind == ARRAY:
            cursor.skip_array(what)
        elif kind == STRING or kind in SCALARS:
            metadata[key] = cursor.value(kind, what)
        else:
            raise cursor.fail(f"{what} has the unknown type {kind}")

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two")

    tensors = []
    for _index in range(tensor_count):
        name = cursor.string(KEY_LIMIT, "a tensor name")
        dimensions = cursor.number("I", f"the number of dimensions of tensor '{name}'")
        if dimensions > 4:
            raise cursor.fail(f"tensor '{name}' claims {dimensions} dimensions, at most 4 exist")
        elements = 1
        for _dimension in range(dimensions):
            elements *= cursor.number("Q", f"a dimension of tensor '{name}'")
        kind = cursor.number("I", f"the type of tensor '{name}'")
        offset = cursor.number("Q", f"the offset of tensor '{name}'")
        tensors.append((name, elements, kind, offset))

    start = -(-cursor.at // alignment) * alignment
    for name, elements, kind, offset in tensors:
        per_block, block_size = BLOCKS.get(kind, (1, 0))  # unknown type: at least its start is checked
        if elements % per_block:
            raise cursor.fail(f"tensor '{name}': {elements} elements are no multiple of {per_block}")
        end = start + offset + elements // per_block * block_size
        if offset % alignment:
            raise cursor.fail(f"tensor '{name}' begins at {offset}, not a multiple of {alignment}")
        if end > cursor.size:
            raise cursor.fail(f"tensor '{name}' ends at byte {end}, the file at {cursor.size}: truncated or corrupt")
    return Header(version, tensor_count, metadata)


def check_set(files: Mapping[str, Path]) -> dict[str, Header]:
    """Check files that belong together: {name in the repository: where it lies}. Splits must be complete."""
    headers = {name: read_header(path, str(path)) for name, path in files.items()}
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for name, header in headers.items():
        found = SPLIT_NAME.fullmatch(name)
        if found is None:
            if header.split_count > 1:
                raise GgufError(
                    f"{name}: part {header.split_no + 1} of {header.split_count}, but not named like one "
                    "(…-00001-of-0000N.gguf): a loader would not find the other parts"
                )
            if not header.architecture:
                raise GgufError(f"{name}: general.architecture is missing, no engine can load it")
            continue
        groups.setdefault((found["prefix"], int(found["count"])), {})[int(found["number"])] = name
    for (prefix, count), parts in groups.items():
        missing = [number for number in range(1, count + 1) if number not in parts]
        if missing or len(parts) > count:
            names = ", ".join(f"{prefix}-{number:05d}-of-{count:05d}.gguf" for number in missing)
            raise GgufError(f"{prefix}: {len(parts)} of {count} parts are there, missing: {names}")
        for number, name in parts.items():
            header = headers[name]
            if (header.split_no, header.split_count) != (number - 1, count):
                raise GgufError(
                    f"{name}: the header says part {header.split_no + 1} of {header.split_count}, the name "
                    f"says {number} of {count}: a file was uploaded under the name of another"
                )
        first = headers[parts[1]]
        if not first.architecture:
            raise GgufError(f"{parts[1]}: general.architecture is missing, no engine can load it")
        promised = first.metadata.get("split.tensors.count")
        present = sum(headers[name].tensor_count for name in parts.values())
        if isinstance(promised, int) and promised != present:
            raise GgufError(f"{prefix}: the parts hold {present} tensors, the first promises {promised}")
    return headers
