#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: apt_components
short_description: Which components of the distribution's own archive a host's apt lacks
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Asks apt for the host's sources and returns a source with the components that those of its distribution lack, under
    the same address and the same key.
attributes:
  check_mode: {support: full, description: Only reads.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: Changes nothing.}
options:
  components: {description: The components., type: list, elements: str, required: true}
  codename: {description: Of the release., type: str, required: true}
  own:
    description: Name of the file the source is for, which does not count as one of the host's.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Ask apt for what it lacks
  onprem.llm.apt_components:
    components: [contrib, non-free]
    codename: trixie
    own: more.sources
"""

RETURN = r"""
content: {description: The text of the file\, empty when nothing is lacking., type: str, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import apt_components
from ansible_collections.onprem.llm.plugins.module_utils.commands import run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "components": {"type": "list", "elements": "str", "required": True},
            "codename": {"type": "str", "required": True},
            "own": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    rc, targets, said = run(apt_components.ASK)
    if rc:
        module.fail_json(msg=f"apt cannot read its own sources: {said.strip()}")
    content = apt_components.source(targets, **module.params, read=lambda name: Path(name).read_text())
    module.exit_json(changed=False, content=content)


if __name__ == "__main__":
    main()
