#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: service_current
short_description: Units that run with their present configuration, now and at every boot
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Starts, restarts or reloads units for which that is owed, and waits until they answer.
  - What is owed is seen by comparing files with the running process, not with what this run changed. A run that broke
    off between writing a file and restarting is made good by the next one.
  - A unit that does not come up fails the task with the end of its journal.
attributes:
  check_mode: {support: full, description: Says what is owed.}
  diff_mode: {support: none, description: The reasons are in the result.}
  idempotent: {support: full, description: A unit that is up to date is left alone.}
options:
  units:
    description: The units.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the unit., type: str, required: true}
      restart_on:
        description: Files and folders; the unit is restarted when one changed since it started.
        type: list
        elements: path
        default: []
      reload_on:
        description: Files and folders; the unit is reloaded when one changed since it was loaded.
        type: list
        elements: path
        default: []
      holds:
        description: Command that succeeds while what the unit loaded is still there; the unit is reloaded otherwise.
        type: list
        elements: str
        default: []
      url:
        description: URL that answers 200 when the unit is ready.
        type: str
        default: ''
      ca:
        description: File with the authority that signed the certificate there; empty for the system's.
        type: str
        default: ''
  timeout:
    description: Seconds to wait for each URL.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Serve with the present configuration
  onprem.llm.service_current:
    units:
      - name: nginx.service
        restart_on: [/etc/systemd/system/nginx.service.d]
        reload_on: [/etc/nginx/nginx.conf]
"""

RETURN = r"""
actions:
  description: Per unit what was, or would be, done, and why.
  returned: success
  type: dict
down:
  description: Units that did not run before; in check mode nothing can be asked of them.
  returned: success
  type: list
  elements: str
"""

import functools

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import service, systemctl


def main() -> None:
    unit_options = {
        "name": {"type": "str", "required": True},
        "restart_on": {"type": "list", "elements": "path", "default": []},
        "reload_on": {"type": "list", "elements": "path", "default": []},
        "holds": {"type": "list", "elements": "str", "default": []},
        "url": {"type": "str", "default": ""},
        "ca": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True, "options": unit_options},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    units = systemctl.Units(module.run_command)
    states = {unit["name"]: units.state(unit["name"]) for unit in module.params["units"]}

    def holds(command: list[str]) -> bool:
        return not command or module.run_command(command)[0] == 0

    owed = {
        unit["name"]: service.owed(
            states[unit["name"]], unit["restart_on"], unit["reload_on"], functools.partial(holds, unit["holds"])
        )
        for unit in module.params["units"]
    }
    done = {name: {"actions": actions, "reasons": reasons} for name, (actions, reasons) in owed.items() if actions}
    name = ""
    try:
        if done and not module.check_mode:
            units.do("daemon-reload")
            for name, (actions, _) in owed.items():
                for action in actions:
                    if action == "restart":
                        units.restart(name)
                    else:
                        units.do(action, name)
        for unit in module.params["units"]:
            name = unit["name"]
            if unit["url"] and not module.check_mode:
                probe = functools.partial(service.answers, ca=unit["ca"])
                service.wait(name, unit["url"], module.params["timeout"], units.vital, probe)
    except service.ServiceError as error:
        message = f"{error}\nEnd of its journal (journalctl -u {name}):\n{units.journal(name)}"
        module.fail_json(msg=message, actions=done)
    down = [name for name, state in states.items() if state.active != "active"]
    module.exit_json(changed=bool(done), actions=done, down=down)


if __name__ == "__main__":
    main()
