#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""One external file, verified, in its place."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact_file
short_description: A file from a URL, verified by its sha256
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Fetches a file whose sha256 is known. It appears under I(dest) complete and verified, or not at all.
  - An interrupted transfer is continued. Bytes that fail the checksum are deleted.
  - A file that is in place and has the checksum is left alone, and no network is needed.
attributes:
  check_mode: {support: full, description: Compares what is in place and never uses the network.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: A verified file is not fetched again.}
options:
  url: {description: Where it is. C(file:) names a file of the host., type: str, required: true}
  sha256: {description: The checksum., type: str, required: true}
  size: {description: The size in bytes\, where known., type: int}
  dest: {description: Where to put it., type: path, required: true}
  mirror:
    description: Address of the site's mirror. It holds every file as HOST/PATH of the original URL.
    type: str
    default: ''
  attempts: {description: Attempts in a row without progress before giving up., type: int, default: 5}
  timeout: {description: Seconds without a byte before an attempt is given up., type: int, default: 60}
"""

EXAMPLES = r"""
- name: Fetch the source of llama.cpp
  onprem.llm.artifact_file:
    url: "{{ artifacts.llamacpp_source.url }}"
    sha256: "{{ artifacts.llamacpp_source.sha256 }}"
    dest: /var/cache/onprem-llm/llama.cpp.tar.gz
"""

RETURN = r"""
url: {description: Where it was fetched from\, without credentials., type: str, returned: success}
transferred: {description: Bytes that came over the network., type: int, returned: success}
"""

import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import artifacts, transfer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "size": {"type": "int"},
            "dest": {"type": "path", "required": True},
            "mirror": {"type": "str", "default": ""},
            "attempts": {"type": "int", "default": 5},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    module.no_log_values.update(transfer.secrets_of(p["url"], p["mirror"]))
    if not re.fullmatch(r"[0-9a-f]{64}", p["sha256"]):
        module.fail_json(msg=f"sha256 is '{p['sha256']}': a checksum has 64 digits from 0 to f")
    os.umask(0o022)
    dest, url = Path(p["dest"]), artifacts.mirrored(p["url"], p["mirror"])
    shown = transfer.redact(url)
    transferred = 0

    def in_place() -> bool:
        return dest.is_file() and transfer.hash_file(dest, transfer.Hashes(None)).sha256() == p["sha256"]

    try:
        if in_place():
            module.exit_json(changed=False, url=shown, transferred=0)
        if module.check_mode:
            module.exit_json(changed=True, url=shown, transferred=0)
        with transfer.alone(dest.parent, transfer.part_of(dest)):
            if not in_place():  # another run may have brought it while we waited
                transferred = transfer.download(
                    url,
                    dest,
                    transfer.Source(attempts=p["attempts"], timeout=p["timeout"]),
                    size=p["size"],
                    sha256=p["sha256"],
                ).transferred
    except (transfer.TransferError, OSError) as error:
        module.fail_json(msg=str(error), url=shown)
    module.exit_json(changed=True, url=shown, transferred=transferred)


if __name__ == "__main__":
    main()
