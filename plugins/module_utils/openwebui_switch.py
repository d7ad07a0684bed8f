# SPDX-License-Identifier: GPL-3.0-or-later
"""From one version of Open WebUI to another, and back: what is written down, and what that says is to be done.

A version is a folder ``VERSION-pyPYTHON-HASH`` below the root, called its pointer. A change goes through four states:
``dumping`` (the service is stopped, its data are being copied; nothing was changed), ``trying`` (the data may have been
reworked, nobody but the trial has seen them, and the dump is what counts), then ``good`` or ``failed``.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.python_tree import MARKER

FORMAT = 1
GIB = 2**30


class SwitchError(Exception):
    """The change cannot be made, or did not succeed. The text says why and the way out."""


class Version(TypedDict):
    """``dump`` is the name of its data as they were when it was left, empty for the version that serves.

    Without a pointer it is that of a database that was there before the first version here.
    """

    version: str
    pointer: str
    dump: str


class Record(TypedDict):
    """``restores``: the dump that a way back brings. ``login``: whether the administrator could sign in before."""

    format: int
    state: str  # dumping, trying, good, failed
    good: Version
    previous: Version | None
    wanted: Version | None
    dump: str
    restores: str
    login: bool
    why: str


def version_of(pointer: str) -> str:
    return pointer.partition("-py")[0]


def at(pointer: str, dump: str = "") -> Version:
    return {"version": version_of(pointer), "pointer": pointer, "dump": dump}


def first(current: str) -> Record:
    """The record of a host that has none; ``current`` is empty where nothing is installed."""
    return {
        "format": FORMAT, "state": "good", "good": at(current), "previous": None, "wanted": None, "dump": "",
        "restores": "", "login": False, "why": "",
    }  # fmt: skip


def read(path: Path, current: str) -> Record:
    """The record at ``path``. Unless a change is under way, what serves is what the pointer says."""
    if not path.exists():
        # Whose data are kept here nobody knows any more, and the last of them stay until the next change all the same.
        kept = [data.stem if data.suffix == ".dump" else data.name for data in path.parent.glob("*-[0-9]*T[0-9]*Z*")]
        last = max(kept, key=lambda name: name.rpartition("-")[2], default="")
        return {**first(current), "previous": at("", last) if last else None}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        number = found["format"]
        record: Record = {key: found[key] for key in first("")}  # type: ignore[assignment]
    except (ValueError, KeyError, TypeError) as error:
        raise SwitchError(
            f"{path} is damaged ({error!r}). When Open WebUI serves and nothing is owed, move it away "
            f"(mv {path} {path}.old): only the way back to the version before is lost, its dump and its "
            "uploads stay until the next change of version."
        ) from error
    if number != FORMAT:
        raise SwitchError(
            f"{path} has format {number}, and this release knows {FORMAT}: use the release that wrote it."
        )
    if record["state"] != "trying" and current:
        record["good"] = at(current)
    return record


def render(record: Record) -> str:
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Plan:
    """What a run has to do before it configures and starts the service.

    ``withdraw``: take back a change that broke off and is no longer wanted. ``switch``: change to what is wanted,
    after keeping the data as ``dump``, and with the data ``restores`` unless that is empty. ``back_to``: where a way
    back leads, if there is one. ``resumes``: ``dump`` was made before the data were touched; none may be made now.
    """

    serves: Version
    withdraw: bool
    switch: bool
    dump: str
    restores: str
    back_to: Version | None
    resumes: bool = False


def plan(record: Record, current: str, wanted: str, restores: str, now: str, finished: Iterable[str]) -> Plan:
    """``current`` and ``wanted`` are pointers, ``now`` the time for a dump's name, ``finished`` the built versions."""
    good, previous = record["good"], record["previous"]
    if record["state"] == "trying" and record["wanted"]:
        back_to = record["wanted"] if record["restores"] else good
        if record["wanted"]["pointer"] == wanted:
            return Plan(good, False, True, record["dump"], record["restores"], back_to, True)
        fresh = f"{good['pointer']}-{now}"
        return Plan(good, True, wanted != good["pointer"], fresh, restores, back_to)
    reachable = previous if previous and previous["pointer"] in set(finished) else None
    return Plan(good, False, current not in ("", wanted), f"{current or 'found'}-{now}", restores, reachable)


def begun(record: Record, wanted: str, dump: str, restores: str, login: bool) -> Record:
    """The service is about to be stopped and its data copied to ``dump``."""
    return {
        **record, "state": "dumping", "wanted": at(wanted), "dump": dump, "restores": restores, "login": login,
        "why": "",
    }  # fmt: skip


