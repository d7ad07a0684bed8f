#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: plan_report
short_description: A plan as a table for the terminal and as a page for a browser
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Says what the plan decided and what it would change. Nothing is written; a task writes the page where it is wanted.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: The same input gives the same answer.}
options:
  title:
    description: What the plan is of, for example the name of the site.
    type: str
    required: true
  placements:
    description: As C(onprem.llm.placement) returned them.
    type: list
    elements: dict
    required: true
  hardware:
    description: As C(onprem.llm.host_hardware) returned it, by host.
    type: dict
    required: true
  installed:
    description: What the hosts serve now, as C(onprem.llm.host_hardware) returned it as C(installed), by host.
    type: dict
    default: {}
  notes:
    description: As C(onprem.llm.placement) returned them.
    type: list
    elements: str
    default: []
  what_if:
    description: The machines are not there yet.
    type: bool
    default: false
  width:
    description: Columns of the table.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Say what runs where
  delegate_to: localhost
  onprem.llm.plan_report:
    title: prod
    placements: "{{ decision.placements }}"
    hardware: {gpu1: "{{ plan_machines.gpu1 }}"}
"""

RETURN = r"""
table:
  description: The plan for a terminal, plain text.
  returned: success
  type: str
page:
  description: The plan as one HTML page without external parts.
  returned: success
  type: str
changes:
  description: What would change against what is installed, one sentence each.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.placement import differences, page, table
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Plan


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "title": {"type": "str", "required": True},
            "placements": {"type": "list", "elements": "dict", "required": True},
            "hardware": {"type": "dict", "required": True},
            "installed": {"type": "dict", "default": {}},
            "notes": {"type": "list", "elements": "str", "default": []},
            "what_if": {"type": "bool", "default": False},
            "width": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    given = module.params
    plan: Plan = {
        "title": given["title"],
        "placements": given["placements"],
        "hosts": given["hardware"],
        "changes": [] if given["what_if"] else differences.differences(given["placements"], given["installed"]),
        "notes": given["notes"],
        "what_if": given["what_if"],
    }
    module.exit_json(
        changed=False, table=table.render(plan, given["width"]), page=page.render(plan), changes=plan["changes"]
    )


if __name__ == "__main__":
    main()
