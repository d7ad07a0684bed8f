# SPDX-License-Identifier: GPL-3.0-or-later
"""What a shared library says of itself, read from its bytes: hosts that only run a build have no binutils."""

from __future__ import annotations

import struct
from typing import NamedTuple

MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
DYNAMIC, DYNSYM = 6, 11
NEEDED = 1


class ElfError(Exception):
    """No whole ELF file. The text is a clause."""


class Elf(NamedTuple):
    machine: str
    needed: tuple[str, ...]
    """Libraries it asks the loader for."""
    undefined: frozenset[str]
    """Symbols it expects others to have."""


class _Section(NamedTuple):
    kind: int
    offset: int
    size: int
    link: int


def parse(data: bytes) -> Elf:
    """Of a 64-bit little-endian ELF file; ElfError for anything else."""
    if data[:4] != b"\x7fELF":
        raise ElfError(f"is no ELF file (it begins with {data[:8]!r})")
    if data[4:6] != b"\x02\x01":
        raise ElfError("is no 64-bit little-endian ELF file")
    try:
        machine = struct.unpack_from("<H", data, 18)[0]
        start, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
        sections = [_section(data, start + number * size) for number in range(count)]
        return Elf(
            MACHINES.get(machine, f"machine {machine}"),
            tuple(name for one in sections if one.kind == DYNAMIC for name in _needed(data, one, sections[one.link])),
            frozenset(
                name for one in sections if one.kind == DYNSYM for name in _undefined(data, one, sections[one.link])
            ),
        )
    except (struct.error, IndexError, ValueError):
        raise ElfError(f"is cut short or damaged ({len(data)} bytes)") from None


def _section(data: bytes, at: int) -> _Section:
    kind, offset, size, link = struct.unpack_from("<4xI16xQQI", data, at)
    if kind in (DYNAMIC, DYNSYM) and offset + size > len(data):
        raise ValueError
    return _Section(kind, offset, size, link)


def _needed(data: bytes, section: _Section, names: _Section) -> list[str]:
    entries = struct.iter_unpack("<QQ", data[section.offset : section.offset + section.size])
    return [_name(data, names, value) for tag, value in entries if tag == NEEDED]


def _undefined(data: bytes, section: _Section, names: _Section) -> list[str]:
    entries = struct.iter_unpack("<IBBHQQ", data[section.offset : section.offset + section.size])
    return [_name(data, names, name) for name, _, _, home, _, _ in entries if name and not home]


def _name(data: bytes, names: _Section, at: int) -> str:
    start = names.offset + at
    return data[start : data.index(b"\0", start)].decode("ascii", "replace")
