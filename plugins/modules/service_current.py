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
"""

import functools
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import service

PROPERTIES = (
    "LoadState,ActiveState,UnitFileState,NeedDaemonReload,NRestarts,"
    "InactiveExitTimestamp,ExecMainStartTimestamp,StateChangeTimestamp"
)


class Units:
    """What systemctl says and does."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def show(self, unit: str) -> dict[str, str]:
        _, out, _ = self.module.run_command(
            ["systemctl", "show", "--timestamp=us+utc", f"--property={PROPERTIES}", unit]
        )
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def state(self, unit: str) -> service.State:
        said = self.show(unit)

        def moment(name: str) -> float:
            text = said.get(name, "").split(" ", 1)[-1].removesuffix(" UTC")
            try:
                return datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()
            except ValueError:
                return 0.0

        started = max(moment("InactiveExitTimestamp"), moment("ExecMainStartTimestamp"))
        return service.State(
            active="not there yet" if said.get("LoadState") == "not-found" else said.get("ActiveState", "unknown"),
            enabled=said.get("UnitFileState") in ("enabled", "enabled-runtime", "static", "alias", "generated"),
            unit_changed=said.get("NeedDaemonReload") == "yes",
            started=started,
            loaded=max(started, moment("StateChangeTimestamp")),
        )

    def vital(self, unit: str) -> tuple[str, int]:
        said = self.show(unit)
        return said.get("ActiveState", "unknown"), int(said.get("NRestarts") or 0)

    def do(self, *words: str) -> None:
        code, _, err = self.module.run_command(["systemctl", *words])
        if code:
            raise service.ServiceError(f"systemctl {' '.join(words)} failed: {err.strip()}")


def main() -> None:
    unit_options = {
        "name": {"type": "str", "required": True},
        "restart_on": {"type": "list", "elements": "path", "default": []},
        "reload_on": {"type": "list", "elements": "path", "default": []},
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
    units = Units(module)
    owed = {
        unit["name"]: service.owed(units.state(unit["name"]), unit["restart_on"], unit["reload_on"])
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
                        # One that failed three times may not be started for a while; its cause is likely mended by now.
                        module.run_command(["systemctl", "reset-failed", name])
                    units.do(action, name)
        for unit in module.params["units"]:
            name = unit["name"]
            if unit["url"] and not module.check_mode:
                probe = functools.partial(service.answers, ca=unit["ca"])
                service.wait(name, unit["url"], module.params["timeout"], units.vital, probe)
    except service.ServiceError as error:
        _, journal, _ = module.run_command(["journalctl", "--no-pager", "--lines=25", "--output=cat", f"--unit={name}"])
        module.fail_json(msg=f"{error}\nEnd of its journal (journalctl -u {name}):\n{journal.strip()}", actions=done)
    module.exit_json(changed=bool(done), actions=done)


if __name__ == "__main__":
    main()
