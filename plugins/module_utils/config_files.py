# SPDX-License-Identifier: GPL-3.0-or-later
"""Files whose whole content is known: what differs, and putting it right without a moment of half a file."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class FileError(Exception):
    """A file that cannot be written as asked. The text names it and why."""


@dataclass(frozen=True)
class Wanted:
    """One file. ``validate`` is a command in which ``%s`` stands for a file that holds the new content."""

    path: str
    content: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    validate: str = ""


@dataclass(frozen=True)
class Difference:
    """How a file differs from what is wanted. ``before`` is ``None`` when there is no such file."""

    wanted: Wanted
    before: str | None
    attributes: tuple[str, ...]

    @property
    def content(self) -> bool:
        return self.before != self.wanted.content


def name_of_user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def name_of_group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def compare(wanted: Wanted) -> Difference | None:
    """What differs, or ``None``. Reads only."""
    try:
        now = os.lstat(wanted.path)
    except FileNotFoundError:
        return Difference(wanted, None, ())
    if not stat.S_ISREG(now.st_mode):
        raise FileError(f"{wanted.path} is no plain file. Move it away; a file of that name is to be written.")
    before = Path(wanted.path).read_text(encoding="utf-8", errors="surrogateescape")
    attributes = tuple(
        f"{what} {old} -> {new}"
        for what, old, new in (
            ("mode", f"{stat.S_IMODE(now.st_mode):04o}", f"{wanted.mode:04o}"),
            ("owner", name_of_user(now.st_uid), wanted.owner),
            ("group", name_of_group(now.st_gid), wanted.group),
        )
        if old != new
    )
    return Difference(wanted, before, attributes) if attributes or before != wanted.content else None


def question(arguments: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """A command for a shell, and the lines it prints where every file is as wanted. Reads only.

    ``arguments``: the module's, as a task gives them. ``None`` where only the module can say whether they are any good.
    """
    known = {*Wanted.__dataclass_fields__, "secret"}
    files = arguments.get("files")
    if set(arguments) != {"files"} or not isinstance(files, list) or not files:
        return None
    defaults = {"mode": f"{Wanted.mode:04o}", "owner": Wanted.owner, "group": Wanted.group}
    modes, sums = [], []
    for file in files:
        if not isinstance(file, Mapping) or not known >= set(file) or not {"path", "content"} <= set(file):
            return None
        texts = [{**defaults, **file}[name] for name in ("path", "content", *defaults)]
        # The module would read other paths in its own way, and sums of other names are printed in another one.
        if not all(isinstance(text, str) for text in texts) or not re.fullmatch(r"(/[\w.@:+-]+)+", texts[0]):
            return None
        path, content, mode, owner, group = texts
        if not re.fullmatch("[0-7]+", mode):
            return None
        modes.append(f"{stat.S_IFREG | int(mode, 8):x} {owner} {group}")
        sums.append(f"{hashlib.sha256(content.encode(errors='surrogateescape')).hexdigest()}  {path}")
    paths = shlex.join(file["path"] for file in files)
    return f"stat --format='%f %U %G' {paths} && sha256sum {paths}", modes + sums


def draft_of(path: str) -> Path:
    """Where new content lies until it takes the file's place; a run that was killed may leave it."""
    folder, name = os.path.split(path)
    return Path(folder) / f".{name}.new"


def write(difference: Difference, run: Callable[[str], tuple[int, str]]) -> None:
    """Put one file right. ``run`` runs a command and gives its exit code and what it said."""
    wanted = difference.wanted
    folder = os.path.dirname(wanted.path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    try:
        owner, group = pwd.getpwnam(wanted.owner).pw_uid, grp.getgrnam(wanted.group).gr_gid
    except KeyError as error:
        raise FileError(f"{wanted.path}: {error.args[0]}. Nothing was written to it.") from error
    if not difference.content:
        os.chown(wanted.path, owner, group)
        os.chmod(wanted.path, wanted.mode)
        return
    draft = draft_of(wanted.path)
    draft.unlink(missing_ok=True)
    try:
        own = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(own, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(wanted.content)
            file.flush()
            os.fsync(file.fileno())
        os.chown(draft, owner, group)
        os.chmod(draft, wanted.mode)
        if wanted.validate:
            code, said = run(wanted.validate.replace("%s", str(draft)))
            if code:
                raise FileError(f"{wanted.path}: the new content is refused and the old one stays: {said.strip()}")
        os.rename(draft, wanted.path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
