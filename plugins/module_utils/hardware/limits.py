# SPDX-License-Identifier: GPL-3.0-or-later
"""What a system may use of its machine: cgroup v2 and v1, and the CPUs it may run on. That of the first process, which
starts the services: a login may have limits of its own."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from ansible_collections.onprem.llm.plugins.module_utils.hardware.cpu import cpu_list
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree

CGROUPS = "/sys/fs/cgroup"


def folders(tree: Tree, controller: str) -> Iterator[str]:
    """Folders of the first process's cgroup and of those above it, where the controller may have set a limit."""
    for line in (tree.text("/proc/1/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if not colon or (names and controller not in names.split(",")):
            continue
        # A path that leads out of a container's own tree (/../x) starts at the top.
        path = posixpath.normpath("/" + path.strip().lstrip("/"))
        bases = [f"{CGROUPS}/{names}", f"{CGROUPS}/{controller}"] if names else [CGROUPS, f"{CGROUPS}/unified"]
        for base in dict.fromkeys(bases):
            below = path
            while below != "/":
                yield base + below
                below = posixpath.dirname(below)
            yield base


def cpu_quota(tree: Tree) -> float | None:
    """CPUs that may be busy at once, None without a quota."""
    found = []
    for folder in folders(tree, "cpu"):
        words = (tree.text(f"{folder}/cpu.max") or "").split()
        if len(words) != 2:
            words = [(tree.text(f"{folder}/cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period")]
        if all(word.isdigit() and int(word) > 0 for word in words):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def allowed(tree: Tree) -> set[int] | None:
    """CPUs the first process may run on, None when unknown."""
    for line in (tree.text("/proc/1/status") or "").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            try:
                return set(cpu_list(line.partition(":")[2]))
            except ValueError:
                return None
    return None


def usable(tree: Tree, online: list[int]) -> float:
    """CPUs that may be used at once. Without any limit that can be read: all online ones."""
    may = allowed(tree)
    count = float(len(online if may is None else may.intersection(online)) or len(online))
    quota = cpu_quota(tree)
    return count if quota is None else min(count, round(quota, 3))


def memory(tree: Tree, total: int) -> int | None:
    """Bytes this system may use; None when that is all of its total."""
    found = []
    for folder in folders(tree, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = tree.number(f"{folder}/{name}")
            # cgroup v1 says "no limit" with a number near 2^63.
            if limit is not None and 0 < limit < total:
                found.append(limit)
    return min(found, default=None)
