#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Writes several files whose content is known
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Writes the files that differ, each at once (draft, check, rename), and makes the folders they lie in.
  - One call for all files of a role costs a fifth of a task for each, and needs no folder beforehand, so check mode
    works on a host that has none of it. Where all files are right, one plain command finds that out.
attributes:
  check_mode: {support: full, description: Says what would be written. Validation needs the program and is left out.}
  diff_mode: {support: full, description: Shows each file before and after\, except those that hold a secret.}
  idempotent: {support: full, description: Files that are right are not touched.}
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where., type: path, required: true}
      content: {description: The whole content., type: str, required: true}
      mode: {description: Permissions\, octal., type: str, default: '0644'}
      owner: {description: Owner., type: str, default: root}
      group: {description: Group., type: str, default: root}
      secret: {description: The content is never shown., type: bool, default: false}
      validate:
        description: Command that must succeed on the new content before it lands; C(%s) is the file that holds it.
        type: str
        default: ''
"""

EXAMPLES = r"""
- name: Write the unit and its settings
  onprem.llm.config_files:
    files:
      - path: /etc/systemd/system/example.service
        content: "{{ lookup('onprem.llm.template', 'example.service.j2') }}"
      - path: /etc/onprem-llm/example/key
        content: "{{ example_key }}\n"
        mode: "0600"
        secret: true
"""

RETURN = r"""
paths:
  description: The files that were, or would be, written.
  returned: success
  type: list
  elements: str
"""

import shlex

from ansible.module_utils import basic

from ansible_collections.onprem.llm.plugins.module_utils import config_files

FILE = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "required": True},
    "mode": {"type": "str", "default": "0644"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "secret": {"type": "bool", "default": False, "no_log": False},
    "validate": {"type": "str", "default": ""},
}


class AnsibleModule(basic.AnsibleModule):
    """One that writes no content to the host's journal. C(no_log) of the constructor gives way to the task's."""

    def _log_invocation(self) -> None:
        self.log(f"Invoked with {', '.join(file['path'] for file in self.params['files'])}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "required": True, "options": FILE}},
        supports_check_mode=True,
    )
    # Those of secret files are masked in what comes back, too.
    for file in module.params["files"]:
        if file["secret"]:
            module.no_log_values.update({file["content"], file["content"].strip()})

    def run(command: str) -> tuple[int, str]:
        code, out, err = module.run_command(shlex.split(command))
        return code, err or out

    secret = {file["path"] for file in module.params["files"] if file["secret"]}
    paths, diff = [], []
    try:
        for file in module.params["files"]:
            wanted = config_files.Wanted(
                file["path"], file["content"], int(file["mode"], 8), file["owner"], file["group"], file["validate"]
            )
            difference = config_files.compare(wanted)
            if difference is None:
                continue
            paths.append(wanted.path)
            before, after = difference.before or "", wanted.content
            if wanted.path in secret:
                before, after = "(secret)\n", "(new secret)\n" if difference.content else "(secret)\n"
            note = "".join(f"# {change}\n" for change in difference.attributes)
            headers = {"before_header": wanted.path, "after_header": wanted.path}
            diff.append({**headers, "before": before, "after": note + after})
            if not module.check_mode:
                config_files.write(difference, run)
    except (config_files.FileError, OSError) as error:
        module.fail_json(msg=str(error), paths=paths)
    module.exit_json(changed=bool(paths), paths=paths, diff=diff)


if __name__ == "__main__":
    main()
