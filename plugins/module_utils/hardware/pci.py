# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA GPUs on the PCI bus: seen without any driver. Data-centre cards are 3D controllers, not VGA ones."""

from __future__ import annotations

import re
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.hardware import gpus
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree

DEVICES = "/sys/bus/pci/devices"


class Device(NamedTuple):
    address: str
    """As in 0000:38:00.0."""
    device: str
    """vendor:device."""
    numa_node: int | None
    link: int | None
    driver: str | None
    """Of the kernel: nvidia, nouveau, vfio-pci; None without."""


def address(text: str) -> str:
    """A bus id of nvidia-smi (00000000:38:00.0) as /sys writes it."""
    domain, colon, rest = text.strip().lower().partition(":")
    return f"{domain[-4:].rjust(4, '0')}{colon}{rest}"


def link(tree: Tree, folder: str) -> int | None:
    """What card and slot can do together; the current speed is no guide, idle cards lower it."""
    generations = []
    for place in (folder, f"{folder}/.."):
        rate = re.match(r"([\d.]+) GT/s", tree.text(f"{place}/max_link_speed") or "")
        if rate and rate[1] in gpus.RATES:
            generations.append(gpus.RATES[rate[1]])
    width = tree.number(f"{folder}/current_link_width") or tree.number(f"{folder}/max_link_width")
    return gpus.link(min(generations, default=None), width)


def scan(tree: Tree) -> list[Device] | None:
    """NVIDIA GPUs by address; None when /sys does not show the bus."""
    names = tree.names(DEVICES)
    if names is None:
        return None
    found = []
    for name in names:
        folder = f"{DEVICES}/{name}"
        kind = (tree.text(f"{folder}/class") or "").strip()
        vendor = (tree.text(f"{folder}/vendor") or "").strip()
        if vendor != f"0x{gpus.VENDOR}" or not kind.startswith(("0x0300", "0x0302")):
            continue
        node = tree.number(f"{folder}/numa_node")
        driver = tree.real(f"{folder}/driver")
        found.append(
            Device(
                name.lower(),
                f"{gpus.VENDOR}:{(tree.text(f'{folder}/device') or '').strip().removeprefix('0x').lower()}",
                node if node is not None and node >= 0 else None,
                link(tree, folder),
                driver.name if driver else None,
            )
        )
    return found
