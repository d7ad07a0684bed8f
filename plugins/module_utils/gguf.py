# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and check the header of GGUF files (versions 2 and 3), without trusting a byte of it.

The check covers what a loader relies on: counts, lengths, types and, for every tensor, that its data lies
inside the file. A truncated or damaged file so fails here, with a name and an offset, and not at load time.
A file may lie behind a URL (``ranges``); then only its header is fetched.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils import leap, ranges

MAGIC = b"GGUF"
VERSIONS = (2, 3)

# What no honest file exceeds, so that a hostile one costs neither time nor memory.
KEY_LIMIT = 1 << 16
HEADER_LIMIT = 64 << 20
"""Bytes. A vocabulary of 262,144 with its merges takes about 16 MiB."""
PAIR_LIMIT = 1 << 14
TENSOR_LIMIT = 1 << 15
KEPT_STRING = 1 << 20
"""Longer strings are skipped and kept as empty ones; a chat template is some ten thousand bytes."""
KEPT_TEXT = 8 << 20
"""Bytes of all keys, names and strings together."""
KEPT_ARRAY = 1 << 12
"""Arrays of numbers up to this length are kept: they hold a figure per layer. The tokenizer's are longer."""

# Of a file behind a URL a tokenizer's list longer than LEAP bytes is not read whole.
LEAP = 1 << 20

#: Value type -> struct format. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

#: ggml type -> (name, elements per block, bytes per block).
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}  # fmt: skip

SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


class GgufError(Exception):
    """The file is no GGUF file a loader should be given."""


class Tensor(NamedTuple):
    name: str
    dimensions: tuple[int, ...]
    """Fastest first."""
    type: int
    """ggml's number; see TYPES."""
    offset: int
    """From the start of the data."""
    size: int
    """Bytes; of an unknown type the bytes up to the next tensor."""

    @property
    def type_name(self) -> str:
        return TYPES[self.type][0] if self.type in TYPES else f"type {self.type}"

    @property
    def elements(self) -> int:
        count = 1
        for dimension in self.dimensions:
            count *= dimension
        return count


@dataclass(frozen=True)
class Header:
    """What the header says. Long arrays (the tokenizer's tables) are checked and skipped."""

    version: int
    tensor_count: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...] = ()

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def split_no(self) -> int:
        """0-based."""
        return self._number("split.no")

    @property
    def split_count(self) -> int:
        """0 or 1: the file stands alone."""
        return self._number("split.count")

    def _number(self, key: str) -> int:
        value = self.metadata.get(key, 0)
        return value if isinstance(value, int) else 0


Tables = dict[tuple[str, int], int]
"""(key, number of strings) -> bytes they take. Variants of one model have the same tokenizer: what is megabytes long
need be fetched once."""


