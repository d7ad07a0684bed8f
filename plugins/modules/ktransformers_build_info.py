#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to compile KTransformers with on this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ktransformers_build_info
short_description: Decides how KTransformers is compiled on a host
version_added: 0.1.0
author: The onprem.llm developers
description:
  - From the host's processor, NUMA nodes, GPUs, kernel and Python, and from the release of CUDA, decides instruction
    set, AMX, NUMA and CUDA architectures, and gives the name of the build, the compiler's whole environment and the
    packages it needs. The toolkit itself is not looked at, for only one host of a class has to have it.
  - Fails where it would not work, or where the build's own detection would decide otherwise.
attributes:
  check_mode: {support: full, description: It changes nothing.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  method: {description: What is compiled., type: str, choices: [source, classic], required: true}
  version: {description: Version of KTransformers., type: str, required: true}
  hardware: {description: What C(host_hardware) returned as C(hardware)., type: dict, required: true}
  sources:
    description: sha256 of every source tarball, the main one first.
    type: list
    elements: str
    required: true
  lock:
    description: sha256 over the lock files of what compiles and of what it is installed with.
    type: str
    required: true
  python: {description: Version of the Python that the service runs with\, as in 3.11., type: str, required: true}
  cuda: {description: Release of the CUDA toolkit\, as in 12.4. Empty compiles without CUDA., type: str, default: ''}
  cuda_home: {description: Folder of that toolkit\, on the host that compiles., type: str, default: ''}
  blocked: {description: Releases of CUDA that are not taken\, and why., type: dict, default: {}}
  architectures: {description: Compute capabilities\, as in 8.9. Empty takes those of the GPUs., type: str, default: ''}
  jobs: {description: Compile jobs. 0 takes what CPUs and free memory allow., type: int, default: 0}
"""

EXAMPLES = r"""
- name: Decide how to compile
  onprem.llm.ktransformers_build_info:
    method: classic
    version: 0.2.3post2
    hardware: "{{ found.hardware }}"
    sources: ["{{ artifacts.ktransformers_classic.sha256 }}"]
    lock: "{{ lookup('ansible.builtin.file', 'classic-py3.11.txt') | hash('sha256') }}"
    python: "3.11"
    cuda: "12.4"
    cuda_home: /opt/onprem-llm/cuda_toolkit/12.4
    architectures: "8.9"
"""

RETURN = r"""
build: {description: Everything that changes the bits., type: dict, returned: success}
key: {description: Name of the build., type: str, returned: success}
environment: {description: The whole environment of the compiler., type: dict, returned: success}
packages: {description: Debian packages the compiler needs., type: list, elements: str, returned: success}
run_time_packages: {description: Debian packages every host needs., type: list, elements: str, returned: success}
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import build


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "method": {"type": "str", "choices": ["source", "classic"], "required": True},
            "version": {"type": "str", "required": True},
            "hardware": {"type": "dict", "required": True},
            "sources": {"type": "list", "elements": "str", "required": True},
            "lock": {"type": "str", "required": True},
            "python": {"type": "str", "required": True},
            "cuda": {"type": "str", "default": ""},
            "blocked": {"type": "dict", "default": {}},
            "cuda_home": {"type": "str", "default": ""},
            "architectures": {"type": "str", "default": ""},
            "jobs": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    p = module.params
    hardware: Hardware = p["hardware"]
    try:
        decided = build.decide(
            p["method"],
            p["version"],
            hardware,
            sources=p["sources"],
            lock=p["lock"],
            python=p["python"],
            cuda=p["cuda"],
            blocked=p["blocked"],
            architectures=p["architectures"],
        )
    except build.BuildError as error:
        module.fail_json(msg=f"{error} Nothing was changed.")
    free = hardware["memory"]["available"] or hardware["memory"]["total"]
    count = build.jobs(p["jobs"], int(hardware["cpu"]["usable"]), free, bool(decided.cuda))
    module.exit_json(
        changed=False,
        build=asdict(decided),
        key=build.key(decided),
        environment=build.environment(decided, count, p["cuda_home"]),
        packages=build.packages(decided),
        run_time_packages=build.run_time_packages(decided),
    )


if __name__ == "__main__":
    main()
