#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: local_facts
short_description: Writes down on a host what is installed there and what it is still owed
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Keeps one JSON file with a section for each component and a list of debts, such as a reboot. It is written at once
    and last, when what it says is true.
  - Without I(component) it only reads. The content becomes the fact C(onprem_llm) of this run either way.
attributes:
  check_mode: {support: full, description: Says what would be written.}
  diff_mode: {support: full, description: Shows the file before and after.}
  idempotent: {support: full, description: A file that is right is not touched.}
options:
  path: {description: The file., type: path, required: true}
  component: {description: Whose section and debts are replaced., type: str, default: ''}
  facts: {description: The section\; empty takes the component out\, left out leaves it., type: dict}
  debts:
    description: What is owed to this component; an empty list says that all is paid, left out leaves them.
    type: list
    elements: dict
    suboptions:
      what: {description: What is owed., type: str, choices: [reboot, restart, rollout], required: true}
      why: {description: Why\, as a sentence., type: str, required: true}
"""

EXAMPLES = r"""
- name: Write down the driver
  onprem.llm.local_facts:
    path: /etc/ansible/facts.d/onprem_llm.fact
    component: nvidia_driver
    facts: {version: 550.163.01-2, flavour: proprietary}
    debts: [{what: reboot, why: nouveau is loaded}]
"""

RETURN = r"""
local:
  description: The file's content (format, components, debts), as it is or would be.
  returned: success
  type: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import config_files, local_facts


def main() -> None:
    debt = {
        "what": {"type": "str", "choices": list(local_facts.REMEDIES), "required": True},
        "why": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "component": {"type": "str", "default": ""},
            "facts": {"type": "dict"},
            "debts": {"type": "list", "elements": "dict", "options": debt},
        },
        supports_check_mode=True,
    )
    p = module.params
    path = Path(p["path"])
    try:
        if p["component"]:
            kept = local_facts.keep(path, p["component"], p["facts"], p["debts"], module.check_mode)
        else:
            text, facts = local_facts.read(path)
            kept = local_facts.Kept(facts, text, text)
    except (local_facts.LocalFactsError, config_files.FileError, OSError) as error:
        module.fail_json(msg=str(error))
    diff = {"before_header": p["path"], "after_header": p["path"], "before": kept.before, "after": kept.after}
    module.exit_json(
        changed=kept.changed,
        local=kept.facts,
        ansible_facts={"onprem_llm": kept.facts},
        diff=[diff] if kept.changed else [],
    )


if __name__ == "__main__":
    main()
