#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_smoke
short_description: Proves that a CUDA toolkit works
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Compiles a small kernel with the nvcc of I(home), looks with its cuobjdump whether the program holds code for each
    of I(architectures), and runs it. Where there is a GPU its numbers must be right; where there is none, "no device"
    is the right answer. What the toolkit says of its version is compared, and proves nothing by itself.
  - Nothing is left behind.
attributes:
  check_mode: {support: full, description: It changes nothing.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  home: {description: The CUDA_HOME., type: path, required: true}
  version: {description: Release that it should be., type: str, required: true}
  architectures: {description: Compute capabilities to compile for., type: list, elements: str, required: true}
  gpus: {description: How many NVIDIA GPUs the host has., type: int, required: true}
  driver: {description: State of the driver as host_hardware tells it., type: str, required: true}
"""

EXAMPLES = r"""
- name: Prove the toolkit
  onprem.llm.cuda_smoke:
    home: /opt/onprem-llm/cuda_toolkit/12.8
    version: "12.8"
    architectures: ["8.9"]
    gpus: 1
    driver: ok
"""

RETURN = r"""
report: {description: What was done\, as a sentence., type: str, returned: success}
"""

import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.cuda import smoke, versions

#: Seconds for one program; a compilation takes one.
LIMIT = 300


class SmokeError(Exception):
    """The toolkit does not work; the text says why and the way out."""


def run(argv: list[str], env: dict[str, str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, f"error: no end after {LIMIT} s"
    return done.returncode, done.stdout + done.stderr


def prove(home: str, version: str, capabilities: list[str], gpus: int, driver: str) -> str:
    env = smoke.environment(home)

    def stop(refusal: str) -> None:
        if refusal:
            raise SmokeError(refusal)

    stop(smoke.version_refusal(version, versions.release(run([f"{home}/bin/nvcc", "--version"], env)[1]), home))
    known = versions.compilers(run([f"{home}/bin/nvcc", "--list-gpu-code"], env)[1])
    stop(smoke.list_refusal(home, capabilities, known))
    with tempfile.TemporaryDirectory(prefix="cuda-smoke-") as folder:
        source, program = Path(folder, "smoke.cu"), Path(folder, "smoke")
        source.write_text(smoke.PROGRAM)
        status, said = run(smoke.command(home, capabilities, str(source), str(program)), {**env, "TMPDIR": folder})
        stop(smoke.compile_refusal(home, status, said, program.is_file()))
        stop(smoke.code_refusal(home, capabilities, run([f"{home}/bin/cuobjdump", "-lelf", str(program)], env)[1]))
        report, refusal = smoke.verdict(run([str(program)], env)[1], capabilities, gpus, driver)
    stop(refusal and f"{home}: {refusal}.")
    return f"CUDA {version} for {', '.join(map(smoke.code, capabilities))}: {report}"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "version": {"type": "str", "required": True},
            "architectures": {"type": "list", "elements": "str", "required": True},
            "gpus": {"type": "int", "required": True},
            "driver": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    try:
        report = prove(p["home"], p["version"], p["architectures"], p["gpus"], p["driver"])
    except (SmokeError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, report=report)


if __name__ == "__main__":
    main()
