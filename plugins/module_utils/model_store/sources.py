# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a model's files come from: in which order sources are asked, what each has, and where the bytes are.

The first source that knows the revision lists the files. Another one's files count when size and checksum are those of
the list, whatever the revision is called there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import hubs, transfer
from ansible_collections.onprem.llm.plugins.module_utils.hubs import File, Hub, HubError, Listing
from ansible_collections.onprem.llm.plugins.module_utils.model_store import store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.manifest import MANIFEST
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Request, Source, StoreError

#: Types of sources that a site runs itself: they are near, and ask for no more than what they hold.
NEAR = ("mirror", "directory")
#: Left by download tools beside the files.
UNFINISHED = (".part", ".incomplete", ".parallel_tmp")


class AbsentError(HubError):
    """The directory does not hold the model."""


class SourceError(StoreError):
    """No source has the model's files."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable
        """No source answered, so nothing is known; the request may be right."""


def ordered(model_sources: Mapping[str, Mapping[str, Any]], own: str) -> list[str]:
    """Names of the sources in the order they are asked: mirrors and directories, the model's own, other hubs."""
    near = [name for name, source in model_sources.items() if source.get("type") in NEAR]
    first = [own] if own in model_sources else []
    return list(dict.fromkeys([*near, *first, *model_sources]))


def asking(source: Source, request: Request) -> transfer.Source:
    """How the source is asked: with its token, and as patiently as the request says."""
    return with_token(source, transfer.Source(attempts=request.attempts, timeout=request.stall_seconds))


def with_token(source: Source, manner: transfer.Source) -> transfer.Source:
    """How the source is asked: in the manner given, with the token and the cookie it wants, and by its own way."""
    if not source.token.isprintable():
        raise StoreError(f"the token of the source '{source.name}' holds a line end or another unprintable character")
    if source.ca and not os.access(source.ca, os.R_OK):
        raise StoreError(
            f"the source '{source.name}' has the `ca` {source.ca}, which is not on this host or cannot be read. Put "
            "its certificate authority there, or correct `ca`"
        )
    way = transfer.Way(source.ca, source.fleet)
    return replace(manner, token=source.token, cookie=hubs.TOKEN_COOKIE.get(source.type, ""), way=way)


def where(source: Source) -> str:
    """The source for people, without credentials."""
    return source.path if source.type == "directory" else transfer.redact(source.url)


# Revisions --------------------------------------------------------------------------------------------------------


def revisions(model: Model, source: Source) -> tuple[str, ...]:
    """What the model's revision may be called at the source, likeliest first.

    Before the files are listed only what surely means the same; afterwards the list decides which files are the same,
    so that a commit of one hub can be looked for in another hub's branch.
    """
    if source.revision:
        return (source.revision,)
    branch = hubs.DEFAULT_BRANCH.get(source.type, "")
    if not branch:
        return (model.revision,)
    named = branch if model.revision in hubs.DEFAULT_BRANCH.values() else model.revision
    if not model.origin:
        return (named,)
    lister = next((other.type for other in model.sources if other.name == model.origin), "")
    commit = [model.commit] if model.commit and lister == source.type else []
    return tuple(dict.fromkeys([*commit, named, branch]))


def at(model: Model, source: Source) -> Hub:
    """The model's revision at a source that is no directory; HubError when the source is described wrongly."""
    return Hub(source.type, source.url, model.repo, revisions(model, source)[0])


def url(model: Model, source: Source, path: str) -> str:
    """Where the bytes of one file are; ``file://`` in a directory. HubError for a path that leads out of it."""
    if source.type != "directory":
        return at(model, source).download_url(path)
    root = _directory(model, source)
    place = (root / hubs.clean_path(path)).resolve()
    if not place.is_relative_to(Path(source.path).resolve()):
        raise HubError(f"{root / path} leads out of {source.path}")
    return place.as_uri()


# Lists ------------------------------------------------------------------------------------------------------------


def listing(
    model: Model,
    transport: transfer.Transport | None = None,
    manner: transfer.Source | None = None,
    away: dict[str, Exception] | None = None,
) -> tuple[Model, list[str]]:
    """The model with its files, commit and origin, from the first source that has them, and what to warn of.

    SourceError names every source that was asked and what it said. ``manner``: attempts and timeout. ``away``, kept by
    the caller from one model to the next: sources at which nobody answers are asked once.
    """
    away = {} if away is None else away
    store.home(Path(), model)  # refuses names that would lead elsewhere
    tried: list[tuple[Source, Exception]] = []
    for source in model.sources:
        try:
            if source.name in away:
                raise away[source.name]
            return _listed(model, source, transport, manner or transfer.Source())
        except (HubError, transfer.TransferError, StoreError, OSError) as error:
            tried.append((source, error))
            if getattr(error, "unreachable", False):
                away[source.name] = error
    raise _nobody(model, tried)


