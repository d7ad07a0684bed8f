# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of one host: fetched, verified, published, and served through a pointer.

Under the store's folder lie

    <repo>/<revision>/…        published files, read-only, and manifest.json, written after them
    .staging/<repo>@<revision> what is being fetched; a killed run leaves it, the next one goes on there
    .rejected/<repo>/<revision> the last bytes that failed their checksum

and elsewhere one pointer per served model. A pointer only ever leads to files the manifest lists; the manifest
only ever lists files whose checksum was seen to be right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import gguf, hubs, transfer

MANIFEST = "manifest.json"


class StoreError(Exception):
    """The model cannot be published; the message says what stands in the way and what to do."""


@dataclass(frozen=True)
class Model:
    """What is wanted."""

    name: str
    repo: str
    revision: str
    source: str
    """A kind of hub, or ``directory``."""
    location: str
    """The hub's address, or the directory."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    entry: str = ""

    def __post_init__(self) -> None:
        for what, value, form in (
            ("name", self.name, r"[A-Za-z0-9][A-Za-z0-9._-]*"),
            ("repo", self.repo, r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"),
            ("revision", self.revision, r"[A-Za-z0-9][A-Za-z0-9._-]*"),
        ):
            if not re.fullmatch(form, value):
                raise StoreError(f"model '{self.name}': {what} is '{value}', it must have the form {form}")


@dataclass
class Outcome:
    """What was done, or in check mode would be."""

    changed: bool = False
    folder: str = ""
    commit: str = ""
    files: list[dict[str, Any]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    transferred: int = 0
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Offer:
    """What a source has for a model."""

    wanted: list[hubs.File]
    commit: str
    """Empty when the source names none."""
    places: dict[str, Path]
    """For a directory: where each file lies."""
    links: set[str]
    """Files of a directory that are shared instead of copied."""
    missing: list[str]
    remaining: int
    """Bytes still to be stored."""


def free_space(folder: Path) -> int:
    """Bytes an ordinary process may still write where the folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


