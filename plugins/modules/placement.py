#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: placement
short_description: Which engine serves which model on which host, and with what
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Decides for every model and host the engine, the variant, what lies on the GPUs, threads, NUMA policy, context and
    slots, from the hardware of the hosts and the headers of the models' files. Nothing is downloaded or changed.
  - A model that fits on no host is no failure of this module; its placements say C(fits=no), why, and what would fit.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: The same input gives the same answer.}
options:
  models:
    description: The models, as the filter C(onprem.llm.known_models) returns them.
    type: list
    elements: dict
    required: true
  headers:
    description: What C(onprem.llm.gguf_info) returned for their variants, as C(results), of all hosts together.
    type: list
    elements: dict
    default: []
  hardware:
    description: What C(onprem.llm.host_hardware) returned, by host.
    type: dict
    required: true
  pins:
    description: The site's C(placements), what it wants to decide itself.
    type: list
    elements: dict
    default: []
  groups:
    description: The inventory's groups with their hosts.
    type: dict
    required: true
  addresses:
    description: Address of each host in the fleet's network.
    type: dict
    default: {}
  no_gpu:
    description: By host and engine, why the engine cannot use the host's GPUs.
    type: dict
    default: {}
  allow_paging:
    description: Whether a model may run although part of it is read from the disk for every token.
    type: bool
    default: false
  ports:
    description: By host, the ports of the models that are installed there. They stay.
    type: dict
    default: {}
  installed:
    description: By host, what it serves now, as C(onprem.llm.host_hardware) returns it.
    type: dict
    default: {}
  what_if:
    description: The hosts are machines nobody has yet. Any engine may be chosen, and each model has a host to itself.
    type: bool
    default: false
  served_dir:
    description: Folder of the pointers to served models.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Decide what runs where
  delegate_to: localhost
  onprem.llm.placement:
    models: "{{ models | onprem.llm.known_models(catalogue, groups, model_sources) }}"
    headers: "{{ headers.results }}"
    hardware: {gpu1: "{{ plan_machines.gpu1 }}"}
    groups: "{{ groups }}"
    served_dir: /srv/llm/served
"""

RETURN = r"""
placements:
  description:
    - One entry per host and model - model, kind, host, fits, engine, variant, quantisation, context, slots, port,
      flags, threads, numa, offload, memory (bytes per device), nodes, disk, predicted, reasons, alternatives, rejected,
      model_path.
  returned: success
  type: list
  elements: dict
served:
  description: Those of C(placements) that will run.
  returned: success
  type: list
  elements: dict
refused:
  description: One sentence per model that nothing would serve, and per pin that cannot work. Empty when all fits.
  returned: success
  type: list
  elements: str
notes:
  description: What the headers cost, and which could not be read.
  returned: success
  type: list
  elements: str
endpoints:
  description:
    - One entry per model - model, kind, dimensions, servers (host, address, port, slots). A host that did not answer
      stays, with C(slots=0).
  returned: success
  type: list
  elements: dict
cardless:
  description: Hosts that serve on cards their driver does not reach now, and why they shall stay as they are.
  returned: success
  type: dict
silent:
  description: Hosts of the group C(inference) of which nothing is known. What they serve is owed.
  returned: success
  type: list
  elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.placement import cardless, engines, models, pack, pins
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Placement
from ansible_collections.onprem.llm.plugins.module_utils.shape import published
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape
from ansible_collections.onprem.llm.plugins.module_utils.transfer import human


