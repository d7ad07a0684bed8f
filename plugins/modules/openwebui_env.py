#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment file of Open WebUI."""

from __future__ import annotations

DOCUMENTATION = r"""
module: openwebui_env
short_description: Writes the environment file of Open WebUI, unless an address in it would default to somebody else's
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Open WebUI fills in public services for addresses that are not set, and would send documents and questions there.
    Before the file is written, the installed version's own source is searched for such defaults; each must be set.
  - A setting that this version never reads is named in a warning.
  - The file is replaced at once, or not at all. Its folder is made when it is missing.
attributes:
  check_mode: {support: full, description: Says whether the file would change.}
  diff_mode: {support: full, description: Shows the settings that differ\, secrets as such.}
  idempotent: {support: full, description: An equal file is left alone.}
options:
  path: {description: Where to write., type: path, required: true}
  content: {description: 'Lines NAME="value", and comments.', type: str, required: true}
  stamp:
    description: A setting to add, whose value is a checksum of everything the process starts with. What a running
      process has in its environment then tells whether it runs with this file.
    type: str
    required: true
  beside:
    description: What the process starts with besides the file, such as its unit and its version. Part of the checksum.
    type: str
    default: ''
  tree:
    description: Virtual environment of the version that will read the file. In check mode it may be missing.
    type: path
    required: true
extends_documentation_fragment: ansible.builtin.files
"""

EXAMPLES = r"""
- name: Write the environment
  onprem.llm.openwebui_env:
    path: /etc/onprem-llm/openwebui/openwebui.env
    content: "{{ lookup('onprem.llm.template', 'openwebui.env.j2') }}"
    stamp: ONPREM_LLM_RUNNING
    tree: /opt/onprem-llm/openwebui/0.12.4-py3.11-0123abcd
    mode: "0600"
"""

RETURN = r"""
path: {description: As given., type: str, returned: success}
settings: {description: Number of settings in the file., type: int, returned: success}
stamp: {description: The checksum., type: str, returned: success}
"""

import hashlib
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import openwebui_env
from ansible_collections.onprem.llm.plugins.module_utils.openwebui_env import OpenWebuiEnvError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True, "no_log": True},
            "stamp": {"type": "str", "required": True},
            "beside": {"type": "str", "default": ""},
            "tree": {"type": "path", "required": True},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    path, tree = Path(module.params["path"]), Path(module.params["tree"])
    content = module.params["content"].rstrip("\n") + "\n"
    stamp = hashlib.sha256((content + "\0" + module.params["beside"]).encode()).hexdigest()
    name = module.params["stamp"]
    content += (
        f"\n# When the running process has another value, a restart is owed.\n{name}={openwebui_env.quote(stamp)}\n"
    )
    try:
        after = openwebui_env.parse(content)
        package = next(tree.glob("lib/python3*/site-packages/open_webui"), None)
        if package:
            openwebui_env.check(after, [(package / name).read_text() for name in ("config.py", "env.py")])
        elif not module.check_mode:
            raise OpenWebuiEnvError(f"{tree}: Open WebUI is not installed there.")
        old = path.read_text() if path.exists() else ""
        try:
            before = openwebui_env.parse(old)
        except OpenWebuiEnvError:
            before = {}
        changed = old != content
        # Only then: it reads the whole package.
        files = package.rglob("*.py") if changed and package else []
        unread = openwebui_env.unread(set(after) - {name}, (file.read_text() for file in files)) if files else []
        if unread:
            module.warn(f"This version of Open WebUI reads no setting {', '.join(unread)}: mistyped, or renamed?")
        if changed and not module.check_mode:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=path.parent, prefix=".")
            with os.fdopen(handle, "w") as file:
                file.write(content)
            module.atomic_move(part, str(path))
    except (OpenWebuiEnvError, OSError, SyntaxError) as error:
        module.fail_json(msg=str(error))
    attributes: dict[str, dict[str, object]] = {"before": {}, "after": {}}
    if path.exists():
        wanted = module.load_file_common_arguments(module.params)
        changed = module.set_fs_attributes_if_different(wanted, changed, attributes)
    for side in (before, after):
        side.pop(name, None)
    old_side, new_side = openwebui_env.difference(before, after)
    notes = "".join(f"# {what} {attributes['before'][what]} -> {new}\n" for what, new in attributes["after"].items())
    # Nothing before it means that there was no file.
    rest = "...\n" if old else ""
    diff = {"before": rest + old_side, "after": notes + rest + new_side}
    headers = {"before_header": str(path), "after_header": str(path)}
    module.exit_json(changed=changed, path=str(path), settings=len(after), stamp=stamp, diff={**headers, **diff})


if __name__ == "__main__":
    main()
