#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_model
short_description: Published models as Ollama finds them
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Lays out, below I(root)/C(name), a store in Ollama's own layout for each model. Its weights are hard links to the
    published files, so that nothing is copied. Parts of a model are merged into one file, because Ollama cannot load
    them otherwise.
  - A store is named after everything in it and never changes; which one is used says the link C(current), which this
    module does not move.
  - Stores beyond I(keep) are removed, and those of models that are not in I(models). The wanted one, the one in use,
    and what may be gone back to (I(records)) stay.
attributes:
  check_mode: {support: full, description: Says what would be laid out and removed. A model that is not published yet
      has no name for its store.}
  diff_mode: {support: full, description: Shows weights and parameters of the store in use and of the wanted one.}
  idempotent: {support: full, description: A store that is complete is left alone.}
options:
  root: {description: Where the stores are\, on the filesystem of the published files., type: path, required: true}
  models:
    description: The models.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: What requests call it., type: str, required: true}
      source: {description: Folder\, or link to the folder\, with the published files., type: path, required: true}
      entry: {description: The file below it that holds the model\, or its first part., type: str, required: true}
      parameters: {description: Parameters of Ollama\, such as num_ctx., type: dict, default: {}}
  quantize: {description: Path of C(llama-quantize)\, which merges parts., type: path, required: true}
  keep: {description: How many stores of a model to keep., type: int, default: 2}
  records:
    description: Folder of the records of M(onprem.llm.rollout_switch). It need not be there.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Lay out the models for Ollama
  onprem.llm.ollama_model:
    root: /srv/llm/ollama
    models:
      - name: assistant
        source: /srv/llm/served/assistant
        entry: Qwen3-4B-Q4_K_M.gguf
        parameters: {num_ctx: 8192}
    quantize: /opt/onprem-llm/ollama/current/lib/ollama/llama-quantize
    records: /var/lib/onprem-llm/rollout
"""

RETURN = r"""
stores: {description: Model to the folder of its store., type: dict, returned: success}
removed: {description: Stores that were\, or would be\, removed., type: list, elements: str, returned: success}
"""

import os
import shutil
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.gguf import GgufError
from ansible_collections.onprem.llm.plugins.module_utils.ollama import store
from ansible_collections.onprem.llm.plugins.module_utils.rollout import kept
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import RecordError

NOBODY = 65534


def merge(module: AnsibleModule, program: str, first: Path, target: Path) -> None:
    """Parts into one file, with the program that Ollama merges them with. It reads foreign files, so not as root."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        os.chown(folder, NOBODY, NOBODY)
        merged = Path(folder, target.name)
        limits = [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
        ]
        code, out, err = module.run_command([*limits, program, "--allow-requantize", str(first), str(merged), "COPY"])
        if code:
            raise store.StoreError(
                f"{program} could not merge {first} and its other parts ({code}): {(err or out).strip()[-600:]}"
            )
        os.chown(merged, 0, 0)
        os.rename(merged, target)


def main() -> None:
    model_options = {
        "name": {"type": "str", "required": True},
        "source": {"type": "path", "required": True},
        "entry": {"type": "str", "required": True},
        "parameters": {"type": "dict", "default": {}},
    }
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "models": {"type": "list", "elements": "dict", "required": True, "options": model_options},
            "quantize": {"type": "path", "required": True},
            "keep": {"type": "int", "default": 2},
            "records": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    # The service runs as another user: it can read what is laid out, whatever the administrator's umask.
    os.umask(0o022)
    root, stores, diff = Path(p["root"]), {}, []
    removed: list[Path] = []
    changed = False

    def needed(home: Path) -> set[str]:
        return kept.names(Path(p["records"]), home)

    try:
        for one in p["models"]:
            parts = store.parts(Path(one["source"]), one["entry"])
            if not parts and not module.check_mode:
                raise store.StoreError(
                    f"model '{one['name']}': {one['entry']} is not published in {one['source']}. "
                    "Run playbooks/models.yml."
                )
            wanted = store.Wanted(one["name"], parts, one["parameters"])
            tree = root / wanted.model / (wanted.key if parts else "not published yet")
            stores[wanted.model] = str(tree)
            if not tree.is_dir() or store.damage(tree, wanted):
                changed = True
                diff.append(store.changes(tree, (root / wanted.model / "current").resolve(), wanted))
                if not module.check_mode:
                    store.build(root, wanted, lambda first, target: merge(module, p["quantize"], first, target))
            if tree.parent.is_dir():
                removed += store.unused(root, wanted.model, tree.name, needed(tree.parent), p["keep"])
        removed += store.unplaced(root, stores, needed)
        for path in removed if not module.check_mode else []:
            shutil.rmtree(path)
    except (store.StoreError, GgufError, RecordError, OSError) as error:
        module.fail_json(msg=str(error), stores=stores)
    if removed:
        lines = "".join(f"{path}\n" for path in removed)
        diff.append({"before_header": str(root), "after_header": str(root), "before": lines, "after": ""})
    module.exit_json(changed=changed or bool(removed), stores=stores, removed=list(map(str, removed)), diff=diff)


if __name__ == "__main__":
    main()
