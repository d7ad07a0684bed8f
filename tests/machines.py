# SPDX-License-Identifier: GPL-3.0-or-later
"""The recorded machines and GPUs of tests/fixtures/hardware: as facts, or as folders with proc, sys and commands."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware import gpus as table
from ansible_collections.onprem.llm.plugins.module_utils.hardware.cpu import cpu_list
from ansible_collections.onprem.llm.plugins.module_utils.hardware.recorded import from_record
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware

FOLDER = Path(__file__).parent / "fixtures/hardware"
# What tests take where they do not say otherwise.
HOST = {
    "os": "debian 12",
    "kernel": "6.1.0-37-amd64",
    "glibc": "2.36",
    "python": ["3.11"],
    "disk": {
        "path": "/srv/llm/models",
        "total": 4_000_000_000_000,
        "free": 3_000_000_000_000,
        "filesystem": "ext4",
        "network": False,
        "rotational": False,
    },
}
DRIVER = {"version": "570.172.08", "cuda": "12.8", "toolkit": "12.4"}


@functools.cache
def _by_id(name: str) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in json.loads((FOLDER / name).read_text())}


def machines() -> dict[str, dict[str, Any]]:
    """Recorded machines by id."""
    return copy.deepcopy(_by_id("machines.json"))


def gpus() -> dict[str, dict[str, Any]]:
    """Recorded GPUs by id."""
    return copy.deepcopy(_by_id("gpus.json"))


def record(machine_id: str, gpu_ids: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """A machine with GPUs, Debian 12, a driver and a 4 TB disk; ``changes`` replace keys of the record, None drops."""
    found = gpus()
    cards = [{**found[one], "pci_address": f"0000:{0x18 + 8 * n:02x}:00.0"} for n, one in enumerate(gpu_ids)]
    for card in cards:
        card["mig"] = False
    whole = {**copy.deepcopy(_by_id("machines.json")[machine_id]), **copy.deepcopy(HOST), "gpus": cards}
    if cards:
        whole["driver"] = dict(DRIVER)
    whole.update(changes)
    return {key: value for key, value in whole.items() if value is not None}


def hardware(machine_id: str, gpu_ids: Sequence[str] = (), **changes: Any) -> Hardware:
    """The hardware of ``record``."""
    return from_record(record(machine_id, gpu_ids, **changes))


# --- a folder from which the facts are read as on a host


def write_root(record: Mapping[str, Any], path: Path) -> Path:
    """Writes proc, sys, etc and commands of a record below ``path``; what the record does not tell is not written."""
    _write_cpu(record, path)
    _write_memory(record, path)
    _write_gpus(record, path)
    _write_disk(record, path)
    _write_system(record, path)
    return path


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def command(root: Path, program: str, *answers: Mapping[str, Any]) -> None:
    """Records what a program answers; see hardware/tree.py for the form."""
    write(root / f"commands/{program}.json", json.dumps([{"rc": 0, **one} for one in answers]))


def _mask(cpus: Sequence[int]) -> str:
    number = sum(1 << cpu for cpu in cpus)
    words = [f"{number >> (32 * place) & 0xFFFFFFFF:08x}" for place in range(max(cpus, default=0) // 32 + 1)]
    return ",".join(reversed(words))


def _write_cpu(record: Mapping[str, Any], root: Path) -> None:
    cpu, folder = record["cpu"], root / "sys/devices/system/cpu"
    online, places = cpu_list(cpu["online"]), record["cpu_map"]
    blocks = [
        f"processor\t: {number}\nvendor_id\t: {cpu['vendor_id']}\ncpu family\t: {cpu['cpu_family']}\n"
        f"model\t\t: {cpu['model']}\nmodel name\t: {cpu['model_name']}\nstepping\t: {cpu['stepping']}\n"
        f"flags\t\t: {cpu['flags']}\n"
        for number in online
    ]
    write(root / "proc/cpuinfo", "\n".join(blocks))
    for name in ("online", "offline"):
        write(folder / name, cpu[name])
    for name in ("possible", "present"):
        write(folder / name, f"0-{cpu['logical_cpus'] - 1}")
    for number in online:
        place = places[str(number)]
        core = [
            n for n in online if (places[str(n)]["socket"], places[str(n)]["core"]) == (place["socket"], place["core"])
        ]
        package = [n for n in online if places[str(n)]["socket"] == place["socket"]]
        topology = folder / f"cpu{number}/topology"
        write(topology / "physical_package_id", place["socket"])
        write(topology / "core_id", place["core"])
        write(topology / "thread_siblings_list", ",".join(map(str, core)))
        for name, cpus in (("thread_siblings", core), ("core_cpus", core), ("core_siblings", package)):
            write(topology / name, _mask(cpus))
    for node in record["numa"]:
        one = root / f"sys/devices/system/node/node{node['node']}"
        write(one / "cpulist", node["cpulist"])
        write(one / "cpumap", _mask(cpu_list(node["cpulist"])))
        write(one / "meminfo", f"Node {node['node']} MemTotal:       {node['mem_total_kb']} kB")


def _write_memory(record: Mapping[str, Any], root: Path) -> None:
    write(root / "proc/meminfo", f"MemTotal:       {sum(one['mem_total_kb'] for one in record['numa'])} kB")
    if "dimms" in record:
        devices = [
            f"Handle 0x{number:04X}, DMI type 17, 92 bytes\nMemory Device\n\tSize: {one['size']}\n"
            f"\tLocator: {one['locator']}\n\tBank Locator: {one['bank_locator']}\n\tType: {one['type']}\n"
            f"\tSpeed: {one['speed']}\n\tConfigured Memory Speed: {one['configured']}\n"
            for number, one in enumerate(record["dimms"], 0x20)
        ]
        command(root, "dmidecode", {"args": ["-t", "17"], "stdout": "# dmidecode 3.4\n\n" + "\n".join(devices)})


def _write_gpus(record: Mapping[str, Any], root: Path) -> None:
    cards, driver = record.get("gpus"), record.get("driver") or {}
    if cards is None:
        return
    devices = root / "sys/bus/pci/devices"
    write(devices / "0000:00:00.0/class", "0x060000")
    write(devices / "0000:00:00.0/vendor", "0x8086")
    rows, details = [], []
    for number, card in enumerate(cards):
        address = card["pci_address"]
        one = devices / address
        for name in ("class", "vendor", "device"):
            write(one / name, card[f"pci_{name}"])
        write(one / "numa_node", card.get("numa_node", -1))
        known = table.CARDS.get(card["pci_device"].removeprefix("0x"))
        if known:
            speed = {3: "8.0", 4: "16.0", 5: "32.0"}[known.generation]
            write(one / "max_link_speed", f"{speed} GT/s PCIe")
            write(one / "current_link_width", 16)
        rows.append(
            f"{number}, {card['nvidia_smi_name']}, {card['memory_total_mib']}, {driver.get('version', '[N/A]')}, "
            f"{card['compute_cap']}, 0000{address.upper()}, {card['pci_device']}10DE, "
            f"GPU-00000000-0000-0000-0000-{number:012d}"
        )
        mig = {True: "Enabled", False: "Disabled"}.get(card.get("mig"), "")
        details.append(f'<gpu id="0000{address.upper()}"><mig_mode><current_mig>{mig}</current_mig></mig_mode></gpu>')
    if cards:
        cuda = f"<cuda_version>{driver['cuda']}</cuda_version>" if driver.get("cuda") else ""
        command(
            root,
            "nvidia-smi",
            {"args": ["-q", "-x"], "stdout": f"<nvidia_smi_log>{cuda}{''.join(details)}</nvidia_smi_log>"},
            {"stdout": "\n".join(rows) + "\n"},
        )
    if driver.get("toolkit"):
        command(
            root, "nvcc", {"stdout": f"Cuda compilation tools, release {driver['toolkit']}, V{driver['toolkit']}.1"}
        )


def _write_disk(record: Mapping[str, Any], root: Path) -> None:
    disk = record.get("disk")
    if disk is None:
        return
    text = f"Filesystem 1-blocks Used Available Capacity Mounted on\n/dev/sda1 {disk['total']} 0 {disk['free']} 1% /\n"
    command(root, "df", {"stdout": text})
    if "filesystem" in disk:
        write(root / "proc/self/mountinfo", f"27 1 8:1 / / rw,relatime - {disk['filesystem']} /dev/sda1 rw")
    if "rotational" in disk:
        write(root / "sys/devices/pci/block/sda/queue/rotational", int(disk["rotational"]))
        (root / "sys/devices/pci/block/sda/sda1").mkdir()
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "sys/dev/block/8:1").symlink_to(root / "sys/devices/pci/block/sda/sda1")


def _write_system(record: Mapping[str, Any], root: Path) -> None:
    if "os" in record:
        name, _, version = record["os"].partition(" ")
        write(root / "etc/os-release", f"ID={name}" + (f'\nVERSION_ID="{version}"' if version else ""))
    if "kernel" in record:
        write(root / "proc/sys/kernel/osrelease", record["kernel"])
    if "glibc" in record:
        command(root, "getconf", {"stdout": f"glibc {record['glibc']}\n"})
    if "python" in record:
        versions = [record["python"]] if isinstance(record["python"], str) else record["python"]
        os.makedirs(root / "usr/bin")
        for version in versions:
            write(root / f"usr/bin/python{version}", "")
