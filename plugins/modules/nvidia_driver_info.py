#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVIDIA driver of a host: what is there, what should be, what is wrong."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver_info
short_description: Looks at a host's NVIDIA driver and decides what belongs there
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Reads GPUs on the PCI bus, kernels with their headers, DKMS, packages, Secure Boot, free space and what is loaded.
  - Decides source, flavour, packages and exact version, and says in one sentence each what forbids it, what is wrong
    with what is installed, and why a reboot is owed. What is installed stays; only another I(version) changes it.
  - Changes nothing and never fails because of the host; C(refused) and C(problems) are for the caller to fail with.
attributes:
  check_mode: {support: full, description: Only reads.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: Changes nothing.}
options:
  source:
    description: Where the driver comes from.
    type: str
    choices: [distro, nvidia_repo, runfile, preinstalled]
    default: distro
  flavour:
    description: Which kernel modules. V(auto) chooses by GPU architecture, headers and driver.
    type: str
    choices: [auto, proprietary, open]
    default: auto
  branch:
    description: >-
      Driver series, such as V(570), where packages carry it in their names (Ubuntu, NVIDIA's repository). Empty takes
      the installed one, else the newest that fits.
    type: str
    default: ''
  version:
    description: >-
      Exact version, with (V(550.163.01-2)) or without (V(550.163.01)) that of the package. Empty takes what is
      installed, else the newest of the source. Required for V(runfile).
    type: str
    default: ''
  install:
    description: V(auto) leaves hosts without an NVIDIA GPU, and containers, alone; V(always) does not.
    type: str
    choices: [auto, always]
    default: auto
  sources_pending:
    description: Package sources are still to be written, so that a package nobody offers is no refusal yet.
    type: bool
    default: false
  root: {description: Folder of a recorded machine. Its commands are recorded too., type: path, default: /}
"""

EXAMPLES = r"""
- name: Decide
  onprem.llm.nvidia_driver_info:
    source: distro
  register: nvidia
"""

RETURN = r"""
host:
  description: What was read.
  type: dict
  returned: success
  contains:
    distribution: {description: As in /etc/os-release., type: str, returned: always}
    version: {description: Of the distribution., type: str, returned: always}
    container: {description: Such as systemd-nspawn\, null on a host., type: str, returned: always}
    gpus:
      description: NVIDIA GPUs - name, address, device, capability (null when unknown) and driver (of the kernel).
      type: list
      elements: dict
      returned: always
    running: {description: The running kernel., type: str, returned: always}
    kernels:
      description: >-
        Installed ones, oldest first - name, version (of its package), flavour (amd64, cloud-amd64, generic ...), rt,
        running, next (boots next), headers (are there), form (of its headers; old or new, null when unknown), dkms
        (list of name, version, state, warning), module (version of the nvidia module on disk, null without) and
        errors (of a failed build).
      type: list
      elements: dict
      returned: always
    packages: {description: Related packages - version\, state\, held., type: dict, returned: always}
    broken: {description: All packages that are not fully installed\, with their states., type: dict, returned: always}
    offers: {description: Package to versions that apt can install\, candidate first., type: dict, returned: always}
    loaded: {description: Version of the loaded driver., type: str, returned: always}
    smi: {description: State by nvidia-smi - ok\, none\, not_loaded ..., type: str, returned: always}
    smi_reason: {description: What it said and what helps\, empty when all is well., type: str, returned: always}
    nouveau: {description: loaded and blacklisted., type: dict, returned: always}
    runfile: {description: What NVIDIA's installer left., type: list, elements: str, returned: always}
    secure_boot: {description: on\, lockdown\, enrolled and key., type: dict, returned: always}
    space: {description: By folder - free\, need (bytes) and mount., type: dict, returned: always}
    reboot_required: {description: Packages the system wants a reboot for\, null without., type: str, returned: always}
    bus: {description: Whether /sys shows the PCI bus., type: bool, returned: always}
    metas: {description: Flavours with a meta package of kernels., type: list, elements: str, returned: always}
    branches: {description: Driver series that Ubuntu offers for servers., type: list, elements: str, returned: always}
plan:
  description: What belongs on the host.
  type: dict
  returned: success
  contains:
    wanted: {description: Whether a driver belongs here., type: bool, returned: always}
    why: {description: Why\, or why not., type: str, returned: always}
    source: {description: As asked., type: str, returned: always}
    flavour: {description: proprietary or open\, null when none fits., type: str, returned: always}
    branch: {description: Of the packages\, null where their names carry none., type: str, returned: always}
    action:
      description: >-
        V(none), V(install), V(change) (of version or flavour) or V(repair) (packages or modules are unfinished).
      type: str
      returned: always
    installed: {description: Version of the installed driver\, null without., type: str, returned: always}
    version: {description: Version after the run\, null when unknown yet., type: str, returned: always}
    driver: {description: The same without the package's part\, as modules report it., type: str, returned: always}
    packages: {description: The whole set by name., type: list, elements: str, returned: always}
    install: {description: What apt is to be given now\, with versions., type: list, elements: str, returned: always}
    purge: {description: Packages of the other flavour\, to go first., type: list, elements: str, returned: always}
    pin: {description: Version of all related packages for apt's preferences\, as in 550.163.01*., type: str,
      returned: always}
    hold: {description: Installed related packages to hold., type: list, elements: str, returned: always}
    configure: {description: Unfinished packages of the driver\, to be configured., type: list, elements: str,
      returned: always}
    build: {description: Kernels for which DKMS has to build., type: list, elements: str, returned: always}
    unbuilt: {description: Unfinished packages to purge when the plan is refused\, none while the running kernel has a
      driver., type: list, elements: str, returned: always}
    frozen: {description: As pin\, of what is installed; null without., type: str, returned: always}
    load: {description: Whether modules may be loaded and services started here., type: bool, returned: always}
refused:
  description: What forbids the plan, one sentence each. Empty means go on.
  type: list
  elements: str
  returned: success
notes:
  description: What somebody should know, though nothing fails for it.
  type: list
  elements: str
  returned: success
problems:
  description: >-
    What is wrong with what is installed, one sentence each; after an installation this must be empty. Without a driver
    it is.
  type: list
  elements: str
  returned: success
related:
  description: Packages of the driver that are there - version, state, held.
  type: dict
  returned: success
waits:
  description: Does the driver need the reboot before it can run? Another one, or nouveau, is loaded.
  type: bool
  returned: success
debts:
  description: Reboots owed, each with what and why.
  type: list
  elements: dict
  returned: success
facts:
  description: For the host's local facts - version, driver, flavour, source.
  type: dict
  returned: success
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.commands import run
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import look, packages, plan, verify
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Options

SOURCES = ["distro", "nvidia_repo", "runfile", "preinstalled"]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": SOURCES, "default": "distro"},
            "flavour": {"type": "str", "choices": ["auto", "proprietary", "open"], "default": "auto"},
            "branch": {"type": "str", "default": ""},
            "version": {"type": "str", "default": ""},
            "install": {"type": "str", "choices": ["auto", "always"], "default": "auto"},
            "sources_pending": {"type": "bool", "default": False},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    given = dict(module.params)
    root = given.pop("root")
    if not os.path.isdir(root):
        module.fail_json(msg=f"root: {root} is no folder; give that of a recorded machine, or leave it out.")
    options = Options(**given)
    host = look.read(root, run, options)
    decided = plan.decide(host, options)
    module.exit_json(
        changed=False,
        host=host,
        plan=decided.plan,
        refused=decided.refused,
        notes=decided.notes,
        problems=verify.problems(host, decided.plan),
        related={name: one for name, one in host["packages"].items() if packages.related(name)},
        waits=bool(verify.waiting(host, decided.plan)),
        debts=verify.debts(host, decided.plan),
        facts=plan.facts(decided.plan),
    )


if __name__ == "__main__":
    main()
