# SPDX-License-Identifier: GPL-3.0-or-later
"""nvidia-smi: what it says of GPUs and driver, and what each of its failures means."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.hardware import gpus, pci
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import (
    NOT_INSTALLED,
    NOT_RECORDED,
    Run,
    Tree,
    answer,
)
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Driver, Gpu

FIELDS = ["index", "name", "memory.total", "driver_version", "compute_cap", "pci.bus_id", "pci.device_id", "uuid"]
INVALID_FIELD = 2
VERSION = "/proc/driver/nvidia/version"

# State and what to do by nvidia-smi's exit status; its manual page lists them.
FAILURES: dict[int, tuple[str, str]] = {
    6: ("no_gpu", "the driver finds no GPU; look at dmesg, power cables and whether the card is passed through"),
    9: ("not_loaded", "the driver is not loaded; install it or load it (modprobe nvidia), see dmesg and dkms status"),
    15: (
        "gpu_error",
        "a GPU does not answer any more; power the machine off and on, then look at dmesg for Xid errors",
    ),
    18: ("reboot_required", "the driver was updated and the old one is still loaded; reboot"),
    124: ("gpu_error", "it did not answer in time; look at dmesg for Xid errors, and reboot"),
    NOT_INSTALLED: ("none", "the driver is not installed; install the NVIDIA driver with its nvidia-smi"),
}


class Row(NamedTuple):
    """A GPU as nvidia-smi lists it."""

    number: int
    name: str
    memory: int | None
    driver: str | None
    compute_capability: str | None
    address: str
    device: str | None


class Detail(NamedTuple):
    """What only nvidia-smi -q -x tells of a GPU."""

    mig: bool | None
    link: int | None


class Answer(NamedTuple):
    rows: list[Row]
    state: str
    reason: str
    """Empty when all is well."""


def value(text: str) -> str | None:
    text = text.strip()
    return None if not text or text.startswith(("[", "N/A")) else text


def parse_rows(text: str, fields: list[str]) -> list[Row]:
    """Rows of --format=csv,noheader,nounits; other lines, such as messages, are passed over."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        given = dict(zip(fields, cells, strict=False))
        if len(cells) != len(fields) or not given["index"].isdigit():
            continue
        memory, device = given["memory.total"], given["pci.device_id"]
        capability = given.get("compute_cap", "")
        rows.append(
            Row(
                int(given["index"]),
                given["name"],
                int(memory) * 2**20 if memory.isdigit() else None,
                value(given["driver_version"]),
                capability if re.fullmatch(r"\d{1,2}\.\d", capability) else None,
                pci.address(given["pci.bus_id"]),
                f"{device[6:10]}:{device[2:6]}".lower() if re.fullmatch(r"0x[0-9A-Fa-f]{8}", device) else None,
            )
        )
    return rows


def ask(run: Run) -> Answer:
    """The GPUs that the driver knows. A driver before the 510 series is asked again without compute_cap."""
    fields = FIELDS
    rc, out, err = query(run, fields)
    if rc == INVALID_FIELD:
        fields = [field for field in FIELDS if field != "compute_cap"]
        rc, out, err = query(run, fields)
    rows = parse_rows(out, fields)
    if rc == 0:
        if rows and rows[0].driver:
            return Answer(rows, "ok", "")
        return Answer(rows, "unknown", "nvidia-smi names no driver version; install the driver anew")
    state, remedy = FAILURES.get(rc, ("unknown", "run nvidia-smi by hand"))
    reason = answer("nvidia-smi", rc, out, err)
    if rc == NOT_RECORDED:
        return Answer(rows, state, f"{reason}; record it, or give driver and gpus")
    return Answer(rows, state, f"{reason}: {remedy}")


def query(run: Run, fields: list[str]) -> tuple[int, str, str]:
    return run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])


def parse_xml(text: str) -> tuple[str | None, dict[str, Detail]]:
    """Newest CUDA of the driver, and details by PCI address; nothing from what is no XML."""
    try:
        log = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None, {}
    details = {}
    for gpu in log.iter("gpu"):
        mig = (gpu.findtext("mig_mode/current_mig") or "").strip()
        generation = gpu.findtext("pci/pci_gpu_link_info/pcie_gen/max_link_gen") or ""
        width = (gpu.findtext("pci/pci_gpu_link_info/link_widths/current_link_width") or "").strip().removesuffix("x")
        details[pci.address(gpu.get("id", ""))] = Detail(
            {"Enabled": True, "Disabled": False, "N/A": False}.get(mig),
            gpus.link(*(int(text) if text.strip().isdigit() else None for text in (generation, width))),
        )
    return value(log.findtext("cuda_version") or ""), details


