#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: model_pointer
short_description: Where engines find the models of this host
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Lets the pointer I(served_dir)/C(name) of each model lead to its published files. A pointer moves in one step, and
    only to files that are complete and verified; when one model is not complete, no pointer moves.
  - A pointer of I(switched) that is there already stays where it is. What serves the model moves it, when it has tried
    the new files.
  - With I(prune) removes the pointers of other models, and then what was published or staged and nothing needs any
    more. What is needed by a model of I(models) or I(keep), by what serves or may be gone back to (I(records)), or by a
    pointer that was not made by this module, stays. So do files in the store that were not published there.
  - Nothing is pruned while a transfer runs; that is a warning.
attributes:
  check_mode: {support: full, description: Models that are not complete yet are pointed to as if they were.}
  diff_mode: {support: full, description: Shows the pointers before and after\, and what is removed.}
  idempotent: {support: full, description: Nothing is moved or removed when all is as it should be.}
options:
  store: {description: Where models are published., type: path, required: true}
  served_dir: {description: Where the pointers are., type: path, required: true}
  models:
    description:
      - The models this host serves, each with C(name), C(repo) and C(revision), and where it has them C(include),
        C(exclude) and C(entry). Other keys are left out of account.
    type: list
    elements: dict
    required: true
  switched: {description: Models whose pointers M(onprem.llm.rollout_switch) moves., type: list, elements: str,
    default: []}
  records: {description: Folder of the records of M(onprem.llm.rollout_switch)\; it need not be there., type: path}
  prune: {description: Whether to remove what nothing needs., type: bool, default: false}
  keep: {description: Models whose files stay though this host does not serve them\, like I(models)., type: list,
    elements: dict, default: []}
"""

EXAMPLES = r"""
- name: Serve the new revision and remove the one before
  onprem.llm.model_pointer:
    store: /srv/llm/models
    served_dir: /srv/llm/served
    models:
      - name: assistant
        repo: unsloth/DeepSeek-R1-GGUF
        revision: master
        include: ['DeepSeek-R1-UD-IQ1_S/*']
    prune: true
"""

RETURN = r"""
pointers:
  description: The pointers with C(name), and where they led C(before) and lead C(after), empty where there is none.
  type: list
  elements: dict
  returned: success
removed: {description: What was\, or would be\, removed below I(store)., type: list, elements: str, returned: success}
freed: {description: Bytes that were\, or would be\, freed., type: int, returned: success}
"""

import os
from collections.abc import Collection
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import look, prune, store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, StoreError
from ansible_collections.onprem.llm.plugins.module_utils.rollout import kept
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import RecordError


def move(
    folder: Path, served: Path, models: list[Model], switched: Collection[str], check: bool
) -> list[dict[str, str]]:
    """Move the pointers, all or none; those of ``switched`` only where there is none yet.

    StoreError names every model that is not complete.
    """
    wanted = {model.name: str(store.home(folder, model)) for model in models}
    looks = [look.look(folder, served, model) for model in models]
    problems = [
        f"model '{one.name}' is not complete in {wanted[one.name]}: {one.why}. No pointer was moved. Run again; the "
        "transfer brings what is missing."
        for one in looks
        if not one.complete and not check
    ]
    if problems:
        raise StoreError("\n".join(problems))
    before = {name: store.leads_to(served, name) for name in wanted}
    wanted |= {name: before[name] for name in wanted if name in switched and before[name]}
    for name, place in wanted.items():
        if not check:
            store.point(served, name, Path(place))
    return [{"name": name, "before": before[name], "after": place} for name, place in wanted.items()]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "required": True},
            "served_dir": {"type": "path", "required": True},
            "models": {"type": "list", "elements": "dict", "required": True},
            "switched": {"type": "list", "elements": "str", "default": []},
            "records": {"type": "path"},
            "prune": {"type": "bool", "default": False},
            "keep": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    p = module.params
    # Engines run as other users: a pointer can be followed, whatever the administrator's umask.
    os.umask(0o022)
    folder, served, check = Path(p["store"]), Path(p["served_dir"]), module.check_mode
    pruned = prune.Pruned([])
    try:
        models, keep = look.models(p["models"]), look.models(p["keep"])
        pointers = move(folder, served, models, p["switched"], check)
        if p["prune"]:
            held = kept.models(Path(p["records"]), folder) if p["records"] else []
            gone = prune.retired(folder, served, [model.name for model in [*models, *held]])
            try:
                pruned = prune.prune(folder, served, [*models, *keep, *held], gone, check)
                pointers += [{"name": name, "before": before, "after": ""} for name, before in gone.items()]
            except transfer.BusyError:
                module.warn(f"Nothing was pruned: a transfer into {folder} is running. Run again when it has ended.")
    except (StoreError, RecordError, OSError) as error:
        module.fail_json(msg=str(error))
    moved = [one for one in pointers if one["before"] != one["after"]]
    shown = {
        when: "".join(sorted(f"{one['name']} -> {one[when]}\n" for one in pointers if one[when]))
        for when in ("before", "after")
    }
    module.exit_json(
        changed=bool(moved or pruned.removed),
        pointers=pointers,
        removed=pruned.removed,
        freed=pruned.freed,
        diff=[
            {"before_header": str(served), "after_header": str(served), **shown},
            {
                "before_header": str(folder),
                "after_header": str(folder),
                "after": "",
                "before": "".join(f"{path}\n" for path in pruned.removed),
            },
        ],
    )


if __name__ == "__main__":
    main()
