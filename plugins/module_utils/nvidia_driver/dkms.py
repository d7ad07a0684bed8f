# SPDX-License-Identifier: GPL-3.0-or-later
"""DKMS: what its text says. Its exit status is 0 whatever happened."""

from __future__ import annotations

import re

from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Module

NAME = re.compile(r"nvidia(-current)?(-open)?")
ROOT = "/var/lib/dkms"
LINES = 3
WIDTH = 200


def parse_status(text: str) -> list[Module]:
    """NVIDIA's modules of ``dkms status -k K``.

    dkms 3 writes ``name/version, kernel, arch: state``, dkms 2 ``name, version, kernel, arch: state``; kernel and arch
    are absent while nothing is built. Brackets behind the state are a warning or a remark.
    """
    found = []
    for line in text.splitlines():
        said = re.match(r"(.+?): (\w[\w-]*)\s*(.*)", line)
        name, version, *_ = [*re.split(r"/|, ", said[1]), ""] if said else ["", ""]
        if said and NAME.fullmatch(name):
            found.append(Module(name=name, version=version, state=said[2], warning=said[3].strip().strip("()")))
    return found


def errors(log: str) -> list[str]:
    """The last error lines of a make.log, else its last lines: paths shortened to the file's name."""
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    found = [line for line in lines if re.search(r"\berror:|\*\*\* .*Error|fatal:", line, re.IGNORECASE)]
    compiler = [line for line in found if "error:" in line]
    return [re.sub(r"(?:/[^/\s:]+)+/(?=[^/\s:]+:)", "", line)[:WIDTH] for line in (compiler or found or lines)[-LINES:]]


def failed_build(tree: Tree, module: Module, kernel: str) -> list[str]:
    """Why a module has not been built for a kernel; empty when no log of it is there."""
    log = tree.text(f"{ROOT}/{module['name']}/{module['version']}/build/make.log")
    # There is one such file for all kernels, of the last build that failed; its first line names the kernel.
    if not log or kernel not in log:
        return []
    return errors(log)
