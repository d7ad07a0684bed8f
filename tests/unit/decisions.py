# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of decisions share: recorded machines, shapes of real models, and one call to decide."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

import headers
import machines

from ansible_collections.onprem.llm.plugins.module_utils import ranges
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import decide, engines
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory, Placement, Rejection
from ansible_collections.onprem.llm.plugins.module_utils.shape import published
from ansible_collections.onprem.llm.plugins.module_utils.shape.read import read_shape
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

GIB = 2**30
CATALOGUE: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[2] / "group_vars/all/catalogue.yml").read_text()
)["catalogue"]
ALL = set(engines.ORDER)
#: A driver that every engine accepts; the fixtures' own is too old for vLLM.
NEW_DRIVER = {"version": "580.95.05", "cuda": "13.0", "toolkit": None}
Variant = tuple[Mapping[str, Any], Shape]


@functools.cache
def header(name: str) -> Variant:
    """A GGUF variant whose shape is read from the header of its files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = headers.write(name, Path(folder))
        files = {str(path.relative_to(folder)): path for path in paths}
        shape = read_shape(lambda one: ranges.LocalFile(files[one]), sorted(files), complete=False)
    return {"format": "gguf", "quantisation": shape["quantisation"], "repo": f"org/{name}", "revision": "v1"}, shape


@functools.cache
def catalogue(name: str, quantisation: str) -> Variant:
    """A variant of the catalogue with its published shape."""
    model = CATALOGUE[name]
    variant = next(one for one in model["variants"] if one["quantisation"] == quantisation)
    return variant, published.shape(model["published"], variant)


def ask(
    hardware: Hardware,
    candidates: Sequence[Variant],
    context: int | None = None,
    parallel: int | None = None,
    *,
    kind: str = "chat",
    allowed: set[str] = ALL,
    roles: set[str] = ALL,
    taken: Mapping[str, int] | None = None,
    pin: Mapping[str, Any] | None = None,
    paging: bool = False,
    **more: Any,
) -> Placement:
    model = {"name": "m", "kind": kind, "context": context, "parallel": parallel, "engine": more.pop("engine", "auto")}
    return decide.decide(
        hardware, decide.request(model, "h"), candidates, allowed, roles, taken or {}, paging, pin or {}, **more
    )


def said(placement: Placement, *words: str) -> str:
    """The one reason that has all these words."""
    found = [one for one in placement["reasons"] if all(word in one for word in words)]
    assert len(found) == 1, f"{words} in {len(found)} of: " + "\n".join(placement["reasons"])
    return found[0]


def rejection(placement: Placement, engine: str) -> Rejection:
    found = [one for one in placement["rejected"] if one["engine"] == engine]
    assert found, f"no word of {engine}: {placement['rejected']}"
    return found[0]


def device(placement: Placement, name: str) -> DeviceMemory:
    return next(one for one in placement["memory"] if one["device"] == name)


def machine(machine_id: str, *gpus: str, **changes: Any) -> Hardware:
    return machines.hardware(machine_id, gpus, **changes)
