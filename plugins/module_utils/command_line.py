# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of an engine as one line of its unit's environment file, and that line read again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any


def written(flags: Mapping[str, Any]) -> str:
    """The flags as one line that systemd splits into words again (it knows the shell's single quotes).

    True stands for an option without a value, a list for several words after one option.
    """
    words: list[str] = []
    for name, value in flags.items():
        if value is False or value is None:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += [shlex.quote(str(one)) for one in (value if isinstance(value, list) else [value])]
    return " ".join(words)


def read(line: str) -> dict[str, Any]:
    """Options of a line, without dashes; several words after one option are joined by blanks. None of one that ends
    within quotes: somebody has edited it."""
    flags: dict[str, Any] = {}
    name = ""
    try:
        words = shlex.split(line)
    except ValueError:
        return {}
    for word in words:
        if re.fullmatch(r"--[a-z][a-z0-9_-]*", word):
            name = word[2:]
            flags[name] = True
        elif name:
            flags[name] = word if flags[name] is True else f"{flags[name]} {word}"
    return flags


def environment(text: str, *without: str) -> dict[str, str]:
    """Variables that an environment file sets, but for those named."""
    return {name: value for name, value in re.findall(r"^([A-Z]\w*)=(.*)$", text, re.MULTILINE) if name not in without}
