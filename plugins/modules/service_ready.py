#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: service_ready
short_description: Waits until a service answers, or says why it does not
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Polls the health URL of a systemd unit. When the unit dies the wait ends at once, and the message carries the end of
    its journal.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  unit:
    description: Name of the unit.
    type: str
    required: true
  url:
    description: URL that answers 200 when the service is ready.
    type: str
    required: true
  timeout:
    description: Seconds to wait.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Wait for the model
  onprem.llm.service_ready:
    unit: llamacpp@tiny-chat.service
    url: http://127.0.0.1:9101/health
"""

RETURN = r"""
seconds:
  description: How long it took.
  returned: success
  type: float
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import service, systemctl


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    unit = module.params["unit"]

    units = systemctl.Units(module.run_command)
    try:
        seconds = service.wait(unit, module.params["url"], module.params["timeout"], units.vital)
    except service.ServiceError as error:
        module.fail_json(msg=f"{error}\nEnd of its journal (journalctl -u {unit}):\n{units.journal(unit)}")
    module.exit_json(changed=False, seconds=round(seconds, 1))


if __name__ == "__main__":
    main()
