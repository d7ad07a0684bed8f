#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_report
short_description: Reports what the doctor found, and fails when anything is untrue
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Prints a table, writes it as JSON, and fails when a finding has failed.
  - A host or a question without an answer is a failed finding, never silence.
  - Runs on the controller.
attributes:
  check_mode: {support: partial, description: In check mode nothing was asked. It says so and ends well.}
  diff_mode: {support: none, description: A report is no change.}
  idempotent: {support: full, description: A report is no change.}
options:
  results:
    description: >-
      Results of the doctor's tasks, each with C(host), C(task) (what was asked) and C(result) (what it registered).
    type: list
    elements: dict
    required: true
  json:
    description: File on the controller for the report. Empty for none.
    type: path
    default: ''
"""

EXAMPLES = r"""
- name: Report
  onprem.llm.doctor_report:
    results:
      - {host: web1, task: host, result: "{{ asked }}"}
    json: doctor.json
"""

RETURN = r"""
report:
  description: ok (everything was asked and is true), counts, time, findings and answer, as in the JSON file.
  returned: when something was asked
  type: dict
"""
