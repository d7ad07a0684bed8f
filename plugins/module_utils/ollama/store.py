# SPDX-License-Identifier: GPL-3.0-or-later
"""A store in Ollama's layout that holds one model: blobs named after their sha256, and a manifest that names them.

    ROOT/MODEL/KEY/blobs/sha256-HEX            the weights, the parameters, the configuration
    ROOT/MODEL/KEY/manifests/.../MODEL/TAG     which of them is what
    ROOT/MODEL/current -> KEY

This is what `ollama pull` leaves behind. `/api/create` would leave the same but copies the weights: since 0.30 it
rewrites every GGUF file that it is given (server/create.go, rewriteForCreate). Here they are hard links to the
published files, so a model takes its space once. llama.cpp finds the parts of a model by their names, which blobs have
not: parts are merged into one file, as Ollama does it itself.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import gguf, transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest as published

#: Of a model that requests name without one.
TAG = "latest"
NAME = "manifests/registry.ollama.ai/library/{model}/" + TAG
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
WEIGHTS = "application/vnd.ollama.image.model"
PARAMETERS = "application/vnd.ollama.image.params"
#: Changes the key of every store when what is written changes.
LAYOUT = 1

Merge = Callable[[Path, Path], None]
"""Writes the model whose first part is given to the second path, as one file."""


class StoreError(Exception):
    """The text names the model, what is wrong and the way out."""


@dataclass(frozen=True)
class Part:
    """One published file of a model."""

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True)
class Wanted:
    """One model as its service shall find it."""

    model: str
    parts: tuple[Part, ...]
    parameters: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Of everything that changes what the service does."""
        named = [LAYOUT, [part.sha256 for part in self.parts], dict(self.parameters)]
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]


def parts(source: Path, entry: str) -> tuple[Part, ...]:
    """The file ``entry`` below ``source``, or all parts of the model whose first one it is; () when not published."""
    home = source.resolve()
    entries = published.read(home).entries()
    names = [entry]
    if split := gguf.SPLIT_NAME.fullmatch(entry):
        count = int(split["count"])
        names = [f"{split['prefix']}-{number + 1:05d}-of-{count:05d}.gguf" for number in range(count)]
    if not all(name in entries and (home / name).is_file() for name in names):
        return ()
    return tuple(Part(home / name, entries[name].sha256, entries[name].size) for name in names)


def _bytes(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True).encode() + b"\n"


