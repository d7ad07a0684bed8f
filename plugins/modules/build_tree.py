#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: build_tree
short_description: A build on its way from an empty stage to a complete folder
version_added: 0.1.0
author: The onprem.llm developers
description:
  - C(prepared) makes an empty I(tree)C(.stage), and I(tree)C(.work) for sources and objects. What a killed run left
    there stays, unless the host went down since.
  - C(unpacked) fills the stage from I(tree)C(.tar).
  - C(complete) writes the marker into the stage and renames it to I(tree).
  - C(packed) writes the archive of a complete build into I(folder), which holds nothing else then. A build that was
    altered since it was made is refused.
attributes:
  check_mode: {support: full, description: Says whether it would change something.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: partial, description: A complete build is left alone. C(packed) always writes the archive.}
options:
  state:
    description: What to reach.
    type: str
    choices: [prepared, unpacked, complete, packed]
    required: true
  tree: {description: Folder of the build\, named after its key., type: path, required: true}
  component: {description: What is built; for the marker., type: str, default: ''}
  builder: {description: Name of the host that built it; for the marker., type: str, default: ''}
  facts: {description: Further facts; for the marker., type: dict, default: {}}
  sha256: {description: Checksum that the stage must have to be complete., type: str, default: ''}
  folder: {description: Where to write the archive. Required by C(packed)., type: path}
"""

EXAMPLES = r"""
- name: Begin with an empty stage
  onprem.llm.build_tree:
    state: prepared
    tree: /opt/onprem-llm/llamacpp/0.7.0-source-1a2b3c4d
"""

RETURN = r"""
complete: {description: Whether the build was here before., type: bool, returned: success}
marker: {description: What the marker says., type: dict, returned: success}
archive:
  description: C(name) of the archive in I(folder), its C(sha256) and C(size).
  type: dict
  returned: when it was packed
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import build


def reach(tree: Path, p: dict[str, Any]) -> dict[str, Any]:
    """Do what is missing. Returns what the module returns."""
    there = build.marker(tree)
    if p["state"] == "packed":
        return {"changed": True, "marker": there, "archive": build.pack(tree, Path(p["folder"]))}
    if there:
        return {"changed": False, "marker": there}
    if p["state"] == "prepared":
        build.prepare(tree)
    elif p["state"] == "unpacked":
        build.unpack(tree)
    else:
        said = {key: p[key] for key in ("component", "builder", "facts")}
        there = build.complete(tree, said, p["sha256"])
    return {"changed": True, "marker": there}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["prepared", "unpacked", "complete", "packed"], "required": True},
            "tree": {"type": "path", "required": True},
            "component": {"type": "str", "default": ""},
            "builder": {"type": "str", "default": ""},
            "facts": {"type": "dict", "default": {}},
            "sha256": {"type": "str", "default": ""},
            "folder": {"type": "path"},
        },
        required_if=[("state", "packed", ["folder"])],
        supports_check_mode=True,
    )
    os.umask(0o022)
    p = module.params
    tree = Path(p["tree"])
    before = bool(build.marker(tree))
    try:
        if module.check_mode:
            module.exit_json(changed=not before or p["state"] == "packed", complete=before, marker=build.marker(tree))
        with build.alone(tree):
            # Another run may have completed it while we waited.
            before = bool(build.marker(tree))
            result = reach(tree, p)
    except build.BuildError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        where = p["folder"] if p["state"] == "packed" else tree.parent
        module.fail_json(msg=f"{tree.name} cannot be {p['state']}: {error}. Look at {where} (`df -h`), and run again.")
    module.exit_json(complete=before, **result)


if __name__ == "__main__":
    main()
