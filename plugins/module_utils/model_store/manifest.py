# SPDX-License-Identifier: GPL-3.0-or-later
"""``manifest.json`` of a published revision: what lies there, and what it was when it was verified."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.hubs import HubError, clean_path
from ansible_collections.onprem.llm.plugins.module_utils.model_store.pieces import piece_size
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Pieces

MANIFEST = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Entry:
    """One published file."""

    path: str
    size: int
    sha256: str
    checksum: str
    """Where the sha256 is from: ``source``, which the bytes were compared with, or ``computed here``."""
    mtime_ns: int
    """Modification time when it was published: any other means that somebody touched it."""
    git_blob: str = ""
    """Git's name of the content, where the source gave that instead of a sha256."""
    pieces: Pieces | None = None
    """None: published before there were any."""


@dataclass(frozen=True)
class Selection:
    """Globs whose files are all here; sorted, since their order says nothing."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What is published of one revision."""

    repo: str = ""
    revision: str = ""
    commit: str = ""
    source: str = ""
    """Who listed the files last."""
    selections: tuple[Selection, ...] = ()
    files: tuple[Entry, ...] = ()
    """By path."""

    def entries(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self.files}


def selection(model: Model) -> Selection:
    """What the model takes of its repository."""
    return Selection(tuple(sorted(model.include)), tuple(sorted(model.exclude)))


def read(home: Path) -> Manifest:
    """The manifest of a published folder, of this format or the one before; an empty one where none can be read."""
    try:
        data = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
        return Manifest(
            repo=str(data["repo"]),
            revision=str(data["revision"]),
            commit=str(data["commit"]),
            source=str(data["source"]),
            selections=tuple(Selection(tuple(one["include"]), tuple(one["exclude"])) for one in data["selections"]),
            files=tuple(_entry(entry) for entry in data["files"]),
        )
    except (OSError, ValueError, KeyError, TypeError, HubError):
        return Manifest()


def write(home: Path, manifest: Manifest) -> None:
    """Replace the manifest: readers find the old one or the new one."""
    transfer.write_atomically(home / MANIFEST, text(manifest), 0o444)


def text(manifest: Manifest) -> str:
    """The manifest as it is stored: a line for each file, whose pieces are long."""
    head = {
        "format": FORMAT,
        "repo": manifest.repo,
        "revision": manifest.revision,
        "commit": manifest.commit,
        "source": manifest.source,
        "selections": [{"include": one.include, "exclude": one.exclude} for one in manifest.selections],
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    files = ",\n".join(f"    {json.dumps(_plain(entry))}" for entry in manifest.files)
    return "{\n" + ",\n".join([*lines, f'  "files": [\n{files}\n  ]']) + "\n}\n"


def untouched(place: Path, entry: Entry) -> bool:
    """Whether the file at ``place`` has the size and the modification time it was published with."""
    try:
        found = place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns)


def _entry(data: Mapping[str, Any]) -> Entry:
    size, pieces = int(data["size"]), None
    # Pieces cut in another way cannot be compared with those of another host.
    if data.get("piece_size") == piece_size(size) and len(data["pieces"]) == -(-size // piece_size(size)):
        pieces = Pieces(piece_size(size), tuple(data["pieces"]))
    return Entry(
        path=clean_path(str(data["path"])),
        size=size,
        sha256=str(data["sha256"]),
        checksum=str(data["checksum"]),
        mtime_ns=int(data["mtime_ns"]),
        git_blob=str(data.get("git_blob", "")),
        pieces=pieces,
    )


def _plain(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "path": entry.path,
        "size": entry.size,
        "sha256": entry.sha256,
        "checksum": entry.checksum,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.git_blob:
        plain["git_blob"] = entry.git_blob
    if entry.pieces is not None:
        plain |= {"piece_size": entry.pieces.size, "pieces": entry.pieces.hashes}
    return plain
