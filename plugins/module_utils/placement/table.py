# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from ansible_collections.onprem.llm.plugins.module_utils.placement import words
from ansible_collections.onprem.llm.plugins.module_utils.placement.memory import used
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory, Placement, Plan

# A bar is this many characters; up to as many GPUs are drawn with one character each.
BAR = 10
LEVELS = "▁▂▃▄▅▆▇█"
LEGEND = "█ this model, ▓ models before, ▒ kept free, ░ free; several GPUs: a column each"
VERDICTS = {"memory": "fits", "paged": "paged", "no": "does not fit"}
# How a row is broken into lines; the first that is narrow enough is taken.
WIDE = ("model", "engine", "quantisation", "gpu", "ram", "conversation", "speed", "verdict")
LAYOUTS = (
    (WIDE,),
    (("model", "engine", "quantisation", "conversation", "speed", "verdict"), ("gpu", "ram")),
    (("model", "engine", "quantisation", "verdict"), ("conversation", "speed"), ("gpu", "ram")),
    tuple((key,) for key in WIDE),
)


def render(plan: Plan, width: int = 120) -> str:
    """At most ``width`` characters per line (from 60 on), without colours."""
    width = max(width, 60)
    hosts = words.per_host(plan)
    cells = {id(p): _cells(p) for placements in hosts.values() for p in placements}
    sums = {host: {} if plan["what_if"] else _sum(placements) for host, placements in hosts.items()}
    rows = [*cells.values(), *(row for row in sums.values() if row)]
    sizes = {key: max((len(row[key]) for row in rows), default=0) for key in WIDE}

    lines = [*_wrapped(plan["title"], width), "=" * min(len(plan["title"]), width)]
    if plan["what_if"]:
        lines += _wrapped(words.WHAT_IF, width)
    for note in plan["notes"]:
        lines += _wrapped(note, width)
    if rows:
        lines += _wrapped(LEGEND, width)
    for host, placements in hosts.items():
        lines += ["", *_wrapped(_heading(plan, host), width, indent=2, first=0)]
        if not placements:
            lines.append("  nothing is placed here")
        for placement in placements:
            lines += _row(cells[id(placement)], sizes, width)
            lines += _explained(placement, width)
        if row := sums[host]:
            lines += _row(row, sizes, width)
    if plan["changes"]:
        lines += ["", "What changes"]
        for change in plan["changes"]:
            lines += _wrapped(change, width, indent=4, first=2)
    lines.append("")
    for sentence in (words.summary(plan), *words.stops(plan)):
        lines += _wrapped(sentence, width)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _heading(plan: Plan, host: str) -> str:
    hardware = plan["hosts"].get(host)
    if hardware is None:
        return f"{host}: nothing is known of this machine"
    return f"{host}: " + " · ".join((words.cpu(hardware), words.ram(hardware), words.gpus(hardware)))


def _cells(placement: Placement) -> dict[str, str]:
    gpus = [d for d in placement["memory"] if d["device"] != "ram"]
    ram = [d for d in placement["memory"] if d["device"] == "ram"]
    return {
        "model": placement["model"],
        "engine": placement["engine"] or "-",
        "quantisation": placement["quantisation"] or "-",
        "gpu": f"GPU {_gpus(gpus)}",
        "ram": f"RAM {_bar(ram[0])} {_figures(ram[0])}" if ram else "RAM -",
        "conversation": words.conversation(placement),
        "speed": words.speed(placement),
        "verdict": VERDICTS[placement["fits"]],
    }


def _sum(placements: Sequence[Placement]) -> dict[str, str]:
    """A row for all models of a host, where there are several."""
    if sum(p["fits"] != "no" for p in placements) < 2:
        return {}
    devices = words.together(placements)
    row = dict.fromkeys(WIDE, "") | {"model": "together"}
    row["gpu"] = f"GPU {_gpus([d for d in devices if d['device'] != 'ram'])}"
    row["ram"] = "".join(f"RAM {_bar(d)} {_figures(d)}" for d in devices if d["device"] == "ram")
    return row


def _bar(device: DeviceMemory) -> str:
    """Always BAR characters; what is too much is cut off, and said in a line of its own."""
    scale = max(device["capacity"], words.total(device), 1)
    bar, reached = "", 0
    for size, mark in ((device["others"], "▓"), (used(device), "█"), (device["reserve"], "▒")):
        reached += size
        bar += mark * (round(BAR * reached / scale) - len(bar))
    return bar.ljust(BAR, "░")


def _gpus(devices: Sequence[DeviceMemory]) -> str:
    """One is a bar. Of several, each is a column, and the figures are of the one where the model takes most."""
    if not devices:
        return "-"
    most = max(devices, key=used)
    if len(devices) == 1:
        return f"{_bar(most)} {_figures(most)}"
    columns = "".join(_level(d) for d in devices) if len(devices) <= BAR else f"{len(devices)} × {_bar(most)}"
    return f"{columns} max {_figures(most)}"


def _level(device: DeviceMemory) -> str:
    share = (words.total(device) - device["reserve"]) / max(device["capacity"], 1)
    return LEVELS[min(len(LEVELS) - 1, int(share * len(LEVELS)))]


def _figures(device: DeviceMemory) -> str:
    return f"{words.gib(used(device)):>5}/{words.gib(device['capacity'])} GiB"


def _row(cells: Mapping[str, str], sizes: Mapping[str, int], width: int) -> list[str]:
    """Every row of a plan is broken alike, since a column has one size in all of them."""
    sizes = {key: min(size, width - 6) for key, size in sizes.items()}

    def needed(layout: Sequence[Sequence[str]]) -> int:
        return max((6 if keys != layout[0] else 2) + sum(sizes[key] + 2 for key in keys) - 2 for keys in layout)

    layout = next((found for found in LAYOUTS if needed(found) <= width), LAYOUTS[-1])
    lines: list[str] = []
    for keys in layout:
        lines.append((" " * 6 if lines else "  ") + "  ".join(_cut(cells[key], sizes[key]) for key in keys))
    return [line for line in lines if line.strip()]


def _cut(text: str, size: int) -> str:
    return (text if len(text) <= size else text[: size - 1] + "…").ljust(size)


def _explained(placement: Placement, width: int) -> list[str]:
    said = [("why", reason) for reason in placement["reasons"]]
    if placement["pinned"]:
        said.append(("pinned", ", ".join(placement["pinned"])))
    if placement["fits"] != "memory":
        said += [("missing", text) for text in words.missing(placement)]
    said += [("not", text) for text in words.refused(placement, better=False)]
    said += [("better", text) for text in words.refused(placement, better=True)]
    if placement["fits"] != "memory":
        said += [("instead", text) for text in words.alternatives(placement)]
    lines, before = [], ""
    for topic, text in said:
        start = "" if topic == before else f"{topic}:"
        before = topic
        first, *more = _wrapped(text, width, indent=16)
        lines += [f"      {start:<10}{first[16:]}", *more]
    return lines


def _wrapped(text: str, width: int, indent: int = 0, first: int | None = None) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=" " * (indent if first is None else first),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    ) or [""]
