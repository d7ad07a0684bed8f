#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ktransformers_info
short_description: Holds placements against the host and the KTransformers installed there
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Fails when a placement names NUMA nodes that this host lacks or that have no CPUs, more threads than CPUs, an option
    that the installed program has not, or files that the release cannot compute with. kt-kernel itself goes on silently
    with a node that is missing.
  - Says what each service starts with, and which weights must be converted first.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  placements:
    description: Placements of this host, as the module C(onprem.llm.placement) returns them.
    type: list
    elements: dict
    required: true
  address:
    description: Address to listen on.
    type: str
    required: true
  release:
    description: Version of KTransformers.
    type: str
    required: true
  tree:
    description: Folder of the installed version. While there is none, options are not checked.
    type: path
    required: true
  etc_dir:
    description: Folder of the services' configuration.
    type: path
    required: true
  converted_dir:
    description: Folder of converted weights.
    type: path
    required: true
  targets:
    description: Name of a model to the folder of its files, to which its pointer may not lead yet.
    type: dict
    default: {}
  records:
    description: Folder of the records of M(onprem.llm.rollout_switch). Weights that they name are in use.
    type: path
  root:
    description: The machine's root. Another folder is a recorded machine, as for C(onprem.llm.host_hardware).
    type: path
    default: /
"""

EXAMPLES = r"""
- name: Hold the placements against this host
  onprem.llm.ktransformers_info:
    placements: "{{ ktransformers_placements }}"
    address: 127.0.0.1
    release: 0.7.2
    tree: /opt/onprem-llm/ktransformers/current
    etc_dir: /etc/onprem-llm/ktransformers
    converted_dir: /srv/llm/converted
"""

RETURN = r"""
starts:
  description: Model to flags (all long options), found (those its files tell) and rules (text of optimise rules).
  returned: success
  type: dict
missing:
  description:
    - Conversions that are not done - model, source, path, method, quant, input, pools, threads, bytes, arguments.
    - The arguments are those of the script, which writes into C(path) with C(.partial) behind it.
  returned: success
  type: list
  elements: dict
unused:
  description: Folders of converted weights, finished or not, that no placement uses and nothing may go back to.
  returned: success
  type: list
  elements: str
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.hardware.read import read
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import classic, convert, flags, look
from ansible_collections.onprem.llm.plugins.module_utils.rollout import kept, record
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import RecordError


def problems(module: AnsibleModule, starts: Mapping[str, look.Start], nodes: Mapping[int, list[int]]) -> list[str]:
    """What keeps a service from running here."""
    given = module.params
    said = [text for one in given["placements"] for text in flags.missing_nodes(one, nodes)]
    for engine in (flags.ENGINE, flags.CLASSIC):
        mine = [one for one in given["placements"] if one["engine"] == engine]
        source = look.program(given["tree"], engine)
        if mine and source:
            said += look.unknown_options(mine, starts, source.read_text())
        elif mine and Path(given["tree"]).exists():
            said.append(
                f"{given['tree']} has no {flags.PARSERS[engine]}, so it cannot serve "
                f"{', '.join(one['model'] for one in mine)}. Set ktransformers_install_method to what the placement's "
                f"engine {engine} needs."
            )
        if engine == flags.CLASSIC:
            refused = [classic.too_old(one["model"], one["quantisation"], given["release"]) for one in mine]
            lacking = [look.without_config(look.located(one, given["targets"])) for one in mine]
            said += [text for text in refused + lacking if text]
    return said


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "placements": {"type": "list", "elements": "dict", "required": True},
            "address": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "tree": {"type": "path", "required": True},
            "etc_dir": {"type": "path", "required": True},
            "converted_dir": {"type": "path", "required": True},
            "targets": {"type": "dict", "default": {}},
            "records": {"type": "path"},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params

    hardware = read(given["root"], "here", given["converted_dir"], _absent, False)
    folder = given["converted_dir"]
    there = Path(folder)
    located = [look.located(one, given["targets"]) for one in given["placements"]]
    try:
        wanted = look.conversions(located, folder)
        weights = {one["model"]: one["path"] for one in wanted}
        starts = {
            one["model"]: start(one, given, hardware, weights.get(one["model"], ""), files["model_path"])
            for one, files in zip(given["placements"], located, strict=True)
        }
        used = set(weights.values())
        used |= {str(there / name) for name in kept.names(Path(given["records"]), there)} if given["records"] else set()
        # Until its first switch no record names what serves.
        known = not given["records"] or record.path_of(given["records"], "ktransformers").exists()
    except (ValueError, RecordError) as error:
        module.fail_json(msg=f"No service was changed. {error}")
    missing = [one for one in wanted if not (Path(one["path"]) / look.MARKER).is_file()]
    said = problems(module, starts, {node["id"]: node["cpus"] for node in hardware["numa"]})
    if missing:
        near = next(one for one in [there, *there.parents] if one.exists())
        said += [text for text in [convert.shortage(missing, shutil.disk_usage(near).free, folder)] if text]
    if said:
        module.fail_json(msg="No service was changed.\n" + "\n".join(f"- {text}" for text in said))
    module.exit_json(
        changed=False,
        starts=starts,
        missing=[{**one, "arguments": convert.arguments(one, f"{one['path']}.partial")} for one in missing],
        unused=sorted(str(one) for one in there.glob("*pools-*") if known and str(one) not in used),
    )


def start(
    placement: Mapping[str, Any], given: Mapping[str, Any], hardware: Hardware, weights: str, path: str
) -> look.Start:
    rules = f"{given['etc_dir']}/{placement['model']}.rules.yaml"
    return look.start(placement, given["address"], given["release"], given["tree"], rules, hardware, weights, path)


def _absent(argv: list[str]) -> tuple[int, str, str]:
    """No command is asked: nodes and cards are known from files."""
    return 127, "", f"{argv[0]} is not asked"


if __name__ == "__main__":
    main()
