#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: model_store_info
short_description: Which models are complete on this host
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Compares the models with the manifests of what is published, and the size and modification time of each file with
    what they were when it was verified. No network is needed, and no file of a model is read.
  - A file that the last verification found damaged makes its model incomplete until it is mended.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  store: {description: Where models are published. It need not exist., type: path, required: true}
  served_dir: {description: Where the pointers are. It need not exist., type: path, required: true}
  models:
    description:
      - The models, each with C(name), C(repo) and C(revision), and where it has them C(include), C(exclude) and
        C(entry). Other keys are left out of account.
    type: list
    elements: dict
    required: true
  needs:
    description: Python libraries of the distribution that the transfer program needs.
    type: list
    elements: str
    default: []
  damage: {description: What the last verification found. It need not exist., type: path, required: true}
"""

EXAMPLES = r"""
- name: See which models are here
  onprem.llm.model_store_info:
    store: /srv/llm/models
    served_dir: /srv/llm/served
    damage: /var/lib/model_store/damage.json
    models:
      - name: assistant
        repo: unsloth/DeepSeek-R1-GGUF
        revision: master
        include: ['DeepSeek-R1-UD-IQ1_S/*']
    needs: [pycurl]
"""

RETURN = r"""
models:
  description:
    - The models in the order given. C(name); C(key), equal for models that want the same files; C(complete);
      C(served), whether the pointer leads to the files; C(why), what keeps the model from being complete; of a complete
      one C(files), C(commit) and C(origin) as M(onprem.llm.model_source_info) returns them.
  type: list
  elements: dict
  returned: success
lacking: {description: Those of I(needs) that are not installed., type: list, elements: str, returned: success}
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, look
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import StoreError

# The program runs with the distribution's Python, whichever one runs this.
PACKAGES = Path("/usr/lib/python3/dist-packages")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "required": True},
            "served_dir": {"type": "path", "required": True},
            "models": {"type": "list", "elements": "dict", "required": True},
            "needs": {"type": "list", "elements": "str", "default": []},
            "damage": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    store, served = Path(p["store"]), Path(p["served_dir"])
    damaged = damage.read(Path(p["damage"])).damaged
    try:
        found = [look.look(store, served, model, damaged) for model in look.models(p["models"])]
    except (StoreError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        models=[asdict(one) for one in found],
        lacking=look.lacking(p["needs"], PACKAGES),
    )


if __name__ == "__main__":
    main()
