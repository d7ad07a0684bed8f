# SPDX-License-Identifier: GPL-3.0-or-later
"""Where facts come from: files below a root, and commands. Neither ever raises; what is missing says why."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

Run = Callable[[list[str]], tuple[int, str, str]]
"""Runs a command: exit status (127: not installed, 124: did not answer in time), standard output, standard error."""

LIMIT = 4 * 2**20  # bytes read of one file; /proc/cpuinfo of 1,000 CPUs is less than 2 MiB
PIECE = 4096
NOT_INSTALLED = 127
NOT_RECORDED = -1


class Tree:
    """Files of a machine: of this one when root is /, of a recorded one otherwise."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self.recorded = os.path.realpath(root) != "/"

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str | None:
        """The text of a file, None when it cannot be read; ``why`` says why."""
        try:
            return self._read(name)
        except (OSError, ValueError):
            return None

    def why(self, name: str) -> str:
        """Why a file gives nothing: one clause."""
        try:
            self._read(name)
        except FileNotFoundError:
            return f"{name} is missing" + (f" below {self.root}" if self.recorded else "")
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({getattr(error, 'strerror', None) or error})"
        return f"{name} does not tell"

    def _read(self, name: str) -> str:
        path = self.path(name)
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("no regular file")
        with path.open("rb", buffering=0) as file:
            parts: list[bytes] = []
            # In pieces: /proc/sys refuses to be asked for megabytes at once.
            while (part := file.read(PIECE)) and len(parts) * PIECE < LIMIT:
                parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")

    def names(self, folder: str) -> list[str] | None:
        """What a folder holds, sorted; None when it cannot be listed."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except OSError:
            return None

    def exists(self, name: str) -> bool:
        try:
            return self.path(name).exists()
        except OSError:
            return False

    def real(self, name: str) -> Path | None:
        """The folder a link of /sys leads to."""
        try:
            return self.path(name).resolve(strict=True)
        except (OSError, RuntimeError):
            return None

    def number(self, name: str) -> int | None:
        text = self.text(name)
        try:
            return int((text or "").strip())
        except ValueError:
            return None


def recorded_run(tree: Tree) -> Run:
    """Answers commands from <root>/commands/<program>.json: a list of {args, rc, stdout, stderr}.

    The first entry all of whose ``args`` stand in the command answers it; none, or no such file: NOT_RECORDED.
    """

    def run(argv: list[str]) -> tuple[int, str, str]:
        name = f"commands/{argv[0]}.json"
        text = tree.text(name)
        if text is None:
            return NOT_RECORDED, "", tree.why(name)
        try:
            for entry in json.loads(text):
                if all(word in argv for word in entry.get("args", [])):
                    return int(entry["rc"]), str(entry.get("stdout", "")), str(entry.get("stderr", ""))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return NOT_RECORDED, "", f"{name} is not a list of objects with args, rc, stdout and stderr"
        return NOT_RECORDED, "", f"{name} has no entry for: {' '.join(argv)}"

    return run


def answer(program: str, rc: int, out: str, err: str) -> str:
    """Why a command gave nothing: one clause."""
    if rc == NOT_RECORDED:
        return err
    if rc == NOT_INSTALLED:
        return f"{program} is not installed"
    said = " ".join((err or out).split())[:200]
    return f"{program} ended with {rc}" + (f" ({said})" if said else "")