def toolkit(tree: Tree, run: Run) -> str | None:
    """Version of the CUDA toolkit, as in 12.4; None when there is none."""
    _, out, _ = run(["nvcc", "--version"])
    found = re.search(r"release (\d+\.\d+)", out)
    if found:
        return found[1]
    try:
        version = json.loads(tree.text("/usr/local/cuda/version.json") or "{}")["cuda"]["version"]
        return ".".join(str(version).split(".")[:2])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def loaded(tree: Tree) -> str | None:
    """Version of the kernel module that is loaded."""
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.\d+(?:\.\d+)*)", tree.text(VERSION) or "")
    return found[1] if found else None


def memory_reason(device: pci.Device | None, said: Answer) -> str:
    if device and device.driver not in (None, "nvidia"):
        return (
            f"the kernel's driver of this GPU is {device.driver}, so engines cannot use it; "
            "give it to the NVIDIA driver (blacklist nouveau, or end the pass-through), then reboot"
        )
    if said.state == "ok":
        return "nvidia-smi does not list this GPU or its memory; look at dmesg for Xid errors"
    return f"memory is known from nvidia-smi only: {said.reason}"


def read(tree: Tree, run: Run, nodes: int, unknown: dict[str, str]) -> tuple[list[Gpu], Driver]:
    """GPUs in nvidia-smi's order, then those only the PCI bus shows; and the driver."""
    devices = pci.scan(tree)
    said = ask(run)
    if devices is None and not said.rows:
        unknown["gpus"] = f"{tree.why(pci.DEVICES)}, and {said.reason or 'nvidia-smi lists none'}: taken as none"
    on_bus = {device.address: device for device in devices or []}
    cuda, details = parse_xml(run(["nvidia-smi", "-q", "-x"])[1]) if said.rows else (None, {})
    found: list[Gpu] = []
    for row in said.rows:
        device, detail = on_bus.pop(row.address, None), details.get(row.address, Detail(None, None))
        found.append(
            gpus.describe(
                len(found),
                unknown,
                index=row.number,
                name=row.name,
                memory=row.memory,
                memory_reason=memory_reason(device, said),
                compute_capability=row.compute_capability,
                pci_address=row.address,
                pci_device=row.device or (device.device if device else None),
                numa_node=device.numa_node if device else None,
                nodes=nodes,
                link=detail.link or (device.link if device else None),
                mig=detail.mig,
            )
        )
    for device in on_bus.values():
        found.append(
            gpus.describe(
                len(found),
                unknown,
                index=None,
                name=None,
                memory=None,
                memory_reason=memory_reason(device, said),
                compute_capability=None,
                pci_address=device.address,
                pci_device=device.device,
                numa_node=device.numa_node,
                nodes=nodes,
                link=device.link,
                mig=None,
            )
        )
    return found, describe(tree, run, said, cuda, bool(found), devices is not None, unknown)


def describe(
    tree: Tree, run: Run, said: Answer, cuda: str | None, present: bool, bus: bool, unknown: dict[str, str]
) -> Driver:
    module = loaded(tree)
    state, reason = said.state, said.reason
    if state == "none" and module:
        state = "unknown"
        reason = f"the driver {module} is loaded, but nvidia-smi is not installed; install it, in the driver's version"
    if not present and bus and said.state in ("none", "unknown"):
        state, reason = ("none" if said.state == "none" else "no_gpu"), ""
    driver = Driver(
        state=state,
        version=(said.rows[0].driver if said.rows else None) or module,
        cuda=cuda,
        toolkit=toolkit(tree, run),
    )
    explain(driver, reason, present, unknown)
    return driver


def explain(driver: Driver, reason: str, present: bool, unknown: dict[str, str]) -> None:
    """Reasons for what is unknown of the driver; a host without a GPU needs none."""
    if reason:
        unknown["driver"] = reason
    elif present:
        if driver["cuda"] is None:
            unknown["driver.cuda"] = "nvidia-smi -q -x names no CUDA version; run it by hand"
        if driver["toolkit"] is None:
            unknown["driver.toolkit"] = (
                "nvcc and /usr/local/cuda/version.json are missing; only builds from source need the CUDA toolkit"
            )