class Store:
    """One folder of published models."""

    def __init__(
        self,
        folder: Path,
        served: Path,
        source: transfer.Source | None = None,
        *,
        check: bool = False,
        free: Callable[[Path], int] = free_space,
        patience: float = 300.0,
    ) -> None:
        self.folder, self.served = folder, served
        self.source = source or transfer.Source()
        self.check = check
        self.free = free
        self.patience = patience
        """Seconds to wait for another run that brings nothing."""

    def publish(self, model: Model) -> Outcome:
        """Make the model's files present and verified, and its pointer lead to them."""
        home = self.folder / model.repo / model.revision
        done = Outcome(folder=str(home))
        self._leads_to(model)  # anything else in the pointer's place ends it here
        present = self._present(home, model)
        if present is None and self.check:
            self._would_fetch(home, model, done)
        elif present is None:
            try:
                offer = self._offer(home, model)  # whatever is wrong with the request is found before anything is made
            except transfer.TransferError as error:
                raise StoreError(_away(model, error)) from error
            try:
                with transfer.alone(self.folder, self.folder / ".staging", self.patience):
                    present = self._present(home, model) or self._fetch(home, model, offer, done)
            except transfer.BusyError as error:
                raise StoreError(f"model '{model.name}': {error}") from error
        if present is not None:
            done.files, done.commit = present["files"], present["commit"]
        self._point(model, home, done)
        return done

    # What is there already ---------------------------------------------------------------------------

    def _manifest(self, home: Path) -> dict[str, Any]:
        """The manifest of a published folder; an empty one when there is none that can be read."""
        try:
            manifest = json.loads((home / MANIFEST).read_text())
            return {
                "format": 1,
                "repo": str(manifest["repo"]),
                "revision": str(manifest["revision"]),
                "commit": str(manifest["commit"]),
                "source": str(manifest["source"]),
                "selections": list(manifest["selections"]),
                "files": [
                    {key: entry[key] for key in ("path", "size", "sha256", "checksum", "mtime_ns")}
                    for entry in manifest["files"]
                ],
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {"selections": [], "files": [], "commit": ""}

    def _present(self, home: Path, model: Model) -> dict[str, Any] | None:
        """The manifest, when it covers the model and its files are as they were when verified: no network needed."""
        manifest = self._manifest(home)
        if _selection(model) not in manifest["selections"]:
            return None
        wanted = hubs.select(
            [hubs.File(entry["path"], entry["size"]) for entry in manifest["files"]],
            model.include,
            model.exclude,
        )
        recorded = {entry["path"]: entry for entry in manifest["files"]}
        for file in wanted:
            if not _untouched(home / file.path, recorded[file.path]):
                return None
        _check_entry(model, wanted)
        return manifest

    # What the source offers --------------------------------------------------------------------------

    def _offer(self, home: Path, model: Model) -> Offer:
        """What the source has for the model; refused when it is not what was asked for, or does not fit."""
        places: dict[str, Path] = {}
        where = transfer.redact(model.location)
        try:
            if model.source == "directory":
                root = _directory(model)
                where = str(root)
                listing, places = _read_directory(root)
            else:
                hub = hubs.Hub(model.source, model.location, model.repo, model.revision)
                listing = hub.listing(lambda url: transfer.fetch_text(url, self.source))
            wanted = hubs.select(listing.files, model.include, model.exclude)
        except hubs.HubError as error:
            raise StoreError(f"model '{model.name}': {error}") from error
        if not wanted:
            globs = ", ".join(model.include) or "*"
            without = f" without {', '.join(model.exclude)}" if model.exclude else ""
            raise StoreError(
                f"model '{model.name}': nothing in {model.repo} (revision {model.revision}, {where}) matches "
                f"include: {globs}{without}. There is: {_some(listing.files)}. Correct `include`."
            )
        _check_entry(model, wanted)
        if any(file.path == MANIFEST for file in wanted):
            raise StoreError(
                f"model '{model.name}': {model.repo} has a file {MANIFEST}, a name the store needs itself. "
                f"Add it to `exclude`."
            )
        commit = model.revision if hubs.is_commit(model.revision) else ""
        if not commit and len(listing.commits) == 1:
            commit = listing.commits[0]
        links = {file.path for file in wanted if file.path in places and self._may_link(places[file.path])}
        copied = [file for file in wanted if file.path not in links]
        missing, remaining = self._missing(home, self._stage(model), copied)
        self._check_space(model, wanted, remaining)
        return Offer(wanted, commit, places, links, [file.path for file in missing], remaining)

    def _missing(self, home: Path, stage: Path, wanted: Sequence[hubs.File]) -> tuple[list[hubs.File], int]:
        """The files not yet complete here, and how many bytes of them are still to come."""
        missing, remaining = [], 0
        for file in wanted:
            place, staged = home / file.path, _staged(stage, file)
            if _size(place) == file.size or _size(staged) == file.size:
                continue
            missing.append(file)
            remaining += file.size - min(_size(transfer.part_of(staged)) or 0, file.size)
        return missing, remaining

    def _check_space(self, model: Model, wanted: Sequence[hubs.File], remaining: int) -> None:
        free = self.free(self.folder)
        if remaining <= free:
            return
        whole = sum(file.size for file in wanted)
        raise StoreError(
            f"model '{model.name}': {transfer.human(remaining)} of {transfer.human(whole)} must still be stored in "
            f"{self.folder}, where {transfer.human(free)} are free: {transfer.human(remaining - free)} too little. "
            "Nothing was downloaded. Make room there, set `models_dir` to a larger disk, or choose a smaller "
            "variant of the model."
        )

    def _would_fetch(self, home: Path, model: Model, done: Outcome) -> None:
        done.changed = True
        try:
            offer = self._offer(home, model)
        except transfer.TransferError as error:
            if not error.unreachable:
                raise StoreError(_away(model, error)) from error
            done.notes.append(
                f"{model.repo} would be fetched from {transfer.redact(model.location)}; what exactly is not known, "
                f"the hub cannot be reached from here: {error}"
            )
            return
        done.commit = offer.commit
        done.files = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in offer.wanted]
        done.fetched = offer.missing
        what = f"{len(offer.missing)} files, {transfer.human(offer.remaining)},"
        done.notes.append(f"{what} would be fetched from {transfer.redact(model.location)}")

    # Fetching ----------------------------------------------------------------------------------------

    def _fetch(self, home: Path, model: Model, offer: Offer, done: Outcome) -> dict[str, Any]:
        wanted, stage = offer.wanted, self._stage(model)
        if not hubs.is_commit(model.revision) and model.source in ("modelscope", "huggingface"):
            done.warnings.append(
                f"model '{model.name}': revision '{model.revision}' of {model.repo} is a branch or a tag that may "
                "move: another host may get other files. playbooks/lock.yml pins it to a commit."
            )
        sums: dict[str, str] = {}
        ready: dict[str, Path] = {}
        for file in wanted:
            known = self._adopt(home / file.path, file)
            if known:
                sums[file.path], ready[file.path] = known, home / file.path
                continue
            target = _staged(stage, file)
            if file.path in offer.places:
                place = offer.places[file.path]
                sums[file.path] = self._take(place, target, file, model, file.path in offer.links)
            else:
                sums[file.path] = self._download(model, file, target, done)
            ready[file.path] = target
            done.fetched.append(file.path)
        try:
            gguf.check_set({path: place for path, place in ready.items() if path.endswith(".gguf")})
        except gguf.GgufError as error:
            raise StoreError(
                f"model '{model.name}': {error}. The file is what {transfer.redact(model.location)} offers as revision "
                f"'{model.revision}' of {model.repo}; it is not published. Choose another revision or file, then "
                f"delete {stage}."
            ) from error
        for path, place in ready.items():
            final = home / path
            final.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(place, 0o444)
            if place != final:
                os.replace(place, final)
                transfer.sync_folder(final.parent)
        manifest = self._record(home, model, offer.commit, wanted, sums)
        done.changed = True
        shutil.rmtree(stage, ignore_errors=True)
        if any(not file.sha256 and not file.git_blob for file in wanted):
            done.notes.append("checksum: computed here, nothing to compare with")
        return manifest

    def _download(self, model: Model, file: hubs.File, target: Path, done: Outcome) -> str:
        """Fetch one file to its place in the staging folder, unless an earlier run finished it."""
        if _size(target) == file.size:
            hashes = transfer.hash_file(target, transfer.Hashes(file.size, file.git_blob))
            if hashes.wrong(file.sha256, file.git_blob) is None:
                return hashes.sha256()
            target.unlink()
        hub = hubs.Hub(model.source, model.location, model.repo, model.revision)
        try:
            received = transfer.download(
                hub.download_url(file.path),
                target,
                self.source,
                size=file.size,
                sha256=file.sha256,
                git_blob=file.git_blob,
                rejected=self.folder / ".rejected" / model.repo / model.revision / file.path,
            )
        except transfer.TransferError as error:
            raise StoreError(f"model '{model.name}': {error}") from error
        done.transferred += received.transferred
        return received.sha256

    def _may_link(self, place: Path) -> bool:
        """Whether the store may share the file instead of copying it: same disk, and nobody but root can write it."""
        found = place.stat()
        home = self.folder
        while not home.exists():
            home = home.parent
        foreign = found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return not foreign and found.st_dev == home.stat().st_dev

    def _take(self, place: Path, target: Path, file: hubs.File, model: Model, link: bool) -> str:
        """Link or copy one file of a directory into the staging folder, hashing it on the way."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = transfer.part_of(target)
        part.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        hashes = transfer.Hashes(file.size)
        if link:
            os.link(place, part)
            transfer.hash_file(part, hashes)
        else:
            with open(place, "rb") as reader, open(part, "wb") as writer:
                while block := reader.read(transfer.BLOCK):
                    hashes.update(block)
                    writer.write(block)
                writer.flush()
                os.fsync(writer.fileno())
        wrong = hashes.wrong(file.sha256, "")
        if wrong is not None:
            part.unlink()
            raise StoreError(
                f"model '{model.name}': {place} is not what the manifest beside it says: expected {wrong[0]}, got "
                f"{wrong[1]}. It is not used. Copy the file again from where it came."
            )
        os.replace(part, target)
        return hashes.sha256()

    def _adopt(self, place: Path, file: hubs.File) -> str:
        """The checksum of a published file that is right although no manifest (any longer) vouches for it."""
        if _size(place) != file.size or not (file.sha256 or file.git_blob):
            return ""
        hashes = transfer.hash_file(place, transfer.Hashes(file.size, file.git_blob))
        return "" if hashes.wrong(file.sha256, file.git_blob) else hashes.sha256()

    def _record(
        self, home: Path, model: Model, commit: str, wanted: Sequence[hubs.File], sums: dict[str, str]
    ) -> dict[str, Any]:
        """Write the manifest: what it said before, and the files just published."""
        old = self._manifest(home)
        # Other models' files stay listed, also when damaged: their own next run finds and mends that.
        entries = {entry["path"]: entry for entry in old["files"]}
        for file in wanted:
            entries[file.path] = {
                "path": file.path,
                "size": file.size,
                "sha256": sums[file.path],
                "checksum": "source" if file.sha256 or file.git_blob else "computed here",
                "mtime_ns": (home / file.path).stat().st_mtime_ns,
            }
        complete = []
        for selection in [*old["selections"], _selection(model)]:
            if selection not in complete:
                complete.append(selection)
        manifest = {
            "format": 1,
            "repo": model.repo,
            "revision": model.revision,
            "commit": commit if old["commit"] in ("", commit) else "",
            "source": f"{model.source}: {transfer.redact(model.location)}",
            "selections": complete,
            "files": [entries[path] for path in sorted(entries)],
        }
        write_atomically(home / MANIFEST, json.dumps(manifest, indent=2) + "\n", 0o444)
        return manifest

    # The pointer -------------------------------------------------------------------------------------

    def _leads_to(self, model: Model) -> str:
        """Where the model's pointer leads; empty when there is none."""
        pointer = self.served / model.name
        try:
            return os.readlink(pointer)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise StoreError(
                f"model '{model.name}': {pointer} is no pointer of ours ({error.strerror}); move it away"
            ) from error

    def _point(self, model: Model, home: Path, done: Outcome) -> None:
        pointer, before = self.served / model.name, self._leads_to(model)
        done.before, done.after = before, str(home)
        if before == str(home):
            return
        done.changed = True
        if self.check:
            return
        self.served.mkdir(parents=True, exist_ok=True)
        temporary = self.served / f".{model.name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(home)
        os.replace(temporary, pointer)
        transfer.sync_folder(self.served)

    # Staging -----------------------------------------------------------------------------------------

    def _stage(self, model: Model) -> Path:
        return self.folder / ".staging" / f"{model.repo.replace('/', '--')}@{model.revision}"


