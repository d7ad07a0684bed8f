#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_ports
short_description: Looks at the TCP ports of other hosts from this one
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Tries to connect to every port something listens on, and compares with who may reach it.
  - A port that is open to this host and not declared for it is a failed finding, and so is a declared one that is
    closed.
  - Changes nothing and does not fail because of what it finds. UDP is not looked at.
attributes:
  check_mode: {support: full, description: It only connects.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  looker:
    description: Name of the host that looks.
    type: str
    required: true
  targets:
    description: Hosts to look at, as M(onprem.llm.doctor_host) returns them in C(target).
    type: list
    elements: dict
    required: true
  controller:
    description: Whether this is the controller, which may have no way to the hosts but ssh.
    type: bool
    default: false
  timeout:
    description: Seconds to wait for a connection. A port whose packets are dropped costs them all.
    type: float
    default: 1.5
"""

EXAMPLES = r"""
- name: Look at another host
  onprem.llm.doctor_ports:
    looker: "{{ inventory_hostname }}"
    targets: ["{{ hostvars['data1'].asked.target }}"]
"""

RETURN = r"""
findings:
  description: Answers, each with check, host, state (ok, failed or not_asked), detail and remedy.
  returned: success
  type: list
  elements: dict
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.doctor import ports
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import DoctorError, Finding


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "looker": {"type": "str", "required": True},
            "targets": {"type": "list", "elements": "dict", "required": True},
            "controller": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 1.5},
        },
        supports_check_mode=True,
    )
    given = module.params

    def look(raw: dict[str, Any]) -> list[Finding]:
        return ports.look(ports.target(raw), given["looker"], given["timeout"], given["controller"])

    # At once: each of them takes as long as ports that drop packets are waited for.
    try:
        with ThreadPoolExecutor(8) as pool:
            findings = [finding for found in pool.map(look, given["targets"]) for finding in found]
    except DoctorError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, findings=[finding.as_dict() for finding in findings])


if __name__ == "__main__":
    main()
