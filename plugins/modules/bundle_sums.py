#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_sums
short_description: The list of checksums of a bundle
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Writes C(SHA256SUMS) of all files below a folder, in the form that C(sha256sum --check) reads.
  - Model files that nobody touched since they were verified are not read again.
attributes:
  check_mode: {support: full, description: Computes the list and writes nothing.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: The same files give the same list.}
options:
  path: {description: The folder., type: path, required: true}
  store: {description: Folder of published models in it., type: path, required: true}
"""

EXAMPLES = r"""
- name: List the checksums
  onprem.llm.bundle_sums:
    path: /media/disk
    store: /media/disk/models
"""

RETURN = r"""
files: {description: Number of files., type: int, returned: success}
size: {description: Bytes of all files., type: int, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import bundle, transfer


def main() -> None:
    module = AnsibleModule(
        argument_spec={"path": {"type": "path", "required": True}, "store": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    folder, store = Path(module.params["path"]), Path(module.params["store"])
    try:
        sums = bundle.checksums(folder, store)
        listed = folder / bundle.SUMS
        text = bundle.text(sums)
        changed = not listed.is_file() or listed.read_text(encoding="utf-8") != text
        if changed and not module.check_mode:
            transfer.write_atomically(listed, text, 0o644)
        size = sum((folder / path).stat().st_size for path in sums)
    except OSError as error:
        module.fail_json(msg=f"the checksums of {folder} cannot be listed: {error}")
    module.exit_json(changed=changed, files=len(sums), size=size)


if __name__ == "__main__":
    main()
