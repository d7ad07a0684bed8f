# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle: the folder (a disk) from which hosts without internet install. What goes in, and its checksums."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import wheel
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest
from ansible_collections.onprem.llm.plugins.module_utils.placement.models import store_models

SUMS = "SHA256SUMS"
#: Pythons that KTransformers has lock files for, by ktransformers_install_method.
PYTHONS = {method: wheel.rule_of(method).python for method in ("wheel", "source", "classic")}


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


class Wheels(NamedTuple):
    """Python packages to bring."""

    lock: str
    """Lock file below requirements/."""
    python: str


def bundled_wheels(
    parts: Sequence[str], hosts: Sequence[Mapping[str, str]], systems: Mapping[str, str]
) -> list[Wheels]:
    """What the site's hosts install with pip. hosts: as in ``lacking``; systems: name -> its Python."""
    found = [Wheels(f"openwebui/py{python}.txt", python) for python in systems.values() if "openwebui" in parts]
    for one in hosts:
        if one["part"] == "ktransformers":
            kind = "classic-py" if one["source"] == "classic" else "py"
            for python in _pythons(one, systems):
                found.append(Wheels(f"ktransformers/{kind}{python}.txt", python))
                if one["source"] == "source":
                    found.append(Wheels("ktransformers/build.txt", python))
    return list(dict.fromkeys(found))


def _pythons(host: Mapping[str, str], systems: Mapping[str, str]) -> list[str]:
    """Those a host of KTransformers may have, and for which there are packages."""
    chosen = re.search(r"3\.\d+", host["python"].rpartition("/")[2])
    wanted = ([chosen[0]] if chosen else []) if host["python"] else systems.values()
    return [python for python in dict.fromkeys(wanted) if python in PYTHONS[host["source"]]]


def lacking(hosts: Sequence[Mapping[str, str]], systems: Mapping[str, str]) -> list[str]:
    """What cannot come along, a sentence each, with the setting and the way out.

    hosts: {host, part, source, repository, python} for each host and part of nvidia_driver, cuda_toolkit and
    ktransformers. source is NAME_source, or the install method; repository and python are empty where not set.
    systems: name -> its Python.
    """
    said = []
    for part in ("nvidia_driver", "cuda_toolkit"):
        mirrorless = [
            one for one in hosts if (one["part"], one["source"], one["repository"]) == (part, "nvidia_repo", "")
        ]
        if mirrorless:
            said.append(
                f"NVIDIA's repository does not come along, and {part}_source is nvidia_repo on {_names(mirrorless)}: "
                "set nvidia_repository_url to a mirror of it behind the gap, and give these hosts an apt mirror for "
                f"what its packages depend on; or set {part}_source: distro."
            )
    drivers = [one for one in hosts if one["part"] == "nvidia_driver" and one["source"] in ("distro", "runfile")]
    ubuntu = [system for system in systems if system.startswith("Ubuntu")]
    if drivers and ubuntu:
        said.append(
            f"The driver's packages of {', '.join(ubuntu)} are made for one kernel each and do not come along: hosts "
            "of it in nvidia_driver need an apt mirror, or a driver of their own (nvidia_driver_source: preinstalled)."
        )
    for one in hosts:
        if one["part"] == "ktransformers" and (systems or one["python"]) and not _pythons(one, systems):
            has = one["python"] or " and ".join(dict.fromkeys(systems.values()))
            said.append(
                f"The Python packages of KTransformers ({one['source']}) do not come along for {one['host']}: there "
                f"are some for Python {' and '.join(PYTHONS[one['source']])}, and it has {has}. Set "
                "ktransformers_python to one of these that the host has, by its whole name (/usr/local/bin/python3.11)."
            )
    return said


def _names(hosts: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(one["host"] for one in hosts)


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
