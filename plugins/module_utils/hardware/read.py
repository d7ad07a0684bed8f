# SPDX-License-Identifier: GPL-3.0-or-later
"""All facts of a machine. What is missing or refuses becomes an entry of ``unknown``; nothing raises."""

from __future__ import annotations

from ansible_collections.onprem.llm.plugins.module_utils.hardware import (
    bandwidth,
    cpu,
    disk,
    limits,
    memory,
    numa,
    nvidia,
    system,
)
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Run, Tree, answer, recorded_run
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Dimms, Hardware, Memory


def read(root: str, id: str, model_dir: str, run: Run, measure: bool) -> Hardware:
    """Facts from /proc, /sys and commands.

    root: / for this machine; a folder with its proc, sys, etc and commands for a recorded one, of which no command is
    run here. id: the host's name. model_dir: folder of the models. measure: read memory to measure its bandwidth.
    """
    tree, unknown = Tree(root), dict[str, str]()
    if tree.recorded:
        run = recorded_run(tree)
    text = tree.text("/proc/cpuinfo") or ""
    info = cpu.parse_cpuinfo(text)
    architecture = system.architecture(tree, run, info, unknown)
    explain_cpu(info, architecture, tree.why("/proc/cpuinfo"), unknown)
    online = cpu.online_cpus(tree, text, unknown)
    topology = cpu.whole(cpu.read_topology(tree, online), online, unknown)
    usable = limits.usable(tree, online)
    totals = numa.meminfo(tree.text("/proc/meminfo") or "")
    total, available = totals.get("MemTotal", 0), totals.get("MemAvailable")
    if not total:
        unknown["memory.total"] = f"{tree.why('/proc/meminfo')}; look at free -b"
    if available is None:
        unknown["memory.available"] = f"{tree.why('/proc/meminfo')}; look at free -b"
    limit = limits.memory(tree, total)
    nodes = numa.read(tree, topology, total, available, unknown)
    spare = min(available or 0, limit or total)
    host = system.read(tree, run, info, unknown)
    modules = read_dimms(run, info, topology, unknown)
    gpus, driver = nvidia.read(tree, run, len(nodes), unknown)
    return Hardware(
        id=id,
        architecture=architecture,
        cpu=cpu.describe(info, topology, cpu.read_cpu_list(tree, f"{cpu.CPUS}/offline") or [], usable),
        numa=nodes,
        memory=Memory(
            total=total,
            available=available,
            limit=limit,
            dimms=modules,
            bandwidth=explain_bandwidth(modules, unknown),
            measured=bandwidth.measured(tree, nodes, limits.allowed(tree), spare, unknown) if measure else None,
        ),
        gpus=gpus,
        driver=driver,
        disk=disk.read(tree, run, model_dir, unknown),
        system=host,
        unknown=unknown,
    )


def explain_cpu(info: cpu.Info, architecture: str, why: str, unknown: dict[str, str]) -> None:
    if not info.flags:
        unknown["cpu.isa"] = cpu.isa_reason(architecture)
    for fact, known in (("vendor", info.vendor), ("model", info.model)):
        if not known:
            unknown[f"cpu.{fact}"] = f"{why}; look at lscpu"


def read_dimms(run: Run, info: cpu.Info, topology: cpu.Topology, unknown: dict[str, str]) -> Dimms | None:
    rc, out, err = run(["dmidecode", "-t", "17"])
    rows = memory.parse_dmidecode(out)
    if rc != 0 or not rows:
        unknown["memory.dimms"] = f"{answer('dmidecode', rc, out, err)}; run it as root on the host itself"
        return None
    return memory.populated(rows, info, topology, unknown)


def explain_bandwidth(modules: Dimms | None, unknown: dict[str, str]) -> int | None:
    found = memory.bandwidth(modules) if modules else None
    if modules and found is None:
        unknown["memory.bandwidth"] = f"the width of {modules['type']} channels is not told; measure it"
    elif found is None:
        unknown["memory.bandwidth"] = f"{unknown['memory.dimms']}, or measure it"
    return found
