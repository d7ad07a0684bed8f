#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: site_check
short_description: Finds contradictions in an inventory before any host is touched
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Looks at groups and variables only. Fails with everything that is wrong, so that one run shows it all.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: The same input gives the same answer.}
options:
  groups:
    description: The inventory's groups with their hosts.
    type: dict
    required: true
  known_groups:
    description: The groups that do something.
    type: list
    elements: str
    required: true
  site:
    description: The site's settings (C(public_name), C(tls_*), C(ldap_*)). Secret values are given as non-empty text.
    type: dict
    required: true
  models:
    description: The site's C(models).
    type: list
    elements: dict
    required: true
  catalogue:
    description: Known models by key.
    type: dict
    required: true
  placements:
    description: The site's C(placements).
    type: list
    elements: dict
    required: true
  model_sources:
    description: The site's C(model_sources).
    type: dict
    required: true
  site_vars:
    description: Folder of the site's own variables for all hosts.
    type: path
    required: true
  shared_vars:
    description: Folder of the variables all sites share.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Find contradictions
  delegate_to: localhost
  onprem.llm.site_check:
    groups: "{{ groups }}"
    known_groups: [inference, llamacpp]
    site: {public_name: llm.corp.example, tls_source: own_ca}
    models: "{{ models }}"
    catalogue: "{{ catalogue }}"
    placements: "{{ placements }}"
    model_sources: {modelscope: {type: modelscope, url: https://modelscope.cn}}
    site_vars: inventories/prod/group_vars/all
    shared_vars: group_vars/all
"""

RETURN = r"""
problems:
  description: What is wrong, one sentence each. Empty when all is well; the module fails otherwise.
  returned: always
  type: list
  elements: str
"""

import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import site
from ansible_collections.onprem.llm.plugins.module_utils.placement import models, pins


def names_in(folder: str) -> dict[str, str]:
    """Top-level names of the YAML files of a folder, and their file. An encrypted file shows none."""
    return {
        match[1]: str(path)
        for path in sorted(Path(folder).glob("*.y*ml"))
        for match in re.finditer(r"^([A-Za-z_]\w*)\s*:", path.read_text(), re.MULTILINE)
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "groups": {"type": "dict", "required": True},
            "known_groups": {"type": "list", "elements": "str", "required": True},
            "site": {"type": "dict", "required": True},
            "models": {"type": "list", "elements": "dict", "required": True},
            "catalogue": {"type": "dict", "required": True},
            "placements": {"type": "list", "elements": "dict", "required": True},
            "model_sources": {"type": "dict", "required": True},
            "site_vars": {"type": "path", "required": True},
            "shared_vars": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    paths = [given["site"].get(key) for key in ("tls_certificate_file", "tls_key_file", "tls_ca_file", "ldap_ca_file")]
    exists = {path: os.path.isfile(path) for path in paths if path}
    resolved, problems = models.resolve(given["models"], given["catalogue"], given["groups"])
    problems = [
        *site.check_shadowed(names_in(given["site_vars"]), names_in(given["shared_vars"])),
        *site.check_groups(given["groups"], given["known_groups"], len(given["models"])),
        *site.check_tls(given["site"], given["groups"], exists),
        *site.check_identity(given["site"], given["groups"]),
        *problems,
        *models.with_known_sources(resolved, given["model_sources"])[1],
        *pins.check(given["placements"], resolved, given["groups"]),
    ]
    if problems:
        module.fail_json(
            msg="The inventory contradicts itself; no host was touched.\n" + "\n".join(f"- {p}" for p in problems),
            problems=problems,
        )
    module.exit_json(changed=False, problems=problems)


if __name__ == "__main__":
    main()