def _selection(model: Model) -> dict[str, list[str]]:
    return {"include": sorted(model.include), "exclude": sorted(model.exclude)}


def _check_entry(model: Model, wanted: Sequence[hubs.File]) -> None:
    if model.entry and all(file.path != model.entry for file in wanted):
        raise StoreError(
            f"model '{model.name}': entry '{model.entry}' is not among the files of {model.repo} that `include` "
            f"selects: {_some(wanted)}. Correct `entry` or `include`."
        )


def _some(files: Sequence[hubs.File]) -> str:
    names = sorted(file.path for file in files)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing at all"


def _away(model: Model, error: transfer.TransferError) -> str:
    return (
        f"model '{model.name}': {model.repo} (revision {model.revision}) could not be listed: {error}. Check `repo`, "
        "`revision` and the address of the source, and that this host reaches it."
    )


def _size(path: Path) -> int | None:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _untouched(path: Path, entry: dict[str, Any]) -> bool:
    return bool(_size(path) == entry["size"] and path.stat().st_mtime_ns == entry["mtime_ns"])


def _staged(stage: Path, file: hubs.File) -> Path:
    """The staged name carries the checksum, so that bytes of another revision are never continued."""
    key = (file.sha256 or file.git_blob)[:12] or str(file.size)
    return stage / f"{file.path}.{key}"


