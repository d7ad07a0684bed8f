# SPDX-License-Identifier: GPL-3.0-or-later
"""What the components of a host may go back to: none of it is pruned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils import hubs
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest
from ansible_collections.onprem.llm.plugins.module_utils.model_store import store as published
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import parse


@dataclass(frozen=True)
class Kept:
    """One configuration of one component."""

    links: Mapping[str, str]
    """Where each link leads, both as absolute paths."""
    text: str
    """All its files: what they name is needed too."""


def configurations(folder: Path) -> Iterator[Kept]:
    """What the records in a folder describe: what serves, what it may go back to, what a switch was to bring, and what
    there was before the first one. RecordError when one cannot be read: then nobody may prune."""
    for file in sorted(folder.glob("*.json")):
        found = parse(file.read_text(encoding="utf-8", errors="surrogateescape"), str(file))
        for one in (found.good, found.previous, found.wanted, found.found):
            if one is not None:
                links = {path: str(Path(path).parent / to) for path, to in one.links.items()}
                yield Kept(links, "\n".join(each.content for each in one.files))


def models(folder: Path, store: Path) -> list[Model]:
    """What the records need of a model store: of each revision the selections of files that an engine was given.

    An engine that is given a folder, and not a file in it, needs all of them.
    """
    found: dict[Model, None] = {}
    for one in configurations(folder):
        for link, to in one.links.items():
            if not Path(to).is_relative_to(store):
                continue
            home = store.joinpath(*Path(to).relative_to(store).parts[:3])
            recorded = manifest.read(home)
            given = {entry.path for entry in recorded.files if f"{link}/{entry.path}" in one.text}
            listed = [published.as_file(entry) for entry in recorded.files]
            chosen = [
                each
                for each in recorded.selections
                if given.intersection(file.path for file in hubs.select(listed, each.include, each.exclude))
            ]
            for each in chosen or [manifest.Selection((), ())]:
                model = Model(os.path.basename(link), recorded.repo, recorded.revision, each.include, each.exclude)
                found.update({model: None} if recorded.files else {})
    return list(found)


def names(folder: Path, root: Path) -> set[str]:
    """The entries of ``root`` that a link of a record leads into or a file names."""
    found: set[str] = set()
    for one in configurations(folder):
        within = [Path(to).relative_to(root).parts for to in one.links.values() if Path(to).is_relative_to(root)]
        found.update(parts[0] for parts in within if parts)
        found.update(entry.name for entry in (root.iterdir() if root.is_dir() else ()) if str(entry) in one.text)
    return found
