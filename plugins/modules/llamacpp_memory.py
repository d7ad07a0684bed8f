#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: llamacpp_memory
short_description: What llama.cpp says a placement takes, against what the plan says
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Runs C(llama-fit-params), which stands beside C(llama-server), with the model and the flags of a placement. It lays
    the model out as the server would and takes no memory for it, so the server may go on running.
  - Nothing is changed.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: The same model and flags give the same answer.}
options:
  program:
    description: The C(llama-server) that serves the placement.
    type: path
    required: true
  host:
    description: Name of this host in what the doctor reports.
    type: str
    required: true
  placement:
    description:
      - An entry of the plan; of it C(model), C(model_path), C(flags), C(environment) and C(memory) are used.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Ask llama.cpp how much memory the model takes
  onprem.llm.llamacpp_memory:
    program: /opt/onprem-llm/llamacpp/current/llama-server
    host: gpu1
    placement: "{{ my_placement }}"
  register: my_memory
"""

RETURN = r"""
reported:
  description: Per device (C(ram), C(gpu0) ...) bytes of C(weights), C(kv_cache), C(compute); null where it cannot say.
  returned: success
  type: dict
differences:
  description: Sentences, one for each figure outside the stated band, with the planned and the reported size.
  returned: success
  type: list
  elements: str
findings:
  description: The same for the doctor's report.
  returned: success
  type: list
  elements: dict
reason:
  description: Why there is no report; empty where there is one.
  returned: success
  type: str
"""

from pathlib import Path

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


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "host": {"type": "str", "required": True},
            "placement": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    placement = module.params["placement"]
    tool = Path(module.params["program"]).resolve().parent / "llama-fit-params"
    model = Path(placement["model_path"])

    def answer(reason: str = "", reported: oracle.Reported | None = None, differences: list[str] | None = None) -> None:
        said = {"reported": reported, "differences": differences or [], "reason": reason}
        finding = memory.judge(module.params["host"], str(placement.get("model", model.name)), said)
        module.exit_json(changed=False, findings=[finding.as_dict()], **said)

    if not tool.exists():
        answer(f"{tool} is not there: this build of llama.cpp brings no llama-fit-params")
    if not model.exists():
        answer(f"{model} is not there: the model is not on this host yet")
    environment = placement.get("environment") or {}
    command = [str(tool), *oracle.arguments(str(model), placement["flags"])]
    rc, out, err = module.run_command(command, environ_update=environment)
    if rc:
        answer(f"{tool} ended with {rc}: {' / '.join(err.strip().splitlines()[-3:])[-300:]}")
    try:
        reported = oracle.named(oracle.fit_print(out), str(environment.get("CUDA_VISIBLE_DEVICES", "")))
        extra = logits(model, int(placement["flags"].get("ubatch-size", 512)))
    except (oracle.OracleError, ShapeError, ranges.RangeError) as error:
        answer(str(error))
    answer("", reported, oracle.compare(placement["memory"], reported, logits=extra))


if __name__ == "__main__":
    main()