def _directory(model: Model) -> Path:
    root = Path(model.location)
    tried = (root / model.repo / model.revision, root / model.repo)
    for folder in tried:
        if folder.is_dir():
            return folder
    raise StoreError(
        f"model '{model.name}': its source is the directory {root} on this host, which has neither "
        f"{tried[0].relative_to(root)} nor {tried[1].relative_to(root)}. Copy the files there, or correct the path."
    )


def _read_directory(root: Path) -> tuple[hubs.Listing, dict[str, Path]]:
    """The files below a directory; their checksums are those of a manifest there, if there is one."""
    places = {
        hubs.clean_path(str(path.relative_to(root))): path.resolve()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / MANIFEST and not _unfinished(path.relative_to(root))
    }
    if (root / MANIFEST).exists():
        listing = hubs.parse_manifest((root / MANIFEST).read_bytes(), str(root / MANIFEST))
        absent = [file.path for file in listing.files if file.path not in places]
        if absent:
            raise hubs.HubError(f"{root / MANIFEST} lists files that are not there: {', '.join(absent)}")
        return listing, places
    return hubs.Listing(tuple(hubs.File(name, path.stat().st_size) for name, path in places.items())), places


def _unfinished(path: Path) -> bool:
    """What download tools leave beside the files: hidden folders and partial files."""
    return path.suffix in (".part", ".incomplete", ".parallel_tmp") or any(part.startswith(".") for part in path.parts)


def write_atomically(path: Path, text: str, mode: int) -> None:
    """The file holds the old text or the new one, whatever happens."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(temporary, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    transfer.sync_folder(path.parent)