def _layer(kind: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": size}


def blob(tree: Path, layer: Mapping[str, Any]) -> Path:
    return tree / "blobs" / str(layer["digest"]).replace(":", "-")


def read(tree: Path, model: str) -> dict[str, Any]:
    """The manifest; {} where there is none that can be read."""
    try:
        found = json.loads((tree / NAME.format(model=model)).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def damage(tree: Path, wanted: Wanted) -> str:
    """What is wrong with a store that is there; empty when nothing is. Contents of large blobs are not read."""
    found = read(tree, wanted.model)
    layers = {one["mediaType"]: one for one in [*found.get("layers", []), found.get("config", {"mediaType": ""})]}
    if set(layers) != {WEIGHTS, PARAMETERS, CONFIG}:
        return "its manifest is not the one that was written"
    for layer in layers.values():
        place = blob(tree, layer)
        if not place.is_file() or place.stat().st_size != layer["size"]:
            return f"{place.name} is missing or has another size"
    if blob(tree, layers[PARAMETERS]).read_bytes() != _bytes(dict(wanted.parameters)):
        return "its parameters are others than those of the plan"
    # The store of models replaces a file that a disk has damaged: the link would keep the damaged one.
    if len(wanted.parts) == 1 and not os.path.samefile(blob(tree, layers[WEIGHTS]), wanted.parts[0].path):
        return f"its weights are no longer the published file {wanted.parts[0].path}"
    return ""


def build(root: Path, wanted: Wanted, merge: Merge) -> Path:
    """The store, complete under its name or not there at all."""
    tree = root / wanted.model / wanted.key
    stage = tree.with_name(f".{wanted.key}.part")
    # Also those of other settings, which a run that was killed left: they may be what the disk lacks.
    for half in tree.parent.glob(".*.part"):
        shutil.rmtree(half, ignore_errors=True)
    (stage / "blobs").mkdir(parents=True)
    try:
        weights = _weights(stage, wanted, merge)
    except BaseException:
        # Half of a large file; a run that is killed leaves it to the next one.
        shutil.rmtree(stage)
        raise
    config = {
        "model_format": "gguf",
        "model_family": weights[1],
        "model_families": [weights[1]],
        "model_type": "",
        "file_type": "",
        "architecture": "amd64",
        "os": "linux",
    }
    written = {"schemaVersion": 2, "mediaType": MANIFEST, "config": _small(stage, CONFIG, config)}
    layers = [weights[0], _small(stage, PARAMETERS, dict(wanted.parameters))]
    name = stage / NAME.format(model=wanted.model)
    name.parent.mkdir(parents=True)
    transfer.write_atomically(name, _bytes({**written, "layers": layers}).decode(), 0o444)
    shutil.rmtree(tree, ignore_errors=True)
    os.rename(stage, tree)
    transfer.sync_folder(tree.parent)
    return tree


def _small(stage: Path, kind: str, data: Any) -> dict[str, Any]:
    content = _bytes(data)
    layer = _layer(kind, hashlib.sha256(content).hexdigest(), len(content))
    transfer.write_atomically(blob(stage, layer), content.decode(), 0o444)
    return layer


def _weights(stage: Path, wanted: Wanted, merge: Merge) -> tuple[dict[str, Any], str]:
    """The layer of the weights, and the model's architecture."""
    first = wanted.parts[0]
    architecture = gguf.read_header(first.path).architecture
    if len(wanted.parts) == 1:
        layer = _layer(WEIGHTS, first.sha256, first.size)
        try:
            os.link(first.path, blob(stage, layer))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise StoreError(
                f"model '{wanted.model}': {first.path} and {stage.parent} lie on two filesystems, and Ollama would "
                f"need a copy of {first.size / 1e9:.1f} GB. Keep both on one: the folder is beside models_dir."
            ) from error
        return layer, architecture
    size = sum(part.size for part in wanted.parts)
    free = shutil.disk_usage(stage).free
    if free < size * 1.02:
        raise StoreError(
            f"model '{wanted.model}' has {len(wanted.parts)} parts, which Ollama needs as one file: {size / 1e9:.1f} "
            f"GB more below {stage.parent}, where {free / 1e9:.1f} GB are free. Make room, take a variant in one file, "
            "or pin engine: llamacpp."
        )
    merged = stage / "merged"
    merge(first.path, merged)
    layer = _layer(WEIGHTS, _digest(merged), merged.stat().st_size)
    os.chmod(merged, 0o444)
    os.rename(merged, blob(stage, layer))
    return layer, architecture


def _digest(path: Path) -> str:
    """sha256 of a file, which is on the disk afterwards."""
    summed = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            summed.update(piece)
        os.fsync(file.fileno())
    return summed.hexdigest()


def unused(root: Path, model: str, wanted: str, needed: Collection[str], keep: int) -> list[Path]:
    """Stores of a model beyond ``keep``: what is needed, wanted or in use stays, then the newest. And halves."""
    home = root / model
    there = [one for one in home.iterdir() if one.is_dir() and not one.is_symlink()]
    stays = {wanted, (home / "current").resolve().name, *needed}
    done = sorted((one for one in there if not one.name.startswith(".")), key=lambda one: -one.stat().st_ctime)
    spare = [one for one in done if one.name not in stays]
    room = max(keep - (len(done) - len(spare)), 0)
    return sorted([*spare[room:], *(one for one in there if one.name.startswith("."))])


def unplaced(root: Path, models: Collection[str], needed: Callable[[Path], Collection[str]]) -> list[Path]:
    """Folders of models that are served no more, and of which nothing is ``needed``."""
    homes = [one for one in root.iterdir() if one.is_dir()] if root.is_dir() else []
    return sorted(one for one in homes if one.name not in models and not needed(one))


def changes(tree: Path, before: Path, wanted: Wanted) -> dict[str, str]:
    """The difference between the store in use and the wanted one, as Ansible shows it."""
    old = read(before, wanted.model)
    kept = next((blob(before, one) for one in old.get("layers", []) if one["mediaType"] == PARAMETERS), None)
    parameters = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.is_file() else {}

    def text(where: Path, weights: Sequence[str], given: Mapping[str, Any]) -> str:
        return "".join(
            [f"store: {where}\n", *(f"weights: {one}\n" for one in weights)]
            + [f"{name}: {value}\n" for name, value in sorted(given.items())]
        )

    was = [one["digest"] for one in old.get("layers", []) if one["mediaType"] == WEIGHTS]
    return {
        "before_header": str(before),
        "after_header": str(tree),
        "before": text(before, was, parameters) if old else "",
        "after": text(tree, [f"sha256:{part.sha256}" for part in wanted.parts], wanted.parameters),
    }
