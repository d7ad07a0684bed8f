#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: model_transfer
short_description: Starts the transfer of models on a host, and watches it
version_added: 0.1.0
author: The onprem.llm developers
description:
  - With I(state=started), hands a request to the unit C(model_store.service) of the host and starts it. A transfer that
    already works on this request is left alone. It outlives Ansible and the connection.
  - With I(state=watched), prints how far it is until all models of this host are there, or says why they cannot be.
  - What is too large for the disk is refused before anything is fetched.
attributes:
  check_mode: {support: full, description: Says what would be fetched. The unit need not be there.}
  diff_mode: {support: none, description: Published files are no text.}
  idempotent: {support: full, description: Files that are here are not fetched.}
options:
  state: {description: What to do., type: str, choices: [started, watched], default: started}
  store: {description: Folder of the published models. Required to start., type: path}
  models:
    description: >-
      The models this host shall hold or offer to others, each as M(onprem.llm.model_source_info) returns it, with its
      own C(source). C(complete: false) says that something is wrong with what is here. Required to start.
    type: list
    elements: dict
    default: []
  sources:
    description: The site's sources by name, as in M(onprem.llm.model_source_info).
    type: dict
    default: {}
  tokens: {description: Tokens by the name of their source., type: dict, default: {}}
  fleet:
    description: >-
      The hosts that share the transfer: C(name) and C(address) of this host, C(peers) as a list of C([name, address])
      in the order in which they ask a hub, C(swarm_port), C(announce_port). Empty where this host fetches for itself.
    type: dict
    default: {}
  parallel: {description: Files fetched at once., type: int, default: 4}
  rate_limit: {description: Bytes per second from outside the fleet\, 0 for no limit., type: int, default: 0}
  proxy: {description: Proxy for what lies outside the fleet., type: str, default: ''}
  no_proxy: {description: Hosts that are reached without it., type: str, default: ''}
  attempts: {description: Attempts in a row without progress before the next source is asked., type: int, default: 5}
  stall_seconds: {description: After so long below I(minimum_rate) an attempt has failed., type: int, default: 60}
  minimum_rate: {description: Bytes per second., type: int, default: 1024}
  request: {description: The request to watch\, as I(state=started) returned it., type: str, default: ''}
  progress:
    description: >-
      C(lines) for people, C(json) for programs, C(none). C(auto) is C(lines) on a terminal, elsewhere only the
      beginning and the end.
    type: str
    choices: [auto, lines, json, none]
    default: auto
"""

EXAMPLES = r"""
- name: Start
  onprem.llm.model_transfer:
    store: /srv/llm/models
    models: "{{ listed.models }}"
    sources: {modelscope: {type: modelscope, url: "https://modelscope.cn"}}
  register: started

- name: Watch
  onprem.llm.model_transfer:
    state: watched
    request: "{{ started.request }}"
"""

RETURN = r"""
request: {description: Names the request that is worked on., type: str, returned: when started}
begun:
  description: >-
    C(started), C(attached) to a transfer that works on it already, or C(replaced) one that worked on something else.
  type: str
  returned: when started
files:
  description: What is, or would be, fetched.
  type: list
  elements: dict
  returned: when started
remaining: {description: Bytes of it., type: int, returned: when started}
notes:
  description: What is worth knowing.
  type: list
  elements: str
  returned: always
status:
  description: How the transfer ended.
  type: dict
  returned: when watched
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import asked, store, types
from ansible_collections.onprem.llm.plugins.module_utils.model_store.unit import Unit, UnitError

REPLACED = "Another transfer was running here. It was stopped, and this one goes on with what it brought."


def start(module: AnsibleModule) -> dict[str, Any]:
    request = asked.request(module.params)
    folder = Path(request.store)
    # A folder's files may be shared instead of copied: the program, which sees that, judges the space.
    store.check_space(folder, [model for model in request.models if all(s.type != "directory" for s in model.sources)])
    files, remaining, notes, lacking = [], 0, [], []
    for given, model in zip(module.params["models"], request.models, strict=True):
        if given.get("complete") is not False and store.present(folder, model) is not None:
            continue
        missing, size = store.missing(folder, model)
        files += [{"model": model.name, "path": file.path, "size": file.size} for file in missing]
        remaining += size
        lacking.append(model.name)
        notes.append(asked.would(model, len(missing), size))
    result = {"changed": bool(notes), "files": files, "remaining": remaining}
    if module.check_mode:
        return {**result, "begun": "started", "request": request.digest(), "notes": notes}
    # Its sandbox lets the unit write where the store is, not where it would be.
    folder.mkdir(parents=True, exist_ok=True)
    begun, working_on = Unit().start(request, lacking)
    notes = [REPLACED] if begun == "replaced" else []
    return {**result, "begun": begun, "request": working_on, "notes": notes}


def watch(module: AnsibleModule) -> dict[str, Any]:
    """The action plugin has watched; this is how it ended."""
    look = Unit().look()
    if look.status is None or (look.status.state == "running" and not look.active):
        raise types.StoreError(asked.died(look.result, look.journal))
    if look.status.state == "running":
        raise types.StoreError(asked.STILL)
    for warning in look.status.warnings:
        module.warn(warning)
    if look.status.state == "failed":
        raise types.StoreError(asked.why(look.status))
    return {"changed": False, "status": types.as_json(look.status), "notes": look.status.notes}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "watched"], "default": "started"},
            "store": {"type": "path"},
            "models": {"type": "list", "elements": "dict", "default": []},
            "sources": {"type": "dict", "default": {}},
            "tokens": {"type": "dict", "default": {}, "no_log": True},
            "fleet": {"type": "dict", "default": {}},
            "parallel": {"type": "int", "default": 4},
            "rate_limit": {"type": "int", "default": 0},
            "proxy": {"type": "str", "default": ""},
            "no_proxy": {"type": "str", "default": ""},
            "attempts": {"type": "int", "default": 5},
            "stall_seconds": {"type": "int", "default": 60},
            "minimum_rate": {"type": "int", "default": 1024},
            "request": {"type": "str", "default": ""},
            "progress": {"type": "str", "choices": ["auto", "lines", "json", "none"], "default": "auto"},
        },
        required_if=[("state", "started", ("store", "models"))],
        supports_check_mode=True,
    )
    p = module.params
    urls = [str(one.get("url") or "") for one in p["sources"].values() if isinstance(one, dict)]
    module.no_log_values.update(transfer.secrets_of(p["proxy"], *urls))
    # Engines run as other users: what is published is readable, whatever the administrator's umask.
    os.umask(0o022)
    try:
        result = start(module) if p["state"] == "started" else watch(module)
    except (types.StoreError, UnitError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
