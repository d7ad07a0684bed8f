#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: build_step
short_description: Runs one command of a build
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Runs a command at low priority, its output in I(tree)C(.log). When it fails, the message holds the lines that say
    why, and where the log is.
  - A command that a killed run of Ansible left behind is waited for; then this one runs.
attributes:
  check_mode: {support: full, description: Says it would run\, and does not.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: none, description: Runs whenever it is called. The role build knows whether to.}
options:
  tree:
    description: Folder the build will have. C(tree.work) is where it works, C(tree.stage) what becomes the folder.
    type: path
    required: true
  argv: {description: The command., type: list, elements: str, required: true}
  chdir: {description: Where it runs; I(tree)C(.work) unless given., type: path}
"""

EXAMPLES = r"""
- name: Compile
  onprem.llm.build_step:
    tree: /opt/onprem-llm/llamacpp/0.7.0-source-1a2b3c4d
    argv: [cmake, --build, objects]
"""

RETURN = r"""
log: {description: Where its output is., type: str, returned: always}
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import build


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "tree": {"type": "path", "required": True},
            "argv": {"type": "list", "elements": "str", "required": True},
            "chdir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    p = module.params
    tree = Path(p["tree"])
    log = str(build.beside(tree, "log"))
    try:
        if not module.check_mode:
            build.step(tree, p["argv"], Path(p["chdir"] or build.beside(tree, "work")))
    except (build.BuildError, OSError) as error:
        module.fail_json(msg=str(error), log=log)
    module.exit_json(changed=True, log=log)


if __name__ == "__main__":
    main()
