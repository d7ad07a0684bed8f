#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch, verify and publish one model on this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_files
short_description: The files of a model, verified and published
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Fetches the files of one revision of a repository, checks size and sha256 of each and the headers of GGUF files,
    publishes them read-only as I(dest)/I(repo)/I(revision) with a C(manifest.json), and lets the pointer
    I(served_dir)/I(name) lead there.
  - Files that were verified once and have not been touched since are not looked at again, so a second run needs no
    network. A run that was killed is continued where it stopped.
  - Bytes that fail their checksum are moved to I(dest)/C(.rejected) and never published.
  - The free space is compared with the bytes still to come before the first of them is fetched.
attributes:
  check_mode:
    support: full
    description: Lists what would be fetched. Where the hub cannot be reached, says so and reports a change.
  diff_mode:
    support: full
    description: Shows where the pointer led and where it leads.
  idempotent: {support: full, description: Nothing is fetched or moved when all is in place.}
options:
  name: {description: Name of the pointer., type: str, required: true}
  repo: {description: C(owner/name) on the hub., type: str, required: true}
  revision: {description: Branch\, tag or\, better\, commit., type: str, default: master}
  source:
    description:
      - What the files come from. C(mirror) is any web server over a tree that this module published.
        C(directory) is a folder on the host that holds I(repo)/I(revision) or I(repo).
      - Files of a directory are shared instead of copied when they lie on the same disk and only root can write them.
        Their checksums are those of a C(manifest.json) beside them; without one they are computed and recorded.
    type: str
    required: true
    choices: [modelscope, huggingface, mirror, directory]
  url: {description: Address of the hub or mirror., type: str}
  path: {description: The directory., type: path}
  include:
    description: Globs; C(*) also crosses C(/). Without any, every file is taken.
    type: list
    elements: str
    default: []
  exclude: {description: Globs of what is not taken., type: list, elements: str, default: []}
  entry: {description: The file an engine is given; it must be among those taken., type: str, default: ''}
  dest: {description: Where models are published., type: path, required: true}
  served_dir: {description: Where the pointers are., type: path, required: true}
  token: {description: Token of the hub\, for repositories that ask for one., type: str}
  attempts: {description: Attempts in a row without progress before giving up., type: int, default: 5}
  timeout: {description: Seconds without a byte before an attempt is given up., type: int, default: 60}
"""

EXAMPLES = r"""
- name: Publish a model
  onprem.llm.model_files:
    name: assistant
    repo: unsloth/DeepSeek-R1-GGUF
    source: modelscope
    url: https://modelscope.cn
    include: ['DeepSeek-R1-UD-IQ1_S/*']
    entry: DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf
    dest: /srv/llm/models
    served_dir: /srv/llm/served
"""

RETURN = r"""
folder: {description: Where the files are published., type: str, returned: success}
pointer: {description: The pointer., type: str, returned: success}
commit: {description: The commit\, empty when the source does not name one., type: str, returned: success}
files: {description: The files with path\, size and sha256., type: list, elements: dict, returned: success}
fetched: {description: The files that were\, or would be\, fetched., type: list, elements: str, returned: success}
transferred: {description: Bytes that came over the network., type: int, returned: success}
notes: {description: What is worth knowing., type: list, elements: str, returned: success}
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import model_store, transfer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "master"},
            "source": {
                "type": "str",
                "required": True,
                "choices": ["modelscope", "huggingface", "mirror", "directory"],
            },
            "url": {"type": "str"},
            "path": {"type": "path"},
            "include": {"type": "list", "elements": "str", "default": []},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "entry": {"type": "str", "default": ""},
            "dest": {"type": "path", "required": True},
            "served_dir": {"type": "path", "required": True},
            "token": {"type": "str", "no_log": True},
            "attempts": {"type": "int", "default": 5},
            "timeout": {"type": "int", "default": 60},
        },
        required_if=[
            ("source", "modelscope", ("url",)),
            ("source", "huggingface", ("url",)),
            ("source", "mirror", ("url",)),
            ("source", "directory", ("path",)),
        ],
        supports_check_mode=True,
    )
    p = module.params
    module.no_log_values.update(transfer.secrets_of(p["url"]))
    # Engines run as other users: what is published is readable, whatever the administrator's umask.
    os.umask(0o022)
    source = transfer.Source(
        token=p["token"] or "",
        attempts=1 if module.check_mode else p["attempts"],
        timeout=p["timeout"],
    )
    store = model_store.Store(Path(p["dest"]), Path(p["served_dir"]), source, check=module.check_mode)
    try:
        done = store.publish(
            model_store.Model(
                name=p["name"],
                repo=p["repo"],
                revision=p["revision"],
                source=p["source"],
                location=p["path"] if p["source"] == "directory" else p["url"],
                include=tuple(p["include"]),
                exclude=tuple(p["exclude"]),
                entry=p["entry"],
            )
        )
    except model_store.StoreError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"model '{p['name']}': {error}")
    for warning in done.warnings:
        module.warn(warning)
    pointer = f"{p['served_dir']}/{p['name']}"
    module.exit_json(
        changed=done.changed,
        folder=done.folder,
        pointer=pointer,
        commit=done.commit,
        files=done.files,
        fetched=done.fetched,
        transferred=done.transferred,
        notes=done.notes,
        diff={
            "before_header": pointer,
            "after_header": pointer,
            "before": f"-> {done.before}\n" if done.before else "",
            "after": f"-> {done.after}\n",
        },
    )


if __name__ == "__main__":
    main()
