#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: database_dump
short_description: Keeps a database of this host's PostgreSQL as a file, or brings it back
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Works on the database's own host as the server's superuser, so that the client is never older than the server.
  - V(checked) says whether this is the application's server, and whether a dump and its return would fit; or with
    I(there), whether the dump is there.
  - V(dumped) writes I(folder)/I(name).dump with C(pg_dump -Fc), mode 0600, after that check.
  - V(restored) replaces all that is in the database by what that file holds, in one transaction. Whoever is connected
    is cut off. Rights on the database and its settings stay.
  - V(pruned) removes dumps that are not I(needed), and halves of dumps.
attributes:
  check_mode: {support: full, description: Says what would be done.}
  diff_mode: {support: none, description: A database is not shown.}
  idempotent: {support: partial, description: A dump that is there is left alone; a restore is done each time.}
options:
  state: {description: What to do., type: str, choices: [checked, dumped, restored, pruned], required: true}
  database: {description: Its name. Required but to prune., type: str}
  name: {description: Name of the dump\, without suffix. Required to dump and to restore., type: str}
  folder: {description: Where dumps lie; made with mode 0700., type: path, required: true}
  port: {description: Port of the server., type: int, default: 5432}
  cluster: {description: System identifier of the server that the application uses. Required to check., type: str}
  there: {description: Refuse where the dump I(name) was not made yet. For V(checked)., type: bool, default: false}
  unless_empty: {description: Dump no database without tables., type: bool, default: false}
  needed: {description: Names of dumps that stay., type: list, elements: str, default: []}
"""

EXAMPLES = r"""
- name: Keep the database
  onprem.llm.database_dump:
    state: dumped
    database: openwebui
    name: before-0.12.4
    folder: /var/lib/onprem-llm/openwebui
"""

RETURN = r"""
path: {description: The dump\, empty when there is nothing to keep., type: str, returned: when dumped or restored}
bytes: {description: Its size., type: int, returned: when dumped}
removed: {description: Files that were or would be removed., type: list, elements: str, returned: when pruned}
seconds: {description: How long it took., type: float, returned: success}
"""

import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import database_dump, transfer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["checked", "dumped", "restored", "pruned"], "required": True},
            "database": {"type": "str"},
            "name": {"type": "str"},
            "folder": {"type": "path", "required": True},
            "port": {"type": "int", "default": 5432},
            "cluster": {"type": "str"},
            "there": {"type": "bool", "default": False},
            "unless_empty": {"type": "bool", "default": False},
            "needed": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[
            ("state", "checked", ("database", "cluster")),
            ("state", "dumped", ("database", "name")),
            ("state", "restored", ("database", "name")),
        ],
        supports_check_mode=True,
    )
    p: dict[str, Any] = module.params
    folder, server, start = Path(p["folder"]), database_dump.Server(p["port"]), time.monotonic()
    path = folder / f"{p['name']}.dump"
    result: dict[str, Any] = {"changed": True, "path": str(path)}
    try:
        if p["state"] == "dumped" and path.exists():
            result.update(changed=False, bytes=path.stat().st_size)
        elif p["state"] == "dumped" and p["unless_empty"] and database_dump.is_empty(server, p["database"]):
            result.update(changed=False, path="")
        elif p["state"] == "checked":
            database_dump.check_cluster(server, p["cluster"], p["database"])
            if p["there"]:
                database_dump.check_there(path, p["database"])
            else:
                database_dump.check_room(server, p["database"], folder)
            result = {"changed": False}
        elif p["state"] == "pruned":
            removed = database_dump.superfluous(folder, p["needed"])
            for file in removed if not module.check_mode else []:
                file.unlink(missing_ok=True)
            result = {"changed": bool(removed), "removed": list(map(str, removed))}
        elif not module.check_mode:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What a killed run left behind on this host goes on: it is waited for.
            with transfer.alone(folder, folder):
                if p["state"] == "restored":
                    database_dump.restore(server, p["database"], path)
                elif not path.exists():
                    database_dump.check_room(server, p["database"], folder)
                    result["bytes"] = database_dump.dump(server, p["database"], path)
    except (database_dump.DumpError, transfer.BusyError, OSError) as error:
        module.fail_json(msg=f"{os.uname().nodename}: {error}")
    module.exit_json(**result, seconds=round(time.monotonic() - start, 1))


if __name__ == "__main__":
    main()
