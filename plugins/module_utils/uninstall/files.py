# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and folders that go, or are put back as they were before us."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

#: Nothing that holds one of these is ever removed, whatever a variable says.
SYSTEM = (
    "/boot /dev /etc/apt /etc/modprobe.d /etc/ssh /etc/systemd/system /home /lib /opt /proc /root /run/systemd /srv "
    "/sys /tmp /usr/bin /usr/lib /usr/local /usr/sbin /usr/share /var/cache /var/lib /var/log /var/spool /var/tmp"
)


class FilesError(Exception):
    """A path that must not go. The text names it and the way out."""


def existing(patterns: Iterable[str]) -> list[str]:
    """What is there of these paths and patterns, dangling links too; a path below another of them goes with it."""
    found = sorted({os.path.normpath(path) for pattern in patterns for path in _expand(pattern)})
    for path in found:
        if not path.startswith("/") or _systems(path):
            raise FilesError(f"'{path}' belongs to the system and is not removed. Correct the variable that names it.")
    return [path for path in found if not any(path.startswith(f"{other}/") for other in found)]


def _systems(path: str) -> bool:
    """Whether a path is, or holds, a folder of the system."""
    return any(one == path or one.startswith(path.rstrip("/") + "/") for one in SYSTEM.split())


def dangling(patterns: Iterable[str]) -> list[str]:
    """Links of these paths and patterns that lead nowhere."""
    found = {path for pattern in patterns for path in _expand(pattern)}
    return sorted(path for path in found if os.path.islink(path) and not os.path.exists(path))


def _expand(pattern: str) -> list[str]:
    return [pattern] if os.path.lexists(pattern) else glob.glob(pattern)


def remove(path: str, act: bool = True) -> tuple[bool, list[str]]:
    """Remove a file or a whole folder, never what is mounted there. Whether anything goes, and what stays mounted.

    Without ``act`` it is only said.
    """
    if os.path.islink(path) or not os.path.isdir(path):
        if act:
            os.unlink(path)
        return True, []
    goes, stays = False, list[str]()
    for entry in sorted(os.scandir(path), key=lambda one: one.name):
        if entry.is_dir(follow_symlinks=False) and os.path.ismount(entry.path):
            stays.append(entry.path)
            continue
        went, mounted = remove(entry.path, act)
        goes |= went
        stays += mounted
    if stays or os.path.ismount(path):
        return goes, stays
    if act:
        os.rmdir(path)
    return True, []


def put_back(copy: Path, path: str) -> None:
    """The copy of a file or folder in its old place, with owners, modes and times."""
    _clear(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _copy(str(copy), path)


def keep(patterns: Sequence[str], folder: Path) -> None:
    """Copies of what is there of ``patterns`` below ``folder``."""
    for path in sorted({path for pattern in patterns for path in _expand(pattern)}):
        copy = folder / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy(path, str(copy))


def copied(patterns: Iterable[str], folder: Path) -> dict[str, Path]:
    """Of ``patterns`` the paths of which ``folder`` has a copy, and the copy."""
    found = [one for pattern in patterns for one in _expand(f"{folder}/{pattern.lstrip('/')}")]
    return {one.removeprefix(str(folder)): Path(one) for one in found}


def shelve(copy: Path, old: Path, new: Path) -> None:
    """A copy below ``old`` lies below ``new`` from now on, instead of an earlier one."""
    place = new / copy.relative_to(old)
    _clear(str(place))
    place.parent.mkdir(parents=True, exist_ok=True)
    copy.rename(place)


def keep_again(patterns: Iterable[str], returned: Path, folder: Path, act: bool = True) -> list[str]:
    """Of ``patterns`` those that were put back: copies of them as they are now. Without ``act`` only which."""
    found = copied(patterns, returned)
    for path, stale in found.items() if act else ():
        if os.path.lexists(path):
            draft = stale.with_name(f"{stale.name}.new")
            _clear(str(draft))
            _copy(path, str(draft))
            _clear(str(stale))
            draft.rename(stale)
            shelve(stale, returned, folder)
        else:
            _clear(str(stale))
    return sorted(found)


def held(folder: Path) -> dict[str, Path]:
    """Every file of which ``folder`` has a copy, also inside folders, and the copy."""
    found = (one for one in sorted(folder.rglob("*")) if one.is_symlink() or one.is_file())
    return {f"/{one.relative_to(folder)}": one for one in found}


def _clear(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _copy(source: str, destination: str) -> None:
    subprocess.run(["cp", "--archive", "--no-target-directory", "--", source, destination], check=True)


def same(copy: Path, path: str) -> bool:
    """Whether a path is as its copy; of a folder nobody knows without reading it, so it counts as different."""
    if copy.is_symlink() or os.path.islink(path):
        return copy.is_symlink() and os.path.islink(path) and os.readlink(copy) == os.readlink(path)
    return copy.is_file() and os.path.isfile(path) and copy.read_bytes() == Path(path).read_bytes()


def empty(folders: Iterable[str]) -> list[str]:
    """Folders of these that hold nothing but folders named before them.

    A link, a mount point, a folder of the system and one directly below the root (/data, /mnt) are somebody's.
    """
    found: list[str] = []
    for folder in map(os.path.normpath, folders):
        if folder in found or not os.path.isdir(folder) or os.path.islink(folder) or os.path.ismount(folder):
            continue
        if _systems(folder) or os.path.dirname(folder) == "/":
            continue
        if all(os.path.join(folder, one) in found for one in os.listdir(folder)):
            found.append(folder)
    return found
