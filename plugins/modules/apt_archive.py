#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: apt_archive
short_description: A folder of Debian packages with all they need, under the archive's own signature
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Makes I(path) a part of the archive this machine takes its own packages from. The index is whole and signed, so
    hosts check what they install; the packages are those asked for, what they depend on, and no others.
  - C(onprem-llm.sources) in it is what a host puts below C(/etc/apt/sources.list.d).
  - Runs on a machine of the same distribution, needs no root and changes nothing outside I(path).
attributes:
  check_mode: {support: full, description: Asks the archive and downloads nothing.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: Packages that are there are not downloaded again.}
options:
  path: {description: The folder. What is in it and not needed is removed., type: path, required: true}
  release: {description: Code name of the release for which., type: str, required: true}
  packages: {description: Names of packages., type: list, elements: str, required: true}
  components:
    description: Further components of the archive to take packages from, whether or not this machine does.
    type: list
    elements: str
    default: []
  place: {description: Where hosts will have the folder., type: path, required: true}
"""

EXAMPLES = r"""
- name: Bring what Debian 13 needs
  onprem.llm.apt_archive:
    path: /media/disk/packages/trixie
    release: trixie
    packages: [nftables, python3-pycurl]
    place: /mnt/bundle/packages/trixie
"""

RETURN = r"""
packages: {description: File names of the packages., type: list, elements: str, returned: success}
size: {description: Bytes of the packages., type: int, returned: success}
transferred: {description: Bytes of packages that came over the network., type: int, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import apt_archive


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "required": True},
            "components": {"type": "list", "elements": "str", "default": []},
            "place": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    try:
        archive = apt_archive.Archive(
            Path(p["path"]),
            p["release"],
            apt_archive.codename(),
            components=p["components"],
            check=module.check_mode,
        )
        done = archive.fill(p["packages"], p["place"])
    except (apt_archive.ArchiveError, OSError) as error:
        module.fail_json(msg=f"packages of {p['release']}: {error}")
    module.exit_json(changed=done.changed, packages=done.packages, size=done.size, transferred=done.fetched)


if __name__ == "__main__":
    main()