def passed(record: Record) -> Record:
    """What was tried serves, and what served is the way back."""
    assert record["wanted"]
    before = {**record["good"], "dump": record["dump"]}
    return {
        **record, "state": "good", "good": record["wanted"], "previous": before,  # type: ignore[typeddict-item]
        "wanted": None, "dump": "", "restores": "", "why": "",
    }  # fmt: skip


def assigned(source: str) -> dict[str, Any]:
    """Constants that a Python source assigns at its top level."""
    found: dict[str, Any] = {}
    for line in ast.parse(source).body:
        if isinstance(line, ast.Assign):
            targets: list[ast.expr] = line.targets
        elif isinstance(line, ast.AnnAssign):
            targets = [line.target]
        else:
            continue
        if line.value and isinstance(targets[0], ast.Name):
            with contextlib.suppress(ValueError):
                found[targets[0].id] = ast.literal_eval(line.value)
    return found


def heads(sources: Iterable[str]) -> set[str]:
    """Revisions that no other one follows, from the sources of Alembic's migrations."""
    names: set[str] = set()
    followed: set[str] = set()
    for migration in map(assigned, sources):
        names |= {migration["revision"]}
        before = migration.get("down_revision") or ()
        followed |= {before} if isinstance(before, str) else set(before)
    return names - followed


def check_schema(revision: str, sources: Iterable[str], version: str) -> None:
    """SwitchError unless the database is at the revision that the version's migrations end with."""
    ends = heads(sources)
    if {revision} != ends:
        raise SwitchError(
            f"Open WebUI {version} answers; its migrations end with revision {' and '.join(sorted(ends)) or 'none'} "
            f"and the database is at {revision or 'none'}: the migration did not do what it should."
        )


# --- what people uploaded


def link(source: str, target: str) -> None:
    """The same file under a second name; a copy where that is on another file system."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target, follow_symlinks=False)
        owner = os.lstat(source)
        os.chown(target, owner.st_uid, owner.st_gid, follow_symlinks=False)


def check_room(source: Path, target: Path) -> None:
    """SwitchError when ``target`` must be a copy, for which there is no room."""
    there = next(place for place in (target, *target.parents) if place.exists())
    if not source.is_dir() or source.stat().st_dev == there.stat().st_dev:
        return
    files = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
    need, free = sum(file.lstat().st_size for file in files), shutil.disk_usage(there).free
    if free < need:
        raise SwitchError(
            f"The uploads in {source} take {need / GIB:.1f} GiB, and {there}, which is on another file system, has "
            f"{free / GIB:.1f} GiB free for their copy. Nothing was changed. Free that space, then run again."
        )


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file; nothing where there is no such folder."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return {str(file.relative_to(folder)): (file.lstat().st_size, int(file.lstat().st_mtime)) for file in files}


def bring_back(kept: Path, uploads: Path) -> None:
    """What was kept as ``kept`` takes the place of ``uploads``; unchanged files need no room for a copy."""
    if not kept.is_dir():
        raise SwitchError(
            f"{kept}, where the uploads were kept, is not there, and those in {uploads} were not touched. Put it back "
            "there, then run again."
        )
    if listing(kept / "uploads") != listing(uploads):
        clone(kept / "uploads", uploads)


def clone(source: Path, target: Path) -> None:
    """``target`` becomes ``source`` as it is now. Links will do: an upload is written once and never changed."""
    part, old = (target.with_name(f".{target.name}.{what}") for what in ("part", "old"))
    for path in (part, old):
        shutil.rmtree(path, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        try:
            shutil.copytree(source, part, symlinks=True, copy_function=link)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        for folder, _, _ in os.walk(source):
            there = part / os.path.relpath(folder, source)
            os.chown(there, os.stat(folder).st_uid, os.stat(folder).st_gid)
    # The copy must survive a power cut that what it replaces does not.
    os.sync()
    if target.exists():
        target.rename(old)
    if part.exists():
        part.rename(target)
    transfer.sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def finished(root: Path) -> list[str]:
    """Pointers of versions that were built to the end."""
    return [marker.parent.name for marker in root.glob(f"[!.]*/{MARKER}") if not marker.parent.is_symlink()]


def current(root: Path) -> str:
    """The version that the pointer leads to, or nothing."""
    pointer = root / "current"
    return pointer.readlink().name if pointer.is_symlink() and pointer.exists() else ""


def facts(record: Record) -> Mapping[str, Any]:
    """The component's section of the host's local facts."""
    short = {key: record["good"][key] for key in ("version", "pointer")}
    before = record["previous"]
    if not before or not before["pointer"]:
        return {**short, "previous": {}}
    return {**short, "previous": {"version": before["version"], "pointer": before["pointer"]}}
