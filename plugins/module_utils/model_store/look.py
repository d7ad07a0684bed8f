# SPDX-License-Identifier: GPL-3.0-or-later
"""How the models of a host stand, as far as that can be told without a network and without reading them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import hubs
from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest, store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.damage import Damage
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, StoreError, model_from


@dataclass(frozen=True)
class Look:
    """How one model stands."""

    name: str
    key: str
    """Equal for models that want the same files."""
    complete: bool
    served: bool
    """Whether its pointer leads to its files."""
    why: str
    """Why it is not complete; empty when it is."""
    files: tuple[File, ...] = ()
    """Of a complete model, so that hosts that lack it need not ask a source; with its commit, and who listed it."""
    commit: str = ""
    origin: str = ""


def models(given: Iterable[Mapping[str, Any]]) -> list[Model]:
    """Models from a playbook's settings; keys the store does not know are left out."""
    made = []
    for one in given:
        absent = [key for key in ("name", "repo", "revision") if not one.get(key)]
        if absent:
            raise StoreError(f"model '{one.get('name') or one}': it has no {' and no '.join(absent)}")
        made.append(model_from(one))
    return made


def look(folder: Path, served: Path, model: Model, damaged: Sequence[Damage] = ()) -> Look:
    """How the model stands in the store at ``folder``. StoreError when it can never be there as it is described."""
    place = store.home(folder, model)
    recorded = manifest.read(place)
    why = store.lacks(place, recorded, model) or _damage(model, recorded, damaged)
    return Look(
        name=model.name,
        key=store.selection_key(model),
        complete=not why,
        served=store.leads_to(served, model.name) == str(place),
        why=why,
        files=() if why else tuple(hubs.select(map(store.as_file, recorded.files), model.include, model.exclude)),
        commit=recorded.commit,
        origin=recorded.source.partition(":")[0],
    )


def _damage(model: Model, recorded: manifest.Manifest, damaged: Sequence[Damage]) -> str:
    """The damaged files of the model, for people."""
    here = {file.path for file in hubs.select(map(store.as_file, recorded.files), model.include, model.exclude)}
    found = [one for one in damaged if (one.repo, one.revision) == (model.repo, model.revision) and one.path in here]
    return "damaged: " + ", ".join(map(_words, found)) if found else ""


def _words(one: Damage) -> str:
    if not one.pieces:
        return one.path
    return f"{len(one.pieces)} {'piece' if len(one.pieces) == 1 else 'pieces'} of {one.path}"


def lacking(needs: Iterable[str], packages: Path) -> list[str]:
    """The Python libraries that are not among a folder's packages."""
    return [
        name
        for name in needs
        if not any((packages / one).exists() for one in (name, f"{name}.py")) and not any(packages.glob(f"{name}.*.so"))
    ]
