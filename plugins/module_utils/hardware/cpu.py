# SPDX-License-Identifier: GPL-3.0-or-later
"""The processor: its instruction sets from /proc/cpuinfo, its sockets and cores from the topology in /sys.

/proc/cpuinfo counts wrongly when a CPU is offline (ansible/ansible#82244), so nothing is counted there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Cpu

CPUS = "/sys/devices/system/cpu"
MOST_CPUS = 8192  # the kernel's largest NR_CPUS
PLAIN = ("avx", "avx2", "fma", "f16c", "avx_vnni")


class Info(NamedTuple):
    """What /proc/cpuinfo says of the first CPU."""

    architecture: str
    vendor: str
    model: str
    flags: frozenset[str]


class Place(NamedTuple):
    """Where an online CPU sits. Two CPUs with the same socket and core are threads of one core."""

    socket: int
    core: str


Topology = Mapping[int, Place]


def cpu_list(text: str) -> list[int]:
    """CPUs of a list such as 0-3,8; ValueError when it is none or names more than MOST_CPUS."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        start, end = int(first), int(last or first)
        if not 0 <= start <= end < MOST_CPUS:
            raise ValueError(f"{part!r} is no range of CPUs below {MOST_CPUS}")
        cpus.update(range(start, end + 1))
    return sorted(cpus)


def read_cpu_list(tree: Tree, name: str) -> list[int] | None:
    text = tree.text(name)
    try:
        return None if text is None else cpu_list(text)
    except ValueError:
        return None


def parse_cpuinfo(text: str) -> Info:
    """Architecture, vendor, model and flags; empty where the text has none, as on other architectures."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = frozenset(fields.get("flags", "").split())
    if flags:
        # A record may name only the flags that matter; no processor with AVX2 is without long mode.
        return Info(
            "x86_64" if flags & {"lm", "avx2"} else "i686",
            fields.get("vendor_id", ""),
            fields.get("model name", ""),
            flags,
        )
    if "CPU implementer" in fields:
        part = f"implementer {fields['CPU implementer']} part {fields.get('CPU part', '?')}"
        return Info("aarch64", "ARM", fields.get("model name", part), flags)
    if fields.get("vendor_id", "").startswith("IBM/S390"):
        return Info("s390x", fields["vendor_id"], fields.get("processor 0", ""), flags)
    if fields.get("cpu", "").startswith("POWER"):
        return Info("ppc64le", "IBM", fields["cpu"], flags)
    return Info("", fields.get("vendor_id", ""), fields.get("model name", ""), flags)


def isa(flags: Iterable[str]) -> list[str]:
    return sorted(flag for flag in set(flags) if flag in PLAIN or flag.startswith(("avx512", "amx_")))


def isa_reason(architecture: str) -> str:
    return (
        f"/proc/cpuinfo has no flags ({architecture or 'unknown architecture'}): "
        "instruction sets are known of x86 processors only; use an x86-64 machine"
    )


def read_topology(tree: Tree, online: Iterable[int]) -> dict[int, Place]:
    """Socket and core of the online CPUs; CPUs without a topology are left out."""
    topology: dict[int, Place] = {}
    for cpu in online:
        folder = f"{CPUS}/cpu{cpu}/topology"
        socket = tree.number(f"{folder}/physical_package_id")
        # core_id repeats across dies on some kernels; the list of siblings does not.
        core = (tree.text(f"{folder}/thread_siblings_list") or tree.text(f"{folder}/core_id") or "").strip()
        if socket is not None and core:
            topology[cpu] = Place(max(socket, 0), core)
    return topology


def online_cpus(tree: Tree, cpuinfo: str, unknown: dict[str, str]) -> list[int]:
    online = read_cpu_list(tree, f"{CPUS}/online")
    if online:
        return online
    unknown["cpu.threads"] = f"{tree.why(f'{CPUS}/online')}: counted from /proc/cpuinfo; mount /sys to know better"
    return sorted({int(found) for found in re.findall(r"(?m)^(?:processor|cpu number)\s*:\s*(\d{1,4})\s*$", cpuinfo)})


def whole(topology: Mapping[int, Place], online: Iterable[int], unknown: dict[str, str]) -> dict[int, Place]:
    """The topology with a core of its own, on the first socket, for every CPU it does not know."""
    missing = [cpu for cpu in online if cpu not in topology]
    if missing:
        unknown["cpu.cores"] = (
            f"/sys does not tell the core of {len(missing)} CPUs, each is counted as one; "
            "mount /sys, or look at lscpu -e"
        )
    return {**topology, **{cpu: Place(0, f"cpu{cpu}") for cpu in missing}}


def cores(topology: Topology, cpus: Iterable[int]) -> int:
    """Physical cores among the CPUs."""
    return len({topology[cpu] for cpu in cpus if cpu in topology})


def describe(info: Info, topology: Topology, offline: list[int], usable: float) -> Cpu:
    threads: dict[Place, int] = {}
    for place in topology.values():
        threads[place] = threads.get(place, 0) + 1
    return Cpu(
        vendor=info.vendor,
        model=info.model,
        sockets=len({place.socket for place in topology.values()}),
        cores=len(threads),
        threads=len(topology),
        threads_per_core=max(threads.values(), default=0),
        offline=offline,
        usable=usable,
        isa=isa(info.flags),
    )
