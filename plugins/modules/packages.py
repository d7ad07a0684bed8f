#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Installs packages of the distribution that are missing
version_added: 0.2.0
author: The onprem.llm developers
description:
  - Asks dpkg which are missing, and has M(ansible.builtin.apt) install those, without what they recommend, from lists
    that are no older than a day.
  - Where none is missing nobody is asked over the network, and apt's lists are not read, which takes a host seconds.
attributes:
  check_mode: {support: full, description: Says whether packages would be installed.}
  diff_mode: {support: full, description: As apt tells it.}
  idempotent: {support: full, description: What is installed stays as it is\, in whatever version.}
options:
  name: {description: Names of the packages\, without versions., type: list, elements: str, required: true}
  policy_rc_d:
    description: What the packages' scripts are told when they would start a service; 101 forbids it.
    type: int
"""

EXAMPLES = r"""
- name: Install the firewall
  onprem.llm.packages:
    name: nftables
"""

RETURN = r"""
stdout: {description: What apt said., returned: when something was missing, type: str}
"""
