# SPDX-License-Identifier: GPL-3.0-or-later
"""The published models of one host.

Under the store's folder lie

    <repo>/<revision>/…         published files, read-only, and manifest.json, written after them
    .staging/<repo>@<revision>  what is being fetched; a killed run leaves it, the next one goes on there

and elsewhere one pointer per served model. A pointer only ever leads to files the manifest lists; the manifest
only ever lists files whose checksum was seen to be right.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils import hubs, transfer
from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest
from ansible_collections.onprem.llm.plugins.module_utils.model_store.manifest import MANIFEST, Entry, Manifest
from ansible_collections.onprem.llm.plugins.module_utils.model_store.pieces import TreeHash
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Pieces, StoreError

STAGING = ".staging"
LINKS = ".fleet"
"""In the staging folder: hard links to what the fleet may take. Nothing else has a dot there."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class Verified:
    """A file whose bytes were seen to be right."""

    place: Path
    """Where it lies now: in the staging folder, or published already."""
    sha256: str
    pieces: Pieces
    checksum: str = "source"
    """Or ``computed here``: the source named nothing to compare with."""


# Places -----------------------------------------------------------------------------------------------------------


def home(store: Path, model: Model) -> Path:
    """Where the model's files are published. StoreError when one of its names would lead elsewhere."""
    return store / _named(model).repo / model.revision


def stage(store: Path, model: Model) -> Path:
    """Where the model's files lie until they are published."""
    return stage_of(store, home(store, model))


def stage_of(store: Path, home: Path) -> Path:
    owner, name, revision = home.relative_to(store).parts
    return store / STAGING / f"{owner}--{name}@{revision}"


def staged(stage: Path, file: File) -> Path:
    """The file's place in a staging folder. It carries the checksum: bytes of another revision are never continued."""
    return stage / f"{hubs.clean_path(file.path)}.{key(file)[:12] or file.size}"


def working(target: Path) -> Path:
    """Where a file lies while the fleet brings it, with gaps."""
    return target.with_name(target.name + ".swarm")


def key(file: File) -> str:
    """What names the file's content, on every host; empty when the source gave nothing but a size."""
    return file.sha256 or file.git_blob


def _named(model: Model) -> Model:
    for what, value, form in (
        ("name", model.name, NAME),
        ("repo", model.repo, f"{NAME}/{NAME}"),
        ("revision", model.revision, NAME),
    ):
        if not re.fullmatch(form, value):
            raise StoreError(f"model '{model.name}': {what} is '{value}', it must have the form {form}")
    return model


def selection_key(model: Model) -> str:
    """What two hosts compare to know that they want the same files."""
    chosen = manifest.selection(model)
    return json.dumps([model.repo, model.revision, chosen.include, chosen.exclude])


# What is wanted ---------------------------------------------------------------------------------------------------


def select(model: Model, listed: Sequence[File], where: str) -> tuple[File, ...]:
    """The files the model takes of a listing of ``where``; StoreError when they cannot be what is meant."""
    wanted = hubs.select(listed, model.include, model.exclude)
    if not wanted:
        globs = ", ".join(model.include) or "*"
        without = f" without {', '.join(model.exclude)}" if model.exclude else ""
        raise StoreError(
            f"model '{model.name}': nothing in {model.repo} (revision {model.revision}, {where}) matches "
            f"include: {globs}{without}. There is: {_some(listed)}. Correct `include`."
        )
    _check_entry(model, wanted)
    if any(file.path == MANIFEST for file in wanted):
        raise StoreError(
            f"model '{model.name}': {model.repo} has a file {MANIFEST}, a name the store needs itself. "
            f"Add it to `exclude`."
        )
    return tuple(wanted)


def _check_entry(model: Model, wanted: Sequence[File]) -> None:
    if model.entry and all(file.path != model.entry for file in wanted):
        raise StoreError(
            f"model '{model.name}': entry '{model.entry}' is not among the files of {model.repo} that `include` "
            f"selects: {_some(wanted)}. Correct `entry` or `include`."
        )


def _some(files: Sequence[File]) -> str:
    names = sorted(file.path for file in files)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing at all"


# What is there ----------------------------------------------------------------------------------------------------


def present(store: Path, model: Model) -> Manifest | None:
    """The manifest, when it covers the model and its files are as they were when verified.

    Neither network nor hashing: size and modification time tell. A model whose files are not listed (yet) is covered
    by its selection; one whose files are, by exactly these.
    """
    place = home(store, model)
    recorded = manifest.read(place)
    return None if lacks(place, recorded, model) else recorded


def lacks(place: Path, recorded: Manifest, model: Model) -> str:
    """Why what is published at ``place`` is not the model, for people; empty when it is."""
    entries = recorded.entries()
    if not entries:
        return "not there"
    wanted: Sequence[File] = model.files
    if not wanted and manifest.selection(model) in recorded.selections:
        wanted = hubs.select(map(as_file, recorded.files), model.include, model.exclude)
        _check_entry(model, wanted)
    elif not wanted:
        return "another selection of files is there"
    for file in wanted:
        if not vouched(place, entries, file):
            if file.path not in entries or _size(place / file.path) is None:
                return f"{file.path} is not there"
            return f"{file.path} is another file or was touched"
    return ""


