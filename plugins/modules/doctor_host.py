#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_host
short_description: Asks a host whether its units, ports and certificates are as declared
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Checks that units are active, enabled and not restarting in a loop; that the declared ports are listened on; that
    certificates convince a client that trusts their CA and last long enough; that published models were found whole;
    that no reboot is owed.
  - Changes nothing and does not fail because of what it finds. The findings say what is untrue and what to do.
  - Run it as root, otherwise the names of listening processes and private keys cannot be read.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  host:
    description: Name of the host in the findings.
    type: str
    required: true
  address:
    description: Address under which others shall look at this host.
    type: str
    required: true
  units:
    description: Names of systemd units that must run, or patterns such as C(postgresql@*).
    type: list
    elements: str
    default: []
  declared_ports:
    description: TCP ports that are meant to be reachable from other machines.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: The port.
        type: int
        required: true
      sources:
        description: Addresses, names or networks that may connect. Nothing means anybody.
        type: list
        elements: str
        default: []
      optional:
        description: Whether it is fine when nothing listens there.
        type: bool
        default: false
  trusted_networks:
    description: Networks that may reach every port.
    type: list
    elements: str
    default: []
  certificates:
    description: Certificates this host serves.
    type: list
    elements: dict
    default: []
    suboptions:
      certificate:
        description: File of the certificate and its chain.
        type: path
        required: true
      key:
        description: File of its key.
        type: path
        required: true
      ca:
        description: File of the CA that clients trust; empty for the CAs of the system.
        type: path
        required: true
      name:
        description: A name or address that clients use.
        type: str
        required: true
  days:
    description: Days a certificate must still last.
    type: int
    default: 30
  damage:
    description: File in which the verification of published models says what it found; empty where none is held.
    type: path
    default: ''
  drift:
    description: File with the report of the last look for drift; empty on a host that does not look.
    type: path
    default: ''
  leftovers:
    description: Of roles that this host shall not have, the file that only the role writes; a pattern.
    type: dict
    default: {}
  facts:
    description: File of the local facts, which say what the host is owed.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Ask a host
  onprem.llm.doctor_host:
    host: "{{ inventory_hostname }}"
    address: 10.0.0.11
    units: [nginx, llamacpp@tiny-chat]
    declared_ports:
      - {port: 443}
      - {port: 9101, sources: [10.0.0.12]}
    facts: /etc/ansible/facts.d/onprem_llm.fact
"""

RETURN = r"""
findings:
  description: Answers, each with check, host, state (ok, failed or not_asked), detail and remedy.
  returned: success
  type: list
  elements: dict
target:
  description: How others shall look at this host (host, address, listeners, declared, trusted).
  returned: success
  type: dict
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.doctor import (
    debts,
    drift,
    leftovers,
    models,
    sockets,
    tls,
    units,
)
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import DoctorError
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage

SECOND_LOOK = 3.0  # seconds between two looks at a unit that restarted lately


def show(module: AnsibleModule, names: list[str]) -> list[dict[str, str]]:
    if not names:
        return []
    command = ["systemctl", "show", f"--property={','.join(units.PROPERTIES)}", "--", *map(units.full, names)]
    _, out, _ = module.run_command(command, check_rc=True)
    return units.parse(out)


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "units": {"type": "list", "elements": "str", "default": []},
            "declared_ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "port": {"type": "int", "required": True},
                    "sources": {"type": "list", "elements": "str", "default": []},
                    "optional": {"type": "bool", "default": False},
                },
            },
            "trusted_networks": {"type": "list", "elements": "str", "default": []},
            "certificates": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "certificate": {"type": "path", "required": True},
                    "key": {"type": "path", "required": True, "no_log": False},
                    "ca": {"type": "path", "required": True},
                    "name": {"type": "str", "required": True},
                },
            },
            "days": {"type": "int", "default": 30},
            "damage": {"type": "path", "default": ""},
            "drift": {"type": "path", "default": ""},
            "leftovers": {"type": "dict", "default": {}},
            "facts": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params
    host, names = given["host"], list(dict.fromkeys(given["units"]))
    try:
        declared = sockets.declared(given["declared_ports"])
        now = uptime()
        first = show(module, names)
        doubtful = [name for name, unit in units.match(names, first).items() if units.suspicious(unit, now)]
        second: list[dict[str, str]] = []
        if doubtful:
            time.sleep(SECOND_LOOK)
            second = show(module, doubtful)
        found = sockets.listeners(Path("/proc"))
        findings = units.judge_all(host, names, first, second, uptime())
        findings += sockets.compare(host, found, declared)
        findings += [
            tls.judge_file(host, one["certificate"], one["key"], one["ca"], one["name"], given["days"])
            for one in given["certificates"]
        ]
        if given["damage"]:
            findings.append(models.judge(host, damage.read(Path(given["damage"])), time.time()))
        if given["drift"]:
            report = Path(given["drift"])
            findings.append(
                drift.judge(host, given["drift"], report.read_text() if report.exists() else None, time.time())
            )
        facts = Path(given["facts"])
        findings += leftovers.judge(host, given["leftovers"])
        findings += debts.judge(host, given["facts"], facts.read_text() if facts.exists() else None)
    except DoctorError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        findings=[finding.as_dict() for finding in findings],
        target={
            "host": host,
            "address": given["address"],
            "listeners": [listener.as_dict() for listener in found],
            "declared": given["declared_ports"],
            "trusted": given["trusted_networks"],
        },
    )


if __name__ == "__main__":
    main()
