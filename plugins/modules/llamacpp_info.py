#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: llamacpp_info
short_description: Asks an installed llama-server for its version and options
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Fails when an option is not in the program's C(--help), or when its build is older than the security floor.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  executable:
    description: Path of C(llama-server).
    type: path
    required: true
  options:
    description: Long options, without dashes, that will be used.
    type: list
    elements: str
    default: []
  minimum_build:
    description: Oldest build number that may be run.
    type: int
    default: 0
  minimum_version:
    description: Oldest release that may be run, for a program that names no build number.
    type: str
    default: ''
  minimum_reason:
    description: Why older builds may not be run.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Ask the installed program
  onprem.llm.llamacpp_info:
    executable: /opt/onprem-llm/llamacpp/current/llama-server
    options: [ctx-size, metrics]
"""

RETURN = r"""
version:
  description: Version as the program prints it.
  returned: success
  type: str
build:
  description: Build number, null when the program does not print one, 0 when it was compiled outside git.
  returned: success
  type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import llamacpp


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "executable": {"type": "path", "required": True},
            "options": {"type": "list", "elements": "str", "default": []},
            "minimum_build": {"type": "int", "default": 0},
            "minimum_version": {"type": "str", "default": ""},
            "minimum_reason": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    program = module.params["executable"]
    code, out, err = module.run_command([program, "--version"])
    if code != 0:
        module.fail_json(
            msg=f"{program} --version ended with {code}: {(err or out).strip()[-400:]}. "
            "The build does not run on this machine; another llamacpp_install_method may."
        )
    version, build = llamacpp.parse_version(out + err)
    p = module.params
    problem = llamacpp.below_floor(version, build, p["minimum_build"], p["minimum_version"])
    if problem:
        module.fail_json(msg=f"{program} {problem} ({p['minimum_reason']}). Choose a newer llamacpp_archive.")
    code, out, err = module.run_command([program, "--help"])
    unknown = llamacpp.unknown_options(module.params["options"], out + err)
    if unknown:
        module.fail_json(
            msg=f"llama.cpp {version} has no option {', '.join('--' + name for name in unknown)}. "
            "No service was changed. Upstream may have renamed it: look into "
            f"`{program} --help` and correct `flags` of the placement."
        )
    module.exit_json(changed=False, version=version, build=build)


if __name__ == "__main__":
    main()
