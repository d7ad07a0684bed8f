# SPDX-License-Identifier: GPL-3.0-or-later
"""The words and figures that the table and the page of a plan share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Gpu, Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement.memory import free
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import (
    DeviceMemory,
    Placement,
    Plan,
)

PARTS = {
    "weights": "weights",
    "kv_cache": "KV cache",
    "compute": "compute",
    "overhead": "engine",
    "others": "other models",
    "reserve": "kept free",
}
WHAT_IF = "What-if: the machines come from a file, no host was asked. Each model has each machine for itself."
OWN = ("weights", "kv_cache", "compute", "overhead")
VERDICTS = {"memory": "fits in memory", "paged": "paged from disk", "no": "does not fit"}
# What Intel and AMD write around the name of a processor.
TRADEMARKS = re.compile(r"\((?:R|TM|r|tm)\)|\bCPU\b|\bProcessor\b|\b\d+-Core\b|@ .*$")


def gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def gb(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 99.95e9 else f"{size / 1e9:.1f} GB"


def rate(speed: float) -> str:
    """Tokens per second with two or three significant figures: more would promise too much."""
    if speed < 9.95:
        return f"{speed:.2f}" if speed < 0.995 else f"{speed:.1f}"
    return f"{float(f'{speed:.3g}'):.0f}"


def band(middle: float | None, low: float | None, high: float | None) -> str:
    """As in 19 (15-23); a figure without its band is shown without brackets."""
    if middle is None:
        return "-"
    return rate(middle) if low is None or high is None else f"{rate(middle)} ({rate(low)}-{rate(high)})"


def speed(placement: Placement) -> str:
    """An embedding model only reads, so its speed is that of reading."""
    found = placement["predicted"]
    if found is None:
        return "-"
    if placement["kind"] == "embedding":
        return band(found["prefill"], found["prefill_low"], found["prefill_high"]) + " tok/s read"
    return band(found["decode"], found["decode_low"], found["decode_high"]) + " tok/s"


def conversation(placement: Placement) -> str:
    return f"{placement['context']} × {placement['slots']}" if placement["context"] else "-"


def counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


def cpu(hardware: Hardware) -> str:
    found = hardware["cpu"]
    name = re.sub(r"\s+", " ", TRADEMARKS.sub(" ", found["model"])).strip() or hardware["architecture"]
    sockets = f"{found['sockets']} × " if found["sockets"] > 1 else ""
    # The widest instruction set says the most about the speed of the others.
    isa = "AMX" if any(name.startswith("amx") for name in found["isa"]) else ""
    isa = isa or ("AVX-512" if "avx512f" in found["isa"] else "AVX2" if "avx2" in found["isa"] else "")
    return f"{sockets}{name}, {counted(found['cores'], 'core')}" + (f", {isa}" if isa else "")


def ram(hardware: Hardware) -> str:
    memory = hardware["memory"]
    text = f"{gib(memory['total'])} GiB RAM"
    if memory["limit"] and memory["limit"] < memory["total"]:
        text += f" (limited to {gib(memory['limit'])} GiB)"
    if memory["dimms"]:
        text += f", {memory['dimms']['channels']} × {memory['dimms']['type']}-{memory['dimms']['speed']}"
    return text


def gpus(hardware: Hardware) -> str:
    """Equal ones are counted."""

    def name(gpu: Gpu) -> str:
        size = f" {gib(gpu['memory'])} GiB" if gpu["memory"] else ", memory unknown"
        return re.sub(r"^NVIDIA (GeForce )?", "", gpu["name"]) + size

    names = [name(gpu) for gpu in hardware["gpus"]]
    if not names:
        return "no GPU"
    text = ", ".join(
        (f"{names.count(one)} × " if names.count(one) > 1 else "") + one for one in sorted(set(names), key=names.index)
    )
    state = hardware["driver"]["state"]
    return text if state == "ok" else f"{text} (driver: {state.replace('_', ' ')})"


def total(device: DeviceMemory) -> int:
    """All that is spoken for on a device, its reserve and the models placed before included."""
    return device["capacity"] - free(device)


def label(device: DeviceMemory) -> str:
    return "RAM" if device["device"] == "ram" else device["device"]


def refused(placement: Placement, better: bool) -> list[str]:
    """Engines and variants that were not chosen, each with its reason; those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for one in placement["rejected"]:
        if one["better"] == better:
            name = f"{one['engine']} {one['variant']}".strip() or "any engine"
            reasons.setdefault(one["reason"], []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def alternatives(placement: Placement) -> list[str]:
    """Without the better engines, which stand among those that were not chosen."""
    said = {one["reason"] for one in placement["rejected"] if one["better"]}
    return [text for text in placement["alternatives"] if text not in said]


def missing(placement: Placement) -> list[str]:
    """Per device what it lacks, as in: 2.1 GiB of gpu0."""
    return [f"{gib(-free(device))} GiB of {label(device)}" for device in placement["memory"] if free(device) < 0]


def together(placements: Sequence[Placement]) -> list[DeviceMemory]:
    """What the models of one host take together. ``others`` is what was taken before any of them.

    Not for a what-if plan: there each model has the machine for itself.
    """
    devices: dict[str, DeviceMemory] = {}
    for placement in placements:
        if placement["fits"] == "no":
            continue
        for device in placement["memory"]:
            if device["device"] not in devices:
                devices[device["device"]] = device.copy()
                continue
            sums = devices[device["device"]]
            for part in OWN:
                sums[part] += device[part]  # type: ignore[literal-required]
            sums["others"] = min(sums["others"], device["others"])
            sums["reserve"] = max(sums["reserve"], device["reserve"])
    return list(devices.values())


def per_host(plan: Plan) -> dict[str, list[Placement]]:
    """Every host of the plan with its placements, also one without any."""
    hosts: dict[str, list[Placement]] = {host: [] for host in plan["hosts"]}
    for placement in plan["placements"]:
        hosts.setdefault(placement["host"], []).append(placement)
    return hosts


def summary(plan: Plan) -> str:
    """As in: 3 models on 2 hosts: 2 fit in memory and 1 is paged from disk. Files: 12.0 GB."""
    placements = plan["placements"]
    count = {fits: sum(p["fits"] == fits for p in placements) for fits in VERDICTS}
    said = [
        (count["memory"], "fits in memory", "fit in memory"),
        (count["paged"], "is paged from disk", "are paged from disk"),
        (count["no"], "does not fit", "do not fit"),
    ]
    models = len({p["model"] for p in placements})
    where = f"{counted(models, 'model')} on {counted(len({p['host'] for p in placements}), 'host')}"
    if not placements:
        return "No model is to be served."
    if len(placements) != models:
        where = f"{counted(len(placements), 'placement')} of {where}"
    verdicts = listed([counted(number, one, many) for number, one, many in said if number])
    # Of machines that are not there nobody downloads everything.
    size = 0 if plan["what_if"] else sum(p["disk"] for p in placements if p["fits"] != "no")
    return f"{where}: {verdicts}." + (f" Files: {gb(size)}." if size else "")


def stops(plan: Plan) -> list[str]:
    """What stops the run before anything is downloaded, in sentences; empty when nothing does."""
    if plan["what_if"]:
        return []
    unfit = [f"{p['model']} on {p['host']}" for p in plan["placements"] if p["fits"] == "no"]
    paged = [f"{p['model']} on {p['host']}" for p in plan["placements"] if p["fits"] == "paged"]
    said = []
    if unfit:
        said.append(f"Stops before any download: {listed(unfit)} {'does' if len(unfit) == 1 else 'do'} not fit.")
    if paged:
        said.append(
            f"Stops unless placement_allow_paging is set: {listed(paged)} would read weights from disk for every token."
        )
    return said