def found(
    model: Model, source: Source, transport: transfer.Transport | None = None, manner: transfer.Source | None = None
) -> tuple[Source, frozenset[str]]:
    """Which of the listed files the source has, byte for byte; and the source with its name of the revision.

    None where it does not know the repository or the revision. HubError or TransferError when it cannot be asked.
    """
    if source.name == model.origin:
        known = revisions(model, source)[0] if source.type in hubs.DEFAULT_BRANCH else source.revision
        return replace(source, revision=known), frozenset(file.path for file in model.files)
    same: frozenset[str] = frozenset()
    for candidate in revisions(model, source):
        located = replace(source, revision=candidate)
        try:
            there = {file.path: file for file in _list(model, located, transport, manner or transfer.Source()).files}
        except AbsentError:
            continue
        except transfer.TransferError as error:
            if not error.missing:
                raise
            continue
        same = frozenset(file.path for file in model.files if file.path in there and fits(file, there[file.path]))
        if same:
            break
    return located, same


def fits(listed: File, other: File) -> bool:
    """Whether another source's file is the listed one as far as both say; its bytes are still judged by the list."""
    if listed.size != other.size:
        return False
    for ours, theirs in ((listed.sha256, other.sha256), (listed.git_blob, other.git_blob)):
        if ours and theirs:
            return ours == theirs
    return bool(listed.sha256 or listed.git_blob)


def _fetch(source: Source, transport: transfer.Transport | None, manner: transfer.Source) -> hubs.Fetch:
    identity = with_token(source, manner)
    return lambda address: transfer.fetch_text(address, identity, transport)


def _list(model: Model, source: Source, transport: transfer.Transport | None, manner: transfer.Source) -> Listing:
    if source.type == "directory":
        return _read(_directory(model, source))
    return at(model, source).listing(_fetch(source, transport, manner))


def _listed(
    model: Model, source: Source, transport: transfer.Transport | None, manner: transfer.Source
) -> tuple[Model, list[str]]:
    """The model as one source lists it."""
    fetch, warnings, commit = _fetch(source, transport, manner), [], ""
    if source.type in hubs.DEFAULT_BRANCH:
        hub = at(model, source)
        if not hubs.is_commit(hub.revision):
            warnings.append(
                f"model '{model.name}': revision '{hub.revision}' of {model.repo} is a branch or a tag that may move: "
                "a host that is installed later may get other files. playbooks/lock.yml pins it to a commit."
            )
        if source.type == "huggingface":  # says it at once, so that the files are surely those of the commit
            commit = hub.commit(fetch)
            there = replace(hub, revision=commit).listing(fetch)
        else:
            there = hub.listing(fetch)
            commit = _proven(hub, fetch, there)
    else:
        there = _list(model, source, transport, manner)
        commit = model.revision if hubs.is_commit(model.revision) else "".join(there.commits[:1])
    if not there.covers(model.include, model.exclude):
        raise HubError(f"{where(source)} holds other files of {model.repo} than those that `include` selects")
    files = store.select(model, there.files, where(source))
    return replace(model, files=files, commit=commit, origin=source.name), warnings


def _proven(hub: Hub, fetch: hubs.Fetch, here: Listing) -> str:
    """The commit of the revision, or nothing where it cannot be told."""
    try:
        return hub.commit(fetch, here)
    except (HubError, transfer.TransferError):
        return ""


def _nobody(model: Model, tried: list[tuple[Source, Exception]]) -> SourceError:
    if not tried:
        return SourceError(f"model '{model.name}': no source is described for {model.repo}. Add one to `model_sources`")
    away = [getattr(error, "unreachable", False) for _source, error in tried]
    silent = any(away) and all(
        gone or source.type == "directory" for gone, (source, _error) in zip(away, tried, strict=True)
    )
    prefix = f"model '{model.name}': "
    said = [str(error).removeprefix(prefix).rstrip(".") for _source, error in tried]
    if len(tried) == 1 and isinstance(tried[0][1], StoreError):
        return SourceError(f"{prefix}{said[0]}.")
    asked = "; ".join(
        f"'{source.name}' ({where(source)}): {what}" for (source, _error), what in zip(tried, said, strict=True)
    )
    return SourceError(
        f"{prefix}{model.repo} (revision {model.revision}) could not be listed. Asked: {asked}. Check `repo`, "
        "`revision` and `model_sources`, and that this host reaches the sources.",
        unreachable=silent,
    )


# Directories ------------------------------------------------------------------------------------------------------


def _directory(model: Model, source: Source) -> Path:
    root = Path(source.path)
    tried = (root / model.repo / (source.revision or model.revision), root / model.repo)
    for folder in tried:
        if folder.is_dir():
            return folder
    raise AbsentError(
        f"the directory {root} on this host has neither {tried[0].relative_to(root)} nor {tried[1].relative_to(root)}. "
        "Copy the files there, or correct the path"
    )


def _read(root: Path) -> Listing:
    """The files below a directory; their checksums are those of a manifest there, if there is one."""
    manifest = root / MANIFEST
    here = {
        hubs.clean_path(str(path.relative_to(root))): path.stat().st_size
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != manifest and not _unfinished(path.relative_to(root))
    }
    if not manifest.exists():
        return Listing(tuple(File(name, size) for name, size in here.items()))
    listed = hubs.parse_manifest(manifest.read_bytes(), str(manifest))
    absent = [file.path for file in listed.files if here.get(file.path) != file.size]
    if absent:
        raise HubError(f"{manifest} lists files that are not there, or not whole: {', '.join(absent)}")
    return listed


def _unfinished(path: Path) -> bool:
    """What download tools leave beside the files: hidden folders and partial files."""
    return path.suffix in UNFINISHED or any(part.startswith(".") for part in path.parts)
