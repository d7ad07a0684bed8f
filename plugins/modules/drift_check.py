#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: drift_check
short_description: Runs a playbook in check mode and reads what it would change
version_added: 0.2.0
author: The onprem.llm developers
description:
  - Runs the playbook with C(--check --diff) through ansible-runner, for the inventory, the limit and the variables of
    the present run, and turns its events into a list of differences.
  - Where a host falls out of the run, the later stages of the playbook are run for it alone, so that one broken part
    does not hide the others.
  - Runs on the controller and cannot ask for passwords.
attributes:
  check_mode: {support: full, description: The playbook always runs in check mode.}
  diff_mode: {support: none, description: The differences are in the result.}
  idempotent: {support: full, description: It changes nothing.}
options:
  playbook: {description: The playbook\, which imports one playbook for each stage., type: path, required: true}
"""

EXAMPLES = r"""
- name: Check all of site.yml
  onprem.llm.drift_check:
    playbook: "{{ playbook_dir }}/../site.yml"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
differences:
  description: What would change; C(host), C(what), C(how), C(found_by), C(diff) of each.
  type: list
  elements: dict
  returned: success
not_looked_at:
  description: Where the look at a host ended early; C(host), C(found_by), C(reason) of each.
  type: list
  elements: dict
  returned: success
known:
  description: For each host the files, units, packages and groups that tasks answer for.
  type: dict
  returned: success
"""
