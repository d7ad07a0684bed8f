#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: host_before
short_description: Writes down what a host has before anything is changed there
version_added: 0.1.0
author: The onprem.llm developers
description:
  - At first contact only. Names of packages, unit files, running services, users and groups, and copies of the
    distribution's files that roles replace. By it M(onprem.llm.uninstalled) knows what came with us.
  - Files that M(onprem.llm.uninstalled) put back are the operator's again; before a role replaces them once more, they
    are copied anew.
attributes:
  check_mode: {support: full, description: Says whether it would be written.}
  diff_mode: {support: none, description: A host's whole list of packages helps nobody.}
  idempotent: {support: full, description: A record that is there stays as it is\; a copy is taken anew once.}
options:
  path: {description: Folder of the record., type: path, required: true}
  unless:
    description: Folders that roles make; where one is there, it is too late, and nothing is written.
    type: list
    elements: path
    default: []
  files:
    description: Files and folders to keep a copy of where they exist\; patterns.
    type: list
    elements: str
    default: []
  again:
    description: Of these, those that were put back, which a role is about to replace again\; patterns.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Remember what is here
  onprem.llm.host_before:
    path: /var/lib/onprem-llm/before
    unless: [/opt/onprem-llm]
    files: [/etc/nginx/nginx.conf]
    again: [/etc/nginx/nginx.conf]
"""

RETURN = r"""
packages:
  description: How many packages are in the record, 0 without one.
  returned: success
  type: int
"""

import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.uninstall import before, files, packages


def look(module: AnsibleModule) -> before.Before:
    """The host as it is."""

    def said(*words: str) -> str:
        return str(module.run_command(list(words), check_rc=True, environ_update={"LC_ALL": "C.UTF-8"})[1])

    def first(text: str) -> list[str]:
        return sorted(line.split()[0] for line in text.splitlines() if line.strip())

    known = packages.parse(
        said("dpkg-query", "--show", f"--showformat={packages.SHOW}"), said("dpkg", "--print-architecture").strip()
    )
    plain = ("--no-legend", "--no-pager", "--plain")
    unit_files = (line.split() for line in said("systemctl", "list-unit-files", *plain).splitlines())
    return before.Before(
        packages=sorted(known),
        automatic=said("apt-mark", "showauto").split(),
        units={line[0]: line[1] for line in unit_files if len(line) > 1},
        running=first(said("systemctl", "list-units", "--type=service", "--state=active", *plain)),
        users=[line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()],
        groups=[line.split(":")[0] for line in Path("/etc/group").read_text().splitlines()],
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "unless": {"type": "list", "elements": "path", "default": []},
            "files": {"type": "list", "elements": "str", "default": []},
            "again": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    try:
        there = before.read(path)
        if there:
            taken = files.keep_again(
                module.params["again"], path / before.RETURNED, path / before.COPIES, not module.check_mode
            )
            module.exit_json(changed=bool(taken), packages=len(there.packages))
        if any(os.path.lexists(one) for one in module.params["unless"]):
            module.exit_json(changed=False, packages=0)
        found = look(module)
        if not module.check_mode:
            # At once, so that a run that breaks off leaves no half of it.
            draft = path.with_name(f"{path.name}.new")
            shutil.rmtree(draft, ignore_errors=True)
            # Copies may hold what others must not read.
            (draft / before.COPIES).mkdir(parents=True, mode=0o700)
            draft.chmod(0o700)
            files.keep(module.params["files"], draft / before.COPIES)
            (draft / before.RECORD).write_text(before.render(found))
            os.sync()
            draft.rename(path)
    except (before.BeforeError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, packages=len(found.packages))


if __name__ == "__main__":
    main()
