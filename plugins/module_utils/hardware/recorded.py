# SPDX-License-Identifier: GPL-3.0-or-later
"""A recorded or imagined machine, as a file describes it. What is absent is unknown, and the reasons say so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware import (
    cpu,
    disk,
    gpus,
    memory,
    numa,
    nvidia,
    pci,
    system,
)
from ansible_collections.onprem.llm.plugins.module_utils.hardware.read import explain_bandwidth, explain_cpu
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import (
    Dimms,
    Disk,
    Driver,
    Gpu,
    Hardware,
    Memory,
    Node,
    System,
)

MOST_GPUS = 64


def records(text: str) -> list[dict[str, Any]]:
    """The machines of a file; ValueError says what is wrong and where."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is not JSON ({error}). Give a list of recorded machines.") from None
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise ValueError("A list of recorded machines is needed, each an object with id, cpu and numa.")
    names = [need(one, "id", str, f"machine {position}") for position, one in enumerate(found, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Machine {', '.join(twice)} is recorded twice; give each an id of its own.")
    return found


def need(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a key that must be there."""
    if key not in record:
        raise ValueError(f"{where}: `{key}` is missing; add it as in tests/fixtures/hardware/machines.json.")
    return typed(record[key], key, kind, where)


def typed(value: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = {str: "a text", int: "a whole number", list: "a list", dict: "an object", bool: "true or false"}
        raise ValueError(f"{where}: `{key}` is {value!r}, not {' or '.join(words[one] for one in kinds)}.")
    return value


def optional(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    return None if record.get(key) is None else typed(record[key], key, kind, where)


def from_record(record: Mapping[str, Any]) -> Hardware:
    """The hardware of one record; ValueError names the record, the key and the way out.

    Needed: id, cpu (vendor_id, model_name, flags, online, offline) and numa (node, cpulist, mem_total_kb). Optional:
    cpu_map (CPU -> socket, core, node; without it cpu needs sockets and threads_per_core instead of online), dimms
    (rows of dmidecode -t 17), gpus (as in gpus.json, with count, numa_node, pci_address and mig where known), os
    ("debian 13"), kernel, glibc, python (version or versions), driver (version, or an object with version, cuda and
    toolkit), disk (path, total, free in bytes, filesystem, rotational).
    """
    name = need(record, "id", str, "a recorded machine")
    unknown: dict[str, str] = {}
    processor = need(record, "cpu", dict, name)
    info = cpu.parse_cpuinfo(
        "\n".join(
            f"{written}: {typed(processor.get(key, ''), key, str, f'{name}: cpu')}"
            for key, written in (("vendor_id", "vendor_id"), ("model_name", "model name"), ("flags", "flags"))
        )
    )
    if not info.architecture:
        unknown["architecture"] = absent("cpu.flags")
    explain_cpu(info, info.architecture, "the record does not tell", unknown)
    listed = need(record, "numa", list, name)
    topology: cpu.Topology
    if "cpu_map" in record:
        online = cpus(processor, "online", f"{name}: cpu")
        topology = topology_of(typed(record["cpu_map"], "cpu_map", dict, name), online, name)
    else:
        topology = imagined(processor, listed, name)
        online = sorted(topology)
        unknown["cpu.topology"] = absent("cpu_map") + ": cores and sockets follow from cpu and numa"
    nodes = [node_of(one, topology, name) for one in listed]
    if not any(node["cpus"] for node in nodes):
        raise ValueError(f"{name}: `numa` has no node with CPUs; give at least node 0 with cpulist and mem_total_kb.")
    numbers = [node["id"] for node in nodes]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name}: `numa` has a node twice; its nodes are {numbers}.")
    total = sum(node["memory"] for node in nodes)
    unknown["memory.available"] = absent("memory in use") + ": all of it is taken as free"
    unknown.update({f"numa.{node['id']}.available": unknown["memory.available"] for node in nodes})
    cards, driver = gpus_of(record, name, numbers, unknown)
    modules = dimms_of(record, name, info, topology, unknown)
    return Hardware(
        id=name,
        architecture=info.architecture,
        cpu=cpu.describe(info, topology, cpus(processor, "offline", f"{name}: cpu"), float(len(online))),
        numa=nodes,
        memory=Memory(
            total=total,
            available=None,
            limit=None,
            dimms=modules,
            bandwidth=explain_bandwidth(modules, unknown),
            measured=None,
        ),
        gpus=cards,
        driver=driver,
        disk=disk_of(record, name, unknown),
        system=system_of(record, name, info, unknown),
        unknown=unknown,
    )


def absent(key: str) -> str:
    return f"the record does not tell {key}"


def cpus(record: Mapping[str, Any], key: str, where: str) -> list[int]:
    text = need(record, key, str, where) if key == "online" else typed(record.get(key, ""), key, str, where)
    try:
        found = cpu.cpu_list(text)
    except ValueError as error:
        raise ValueError(f"{where}: `{key}` is no list of CPUs such as 0-31,64-95 ({error}).") from None
    if key == "online" and not found:
        raise ValueError(f"{where}: `online` is empty; a machine has at least one CPU.")
    return found


def topology_of(places: Mapping[str, Any], online: list[int], name: str) -> dict[int, cpu.Place]:
    topology = {}
    for number in online:
        where = f"{name}: cpu_map"
        one = need(places, str(number), dict, where)
        topology[number] = cpu.Place(
            need(one, "socket", int, f"{where}: {number}"), str(need(one, "core", int, f"{where}: {number}"))
        )
    return topology


def imagined(processor: Mapping[str, Any], nodes: Sequence[Any], name: str) -> cpu.Topology:
    """Cores and sockets of a machine nobody has looked at: nodes in the order of the sockets, second threads last."""
    where = f"{name}: cpu"
    sockets, per_core = (typed(processor.get(key, 1), key, int, where) for key in ("sockets", "threads_per_core"))
    topology = {}
    for place, node in enumerate(nodes):
        listed = cpus({"cpulist": "", **typed(node, "numa", dict, name)}, "cpulist", f"{name}: numa")
        cores = max(1, len(listed) // max(1, per_core))
        for position, number in enumerate(listed):
            topology[number] = cpu.Place(place * max(1, sockets) // len(nodes), f"{place}.{position % cores}")
    return topology


def node_of(record: Any, topology: cpu.Topology, name: str) -> Node:
    where = f"{name}: numa"
    number = need(typed(record, "numa", dict, name), "node", int, where)
    where = f"{where}: node {number}"
    memory_kb = need(record, "mem_total_kb", int, where)
    if memory_kb < 0:
        raise ValueError(f"{where}: `mem_total_kb` is {memory_kb}; memory is not negative.")
    return numa.describe(number, cpus({"cpulist": "", **record}, "cpulist", where), topology, memory_kb * 1024, None)


def dimms_of(
    record: Mapping[str, Any], name: str, info: cpu.Info, topology: cpu.Topology, unknown: dict[str, str]
) -> Dimms | None:
    rows = optional(record, "dimms", list, name)
    if rows is None:
        unknown["memory.dimms"] = absent("dimms")
        return None
    for row in rows:
        typed(row, "dimms", dict, name)
    return memory.populated(rows, info, topology, unknown)


def gpus_of(
    record: Mapping[str, Any], name: str, nodes: list[int], unknown: dict[str, str]
) -> tuple[list[Gpu], Driver]:
    listed = optional(record, "gpus", list, name)
    if listed is None:
        unknown["gpus"] = absent("gpus") + ": taken as none; add `gpus: []` to say so"
    found: list[Gpu] = []
    for one in listed or []:
        where = f"{name}: gpus"
        count = optional(typed(one, "gpus", dict, name), "count", int, where) or 1
        if not 0 < count <= MOST_GPUS or len(found) + count > MOST_GPUS:
            raise ValueError(f"{where}: `count` is {count}; at most {MOST_GPUS} GPUs are planned for one machine.")
        found += [gpu_of(one, len(found) + number, nodes, where, unknown) for number in range(count)]
    return found, driver_of(record, name, listed, unknown)


def gpu_of(one: Mapping[str, Any], position: int, nodes: list[int], where: str, unknown: dict[str, str]) -> Gpu:
    title = need(one, "nvidia_smi_name", str, where)
    mebibytes = optional(one, "memory_total_mib", int, f"{where}: {title}")
    if mebibytes is not None and mebibytes <= 0:
        raise ValueError(f"{where}: {title}: `memory_total_mib` is {mebibytes}; leave it out when it is not known.")
    near = optional(one, "numa_node", int, f"{where}: {title}")
    if near is not None and near not in nodes:
        raise ValueError(f"{where}: {title}: `numa_node` is {near}; the machine's nodes are {nodes}.")
    device = optional(one, "pci_device", str, f"{where}: {title}")
    place = optional(one, "pci_address", str, f"{where}: {title}")
    return gpus.describe(
        position,
        unknown,
        index=position,
        name=title,
        memory=mebibytes * 2**20 if mebibytes else None,
        memory_reason=absent("memory_total_mib") + "; the name alone does not tell it",
        compute_capability=optional(one, "compute_cap", str, f"{where}: {title}"),
        pci_address=pci.address(place) if place else None,
        pci_device=f"{gpus.VENDOR}:{device.removeprefix('0x').lower()}" if device else None,
        numa_node=near,
        nodes=len(nodes),
        link=None,
        mig=optional(one, "mig", bool, f"{where}: {title}"),
    )


def driver_of(record: Mapping[str, Any], name: str, listed: Sequence[Any] | None, unknown: dict[str, str]) -> Driver:
    given = optional(record, "driver", (str, dict), name) or {}
    given = {"version": given} if isinstance(given, str) else given
    where = f"{name}: driver"
    version, cuda, toolkit = (optional(given, key, str, where) for key in ("version", "cuda", "toolkit"))
    driver = Driver(state="ok" if version and listed else "unknown", version=version, cuda=cuda, toolkit=toolkit)
    if listed == []:
        driver["state"] = "no_gpu"
    reason = "" if driver["state"] != "unknown" else absent("driver") + "; add its version"
    nvidia.explain(driver, reason, bool(listed), unknown)
    return driver


def disk_of(record: Mapping[str, Any], name: str, unknown: dict[str, str]) -> Disk | None:
    given = optional(record, "disk", dict, name)
    if given is None:
        unknown["disk"] = absent("disk") + ": the room for models is unknown"
        return None
    where = f"{name}: disk"
    filesystem = optional(given, "filesystem", str, where)
    found = Disk(
        path=optional(given, "path", str, where) or "/",
        total=need(given, "total", int, where),
        free=need(given, "free", int, where),
        filesystem=filesystem,
        network=bool(optional(given, "network", bool, where)) or disk.is_network(filesystem or ""),
        rotational=optional(given, "rotational", bool, where),
    )
    for fact in ("filesystem", "rotational"):
        if given.get(fact) is None:
            unknown[f"disk.{fact}"] = absent(f"disk.{fact}")
    return found


def system_of(record: Mapping[str, Any], name: str, info: cpu.Info, unknown: dict[str, str]) -> System:
    given = optional(record, "os", str, name)
    title = re.fullmatch(r"\s*([A-Za-z]\S*)(?:\s+(\d\S*))?\s*", given or "")
    if given and not title:
        raise ValueError(f"{name}: `os` is {given!r}; write it as in `debian 13`.")
    python = optional(record, "python", (str, list), name)
    versions = [python] if isinstance(python, str) else python
    for one in versions or []:
        if not isinstance(one, str) or not re.fullmatch(r"3\.\d{1,3}", one):
            raise ValueError(f"{name}: `python` is {one!r}; write versions as in `3.11`, in quotes.")
    found = System(
        distribution=title[1].lower() if title else None,
        version=title[2] if title else None,
        kernel=optional(record, "kernel", str, name),
        glibc=optional(record, "glibc", str, name),
        python=system.pythons([f"python{one}" for one in versions]) if versions is not None else None,
        virtualisation=system.virtualisation(info),
        container=None,
    )
    keys = {"distribution": "os", "version": "the version of os"}
    system.explain(found, {fact: absent(keys.get(fact, fact)) for fact in System.__annotations__}, unknown)
    return found
