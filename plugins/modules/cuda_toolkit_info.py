#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_toolkit_info
short_description: Looks at a host's CUDA toolkits and decides what belongs there
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Says which packages in which exact versions are to be installed, what that costs, and in one sentence each what
    forbids it. What is installed stays; only another entry in I(package_versions) changes it.
  - Changes nothing and never fails because of the host; C(refused) is for the caller to fail with.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  source:
    description: Where toolkits come from.
    type: str
    choices: [distro, nvidia_repo, none]
    required: true
  versions: {description: Releases that are wanted\, the default first., type: list, elements: str, default: []}
  package_versions: {description: Release to exact version of its package., type: dict, default: {}}
  architectures: {description: Compute capabilities to compile for., type: list, elements: str, default: []}
  blocked: {description: Release to the reason why it may not be used., type: dict, default: {}}
  root: {description: Folder of the homes., type: path, required: true}
  hardware: {description: The host as host_hardware tells it., type: dict, required: true}
  sources_pending:
    description: Package sources are still to be written\, so that apt is not asked yet.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Decide
  onprem.llm.cuda_toolkit_info:
    source: nvidia_repo
    versions: ["12.8", "13.0"]
    root: /opt/onprem-llm/cuda_toolkit
    hardware: "{{ host.hardware }}"
  register: cuda
"""

RETURN = r"""
refused: {description: What forbids it\, one sentence each., type: list, elements: str, returned: success}
toolkits:
  description: >-
    Wanted toolkits, the default first - version (null while nobody knows it), package, package_version (null likewise),
    installed, home.
  type: list
  elements: dict
  returned: success
install: {description: What to hand to apt\, as NAME=VERSION., type: list, elements: str, returned: success}
hold: {description: Installed parts of them that are not on hold., type: list, elements: str, returned: success}
download: {description: Bytes to fetch\, 0 when nothing is to be installed., type: int, returned: success}
disk: {description: Bytes more on the disk\, likewise., type: int, returned: success}
architectures: {description: Compute capabilities to prove them with., type: list, elements: str, returned: success}
"""

import os
import shutil
from collections.abc import Mapping
from glob import glob
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.cuda import decide, packages, versions


def ask(module: AnsibleModule, *words: str) -> str:
    """What apt answers, both outputs; also what it cannot do it says there."""
    _, out, error = module.run_command([*words, "-o", "Debug::NoLocking=1"], environ_update={"LC_ALL": "C.UTF-8"})
    return str(out + error)


def compilers(module: AnsibleModule, root: str) -> dict[str, str]:
    """Every nvcc that a build could meet, and the release it says it is."""
    paths = [shutil.which("nvcc") or "", *glob("/usr/local/cuda*/bin/nvcc"), *glob(f"{root}/*/bin/nvcc")]
    found = {os.path.realpath(path): path for path in reversed(paths) if path and os.access(path, os.X_OK)}
    return {path: versions.release(str(module.run_command([path, "--version"])[1])) for path in found.values()}


def file_system(path: str) -> tuple[int, int]:
    """Number of a folder's file system, and its free bytes."""
    return os.stat(path).st_dev, shutil.disk_usage(path).free


def look(module: AnsibleModule) -> dict[str, Any]:
    p = module.params
    hardware: Mapping[str, Any] = p["hardware"]
    cards = [gpu["compute_capability"] for gpu in hardware["gpus"] if gpu["compute_capability"]]
    architectures = p["architectures"] or list(dict.fromkeys(cards)) or [versions.ANY]
    settings = decide.Settings(
        p["source"], p["versions"], p["package_versions"], architectures, p["blocked"], p["root"]
    )
    wanted = list(decide.packages_of(settings).values())
    installed = packages.parse_installed(module.run_command(["dpkg-query", "-W", "-f", packages.FORMAT])[1])
    offers = None
    if not p["sources_pending"]:
        offers = {package: packages.parse_offers(ask(module, "apt-cache", "policy", package)) for package in wanted}
    decision = decide.decide(settings, installed, offers, hardware["driver"]["cuda"])
    refused = [
        refusal
        for path, release in compilers(module, p["root"]).items()
        if release and (refusal := versions.blocked_refusal(release, f"{path} is", p["blocked"]))
    ] + decision.refused
    install, sizes = [] if p["sources_pending"] else decision.install, (0, 0)
    if install and not refused:
        sizes, costly = cost(module, install, hardware["driver"]["version"])
        refused += costly
    for text in decision.warned if p["sources_pending"] else ():
        module.warn(text)
    parts = [part for package in wanted for part in packages.parts(installed, package)]
    return {
        "refused": refused,
        "toolkits": [one._asdict() for one in decision.toolkits],
        "install": install,
        "hold": [part.name for part in parts if not part.held],
        "download": sizes[0],
        "disk": sizes[1],
        "architectures": architectures,
    }


def cost(module: AnsibleModule, install: list[str], driver: str | None) -> tuple[tuple[int, int], list[str]]:
    """Bytes that an installation fetches and takes, and what forbids it."""
    words = ["--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages", "install", *install]
    # Never --assume-no: where no further package is needed apt does not ask, and installs.
    said = ask(module, "apt-get", "--simulate", *words)
    changes = packages.parse_changes(said)
    if not changes:
        return (0, 0), [f"apt cannot install {' '.join(install)}: {packages.complaint(said)}"]
    shown = ask(module, "apt-cache", "show", *(f"{one.name}={one.version}" for one in changes))
    download, disk = packages.parse_sizes(ask(module, "apt-get", "-qq", "--print-uris", *words), shown)
    space = packages.space_refusal(download, disk, file_system("/var/cache/apt/archives"), file_system("/usr"))
    return (download, disk), [one for one in (space, packages.driver_refusal(changes, driver)) if one]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": ["distro", "nvidia_repo", "none"], "required": True},
            "versions": {"type": "list", "elements": "str", "default": []},
            "package_versions": {"type": "dict", "default": {}},
            "architectures": {"type": "list", "elements": "str", "default": []},
            "blocked": {"type": "dict", "default": {}},
            "root": {"type": "path", "required": True},
            "hardware": {"type": "dict", "required": True},
            "sources_pending": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **look(module))


if __name__ == "__main__":
    main()
