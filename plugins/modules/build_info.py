#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: build_info
short_description: Whether a build is complete on this host
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Reads the marker of a build, which is written last.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  component: {description: What is built., type: str, required: true}
  tree: {description: Folder of the build\, named after its key., type: path, required: true}
  rule: {description: File with the rule of the firewall by which builds are given., type: path}
"""

EXAMPLES = r"""
- name: Look for the build
  onprem.llm.build_info:
    component: llamacpp
    tree: /opt/onprem-llm/llamacpp/0.7.0-source-1a2b3c4d
    rule: /etc/onprem-llm/firewall/rules/build.nft
"""

RETURN = r"""
component: {description: As given., type: str, returned: success}
key: {description: What the build is of\, the name of its folder., type: str, returned: success}
complete: {description: Whether it is here., type: bool, returned: success}
marker:
  description: What the marker says, with C(builder), C(sha256) of the archive and C(facts); empty without it.
  type: dict
  returned: success
open: {description: Whether the firewall has I(rule)., type: bool, returned: success}
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import build


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "component": {"type": "str", "required": True},
            "tree": {"type": "path", "required": True},
            "rule": {"type": "path"},
        },
        supports_check_mode=True,
    )
    tree = Path(module.params["tree"])
    marker = build.marker(tree)
    module.exit_json(
        changed=False,
        component=module.params["component"],
        key=tree.name,
        complete=bool(marker),
        marker=marker,
        open=os.path.exists(module.params["rule"] or ""),
    )


if __name__ == "__main__":
    main()
