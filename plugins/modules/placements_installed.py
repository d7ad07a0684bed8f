#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: placements_installed
short_description: What a host serves now
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Reads the files that the services of the engines start with.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It only reads.}
options:
  etc_dir:
    description: Folder that holds one folder per engine, with MODEL.env in it.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: See what is served
  onprem.llm.placements_installed:
    etc_dir: /etc/onprem-llm
"""

RETURN = r"""
placements:
  description:
    - One entry per model - model, engine, port, source, flags (long options without dashes), environment, numa.
  returned: success
  type: list
  elements: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import llamacpp
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import flags as ktransformers


def main() -> None:
    module = AnsibleModule(
        argument_spec={"etc_dir": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    etc = Path(module.params["etc_dir"])
    found = []
    for file in sorted(etc.glob("llamacpp/*.env")):
        dropin = Path(f"/etc/systemd/system/llamacpp@{file.stem}.service.d/numa.conf")
        found.append(llamacpp.installed(file.stem, file.read_text(), dropin.read_text() if dropin.is_file() else ""))
    found += [ktransformers.installed(file.stem, file.read_text()) for file in sorted(etc.glob("ktransformers/*.env"))]
    module.exit_json(changed=False, placements=found)


if __name__ == "__main__":
    main()
