# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle: the folder (a disk) from which hosts without internet install. What goes in, and its checksums."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest
from ansible_collections.onprem.llm.plugins.module_utils.placement.models import store_models

SUMS = "SHA256SUMS"


class BundleError(Exception):
    """What shall go into the bundle is not known; the message names the model and the way out."""


def bundled_models(
    models: Sequence[Mapping[str, Any]], placements: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The files to bring, as the store's models: those of a plan's placements, else those of the models themselves.

    Hosts that nobody can ask do not say which variant fits them. So without a plan every model must have but one.
    """
    if placements:
        placed = [one for one in placements if one.get("engine")]
        lacking = sorted({model["name"] for model in models} - {one["model"] for one in placed})
        if lacking:
            raise BundleError(
                f"bundle_plan places no {', '.join(lacking)}: the plan was made for other models, or they fit on no "
                "host. Make it again: playbooks/plan.yml -e plan_output=plan.json."
            )
        return store_models(placed)
    said = [_choices(model) for model in models if len(model["variants"]) != 1]
    if said:
        raise BundleError(
            "Which variant fits depends on hosts that cannot be asked from here.\n"
            + "\n".join(said)
            + "\nName one in `models` (`quantisation: ...`), or let the hosts' own site decide: playbooks/plan.yml -e "
            "plan_output=plan.json there, and -e bundle_plan=plan.json here."
        )
    return store_models([{"model": model["name"], "variant": model["variants"][0]} for model in models])


def _choices(model: Mapping[str, Any]) -> str:
    """A model's variants, each with its size, for people."""
    said = []
    for one in model["variants"]:
        size = transfer.human(one["size"]) if one.get("size") else "size unknown"
        said.append(f"{one.get('quantisation') or one['repo']} ({size})")
    return f"- '{model['name']}' has {len(said)}: {', '.join(said)}"


def files(folder: Path) -> Iterator[Path]:
    """Everything that belongs to the bundle, by name: not what is hidden, unfinished, or the list itself."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            hidden = name.startswith(".") or name.endswith(".part")
            if not hidden and path != folder / SUMS and path.is_file():
                yield path


def checksums(folder: Path, store: Path) -> dict[str, str]:
    """Path and sha256 of every file. Models that nobody touched are not read again: their manifest knows."""
    known: dict[Path, str] = {}
    for place in store.glob(f"*/*/*/{manifest.MANIFEST}"):
        for entry in manifest.read(place.parent).files:
            path = place.parent / entry.path
            if path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) == (entry.size, entry.mtime_ns):
                known[path] = entry.sha256
    return {
        path.relative_to(folder).as_posix(): known.get(path) or transfer.hash_file(path, transfer.Hashes(None)).sha256()
        for path in files(folder)
    }


def text(sums: Mapping[str, str]) -> str:
    """As sha256sum writes it and reads it."""
    return "".join(f"{checksum}  {path}\n" for path, checksum in sorted(sums.items()))
