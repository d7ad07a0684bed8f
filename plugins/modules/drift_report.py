#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: drift_report
short_description: Lists what differs from the site's description, and fails when anything does
version_added: 0.2.0
author: The onprem.llm developers
description:
  - Prints one list for each host, writes it as JSON and as metrics, and fails when there is a difference or a host
    could not be looked at to the end, so that ansible-playbook ends with exit code 2.
  - With I(json) and I(metrics), as on a schedule, the list names what differs without the lines of files; those are in
    the JSON, which its owner alone may read.
  - Runs on the controller.
attributes:
  check_mode: {support: full, description: A report is no change; its files are written in check mode too.}
  diff_mode: {support: none, description: A report is no change.}
  idempotent: {support: full, description: A report is no change.}
options:
  hosts: {description: The hosts that were to be looked at., type: list, elements: str, required: true}
  checked: {description: What M(onprem.llm.drift_check) returned., type: dict, required: true}
  looked: {description: For each host what M(onprem.llm.drift_host) returned., type: dict, required: true}
  json: {description: File on the controller for the report. Empty for none., type: path, default: ''}
  metrics:
    description: File on the controller for the textfile collector of node_exporter. Empty for none.
    type: path
    default: ''
"""

EXAMPLES = r"""
- name: Report
  onprem.llm.drift_report:
    hosts: "{{ ansible_play_hosts_all }}"
    checked: "{{ checked }}"
    looked: {web1: "{{ looked }}"}
    json: drift.json
"""

RETURN = r"""
report:
  description: ok, time, hosts (differences of each), differences and not_looked_at, as in the JSON file.
  returned: always
  type: dict
"""