def homes(store: Path) -> list[Path]:
    """The folders of all published revisions."""
    return [path.parent for path in sorted(store.glob(f"[!.]*/[!.]*/[!.]*/{MANIFEST}"))]


def missing(store: Path, model: Model) -> tuple[list[File], int]:
    """The listed files not yet complete here, and how many bytes of them are still to come."""
    lacking = _lacking(store, model, _held(store))
    return [file for file, _left in lacking], sum(left for _file, left in lacking)


def _held(store: Path) -> set[str]:
    """The sha256 of what is published anywhere: the same content elsewhere becomes a link to it."""
    return {
        entry.sha256
        for place in homes(store)
        for entry in manifest.read(place).files
        if entry.pieces is not None and manifest.untouched(place / entry.path, entry)
    }


def _lacking(store: Path, model: Model, held: Collection[str]) -> list[tuple[File, int]]:
    place, staging = home(store, model), stage(store, model)
    entries = manifest.read(place).entries()
    lacking = []
    for file in model.files:
        entry, final, here = entries.get(file.path), place / file.path, staged(staging, file)
        other = entry is not None and agrees(entry, file) is False and manifest.untouched(final, entry)
        if file.sha256 not in held and _size(here) != file.size and (other or _size(final) != file.size):
            lacking.append((file, file.size - min(file.size, _begun(here))))
    return lacking


def _begun(here: Path) -> int:
    """Bytes of a staged file that lie here: from a hub without a gap, from the fleet with many."""
    part, swarm = transfer.part_of(here), working(here)
    return max(_size(part) or 0, swarm.lstat().st_blocks * 512 if _size(swarm) is not None else 0)


def free_space(folder: Path) -> int:
    """Bytes an ordinary process may still write where the folder is, or will be."""
    space = os.statvfs(_existing(folder))
    return space.f_bavail * space.f_frsize


def check_space(store: Path, models: Sequence[Model], free: Callable[[Path], int] = free_space) -> None:
    """StoreError when what is still to come of the models' listed files does not fit.

    Files that take no room (links) are left out of ``model.files`` by the caller.
    """
    lacking: dict[Path, tuple[int, int]] = {}  # models of one revision may share files
    names, held = [], _held(store)
    for model in models:
        found = {home(store, model) / file.path: (left, file.size) for file, left in _lacking(store, model, held)}
        names += [model.name] if found else []
        lacking |= found
    remaining, whole = sum(left for left, _size in lacking.values()), sum(size for _left, size in lacking.values())
    room = free(store)
    if remaining <= room:
        return
    raise StoreError(
        f"{'model' if len(names) == 1 else 'models'} {', '.join(map(repr, names))}: {transfer.human(remaining)} of "
        f"{transfer.human(whole)} must still be stored in {store}, where {transfer.human(room)} are free: "
        f"{transfer.human(remaining - room)} too little. Nothing was downloaded. Make room there, set `models_dir` to "
        "a larger disk, or choose a smaller variant of the model."
    )


def may_link(store: Path, place: Path) -> bool:
    """Whether the store may share a file instead of copying it: same disk, and nobody but root can write it."""
    found = place.stat()
    foreign = found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return not foreign and found.st_dev == _existing(store).stat().st_dev


def inspected(place: Path, file: File) -> Verified | None:
    """The file lying at ``place``, read; None when it is another, or no file."""
    if _size(place) != file.size:
        return None
    hashes, tree = transfer.Hashes(file.size, file.git_blob), TreeHash(file.size)
    with open(place, "rb") as reader:
        while block := reader.read(transfer.BLOCK):
            hashes.update(block)
            tree.update(block)
    if hashes.size != file.size or hashes.wrong(file.sha256, file.git_blob) is not None:
        return None
    return Verified(place, hashes.sha256(), tree.pieces(), "source" if key(file) else "computed here")


def adopt(place: Path, file: File) -> Verified | None:
    """The file lying at ``place``, read and found right; None also when nothing tells what is right."""
    return inspected(place, file) if key(file) else None


def ready(store: Path, model: Model, file: File) -> Verified | None:
    """The file as it lies here complete, published or staged; None when it must be fetched.

    A published file that nobody touched is believed; any other is read. A staged file that is wrong is removed.
    """
    place, here = home(store, model) / file.path, staged(stage(store, model), file)
    entry = manifest.read(home(store, model)).entries().get(file.path)
    if entry is not None and manifest.untouched(place, entry):
        same = agrees(entry, file)
        if same and entry.pieces is not None:
            return Verified(place, entry.sha256, entry.pieces, entry.checksum)
        found = adopt(place, file if key(file) else replace(file, sha256=entry.sha256)) if same is not False else None
    elif entry is not None and not key(file):
        # What was computed here when it was published is all there is to tell what somebody made of it.
        found = adopt(place, replace(file, sha256=entry.sha256))
    else:
        found = adopt(place, file)
    if found is not None:
        return found if key(file) else replace(found, checksum="computed here")
    found = adopt(here, file)
    if found is None:
        here.unlink(missing_ok=True)
    return found


