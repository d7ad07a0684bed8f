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
  addresses:
    description: The C(fleet_address) of each host.
    type: dict
    default: {}
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
  variables:
    description: Names of all variables the hosts have.
    type: list
    elements: str
    default: []
  inventory:
    description: The inventory's folder or file, to say where a variable is set.
    type: path
    default: ''
  project:
    description: This project's folder. Empty, and names of variables are not looked at.
    type: path
    default: ''
"""

EXAMPLES = r"""
- name: Find contradictions
  delegate_to: localhost
  onprem.llm.site_check:
    groups: "{{ groups }}"
    known_groups: [inference, llamacpp]
    addresses: {gpu1: 192.0.2.11}
    site: {public_name: llm.corp.example, tls_source: own_ca}
    models: "{{ models }}"
    catalogue: "{{ catalogue }}"
    placements: "{{ placements }}"
    model_sources: {modelscope: {type: modelscope, url: https://modelscope.cn}}
    site_vars: inventories/prod/group_vars/all
    shared_vars: group_vars/all
    variables: "{{ hostvars[inventory_hostname] | list }}"
    inventory: inventories/prod
    project: .
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

import yaml
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import settings, site
from ansible_collections.onprem.llm.plugins.module_utils.placement import models, pins


def names_in(folder: str) -> dict[str, str]:
    """Top-level names of the YAML files of a folder, and their file. An encrypted file shows none."""
    return {
        match[1]: str(path)
        for path in sorted(Path(folder).glob("*.y*ml"))
        if path.is_file()
        for match in re.finditer(r"^([A-Za-z_]\w*)\s*:", path.read_text(), re.MULTILINE)
    }


def set_in(name: str, inventory: Path) -> str:
    """Where an inventory sets a variable: the first file with a line that does."""
    line = re.compile(rf"(?m)(^[\s-]*|[{{,]\s*)[\"']?{re.escape(name)}[\"']?\s*[:=]")
    for path in [inventory] if inventory.is_file() else sorted(inventory.rglob("*")):
        # Ansible reads INI files and files of variables without a suffix too.
        if path.suffix not in ("", ".yml", ".yaml", ".ini", ".json") or not path.is_file():
            continue
        if "secrets" not in path.parts[len(inventory.parts) :] and line.search(path.read_text(errors="replace")):
            return str(path)
    return "-e or another place"


def misnamed(variables: list[str], inventory: Path, project: Path) -> tuple[list[str], list[str]]:
    """Variables that are called otherwise, as problems; those that begin like a role's, as doubts."""
    roles = [path.name for path in (project / "roles").iterdir()]
    defaults = [path.read_text() for path in project.glob("roles/*/defaults/main.yml")]
    options = set().union(*(re.findall(r"(?m)^(\w+):", text) for text in defaults))
    others = ("roles/*/meta/argument_specs.yml", "playbooks/*.yml", "group_vars/all/*.yml")
    known = settings.words([*defaults, *(path.read_text() for one in others for path in project.glob(one))])
    renamed = yaml.safe_load((project / "meta/renamed.yml").read_text()) or {}
    wrong, doubtful = settings.check(variables, renamed, options, known, roles)

    def told(found: dict[str, str]) -> list[str]:
        return [f"{set_in(name, inventory)}: {name} {text}" for name, text in found.items()]

    return told(wrong), told(doubtful)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "groups": {"type": "dict", "required": True},
            "known_groups": {"type": "list", "elements": "str", "required": True},
            "addresses": {"type": "dict", "default": {}},
            "site": {"type": "dict", "required": True},
            "models": {"type": "list", "elements": "dict", "required": True},
            "catalogue": {"type": "dict", "required": True},
            "placements": {"type": "list", "elements": "dict", "required": True},
            "model_sources": {"type": "dict", "required": True},
            "site_vars": {"type": "path", "required": True},
            "shared_vars": {"type": "path", "required": True},
            "variables": {"type": "list", "elements": "str", "default": []},
            "inventory": {"type": "path", "default": ""},
            "project": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    paths = [given["site"].get(key) for key in ("tls_certificate_file", "tls_key_file", "tls_ca_file", "ldap_ca_file")]
    exists = {path: os.path.isfile(path) for path in paths if path}
    resolved, problems = models.resolve(given["models"], given["catalogue"], given["groups"])
    wrong, doubtful = list[str](), list[str]()
    if given["project"]:
        wrong, doubtful = misnamed(given["variables"], Path(given["inventory"]), Path(given["project"]))
    for doubt in doubtful:
        module.warn(doubt)
    problems = [
        *wrong,
        *site.check_shadowed(names_in(given["site_vars"]), names_in(given["shared_vars"])),
        *site.check_groups(given["groups"], given["known_groups"], len(given["models"])),
        *site.check_addresses(given["addresses"]),
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