def shaped(model: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[dict[str, Any], list[Shape], list[str]]:
    """The model with the variants something is known of, their shapes, and why the others are left out."""
    variants, shapes, unknown = [], [], []
    for variant in model["variants"]:
        header = headers.get(models.variant_key(variant), {})
        label = variant["quantisation"] or variant.get("entry") or variant["repo"]
        error = header.get("error") or "its header was not read"
        shape = header.get("shape")
        if not shape and model.get("published"):
            try:
                shape = published.shape(model["published"], variant)
                shape["basis"] += ", as its header could not be read"
            except ValueError as also:
                error = f"{error}; {also}"
        if shape:
            variants.append(variant)
            shapes.append(shape)
        else:
            unknown.append(f"{label}: {error}")
    return {**model, "variants": variants}, shapes, unknown


def notes(headers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the headers cost, and why some could not be read: once for each cause."""
    cost = sum(header["bytes"] for header in headers)
    read = [header for header in headers if header["shape"]]
    keys = {header["key"] for header in read}
    failed = [header["error"] for header in headers if header["error"] and header["key"] not in keys]
    said = [f"Headers of {len(read)} models: {human(cost)} read from their sources."] if cost else []
    return said + [f"A header could not be read: {error}." for error in dict.fromkeys(failed)]


def refusals(
    wanted: Sequence[Mapping[str, Any]],
    placements: Sequence[Placement],
    served: Sequence[Placement],
    silent: Sequence[str],
    ports: Mapping[str, Mapping[str, int]],
) -> tuple[list[str], list[str]]:
    """Models that nothing would serve and pins that cannot work, each with what would help; and those of the models
    that wait for a host of theirs that did not answer. What serves on one that did is never taken away for that."""
    refused, owed = [], []
    for model in wanted:
        name = model["name"]
        tried = [one for one in placements if one["model"] == name and one not in served]
        home = any(one["model"] == name for one in served)
        away = [host for host in model["hosts"] if host in silent]
        here = any(name in ports.get(host, {}) for host in model["hosts"] if host not in silent)
        if home or here or not away or any(one["pinned"] for one in tried):
            refused += [refusal(one) for one in tried if not home or one["pinned"]]
        elif tried:
            told = " ".join(refusal(one) for one in tried)
            owed.append(f"{name} waits for {', '.join(away)}, which did not answer; it fits on no other host. {told}")
    return refused, owed


def refusal(one: Placement) -> str:
    """Why one model does not run on one host, and what would help."""
    paged = (
        "It would be read from disk for every token; placement_allow_paging: true accepts that."
        if one["fits"] == "paged"
        else ""
    )
    return " ".join(filter(None, [f"{one['model']} on {one['host']}:", *one["reasons"], paged, *one["alternatives"]]))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True},
            "headers": {"type": "list", "elements": "dict", "default": []},
            "hardware": {"type": "dict", "required": True},
            "pins": {"type": "list", "elements": "dict", "default": []},
            "groups": {"type": "dict", "required": True},
            "addresses": {"type": "dict", "default": {}},
            "no_gpu": {"type": "dict", "default": {}},
            "allow_paging": {"type": "bool", "default": False},
            "ports": {"type": "dict", "default": {}},
            "installed": {"type": "dict", "default": {}},
            "what_if": {"type": "bool", "default": False},
            "served_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    # Facts of a host that is outside a run come last; the plan is the same whoever asks for it.
    order = {host: number for number, host in enumerate(given["groups"].get("inference", []))}
    given["hardware"] = dict(sorted(given["hardware"].items(), key=lambda one: order.get(one[0], len(order))))
    problems = [] if given["what_if"] else pins.check(given["pins"], given["models"], given["groups"])
    # A host that could not read a header says nothing against one that could.
    headers = {header["key"]: header for header in sorted(given["headers"], key=lambda header: bool(header["shape"]))}
    if problems:
        module.fail_json(msg="These placements cannot work.\n" + "\n".join(f"- {p}" for p in problems))
    wanted, refused = [], []
    shapes: dict[str, list[Shape]] = {}
    owed: list[str] = []
    silent = [host for host in given["groups"].get("inference", []) if host not in given["hardware"]]
    for entry in given["models"]:
        model, known, unknown = shaped(entry, headers)
        name = model["name"]
        if not model["hosts"]:
            refused.append(f"{name}: no host may serve it. Put one into the group inference, or correct `hosts`.")
        elif not any(host in given["hardware"] for host in model["hosts"]):
            said = f"{name}: no host that may serve it answered ({', '.join(model['hosts'])})."
            (owed if given["hardware"] else refused).append(said)
            if not given["what_if"]:
                # The others are served all the same; its place among them keeps their ports.
                wanted.append({**model, "variants": [], "unread": unknown})
                shapes[name] = []
        elif not known:
            refused.append(
                f"{name}: nothing is known of it, so it cannot be planned. {'; '.join(unknown)}. Mend that, or "
                "describe the model in the catalogue (`published`)."
            )
        else:
            wanted.append({**model, "unread": unknown})
            shapes[name] = known
    placements = pack.pack(
        given["hardware"],
        wanted,
        shapes,
        {
            host: {engine for engine in pins.ROLES if host in given["groups"].get(engines.group(engine), [])}
            for host in given["hardware"]
        },
        set(pins.ROLES),
        given["pins"],
        given["allow_paging"],
        no_gpu=given["no_gpu"],
        installed=given["ports"],
        what_if=given["what_if"],
    )
    stay = {
        host: said
        for host, there in given["installed"].items()
        if (said := cardless.said(host, given["hardware"][host], there))
    }
    dimensions = {model["name"]: model.get("dimensions") for model in given["models"]}
    for one in placements:
        if one["engine"]:
            one["model_path"] = f"{given['served_dir']}/{one['model']}/{one['variant'].get('entry', '')}"
            one["source"] = "{repo}@{revision}".format(**one["variant"])
            one["dimensions"] = dimensions.get(one["model"]) or 0
    runs = ("memory", "paged") if given["allow_paging"] else ("memory",)
    served = [one for one in placements if one["fits"] in runs]
    unserved, waiting = refusals(wanted, placements, served, silent, given["ports"])
    module.exit_json(
        changed=False,
        placements=placements,
        served=served,
        notes=notes(given["headers"])
        + [
            f"{host} did not answer and is left out; what it serves may be planned elsewhere. It is owed a run: "
            "start it, then run site.yml again."
            for host in silent
        ]
        + owed
        + waiting
        + list(stay.values()),
        cardless=stay,
        silent=[] if given["what_if"] else silent,
        refused=[] if given["what_if"] else refused + unserved,
        endpoints=[]
        if given["what_if"]
        else models.endpoints(
            served,
            given["models"],
            given["addresses"],
            {host: pack.ports(given["models"], given["pins"], host, given["ports"].get(host)) for host in silent},
        ),
    )


if __name__ == "__main__":
    main()
