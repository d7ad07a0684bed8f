#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_home
short_description: A folder that builds can use as CUDA_HOME
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Makes I(path) a link to what NVIDIA's packages install, C(/usr/local/cuda-VERSION). Where the distribution's package
    is installed instead, it becomes a folder with C(bin), C(include) and C(lib64) of that toolkit.
  - Fails when the result lacks what every build looks for.
attributes:
  check_mode: {support: full, description: Says whether the folder would change.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: A folder that is right is not touched.}
options:
  path: {description: The folder., type: path, required: true}
  version: {description: Release of CUDA., type: str, required: true}
  package: {description: Name of the package that brought it., type: str, required: true}
"""

EXAMPLES = r"""
- name: Give builds one place
  onprem.llm.cuda_home:
    path: /opt/onprem-llm/cuda_toolkit/12.4
    version: "12.4"
    package: nvidia-cuda-toolkit
"""

RETURN = r"""
differences: {description: Paths below the folder that were not right., type: list, elements: str, returned: success}
"""

import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.cuda import home, packages


def distribution(module: AnsibleModule) -> home.Home:
    """The home for what the distribution's packages hold; empty where they are not installed."""
    rows = module.run_command(["dpkg-query", "-W", "-f", packages.FORMAT])[1]
    names = [one.name for one in packages.parts(packages.parse_installed(rows), packages.DISTRO)]
    return home.of_files(module.run_command(["dpkg", "-L", *names])[1].splitlines() if names else [])


def place(path: Path, target: str, wanted: home.Home | None) -> None:
    """Put the new folder or link where the old one was; a run that is cut short leaves none, and the next makes it."""
    draft = path.with_name(f".{path.name}.part")
    for old in (draft, path):
        if old.is_symlink() or not old.is_dir():
            old.unlink(missing_ok=True)
        else:
            shutil.rmtree(old)
        if old == draft:
            path.parent.mkdir(parents=True, exist_ok=True)
            if wanted:
                home.write(draft, wanted)
            else:
                draft.symlink_to(target)
    draft.rename(path)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "version": {"type": "str", "required": True},
            "package": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    path, target = Path(module.params["path"]), home.native(module.params["version"])
    wanted = distribution(module) if module.params["package"] == packages.DISTRO else None
    if wanted:
        differences = home.differences(path, wanted) or (["."] if path.is_symlink() or not path.is_dir() else [])
    else:
        differences = [] if path.is_symlink() and str(path.readlink()) == target else ["."]
    try:
        if differences and not module.check_mode:
            place(path, target, wanted)
        lacking = home.missing(path) if path.exists() or not module.check_mode else []
    except OSError as error:
        module.fail_json(msg=f"{path}: {error}")
    if lacking and not (differences and module.check_mode):
        package = module.params["package"]
        module.fail_json(
            msg=f"{path} cannot be a CUDA_HOME: it has no {', '.join(lacking)}. {package} is installed by name, and "
            "its files are not: install it anew (apt-get install --reinstall), or choose another release."
        )
    module.exit_json(changed=bool(differences), differences=differences)


if __name__ == "__main__":
    main()