def agrees(entry: Entry, file: File) -> bool | None:
    """Whether what was published is the file a source lists; None when the two cannot be compared."""
    if entry.size != file.size:
        return False
    if file.sha256:
        return file.sha256 == entry.sha256
    if file.git_blob:
        return file.git_blob == entry.git_blob if entry.git_blob else None
    return True


def vouched(place: Path, entries: Mapping[str, Entry], file: File) -> bool:
    """Whether the manifest has the very file, and nobody touched it since."""
    entry = entries.get(file.path)
    return entry is not None and agrees(entry, file) is True and manifest.untouched(place / file.path, entry)


def as_file(entry: Entry) -> File:
    return File(entry.path, entry.size, entry.sha256, entry.git_blob)


def _size(path: Path) -> int | None:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


# Publishing -------------------------------------------------------------------------------------------------------


def publish(store: Path, model: Model, verified: Mapping[str, Verified]) -> Manifest:
    """Put every listed file of the model in its place, then write the manifest.

    ``verified`` is by path. After a power cut at any moment the manifest lists only files that are on the disk.
    """
    place, staging = home(store, model), stage(store, model)
    folders: set[Path] = set()
    for file in model.files:
        final, now = place / hubs.clean_path(file.path), verified[file.path].place
        _make(final.parent, store)
        folders.update(_upwards(final.parent, store))
        os.chmod(now, 0o444)
        _sync(now)  # mended where it lies, too
        if now != final:
            # Of two links to one file a rename removes neither; what is left is removed below.
            os.replace(now, final)
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        transfer.sync_folder(folder)
    published = _recorded(place, model, verified)
    manifest.write(place, published)
    _tidy(staging, model.files)
    return published


def _recorded(place: Path, model: Model, verified: Mapping[str, Verified]) -> Manifest:
    """What the manifest said before, and the files just published."""
    old = manifest.read(place)
    # Other models' files stay listed, also when damaged: their own next run finds and mends that.
    entries = old.entries()
    for file in model.files:
        known = verified[file.path]
        entries[file.path] = Entry(
            path=file.path,
            size=file.size,
            sha256=known.sha256,
            checksum=known.checksum,
            mtime_ns=(place / file.path).stat().st_mtime_ns,
            git_blob=file.git_blob,
            pieces=known.pieces,
        )
    source = next((source for source in model.sources if source.name == model.origin), None)
    where = transfer.redact(source.url) or source.path if source else ""
    return Manifest(
        repo=model.repo,
        revision=model.revision,
        commit=model.commit if old.commit in ("", model.commit) else "",
        source=f"{model.origin}: {where}" if where else model.origin,
        selections=tuple(dict.fromkeys((*old.selections, manifest.selection(model)))),
        files=tuple(entries[path] for path in sorted(entries)),
    )


def _tidy(staging: Path, files: Iterable[File]) -> None:
    """Remove what the staging folder holds of the files, of whatever content; other models' parts stay."""
    for file in files:
        place = staging / file.path
        form = re.escape(place.name) + r"\.([0-9a-f]{12}|\d+)(\.[a-z]+)?"
        for left in children(place.parent):
            if re.fullmatch(form, left.name):
                left.unlink()
        remove_empty(place.parent, staging.parent)


def _make(folder: Path, store: Path) -> None:
    """Engines run as other users: what is published can be read, whatever the umask."""
    for one in reversed(list(_upwards(folder, store))):
        if not one.is_dir():
            one.mkdir(parents=True)
            one.chmod(0o755)


def _upwards(folder: Path, top: Path) -> Iterator[Path]:
    while folder != top:
        yield folder
        folder = folder.parent
    yield top


def _sync(path: Path) -> None:
    """The file's bytes are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def remove_empty(folder: Path, top: Path) -> None:
    """Remove the folder and those above it, below ``top``, as far as they are empty."""
    while folder != top and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


# Pointers ---------------------------------------------------------------------------------------------------------


def leads_to(served: Path, name: str) -> str:
    """Where a model's pointer leads; empty when there is none, StoreError when something else is in its place."""
    if not re.fullmatch(NAME, name):
        raise StoreError(f"model '{name}': name is '{name}', it must have the form {NAME}")
    pointer = served / name
    try:
        return os.readlink(pointer)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StoreError(f"model '{name}': {pointer} is no pointer of ours ({error.strerror}); move it away") from error


def point(served: Path, name: str, home: Path) -> str:
    """Let a model's pointer lead to a published folder, in one step; where it led before."""
    before = leads_to(served, name)
    if before == str(home):
        return before
    served.mkdir(parents=True, exist_ok=True)
    transfer.point(served / name, str(home))
    return before


def pointers(store: Path, served: Path) -> Iterator[tuple[str, Path]]:
    """Name and revision's folder of everything that leads into the store."""
    top = Path(os.path.realpath(store))
    for link in children(served):
        target = Path(os.path.realpath(link))
        if link.is_symlink() and not link.name.startswith(".") and target.is_relative_to(top):
            parts = target.relative_to(top).parts
            if len(parts) >= 3:
                yield link.name, store.joinpath(*parts[:3])
