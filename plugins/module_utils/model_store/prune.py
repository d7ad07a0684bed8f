# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a store nobody needs any more: found, and removed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils import hubs, transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest
from ansible_collections.onprem.llm.plugins.module_utils.model_store import store as published
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model


@dataclass
class Pruned:
    """What was removed, or in check mode would be."""

    removed: list[str]
    """Paths below the store; of what goes as a whole only the folder."""
    freed: int = 0
    """Bytes; a file that something else links to frees none."""


def prune(store: Path, served: Path, keep: Sequence[Model], gone: Collection[str] = (), check: bool = False) -> Pruned:
    """Remove what the store published or staged and neither a model of ``keep`` nor a pointer needs.

    The pointers named in ``gone`` are removed first. One with the name of a kept model needs that model's files where
    it leads to them; any other needs all files of the revision it leads to. Files that no manifest lists are not
    touched. BusyError, and nothing is removed, while a transfer runs.
    """
    done = Pruned([])
    if not store.is_dir():
        return done
    kept = [(model, published.home(store, model)) for model in keep]
    names = {(model.name, place) for model, place in kept}
    with transfer.alone(store, store / published.STAGING, patience=0.0):
        if gone and not check:
            for name in gone:
                (served / name).unlink(missing_ok=True)
            transfer.sync_folder(served)  # a pointer must not come back to files that are gone
        whole = {
            place
            for name, place in published.pointers(store, served)
            if name not in gone and (name, place) not in names
        }
        links = store / published.STAGING / published.LINKS
        if links.is_dir() and not check:
            shutil.rmtree(links)  # left by a transfer that was stopped: they would keep what goes on the disk
        for place in published.homes(store):
            if place not in whole:
                _prune_revision(store, place, [model for model, where in kept if where == place], check, done)
        needed = whole | {place for _model, place in kept}
        unfinished = [path for path in published.children(store / published.STAGING) if not path.name.startswith(".")]
        stages = {published.stage_of(store, place) for place in needed}
        for folder in unfinished:
            if folder not in stages:
                _prune_tree(store, folder, check, done)
    return done


def _prune_revision(store: Path, place: Path, models: Sequence[Model], check: bool, done: Pruned) -> None:
    recorded = manifest.read(place)
    listed = [published.as_file(entry) for entry in recorded.files]
    kept = {file.path for model in models for file in hubs.select(listed, model.include, model.exclude)}
    goes = [entry for entry in recorded.files if entry.path not in kept]
    if not goes:
        return
    done.removed += [str((place / entry.path).relative_to(store)) for entry in goes] if kept else []
    done.removed += [] if kept else [str(place.relative_to(store))]
    done.freed += sum(_frees(place / entry.path) for entry in goes)
    if check:
        return
    # The manifest goes last: ended halfway, the next run finds in it what is still to be removed.
    for entry in goes:
        (place / entry.path).unlink(missing_ok=True)
        published.remove_empty((place / entry.path).parent, place)
    if not kept:
        (place / manifest.MANIFEST).unlink()
        published.remove_empty(place, store)
        return
    complete = [
        one
        for one in recorded.selections
        if kept.issuperset(file.path for file in hubs.select(listed, one.include, one.exclude))
    ]
    files = tuple(entry for entry in recorded.files if entry.path in kept)
    manifest.write(place, replace(recorded, selections=tuple(complete), files=files))


def _prune_tree(store: Path, folder: Path, check: bool, done: Pruned) -> None:
    done.removed.append(str(folder.relative_to(store)))
    done.freed += sum(_frees(path) for path in folder.rglob("*"))
    if not check:
        shutil.rmtree(folder)
        published.remove_empty(folder.parent, store)


def _frees(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_blocks * 512 if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0


def retired(store: Path, served: Path, names: Collection[str]) -> dict[str, str]:
    """The pointers to published folders that have none of the names, and where they lead."""
    return {
        name: str(place)
        for name, place in published.pointers(store, served)
        if name not in names and os.readlink(served / name) == str(place)
    }
