# SPDX-License-Identifier: GPL-3.0-or-later
"""NUMA nodes: numbers may have gaps, nodes may be without CPUs (CXL) or without memory, and there may be none."""

from __future__ import annotations

import re

from ansible_collections.onprem.llm.plugins.module_utils.hardware import cpu
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Node

NODES = "/sys/devices/system/node"


def meminfo(text: str) -> dict[str, int]:
    """Bytes by name of /proc/meminfo or of a node's meminfo."""
    found = re.findall(r"(?m)^(?:Node\s+\d+\s+)?([\w()]+):\s+(\d{1,18}) kB\s*$", text)
    return {name: int(value) * 1024 for name, value in found}


def available(memory: dict[str, int]) -> int | None:
    """A node's memory without what programs hold: free, page cache without shared memory, reclaimable slabs."""
    if "MemFree" not in memory:
        return None
    cache = memory.get("FilePages", 0) - memory.get("Shmem", 0)
    return memory["MemFree"] + max(cache, 0) + memory.get("SReclaimable", 0)


def describe(number: int, cpus: list[int], topology: cpu.Topology, memory: int, free: int | None) -> Node:
    cpus = [one for one in cpus if one in topology]
    return Node(
        id=number,
        socket=topology[cpus[0]].socket if cpus else None,
        cpus=cpus,
        cores=cpu.cores(topology, cpus),
        memory=memory,
        available=free,
    )


def read(tree: Tree, topology: cpu.Topology, total: int, free: int | None, unknown: dict[str, str]) -> list[Node]:
    """The nodes by number; one with everything where the system tells none."""
    names = tree.names(NODES)
    numbers = sorted(int(name[4:]) for name in names or [] if re.fullmatch(r"node\d{1,4}", name))
    nodes = []
    for number in numbers:
        folder = f"{NODES}/node{number}"
        cpus = cpu.read_cpu_list(tree, f"{folder}/cpulist")
        memory = meminfo(tree.text(f"{folder}/meminfo") or "")
        if cpus is None:
            unknown[f"numa.{number}.cpus"] = f"{tree.why(f'{folder}/cpulist')}; look at numactl -H"
        if "MemTotal" not in memory:
            unknown[f"numa.{number}.memory"] = f"{tree.why(f'{folder}/meminfo')}; look at numactl -H"
        if available(memory) is None:
            unknown[f"numa.{number}.available"] = f"{folder}/meminfo has no MemFree; look at numactl -H"
        nodes.append(describe(number, cpus or [], topology, memory.get("MemTotal", 0), available(memory)))
    if any(node["cpus"] for node in nodes):
        whole = sum(node["memory"] for node in nodes)
        if len(nodes) == 1:  # it has all memory; some virtual machines count only a part of it
            if total:
                nodes[0]["memory"] = total
                unknown.pop(f"numa.{numbers[0]}.memory", None)
            if free is not None:
                nodes[0]["available"] = free
                unknown.pop(f"numa.{numbers[0]}.available", None)
        elif abs(whole - total) > total / 10:
            unknown["numa"] = (
                f"the nodes have {whole} bytes together, the host {total}; look at numactl -H and /proc/meminfo"
            )
        return nodes
    because = f"{NODES} is missing" if names is None else f"{NODES} names no node with CPUs"
    unknown["numa"] = f"{because}: taken as one node with all CPUs and memory; look at numactl -H on the host itself"
    for key in [key for key in unknown if key.startswith("numa.")]:
        del unknown[key]
    if free is None:
        unknown["numa.0.available"] = unknown.get("memory.available", "/proc/meminfo does not tell")
    return [describe(0, sorted(topology), topology, total, free)]