class _Cursor:
    """Reads forward through a file and never past its end."""

    def __init__(self, file: ranges.File, tables: Tables, leaps: bool) -> None:
        self.file, self.size, self.tables = file, file.size, tables
        self.at = 0
        self.kept = 0
        self.leaps = leaps
        """Whether long lists may be passed without reading all of them."""
        self.leapt = False
        """Whether that was done: what was read then stands under reserve until it makes a header."""
        self.found: Tables = {}

    def fail(self, what: str) -> GgufError:
        return GgufError(f"{self.file.name}: byte {self.at}: {what}")

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            left = self.size - self.at
            raise self.fail(f"{what} needs {count} bytes, the file has {left} more: truncated or corrupt")
        if self.at + count > HEADER_LIMIT:
            raise self.fail(f"{what} ends beyond the {HEADER_LIMIT} bytes a header may have: corrupt")

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        data = self.file.read(self.at, count)
        self.at += count
        return data

    def skip(self, count: int, what: str) -> None:
        self.need(count, what)
        self.at += count

    def number(self, form: str, what: str) -> int:
        form = "<" + form
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def string(self, limit: int, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > limit:
            raise self.fail(f"{what} claims a length of {length}, more than the {limit} allowed")
        self.kept += length
        if self.kept > KEPT_TEXT:
            raise self.fail(f"{what} brings the names and texts to more than {KEPT_TEXT} bytes: corrupt")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error

    def text(self, what: str) -> str:
        """A metadata string, empty where it is too long to keep."""
        length = struct.unpack("<Q", self.take(8, f"the length of {what}"))[0]
        self.at -= 8
        if length <= KEPT_STRING:
            return self.string(KEPT_STRING, what)
        self.skip(8 + length, what)
        return ""

    def value(self, kind: int, what: str) -> Scalar:
        if kind == STRING:
            return self.text(what)
        form = "<" + SCALARS[kind]
        result: Scalar = struct.unpack(form, self.take(struct.calcsize(form), what))[0]
        return result

    def array(self, key: str, what: str) -> tuple[Scalar, ...] | None:
        """The numbers of a short array; None for any other, which is skipped."""
        kind = self.number("I", f"the element type of {what}")
        count = self.number("Q", f"the length of {what}")
        if kind in SCALARS:
            form = f"<{count}{SCALARS[kind]}"
            if count <= KEPT_ARRAY:
                return struct.unpack(form, self.take(struct.calcsize(form), what))
            self.skip(count * struct.calcsize("<" + SCALARS[kind]), what)
        elif kind == STRING:
            length = self.tables.get((key, count))
            start = self.at
            if length is None or not self.leaps:
                self.skip_strings(count, what)
                self.found[key, count] = self.at - start
            else:
                self.leapt = True
                self.skip(length, what)
        else:  # no loader knows arrays of arrays
            raise self.fail(f"{what} has elements of the unknown type {kind}")
        return None

    def skip_strings(self, count: int, what: str) -> None:
        self.need(count * 8, what)
        leaps = self.leaps and count * 16 > LEAP
        if leaps:
            self.file.window_size = ranges.FIRST_WINDOW
        while count:
            self.need(8, what)
            held, first = self.file.window(self.at, 8)
            index, end, before = first, len(held) - 8, count
            while count and index <= end:
                index += 8 + int.from_bytes(held[index : index + 8], "little")
                count -= 1
            self.at += index - first
            self.need(0, what)
            if leaps and count * (index - first) > LEAP * (before - count):
                leaps = False
                after = leap.end_of_list(self.file, self.at, count, HEADER_LIMIT)
                if after is not None:
                    self.at, self.leapt = after, True
                    return


def read_header(
    path: Path | ranges.File, name: str = "", complete: bool = True, tables: Tables | None = None
) -> Header:
    """Read and check one file. ``name`` is what messages call a path.

    ``complete=False`` allows the data to be missing: for a file that is the header only. ``tables`` is kept by the
    caller between the files of one model's variants. GgufError says what is wrong with the content, RangeError that it
    cannot be had.
    """
    if not isinstance(path, ranges.File):
        with ranges.LocalFile(path, name) as file:
            return read_header(file, "", complete)
    tables = {} if tables is None else tables
    cursor = _Cursor(path, tables, path.costly and not path.whole)
    try:
        header = _read(cursor, complete)
    except GgufError:
        if not cursor.leapt:
            raise
        # It was another tokenizer, or no tokenizer's list: read every byte.
        tables.clear()
        cursor = _Cursor(path, tables, False)
        header = _read(cursor, complete)
    tables.update(cursor.found)
    return header


def _read(cursor: _Cursor, complete: bool) -> Header:
    magic = cursor.take(4, "the magic")
    if magic != MAGIC:
        cursor.at = 0
        raise cursor.fail(f"begins with {magic!r}, a GGUF file begins with {MAGIC!r}")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        cursor.at = 4
        big = version and version & 0xFFFF == 0
        raise cursor.fail("big-endian files are not supported" if big else f"version {version} is not 2 or 3")
    tensor_count = cursor.number("Q", "the number of tensors")
    pair_count = cursor.number("Q", "the number of metadata pairs")
    counts = f"{tensor_count} tensors and {pair_count} metadata pairs"
    # The smallest pair takes 13 bytes, the smallest tensor entry 32.
    if pair_count * 13 + tensor_count * 32 > cursor.size:
        raise cursor.fail(f"{counts} do not fit into {cursor.size} bytes: corrupt")
    if tensor_count > TENSOR_LIMIT or pair_count > PAIR_LIMIT:
        raise cursor.fail(f"{counts}, at most {TENSOR_LIMIT} and {PAIR_LIMIT} are read: corrupt")

    metadata: dict[str, Value] = {}
    for _index in range(pair_count):
        key = cursor.string(KEY_LIMIT, "a metadata key")
        what = f"the metadata value '{key[:100]}'"
        kind = cursor.number("I", f"the type of {what}")
        if kind == ARRAY:
            values = cursor.array(key, what)
            if values is not None:
                metadata[key] = values
        elif kind == STRING or kind in SCALARS:
            metadata[key] = cursor.value(kind, what)
        else:
            raise cursor.fail(f"{what} has the unknown type {kind}")

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r:.100}, not a power of two")

    entries = [_entry(cursor) for _index in range(tensor_count)]
    start = -(-cursor.at // alignment) * alignment
    return Header(version, tensor_count, metadata, _sized(cursor, entries, start, alignment, complete))


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(KEY_LIMIT, "a tensor name")
    what = f"tensor '{name[:100]}'"
    count = cursor.number("I", f"the number of dimensions of {what}")
    if count > 4:
        raise cursor.fail(f"{what} claims {count} dimensions, at most 4 exist")
    dimensions = struct.unpack(f"<{count}Q", cursor.take(8 * count, f"a dimension of {what}"))
    kind = cursor.number("I", f"the type of {what}")
    return name, dimensions, kind, cursor.number("Q", f"the offset of {what}")


def _sized(
    cursor: _Cursor,
    entries: list[tuple[str, tuple[int, ...], int, int]],
    start: int,
    alignment: int,
    complete: bool,
) -> tuple[Tensor, ...]:
    """The tensors with their sizes, each inside the file and none over another."""
    order = sorted(range(len(entries)), key=lambda index: entries[index][3])
    following = {here: entries[then][3] for here, then in itertools.pairwise(order)}
    # What is left of a file that has no data is no size.
    rest = max(cursor.size - start, 0) if complete else 0
    tensors = []
    for index, (name, dimensions, kind, offset) in enumerate(entries):
        what = f"tensor '{name[:100]}'"
        if offset % alignment:
            raise cursor.fail(f"{what} begins at {offset}, not a multiple of {alignment}")
        _type, per_block, block_size = TYPES.get(kind, ("", 1, 0))
        tensor = Tensor(name, dimensions, kind, offset, 0)
        if tensor.elements % per_block:
            raise cursor.fail(f"{what}: {tensor.elements} elements are no multiple of {per_block}")
        room = following.get(index, max(rest, offset)) - offset
        size = tensor.elements // per_block * block_size if kind in TYPES else room
        if complete and start + offset + size > cursor.size:
            end = start + offset + size
            raise cursor.fail(f"{what} ends at byte {end}, the file at {cursor.size}: truncated or corrupt")
        if index in following and size > room:
            raise cursor.fail(f"{what} has {size} bytes, the next one begins after {room}: corrupt")
        tensors.append(tensor._replace(size=size))
    return tuple(tensors)


def check_set(files: Mapping[str, Path]) -> dict[str, Header]:
    """Check files that belong together: {name in the repository: where it lies}. Splits must be complete."""
    headers = {name: read_header(path, str(path)) for name, path in files.items()}
    check_parts(headers)
    return headers


def check_parts(headers: Mapping[str, Header]) -> None:
    """Refuse headers that do not belong together: a part missing, misnamed or of another model."""
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
        _check_group(prefix, count, parts, headers)


def _check_group(prefix: str, count: int, parts: Mapping[int, str], headers: Mapping[str, Header]) -> None:
    missing = [number for number in range(1, min(count, 1000) + 1) if number not in parts]
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
    width = first.metadata.get(f"{first.architecture}.embedding_length")
    holder: dict[str, str] = {}
    for name in parts.values():
        header = headers[name]
        said = header.architecture or first.architecture
        if said != first.architecture:
            raise _stranger(name, f"is of the architecture {said}", parts[1], f"of {first.architecture}")
        theirs = header.metadata.get("split.tensors.count", promised)
        if theirs != promised:
            raise _stranger(name, f"belongs to a model of {theirs} tensors", parts[1], f"to one of {promised}")
    present = sum(headers[name].tensor_count for name in parts.values())
    if isinstance(promised, int) and promised != present:
        raise GgufError(f"{prefix}: the parts hold {present} tensors, the first promises {promised}")
    for name in parts.values():
        for tensor in headers[name].tensors:
            if tensor.name in holder:
                raise _stranger(name, f"holds tensor '{tensor.name}'", holder[tensor.name], "holds it too")
            holder[tensor.name] = name
            if tensor.name.endswith(".attn_norm.weight") and tensor.dimensions != (width,) and width is not None:
                rows = " x ".join(map(str, tensor.dimensions))
                raise _stranger(name, f"has layers {rows} wide", parts[1], f"describes a model {width} wide")


def _stranger(name: str, what: str, other: str, otherwise: str) -> GgufError:
    return GgufError(f"{name} {what}, {other} {otherwise}: they are not parts of one model")
