# SPDX-License-Identifier: GPL-3.0-or-later
"""A request carried out: every file of every model found, brought, verified, and published.

A file is taken from the nearest place that has it: from what lies here already, complete or in part; from the fleet;
from the sources in their order. What is damaged is mended piece by piece, where its pieces are known.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ansible_collections.onprem.llm.plugins.module_utils import gguf, hubs, transfer
from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, manifest, sources, store, verify
from ansible_collections.onprem.llm.plugins.module_utils.model_store.fleet import Cause, Fleet
from ansible_collections.onprem.llm.plugins.module_utils.model_store.manifest import Entry
from ansible_collections.onprem.llm.plugins.module_utils.model_store.pieces import TreeHash, damaged, piece_hash
from ansible_collections.onprem.llm.plugins.module_utils.model_store.status import Report
from ansible_collections.onprem.llm.plugins.module_utils.model_store.store import Verified
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import (
    Model,
    Pieces,
    Request,
    Source,
    StoreError,
)

#: Seconds for which a source is passed over when nobody answered there. After that the line may be back.
AWAY = 600.0
FULL = (errno.ENOSPC, errno.EDQUOT)


def fetch(
    request: Request,
    report: Report,
    *,
    findings: Path,
    transport: transfer.Transport | None = None,
    fleet: Fleet | None = None,
    free: Callable[[Path], int] = store.free_space,
) -> None:
    """Make every model of the request present, verified and published; StoreError names all that could not be had.

    ``findings`` is the file of damages that verify wrote: those files are mended. A model that fails does not keep the
    others from coming. The caller sees to it that nobody else works in the store (transfer.alone).
    """
    _Run(request, report, findings, transport, fleet, free).all()


def shared(file: File) -> str:
    """What the fleet calls the file; empty for one that is not worth it, or that nobody could compare."""
    return store.key(file) if file.size else ""


class _Run:
    """One request, and what its threads share."""

    def __init__(
        self,
        request: Request,
        report: Report,
        findings: Path,
        transport: transfer.Transport | None,
        fleet: Fleet | None,
        free: Callable[[Path], int],
    ) -> None:
        self.request, self.report, self.findings = request, report, findings
        self.transport, self.fleet, self.free = transport, fleet, free
        self.store = Path(request.store)
        self.damaged = {(one.repo, one.revision, one.path) for one in damage.read(findings).damaged}
        self.known: dict[Path, tuple[Entry, Verified]] = {}
        """Published files that nobody touched, by place."""
        self.held: dict[str, Verified] = {}
        """The same, and what came since, by content: no content is brought twice."""
        self.coming: dict[str, threading.Lock] = {}
        """Held while a content is brought."""
        self.away: dict[str, tuple[float, str]] = {}
        """Sources nobody answered at: since when, and what was seen."""
        self.asked: dict[tuple[str, str], tuple[Source, frozenset[str]] | Exception] = {}
        self.asking = threading.Lock()
        self.warned: set[tuple[str, str]] = set()
        self.full = ""
        """Why nothing can be written any more."""
        self.mending = threading.Lock()
        """A piece takes up to 64 MB of memory: one at a time."""

    # Models ------------------------------------------------------------------------------------------

    def all(self) -> None:
        models = self.request.models
        self.look()
        store.check_space(self.store, [self.copied(model) for model in models], self.free)
        self.tell()
        problems = []
        for model in models:
            try:
                self.model(model)
            except StoreError as error:
                self.report.model(model.name, "failed", str(error))
                problems.append(str(error))
        why = "\n".join(dict.fromkeys(problems))
        if self.fleet is not None and not self.full:
            # Who watches hears now how it went, not when the other hosts have everything too.
            if why:
                self.report.failed(why)
            else:
                self.report.state("seeding")
            self.fleet.finish()
        if why:
            raise StoreError(why)

    def look(self) -> None:
        """Find what is published, of whatever model, and was not touched since; without reading it."""
        for home in store.homes(self.store):
            shown = manifest.read(home)
            for entry in shown.files:
                if (shown.repo, shown.revision, entry.path) not in self.damaged:
                    self.remember(home, entry)

    def remember(self, home: Path, entry: Entry) -> None:
        place = home / entry.path
        if entry.pieces is not None and manifest.untouched(place, entry):
            found = Verified(place, entry.sha256, entry.pieces, entry.checksum)
            self.known[place] = (entry, found)
            for key in filter(None, (entry.sha256, entry.git_blob)):
                self.held[key] = found

    def tell(self) -> None:
        """Say what is here and what is not."""
        lacking = []
        for model in self.request.models:
            home, stage = store.home(self.store, model), store.stage(self.store, model)
            for file in model.files:
                found = self.kept(home / file.path, file)
                if found is not None:
                    self.have(model, file, found)
                    continue
                lacking.append(shared(file))
                target = store.staged(stage, file)
                here = (home / file.path, target, transfer.part_of(target))
                self.report.here(model.name, file.path, next((p.stat().st_size for p in here if p.is_file()), 0))
        if self.fleet is not None:
            self.fleet.wants([key for key in dict.fromkeys(lacking) if key], self.report.warn)

    def kept(self, place: Path, file: File) -> Verified | None:
        """What is published at ``place``, when it is the very file."""
        if place not in self.known:
            return None
        entry, found = self.known[place]
        return found if store.agrees(entry, file) else None

    def model(self, model: Model) -> None:
        if not model.files:
            raise StoreError(f"model '{model.name}': its files were not listed. Run the playbook again.")
        self.report.model(model.name, "fetching")
        pool = ThreadPoolExecutor(self.request.parallel, f"fetch-{model.name}")
        try:
            coming = {file.path: pool.submit(self.guarded, model, file) for file in model.files}
            errors = [error for one in coming.values() if (error := one.exception()) is not None]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for error in errors:
            if not isinstance(error, StoreError):
                raise error
        if errors:
            raise StoreError("\n".join(dict.fromkeys(map(str, errors))))
        ready = {path: one.result() for path, one in coming.items()}
        try:
            gguf.check_set({path: one.place for path, one in ready.items() if path.endswith(".gguf")})
        except gguf.GgufError as error:
            raise StoreError(
                f"model '{model.name}': {error}. The file is what {model.origin or 'its source'} offers as revision "
                f"'{model.revision}' of {model.repo}; it is not published. Choose another revision or file, then "
                f"delete {store.stage(self.store, model)}."
            ) from error
        home = store.home(self.store, model)
        with self.disk(model):
            published = store.publish(self.store, model, ready).entries()
            for path in ready:
                self.remember(home, published[path])
            for path in (*ready, manifest.MANIFEST):
                verify.settle(self.findings, (model.repo, model.revision, path), None)
        self.report.model(model.name, "published")
        if any(one.checksum != "source" for one in ready.values()):
            self.report.note(f"model '{model.name}': checksum: computed here, nothing to compare with")

    def copied(self, model: Model) -> Model:
        """The model without the files that will be links, and so take no room."""
        first = model.sources[:1]
        copied = (file for file in model.files if not any(self.linkable(model, source, file) for source in first))
        return replace(model, files=tuple(copied))

    @contextmanager
    def disk(self, model: Model) -> Iterator[None]:
        """Errors of this host's disk, said so that they can be mended."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise StoreError(f"model '{model.name}': {error}") from error
            self.full = self.full or self.too_full(error)
            raise StoreError(f"model '{model.name}': {self.full}") from error

    def too_full(self, error: OSError) -> str:
        remaining = sum(store.missing(self.store, self.copied(model))[1] for model in self.request.models)
        free = self.free(self.store)
        return (
            f"the disk of {self.store} is full ({error.strerror}): {transfer.human(remaining)} are still to come, "
            f"{transfer.human(free)} are free: {transfer.human(max(remaining - free, 0))} too little. What came is "
            "kept. Make room there and run again: it goes on from here."
        )

    # Files -------------------------------------------------------------------------------------------

    def guarded(self, model: Model, file: File) -> Verified:
        """One file, brought or found; StoreError says why not."""
        if self.full:
            raise StoreError(f"model '{model.name}': {self.full}")
        place = store.home(self.store, model) / file.path
        try:
            with self.disk(model), self.coming.setdefault(store.key(file) or str(place), threading.Lock()):
                found = self.kept(place, file) or self.twin(model, file) or self.file(model, file)
                if store.key(file):
                    self.held[store.key(file)] = found
                self.have(model, file, found)
                return found
        except StoreError as error:
            if self.fleet is not None and shared(file):
                cause = error.cause if isinstance(error, _UnfoundError) else ""
                self.fleet.failed(shared(file), str(error), cause)
            raise
        finally:
            self.report.busy(model.name, file.path, "")

    def have(self, model: Model, file: File, found: Verified) -> None:
        self.report.here(model.name, file.path, file.size)
        if self.fleet is not None and shared(file):
            self.fleet.have(shared(file), found.place, file.size, found.pieces)

    def twin(self, model: Model, file: File) -> Verified | None:
        """The same content under another name or revision, shared: a pin that moves does not bring it all again."""
        found = self.held.get(store.key(file))
        if found is None:
            return None
        target = store.staged(store.stage(self.store, model), file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.link(found.place, target)
        return replace(found, place=target)

    def file(self, model: Model, file: File) -> Verified:
        place = store.home(self.store, model) / file.path
        target = store.staged(store.stage(self.store, model), file)
        self.report.busy(model.name, file.path, "verifying")
        if (model.repo, model.revision, file.path) in self.damaged:
            found = store.adopt(target, file)
        else:
            found = store.ready(self.store, model, file)
        if found is not None:
            return found
        target.parent.mkdir(parents=True, exist_ok=True)
        pieces = self.mendable(model, file)
        if pieces is not None and not store.working(target).exists():
            os.link(place, store.working(target))
            os.truncate(store.working(target), file.size)  # where a piece lies does not depend on what was cut off
        if self.fleet is not None and shared(file):
            watch = _Judge(file)
            progress = self.follow(model, file)
            if self.fleet.want(shared(file), file.size, target, progress, watch) == "done":
                found = self.judge(model, file, target, watch)
            elif pieces is None:
                pieces = self.fleet.pieces(shared(file))
        if found is None and pieces is not None and store.working(target).exists():
            found = self.mend(model, file, target, pieces)
        store.working(target).unlink(missing_ok=True)
        return found or self.bring(model, file, target)

    def follow(self, model: Model, file: File) -> Callable[[str, int], None]:
        def progress(state: str, size: int) -> None:
            self.report.busy(model.name, file.path, state)
            if state == "fleet":
                self.report.here(model.name, file.path, size)

        return progress

    def judge(self, model: Model, file: File, target: Path, watch: _Judge | None = None) -> Verified | None:
        """The file at ``target``, found right; else it is thrown away. It is read unless all of it was seen to come."""
        self.report.busy(model.name, file.path, "verifying")
        place = store.home(self.store, model) / file.path
        seen = watch is not None and watch.seen == file.size
        found = watch.verified(target) if watch is not None and seen else store.adopt(target, file)
        if found is None:
            self.report.warn(
                f"model '{model.name}': {file.path}: the pieces that came do not make the file that was promised; "
                "they were thrown away, and it is fetched whole"
            )
            self.report.here(model.name, file.path, 0)
            target.unlink()
        elif place.is_file() and place.samefile(target):
            target.unlink()  # mended where it was published
            found = replace(found, place=place)
        return found

    # Mending -----------------------------------------------------------------------------------------

    def mendable(self, model: Model, file: File) -> Pieces | None:
        """The pieces of the published file, when it was the one wanted before it was damaged."""
        home = store.home(self.store, model)
        entry = manifest.read(home).entries().get(file.path)
        same = entry is not None and store.agrees(entry, file) and (home / file.path).is_file()
        return entry.pieces if entry is not None and same else None

    def mend(self, model: Model, file: File, target: Path, pieces: Pieces) -> Verified | None:
        """Bring only the wrong pieces of what lies at ``store.working(target)``; None when that does not help."""
        work = store.working(target)
        problems: list[str] = []
        bad = damaged(work, file.size, pieces)
        for source in self.sources(model, file, problems):
            try:
                url, asking = sources.url(model, source, file.path), sources.asking(source, self.request)
                while bad:
                    start = bad[0] * pieces.size
                    end = min(start + pieces.size, file.size)
                    self.report.here(model.name, file.path, file.size - len(bad) * pieces.size)
                    with self.mending, open(work, "r+b") as part:
                        block = transfer.fetch_range(
                            url, asking, start, end, transport=self.transport, arrived=self.report.arrived
                        )
                        if piece_hash(block, pieces.size) != pieces.hashes[bad[0]]:
                            raise transfer.TransferError(f"{transfer.redact(url)}: piece {bad[0]} is another")
                        part.seek(start)
                        part.write(block)
                        part.truncate(file.size)
                        os.fsync(part.fileno())
                    del bad[0], block  # two would be 128 MB
            except (transfer.TransferError, StoreError, hubs.HubError) as error:
                self.failed(model, source, error, problems)
        if bad:
            return None
        os.replace(work, target)
        return self.judge(model, file, target)

    # Sources -----------------------------------------------------------------------------------------

    def sources(self, model: Model, file: File, problems: list[str]) -> Iterator[Source]:
        """The sources that have the very file, in order; why others do not is added to ``problems``."""
        for source in model.sources:
            self.report.busy(model.name, file.path, source.name)
            try:
                there, paths = self.found(model, source)
            except (transfer.TransferError, hubs.HubError, StoreError) as error:
                self.failed(model, source, error, problems)
                continue
            if file.path in paths:
                yield there
            else:
                problems.append(f"{source.name}: {sources.where(source)} does not have the file, or has another")

    def found(self, model: Model, source: Source) -> tuple[Source, frozenset[str]]:
        """What the source has of the model; it is asked once."""
        with self.asking:
            # Looked at in here: of all who wait for a source that is away, only the first asks it.
            since, seen = self.away.get(source.name, (-AWAY, ""))
            if time.monotonic() - since < AWAY:
                raise transfer.TransferError(seen)
            key = (model.name, source.name)
            if key not in self.asked:
                try:
                    self.asked[key] = sources.found(model, source, self.transport, sources.asking(source, self.request))
                except (transfer.TransferError, hubs.HubError, StoreError) as error:
                    if getattr(error, "unreachable", False):
                        self.away[source.name] = (time.monotonic(), str(error))
                        raise
                    self.asked[key] = error
            told = self.asked[key]
        if isinstance(told, Exception):
            raise told
        return told

    def failed(self, model: Model, source: Source, error: Exception, problems: list[str]) -> None:
        if getattr(error, "unreachable", False):
            self.away[source.name] = (time.monotonic(), str(error))
        problems.append(f"{source.name}: {error}")
        if len(model.sources) > 1 and (model.name, source.name) not in self.warned:
            self.warned.add((model.name, source.name))
            self.report.warn(f"model '{model.name}': {source.name}: {error}. The other sources are asked.")

    def bring(self, model: Model, file: File, target: Path) -> Verified:
        """The whole file from the first source that has it."""
        problems: list[str] = []
        wrong = False
        for source in self.sources(model, file, problems):
            try:
                return self.link(model, source, file, target) or self.download(model, source, file, target)
            except (transfer.TransferError, StoreError, hubs.HubError) as error:
                self.failed(model, source, error, problems)
                wrong = wrong or isinstance(error, transfer.ChecksumError)
        away = any(source.name in self.away for source in model.sources)
        raise _UnfoundError(
            f"model '{model.name}': {file.path} of {model.repo} (revision {model.revision}) could not be had. "
            + ("\n  ".join(["", *problems]).strip() if len(problems) > 1 else "".join(problems) or "It has no source"),
            "wrong" if wrong else "unreachable" if away else "",
        )

    def download(self, model: Model, source: Source, file: File, target: Path) -> Verified:
        part = transfer.part_of(target)
        # While what lies here is read again, it counts already.
        floor = part.stat().st_size if part.exists() else 0
        watch = _Watch(file.size, floor, lambda size: self.report.here(model.name, file.path, size))
        received = transfer.download(
            sources.url(model, source, file.path),
            target,
            sources.asking(source, self.request),
            size=file.size,
            sha256=file.sha256,
            git_blob=file.git_blob,
            transport=self.transport,
            watch=watch,
            arrived=self.report.arrived,
        )
        return Verified(target, received.sha256, watch.tree.pieces(), "source" if store.key(file) else "computed here")

    def linkable(self, model: Model, source: Source, file: File) -> Path | None:
        """Where a file of a directory lies, when the store may share it."""
        if source.type != "directory":
            return None
        try:
            there, paths = self.found(model, source)
            place = Path(unquote(urlsplit(sources.url(model, there, file.path)).path))
            return place if file.path in paths and store.may_link(self.store, place) else None
        except (StoreError, hubs.HubError, OSError):
            return None

    def link(self, model: Model, source: Source, file: File, target: Path) -> Verified | None:
        """The file of a directory, shared instead of copied; None where that cannot be."""
        place = self.linkable(model, source, file)
        if place is None:
            return None
        target.unlink(missing_ok=True)
        try:
            os.link(place, target)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                return None
            raise
        found = store.inspected(target, file)
        if found is None:
            target.unlink()
            raise StoreError(
                f"{place} is not what the manifest beside it says. It is not used. Copy it again from where it came"
            )
        return found


class _UnfoundError(StoreError):
    """No source had the file."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause: Cause = cause


class _Watch:
    """Sees the bytes of a file come: their tree hash, and how many lie here."""

    def __init__(self, size: int, floor: int = 0, tell: Callable[[int], None] = lambda _size: None) -> None:
        self._size, self._floor, self._tell = size, floor, tell
        self._begun = False
        self.seen = 0

    def __call__(self) -> Callable[[bytes], None]:
        if self._begun:
            self._floor = 0  # the file starts over
        self._begun, self.seen = True, 0
        self.tree = TreeHash(self._size)
        return self.see

    def see(self, block: bytes) -> None:
        self.tree.update(block)
        self.seen += len(block)
        self._tell(max(self.seen, self._floor))


class _Judge(_Watch):
    """Sees a file come from the fleet, and knows at its end whether it is the one promised."""

    def __init__(self, file: File) -> None:
        super().__init__(file.size)
        self._file = file

    def __call__(self) -> Callable[[bytes], None]:
        self.hashes = transfer.Hashes(self._file.size, self._file.git_blob)
        return super().__call__()

    def see(self, block: bytes) -> None:
        self.hashes.update(block)
        super().see(block)

    def verified(self, place: Path) -> Verified | None:
        if self.hashes.wrong(self._file.sha256, self._file.git_blob) is not None:
            return None
        return Verified(place, self.hashes.sha256(), self.tree.pieces())
