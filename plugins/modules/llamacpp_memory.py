#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: llamacpp_memory
short_description: What llama.cpp says placements take, against what the plan says
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Runs C(llama-fit-params), which stands beside C(llama-server), with the model and the flags of each placement. It
    lays the model out as the server would and takes no memory for it, so the server may go on running.
  - Nothing is changed.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: The same model and flags give the same answer.}
options:
  program:
    description: The C(llama-server) that serves the placements.
    type: path
    required: true
  host:
    description: Name of this host in what the doctor reports.
    type: str
    required: true
  placements:
    description:
      - Entries of the plan; of each C(model), C(model_path), C(flags), C(environment) and C(memory) are used.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Ask llama.cpp how much memory the models take
  onprem.llm.llamacpp_memory:
    program: /opt/onprem-llm/llamacpp/current/llama-server
    host: gpu1
    placements: "{{ my_placements }}"
  register: my_memory
"""

RETURN = r"""
answers:
  description: By placement, in the given order.
  returned: success
  type: list
  elements: dict
  contains:
    model:
      description: Name of the model.
      returned: success
      type: str
    reported:
      description: Per device (C(ram), C(gpu0) ...) bytes of C(weights), C(kv_cache), C(compute); null where unknown.
      returned: success
      type: dict
    differences:
      description: Sentences, one for each figure outside the stated band, with the planned and the reported size.
      returned: success
      type: list
      elements: str
    reason:
      description: Why there is no report; empty where there is one.
      returned: success
      type: str
findings:
  description: The same for the doctor's report.
  returned: success
  type: list
  elements: dict
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import ranges
from ansible_collections.onprem.llm.plugins.module_utils.doctor import memory
from ansible_collections.onprem.llm.plugins.module_utils.placement import oracle
from ansible_collections.onprem.llm.plugins.module_utils.shape.classify import ShapeError
from ansible_collections.onprem.llm.plugins.module_utils.shape.read import parts_of, read_shape


def logits(model: Path, ubatch: int) -> int:
    """Bytes of the logits of a whole batch: llama-fit-params plans them, the server needs one token's per slot."""
    shape = read_shape(lambda name: ranges.LocalFile(model.parent / name), parts_of(model.name))
    return shape["vocabulary"] * ubatch * 4


def answer(module: AnsibleModule, tool: Path, placement: dict[str, Any]) -> dict[str, Any]:
    """What the tool says of one placement."""
    model = Path(placement["model_path"])
    said: dict[str, Any] = {
        "model": str(placement.get("model", model.name)),
        "reported": None,
        "differences": [],
        "reason": "",
    }
    if not tool.exists():
        return said | {"reason": f"{tool} is not there: this build of llama.cpp brings no llama-fit-params"}
    if not model.exists():
        return said | {"reason": f"{model} is not there: the model is not on this host yet"}
    environment = placement.get("environment") or {}
    command = [str(tool), *oracle.arguments(str(model), placement["flags"])]
    rc, out, err = module.run_command(command, environ_update=environment)
    if rc:
        return said | {"reason": f"{tool} ended with {rc}: {' / '.join(err.strip().splitlines()[-3:])[-300:]}"}
    try:
        reported = oracle.named(oracle.fit_print(out), str(environment.get("CUDA_VISIBLE_DEVICES", "")))
        extra = logits(model, int(placement["flags"].get("ubatch-size", 512)))
    except (oracle.OracleError, ShapeError, ranges.RangeError) as error:
        return said | {"reason": str(error)}
    return said | {
        "reported": reported,
        "differences": oracle.compare(placement["memory"], reported, logits=extra),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "host": {"type": "str", "required": True},
            "placements": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    tool = Path(module.params["program"]).resolve().parent / "llama-fit-params"
    answers = [answer(module, tool, placement) for placement in module.params["placements"]]
    findings = [memory.judge(module.params["host"], one["model"], one).as_dict() for one in answers]
    module.exit_json(changed=False, answers=answers, findings=findings)


if __name__ == "__main__":
    main()
