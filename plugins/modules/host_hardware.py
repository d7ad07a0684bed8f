#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: host_hardware
short_description: What a host is made of, as far as engines for language models care
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Reads processor, NUMA nodes, memory, GPUs, driver, the disk of the models and the system from C(/proc), C(/sys),
    C(nvidia-smi), C(dmidecode), C(systemd-detect-virt), C(getconf), C(df) and C(nvcc).
  - A source that is missing or refuses is no failure. The fact is null, and C(hardware.unknown) says why and what would
    make it known.
  - Run it as root, otherwise C(dmidecode) does not tell the memory modules.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  id:
    description: Name of the host in the answer.
    type: str
    required: true
  model_dir:
    description: Folder of the models. It need not exist; the disk of the nearest folder above it counts.
    type: path
    required: true
  root:
    description:
      - Folder of a recorded machine with its C(proc), C(sys), C(etc) and C(usr/bin).
      - No command is run for a recorded machine. Answers come from C(commands/<program>.json) below the folder, a list
        of objects with C(args), C(rc), C(stdout) and C(stderr). The first answers whose C(args) are all in the
        command.
    type: path
    default: /
  etc_dir:
    description: Folder that holds one folder per engine, with MODEL.env in it. Empty - nobody asks what is served.
    type: path
    default: ''
  measure_bandwidth:
    description:
      - Whether to measure how fast each NUMA node's CPUs read its memory. Takes some seconds and at most one twentieth
        of the free memory. Other programs on the host lower the figure.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Know the hardware
  become: true
  onprem.llm.host_hardware:
    id: "{{ inventory_hostname }}"
    model_dir: /srv/llm/models
    etc_dir: /etc/onprem-llm
    measure_bandwidth: true
"""

RETURN = r"""
installed:
  description:
    - What the host serves now, one entry per model - model, engine, port, source, flags (long options without dashes),
      environment, numa.
  returned: success
  type: list
  elements: dict
hardware:
  description: The facts. Sizes are bytes, bandwidths bytes per second, null is unknown.
  returned: success
  type: dict
  contains:
    id:
      description: Name of the host.
      type: str
      returned: always
    architecture:
      description: As C(uname -m) prints it.
      type: str
      returned: always
    cpu:
      description: >-
        vendor, model, sockets, cores (physical, with a CPU online), threads (CPUs online), threads_per_core, offline
        (CPUs), usable (CPUs that may be busy at once under a quota) and isa (avx, avx2, fma, f16c, avx_vnni, the avx512
        family and amx, spelled as C(/proc/cpuinfo) does).
      type: dict
      returned: always
    numa:
      description: >-
        Nodes by number, each with id, socket, cpus, cores, memory and available (bytes). A node without CPUs (CXL) has
        no socket.
      type: list
      elements: dict
      returned: always
    memory:
      description: >-
        total, available and limit (bytes; limit is that of a container, null without one), dimms (count, type, speed in
        millions of transfers per second, populated channels), bandwidth (bytes per second in theory, whole machine) and
        measured (bytes per second read, by node; null unless asked for).
      type: dict
      returned: always
    gpus:
      description: >-
        NVIDIA GPUs, those without a driver too. index, name, memory (bytes), compute_capability, bandwidth (bytes per
        second, theory), flops (dense half precision per second, theory), pci_address, pci_device, numa_node, link
        (bytes per second to the host, theory) and mig.
      type: list
      elements: dict
      returned: always
    driver:
      description: >-
        state (ok, none, not_loaded, no_gpu, reboot_required, gpu_error or unknown), version, cuda (newest the driver
        can run) and toolkit (CUDA toolkit that is installed).
      type: dict
      returned: always
    disk:
      description: Of the models - path, total and free (bytes), filesystem, network and rotational.
      type: dict
      returned: always
    system:
      description: distribution, version, kernel, glibc, python (versions), virtualisation and container.
      type: dict
      returned: always
    unknown:
      description: >-
        Fact, such as C(memory.dimms) or C(gpus.0.memory), to why it is unknown or doubtful and what would help.
      type: dict
      returned: always
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import installed
from ansible_collections.onprem.llm.plugins.module_utils.commands import run
from ansible_collections.onprem.llm.plugins.module_utils.hardware.read import read


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "required": True},
            "model_dir": {"type": "path", "required": True},
            "root": {"type": "path", "default": "/"},
            "etc_dir": {"type": "path", "default": ""},
            "measure_bandwidth": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    if not os.path.isdir(given["root"]):
        module.fail_json(msg=f"root: {given['root']} is no folder; give that of a recorded machine, or leave it out.")
    hardware = read(given["root"], given["id"], given["model_dir"], run, given["measure_bandwidth"])
    served = installed.read(Path(given["etc_dir"])) if given["etc_dir"] else []
    module.exit_json(changed=False, hardware=hardware, installed=served)


if __name__ == "__main__":
    main()
