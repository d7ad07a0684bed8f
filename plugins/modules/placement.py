#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: placement
short_description: Which engine serves which model on which host, and with what
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Completes and checks the placements pinned in the inventory. Nothing is downloaded or changed.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: The same input gives the same answer.}
options:
  models:
    description: The site's C(models).
    type: list
    elements: dict
    required: true
  catalogue:
    description: Known models by key.
    type: dict
    required: true
  pins:
    description: The site's C(placements).
    type: list
    elements: dict
    required: true
  groups:
    description: The inventory's groups with their hosts.
    type: dict
    required: true
  addresses:
    description: Address of each inference host in the fleet's network.
    type: dict
    required: true
  served_dir:
    description: Folder of the pointers to served models.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Complete the pinned placements
  delegate_to: localhost
  onprem.llm.placement:
    models: "{{ models }}"
    catalogue: "{{ catalogue }}"
    pins: "{{ placements }}"
    groups: "{{ groups }}"
    addresses: {gpu1: 192.0.2.11}
    served_dir: /srv/llm/served
"""

RETURN = r"""
models:
  description: The models with what the catalogue knows of them.
  returned: success
  type: list
  elements: dict
placements:
  description: One entry per host and model - model, kind, host, engine, port, flags, model_path.
  returned: success
  type: list
  elements: dict
endpoints:
  description: One entry per model - model, kind, dimensions, servers (host, address, port).
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.placement import pins


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True},
            "catalogue": {"type": "dict", "required": True},
            "pins": {"type": "list", "elements": "dict", "required": True},
            "groups": {"type": "dict", "required": True},
            "addresses": {"type": "dict", "required": True},
            "served_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    models, problems = pins.resolve_models(given["models"], given["catalogue"])
    problems += pins.check_pins(given["pins"], models, given["groups"])
    if problems:
        module.fail_json(msg="These placements cannot work.\n" + "\n".join(f"- {p}" for p in problems))
    by_name = {model["name"]: model for model in models}
    placements = [pins.complete(pin, by_name[pin["model"]], given["served_dir"]) for pin in given["pins"]]
    module.exit_json(
        changed=False,
        models=models,
        placements=placements,
        endpoints=pins.endpoints(placements, models, given["addresses"]),
    )


if __name__ == "__main__":
    main()
