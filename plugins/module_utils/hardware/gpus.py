# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a GPU by its PCI device: never its memory, which vendors and workshops change under the same name.

Bandwidth of the memory, and dense half-precision operations of the tensor cores with 32-bit accumulation, are those of
the manufacturer's data sheets and architecture white papers; sparsity, which doubles the advertised figure, is not
counted. Device ids are those of the public PCI ID list.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Gpu

VENDOR = "10de"


class Card(NamedTuple):
    name: str
    """As nvidia-smi prints it."""
    compute_capability: str
    bandwidth: int
    """GB/s (10^9)."""
    tflops: float | None
    """None: no tensor cores."""
    generation: int
    """PCI Express, by 16 lanes."""


CARDS: dict[str, Card] = {
    "1b38": Card("Tesla P40", "6.1", 346, None, 3),
    "1db1": Card("Tesla V100-SXM2-16GB", "7.0", 900, 125, 3),
    "1db5": Card("Tesla V100-SXM2-32GB", "7.0", 900, 125, 3),
    "1db4": Card("Tesla V100-PCIE-16GB", "7.0", 900, 112, 3),
    "1db6": Card("Tesla V100-PCIE-32GB", "7.0", 900, 112, 3),
    "1e04": Card("NVIDIA GeForce RTX 2080 Ti", "7.5", 616, 53.8, 3),
    "1e07": Card("NVIDIA GeForce RTX 2080 Ti", "7.5", 616, 53.8, 3),
    "1eb8": Card("Tesla T4", "7.5", 320, 65, 3),
    "20b0": Card("NVIDIA A100-SXM4-40GB", "8.0", 1555, 312, 4),
    "20b2": Card("NVIDIA A100-SXM4-80GB", "8.0", 2039, 312, 4),
    "20b5": Card("NVIDIA A100 80GB PCIe", "8.0", 1935, 312, 4),
    "20b7": Card("NVIDIA A30", "8.0", 933, 165, 4),
    "20f1": Card("NVIDIA A100-PCIE-40GB", "8.0", 1555, 312, 4),
    "2204": Card("NVIDIA GeForce RTX 3090", "8.6", 936, 71, 4),
    "2206": Card("NVIDIA GeForce RTX 3080", "8.6", 760, 59.5, 4),
    "2216": Card("NVIDIA GeForce RTX 3080", "8.6", 760, 59.5, 4),
    "2230": Card("NVIDIA RTX A6000", "8.6", 768, 154.8, 4),
    "2235": Card("NVIDIA A40", "8.6", 696, 149.7, 4),
    "2236": Card("NVIDIA A10", "8.6", 600, 125, 4),
    "2684": Card("NVIDIA GeForce RTX 4090", "8.9", 1008, 165.2, 4),
    "2702": Card("NVIDIA GeForce RTX 4080 SUPER", "8.9", 736, 104.4, 4),
    "2704": Card("NVIDIA GeForce RTX 4080", "8.9", 717, 97.5, 4),
    "2786": Card("NVIDIA GeForce RTX 4070", "8.9", 504, 58.3, 4),
    "26b1": Card("NVIDIA RTX 6000 Ada Generation", "8.9", 960, 364.2, 4),
    "26b5": Card("NVIDIA L40", "8.9", 864, 181, 4),
    "26b9": Card("NVIDIA L40S", "8.9", 864, 362, 4),
    "26ba": Card("NVIDIA L20", "8.9", 864, 119.5, 4),
    "27b8": Card("NVIDIA L4", "8.9", 300, 121, 4),
    "2329": Card("NVIDIA H20", "9.0", 4000, 148, 5),
    "2330": Card("NVIDIA H100 80GB HBM3", "9.0", 3350, 989, 5),
    "2331": Card("NVIDIA H100 PCIe", "9.0", 2000, 756, 5),
    "2335": Card("NVIDIA H200", "9.0", 4800, 989, 5),
    "2b85": Card("NVIDIA GeForce RTX 5090", "12.0", 1792, 209.5, 5),
    "2bb1": Card("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "12.0", 1792, 503.8, 5),
    "2c02": Card("NVIDIA GeForce RTX 5080", "12.0", 960, 112.6, 5),
}

# Bytes per second and lane, one way: transfers per second less the line code (8b/10b, then 128b/130b).
LANE = {1: 250_000_000, 2: 500_000_000, 3: 984_615_384, 4: 1_969_230_769, 5: 3_938_461_538}
RATES = {"2.5": 1, "5": 2, "5.0": 2, "8": 3, "8.0": 3, "16": 4, "16.0": 4, "32": 5, "32.0": 5}


def link(generation: int | None, width: int | None) -> int | None:
    """Bytes per second of a PCI Express link, None when it is not known."""
    lane = LANE.get(generation or 0)
    return lane * width if lane and width and 0 < width <= 32 else None


def card(pci_device: str | None, name: str) -> Card | None:
    """The table's entry by device (10de:2684), else by name."""
    vendor, _, device = (pci_device or "").partition(":")
    if vendor == VENDOR and device in CARDS:
        return CARDS[device]
    return next((one for one in CARDS.values() if one.name == name), None)


def describe(
    position: int,
    unknown: dict[str, str],
    *,
    index: int | None,
    name: str | None,
    memory: int | None,
    memory_reason: str,
    compute_capability: str | None,
    pci_address: str | None,
    pci_device: str | None,
    numa_node: int | None,
    nodes: int,
    link: int | None,
    mig: bool | None,
) -> Gpu:
    """The GPU with what the table knows of it. position: its place in the list; nodes: the host's NUMA nodes."""
    known = card(pci_device, name or "")
    name = name or (known.name if known else f"NVIDIA device {pci_device}")
    key = f"gpus.{position}"
    if mig is None and "GeForce" in name:
        mig = False  # none of them can be divided
    gpu = Gpu(
        index=index,
        name=name,
        memory=memory,
        compute_capability=compute_capability or (known.compute_capability if known else None),
        bandwidth=known.bandwidth * 10**9 if known else None,
        flops=int(known.tflops * 10**12) if known and known.tflops else None,
        pci_address=pci_address,
        pci_device=pci_device,
        numa_node=numa_node,
        link=link or (LANE[known.generation] * 16 if known else None),
        mig=mig,
    )
    absent = f"{name} ({pci_device}) is not in the table of hardware/gpus.py; add it from its data sheet"
    reasons = {
        "memory": memory_reason,
        "compute_capability": f"{absent}, or install a driver of the 510 series or newer",
        "bandwidth": absent,
        "flops": f"{name} has no tensor cores; none to add" if known else absent,
        "pci_address": "not recorded; nvidia-smi and /sys/bus/pci tell it",
        "pci_device": "not recorded; nvidia-smi and /sys/bus/pci tell it",
        "link": f"/sys/bus/pci tells no link, and {absent}",
        "mig": "nvidia-smi -q -x does not tell whether it is divided; install or repair the driver",
    }
    if nodes > 1:
        reasons["numa_node"] = "the firmware does not tell which NUMA node it hangs on; look at nvidia-smi topo -m"
    elif numa_node is None and nodes == 1:
        gpu["numa_node"] = 0
    for fact, reason in reasons.items():
        if gpu.get(fact) is None:
            unknown[f"{key}.{fact}"] = reason
    if mig:
        unknown[f"{key}.memory"] = (
            f"MIG is on: the {memory or 0} bytes are the whole card's, an engine sees one instance of it; "
            "turn MIG off (nvidia-smi -mig 0) or plan with the size of an instance"
        )
    if re.search(r"vGPU|^GRID|\bvirtual", name, re.IGNORECASE):
        unknown[f"{key}.bandwidth"] = (
            f"{name} is a share of a card: bandwidth and operations are the whole card's, its neighbours use them too"
        )
    return gpu
