# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/hardware.md: what the planner decides for the known models on recorded machines."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "collections"), str(PROJECT / "tests")]

import machines

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import models, pack, pins, words
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Placement
from ansible_collections.onprem.llm.plugins.module_utils.shape import published

# Recorded machine and the GPUs put into it, from small to large.
CHOSEN: Sequence[tuple[str, Sequence[str]]] = (
    ("laptop-i7-1260p", []),
    ("vm-1s-epyc-2vcpu", []),
    ("hsx-1s-x99-e5-2696v3-64gb", ["rtx-2080ti-22g-modded"]),
    ("icx-2s-xeon-8352v-16vcpu-90gb", ["vgpu-32g"]),
    ("icx-2s-interleaved-xeon-silver-4310", ["rtx-4090-48g-modded"]),
    ("hsx-2s-e5-2696v3", ["rtx-3090"] * 2),
    ("genoa-2s-epyc-9654", []),
    ("icx-2s-xeon-8352v", ["a100-sxm4-80g"] * 2),
    ("spr-2s-xeon-gold-6430-1tb", ["rtx-4090-24g"]),
    ("genoa-1s-nps4-epyc-9534", ["rtx-5090"] * 2),
    ("spr-2s-snc4-xeon-8480", ["h200-sxm"]),
    ("spr-2s-xeon-8480-2tb", ["h200-sxm"] * 8),
)
# What NVIDIA's repository for Debian 12 installs: every engine runs with it.
DRIVER = {"version": "580.95.05", "cuda": "13.0"}
HEAD = """\
# Which hardware runs what

Computed by the planner itself: every model of the catalogue, alone on each of these machines, with every engine
allowed, on Debian 12 with NVIDIA's driver 580. This page is written by `make docs`; how a decision is made is in
[placement.md](placement.md).

A cell says

- the engine and the quantisation;
- tokens per conversation × conversations at once;
- the predicted speed of one answer in tokens per second, and the band it should lie in; of an embedding model, the
  speed of reading. *Paged* means that the model is larger than the memory and is read from the disk for every token:
  slow, and only with `placement_allow_paging`.

† This collection has no role for that engine yet: what runs until then stands below it.

For machines of your own: `ansible-playbook playbooks/plan.yml -e plan_hardware=FILE.json`.
"""


def page() -> str:
    catalogue = yaml.safe_load((PROJECT / "group_vars/all/catalogue.yml").read_text())["catalogue"]
    columns, alike = _columns(catalogue)
    fleet = [(machine, machines.hardware(machine, gpus, driver=DRIVER if gpus else None)) for machine, gpus in CHOSEN]
    lines = [
        "| | machine | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for number, (_, hardware) in enumerate(fleet, 1):
        cells = (_cell(hardware, key, catalogue) for key in columns)
        lines.append(f"| {number} | {_short(hardware)} | " + " | ".join(cells) + " |")
    facts = [
        f"{number}. {words.cpu(hardware)}; {words.ram(hardware)}; {words.gpus(hardware)} (recorded as `{machine}`)"
        for number, (machine, hardware) in enumerate(fleet, 1)
    ]
    return "\n".join([HEAD, *alike, "", *lines, "", "## The machines", "", *facts, ""])


def _columns(catalogue: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The models to show, and a sentence for each that is as large as one of them."""
    columns: list[str] = []
    alike = []
    for key, entry in catalogue.items():
        same = next((one for one in columns if catalogue[one]["published"] == entry["published"]), None)
        if same is None:
            columns.append(key)
        else:
            alike.append(f"`{key}` has the dimensions of `{same}`.")
    return columns, alike


def _decide(hardware: Hardware, key: str, catalogue: Mapping[str, Any], any_engine: bool) -> Placement:
    host = hardware["id"]
    resolved, problems = models.resolve([{"name": key, "catalogue": key}], catalogue, {"inference": [host]})
    if problems:
        raise SystemExit("\n".join(problems))
    (model,) = resolved
    shapes = {key: [published.shape(model["published"], variant) for variant in model["variants"]]}
    roles = set(pins.ROLES)
    (found,) = pack.pack({host: hardware}, [model], shapes, {host: roles}, roles, [], True, what_if=any_engine)
    return found


def _short(hardware: Hardware) -> str:
    return f"{words.gib(hardware['memory']['total'])} GiB RAM, {words.gpus(hardware)}"


def _cell(hardware: Hardware, key: str, catalogue: Mapping[str, Any]) -> str:
    best = _decide(hardware, key, catalogue, any_engine=True)
    if best["fits"] == "no" or best["engine"] in pins.ROLES:
        return _said(best)
    return f"{_said(best, ' †')}<br>{_said(_decide(hardware, key, catalogue, any_engine=False))}"


def _said(found: Placement, mark: str = "") -> str:
    if found["fits"] == "no":
        missing = words.missing(found)
        return "does not fit" + (f"<br>{words.listed(missing)} missing" if missing else "")
    paged = "*paged* " if found["fits"] == "paged" else ""
    speed = words.speed(found).replace(" tok/s", "")
    return f"{found['engine']}{mark} {found['quantisation']}<br>{words.conversation(found)}<br>{paged}{speed}"
