#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ktransformers_selftest
short_description: Computes a tiny layer of experts with an installed kt-kernel and compares it with plain torch
version_added: 0.2.0
author: The onprem.llm developers
description:
  - Uses the build of kt-kernel, the method, the threads and the NUMA nodes that a service will use. An import proves
    nothing; a build for a newer processor dies at its first product.
  - What the processor's flags exclude is refused before it runs. A failure is named in one line.
  - A proof is kept, and found again while nothing that it depends on has changed.
attributes:
  check_mode: {support: partial, description: Computes nothing. That a proof is missing is no change of the host.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: Computes when there is no proof.}
options:
  python: {description: The Python of the installed version., type: path, required: true}
  script: {description: The self-test's program on the host., type: path, required: true}
  proofs: {description: File beside the installed version that keeps what was proven., type: path, required: true}
  method: {description: As the server's C(--kt-method)., type: str, default: BF16}
  threads: {description: As the server's C(--kt-cpuinfer). 0 is one for each node., type: int, default: 0}
  nodes: {description: As the server's C(--kt-numa-nodes)., type: list, elements: int, default: [0]}
  environment:
    description: Environment of the service. Without KT_KERNEL_CPU_VARIANT, the best build for this processor is taken.
    type: dict
    default: {}
  timeout: {description: Seconds., type: int, default: 120}
"""

EXAMPLES = r"""
- name: Compute with the build and the method of the service
  onprem.llm.ktransformers_selftest:
    python: /opt/onprem-llm/ktransformers/current/bin/python
    script: /opt/onprem-llm/ktransformers/selftest.py
    proofs: /opt/onprem-llm/ktransformers/0.5.1-py3.11.proofs
    method: AMXINT8
    threads: 64
    nodes: [0, 1]
    environment: {KT_KERNEL_CPU_VARIANT: amx}
"""

RETURN = r"""
result:
  description: >-
    variant (of the kernels that were loaded), class (that computed), method, error (relative), threads, and seconds.
    Empty in check mode without a proof.
  type: dict
  returned: success
"""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.hardware.cpu import isa, parse_cpuinfo
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import selftest
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.selftest import VARIANT, Asked, Host


def look() -> Host:
    tree = Tree("/")
    names = tree.names("/sys/devices/system/node") or []
    # A kernel without NUMA has one node, 0.
    nodes = {int(name[4:]) for name in names if name.startswith("node") and name[4:].isdigit()} or {0}
    flags = parse_cpuinfo(tree.text("/proc/cpuinfo") or "").flags
    return Host(isa(flags), os.uname().release, nodes, len(os.sched_getaffinity(0)))


def known(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def compute(module: AnsibleModule, asked: Asked, host: Host) -> dict[str, Any]:
    p = module.params
    # The GPU is left alone, and a broken driver is not this test's matter. The installed version stays as it is.
    extra = {VARIANT: asked.variant, "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **{key: str(value) for key, value in p["environment"].items()}, **extra}
    argv = [p["python"], p["script"], asked.method, str(asked.threads), *map(str, asked.nodes)]
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True,
            errors="replace", timeout=p["timeout"], cwd="/",
        )  # fmt: skip
        status, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        status, out, err = None, "", ""
    if problem := selftest.cause(asked, host, status, out, err):
        module.fail_json(msg=problem, stdout=out[-3000:], stderr=err[-3000:])
    return selftest.parse(out)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "path", "required": True},
            "script": {"type": "path", "required": True},
            "proofs": {"type": "path", "required": True},
            "method": {"type": "str", "default": "BF16"},
            "threads": {"type": "int", "default": 0},
            "nodes": {"type": "list", "elements": "int", "default": [0]},
            "environment": {"type": "dict", "default": {}},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    p, host = module.params, look()
    variant = p["environment"].get(VARIANT) or selftest.best(host)
    asked = Asked(variant, p["method"], p["threads"] or len(p["nodes"]), p["nodes"])
    if problem := selftest.refusal(asked, host):
        module.fail_json(msg=problem)
    proofs = Path(p["proofs"])
    script = Path(p["script"])
    if module.check_mode and not script.exists():
        module.exit_json(changed=False, result={})  # it comes with this run
    depends = [asked, sorted(host.isa), host.kernel, p["environment"], script.read_text()]
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    proven = known(proofs)
    if key in proven or module.check_mode:
        module.exit_json(changed=False, result=proven.get(key, {}))
    try:
        proven[key] = compute(module, asked, host)
        part = proofs.with_name(proofs.name + ".part")
        part.write_text(json.dumps(proven, indent=1) + "\n")
        part.rename(proofs)
    except OSError as error:
        module.fail_json(msg=f"The self-test cannot run: {error}. Is {p['python']} there?")
    module.exit_json(changed=True, result=proven[key])


if __name__ == "__main__":
    main()
