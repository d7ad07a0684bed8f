# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan as one HTML page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

import html
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import words
from ansible_collections.onprem.llm.plugins.module_utils.placement.memory import free, used
from ansible_collections.onprem.llm.plugins.module_utils.placement.page_style import STYLE
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import (
    DeviceMemory,
    Placement,
    Plan,
    Speed,
)

# Nothing in the page may load or run, whatever a model is called.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
VOID = {"meta", "br"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def el(tag: str, *inside: str | None, **attributes: str | None) -> Html:
    """An element. What is not Html is escaped, so no text of a plan can become markup."""
    names = {"class_": "class", "for_": "for", "http_equiv": "http-equiv", "aria_label": "aria-label"}
    given = "".join(
        f' {names.get(name, name)}="{html.escape(value)}"' for name, value in attributes.items() if value is not None
    )
    text = "".join(part if isinstance(part, Html) else html.escape(part) for part in inside if part)
    return Html(f"<{tag}{given}>" if tag in VOID else f"<{tag}{given}>{text}</{tag}>")


def join(parts: Iterable[Html]) -> Html:
    return Html("".join(parts))


def render(plan: Plan) -> str:
    hosts = words.per_host(plan)
    axes = _axes(plan["placements"])
    body = (
        el(
            "header",
            el("h1", plan["title"]),
            el("p", words.summary(plan), class_="summary"),
            *(el("p", sentence, class_="stops") for sentence in words.stops(plan)),
            el("p", words.WHAT_IF, class_="note") if plan["what_if"] else None,
            *(el("p", note, class_="note") for note in plan["notes"]),
        ),
        el(
            "main",
            _overview([p for found in hosts.values() for p in found]) if len(plan["placements"]) > 1 else None,
            *(_host(plan, host, found, axes) for host, found in hosts.items()),
            _changes(plan["changes"]),
        ),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="color-scheme", content="light dark"),
        el("title", plan["title"]),
        el("style", Html(STYLE)),
    )
    return "<!doctype html>\n" + el("html", head, el("body", *body), lang="en") + "\n"


def _overview(placements: Sequence[Placement]) -> Html:
    """Every placement in a line; on a narrow screen the cells of a line stand below each other."""
    rows = [
        el(
            "tr",
            el("th", el("a", p["model"], href=f"#{_anchor(p)}"), scope="row"),
            el("td", p["host"]),
            el("td", f"{p['engine'] or '-'} {p['quantisation']}".strip()),
            el("td", words.conversation(p), class_="number"),
            el("td", words.speed(p), class_="number"),
            el("td", _badge(p)),
        )
        for p in placements
    ]
    titles = [("Model", None), ("Host", None), ("Engine", None), ("Context × slots", "number"), ("Speed", "number")]
    head = el("tr", *(el("th", title, scope="col", class_=kind) for title, kind in [*titles, ("Verdict", None)]))
    return el(
        "section",
        el("h2", "At a glance"),
        el("table", el("thead", head), el("tbody", *rows)),
        class_="overview",
    )


def _anchor(placement: Placement) -> str:
    return f"{placement['host']}--{placement['model']}"


def _badge(placement: Placement) -> Html:
    return el("span", words.VERDICTS[placement["fits"]], class_=f"badge {placement['fits']}")


def _host(plan: Plan, host: str, placements: Sequence[Placement], axes: Mapping[str, _Axis]) -> Html:
    hardware = plan["hosts"].get(host)
    placed = [p for p in placements if p["fits"] != "no" and not plan["what_if"]]
    return el(
        "section",
        el("h2", host),
        el("p", *_facts(hardware), class_="facts"),
        _memory(words.together(placed), placed, el("h3", "Memory of the host", class_="small")) if placed else None,
        *(_model(p, axes, alone=placed == [p]) for p in placements),
        el("p", "Nothing is placed here.", class_="note") if not placements else None,
        _unknown(hardware),
        class_="host",
    )


def _facts(hardware: Hardware | None) -> list[str]:
    if hardware is None:
        return ["Nothing is known of this machine."]
    facts = [words.cpu(hardware), words.ram(hardware)]
    bandwidth = hardware["memory"]["bandwidth"]
    measured = hardware["memory"]["measured"]
    if measured:
        facts.append(f"{sum(measured.values()) / 1e9:.0f} GB/s measured")
    elif bandwidth:
        facts.append(f"{bandwidth / 1e9:.0f} GB/s in theory")
    facts.append(words.gpus(hardware))
    system = hardware["system"]
    facts.append(" ".join(part for part in (system["distribution"], system["version"]) if part))
    if hardware["disk"]:
        facts.append(f"{words.gb(hardware['disk']['free'])} free for models")
    return [el("span", fact) for fact in facts if fact]


def _unknown(hardware: Hardware | None) -> Html | None:
    if hardware is None or not hardware["unknown"]:
        return None
    facts: dict[str, list[str]] = {}
    for fact, why in hardware["unknown"].items():
        facts.setdefault(why, []).append(fact)
    rows = [el("li", f"{words.listed(names)}: {why}") for why, names in facts.items()]
    return el("details", el("summary", "What is unknown of this host"), el("ul", *rows))


def _memory(devices: Sequence[DeviceMemory], placements: Sequence[Placement], title: Html) -> Html | None:
    """Bars per device: GPUs in their order, then RAM, below which its nodes stand."""
    if not devices:
        return None
    devices = sorted(devices, key=lambda d: (d["device"] == "ram", len(d["device"]), d["device"]))
    shown = [part for part in words.PARTS if any(d[part] for d in devices)]  # type: ignore[literal-required]
    legend = el("ul", *(el("li", words.PARTS[part], class_=part) for part in shown), class_="legend")
    return el(
        "div",
        title,
        legend,
        el("div", *(_device(d) for d in devices), *_nodes(placements), class_="bars"),
        _figures(devices, shown),
        class_="use",
    )


def _device(device: DeviceMemory) -> Html:
    parts = {part: int(device[part]) for part in words.PARTS}  # type: ignore[literal-required]
    return _bar(words.label(device), device["capacity"], parts)


def _nodes(placements: Sequence[Placement]) -> list[Html]:
    """RAM per NUMA node, where there are several. What a model has there is mixed as in the whole RAM."""
    capacity: dict[int, int] = {}
    parts: dict[int, dict[str, int]] = {}
    for placement in placements:
        ram = next((d for d in placement["memory"] if d["device"] == "ram"), None)
        if ram is None:
            continue
        for node in placement["nodes"]:
            capacity[node["node"]] = node["capacity"]
            sums = parts.setdefault(node["node"], {})
            for part in words.OWN:
                share = ram[part] * node["used"] // max(used(ram), 1)  # type: ignore[literal-required]
                sums[part] = sums.get(part, 0) + share
    if len(capacity) < 2:
        return []
    return [_bar(f"NUMA {node}", capacity[node], parts[node], "row node") for node in sorted(capacity)]


def _bar(label: str, capacity: int, parts: Mapping[str, int], kind: str = "row") -> Html:
    """A bar whose box is the capacity; of what is too much, the box is what there would have to be."""
    total = sum(parts.values())
    scale = max(capacity, total, 1)
    taken = total - parts.get("reserve", 0)
    figures = f"{words.gib(taken)} of {words.gib(capacity)} GiB"
    spoken = ", ".join(f"{words.PARTS[part]} {words.gib(size)}" for part, size in parts.items() if size)
    lacking = f"{words.gib(total - capacity)} GiB missing" if total > capacity else None
    inside = [
        el("span", class_=f"part {part}", style=f"width:{100 * size / scale:.2f}%")
        for part, size in parts.items()
        if size
    ]
    if lacking:
        inside.append(el("span", class_="limit", style=f"left:{100 * capacity / scale:.2f}%"))
    alternative = f"{label}: {figures}" + (f" ({spoken})" if spoken else "") + (f", {lacking}" if lacking else "")
    return el(
        "div",
        el("span", label, class_="label"),
        el("span", *inside, class_="bar", role="img", aria_label=alternative),
        el("span", figures, el("b", lacking) if lacking else None, class_="figures"),
        class_=kind,
    )


def _figures(devices: Sequence[DeviceMemory], parts: Sequence[str]) -> Html:
    head = el("tr", el("th", "GiB", scope="col"), *(el("th", words.label(d), scope="col") for d in devices))
    rows = [
        el(
            "tr",
            el("th", words.PARTS[part], scope="row"),
            *(el("td", words.gib(int(d[part]))) for d in devices),  # type: ignore[literal-required]
        )
        for part in parts
    ]
    left = (el("td", words.gib(free(d))) for d in devices)
    last = el("tr", el("th", "left over", scope="row"), *left, class_="sum")
    table = el("table", el("thead", head), el("tbody", *rows, last))
    return el("details", el("summary", "Figures"), el("div", table, class_="scroll"))


def _model(placement: Placement, axes: Mapping[str, _Axis], alone: bool) -> Html:
    return el(
        "article",
        el("h3", placement["model"], " ", _badge(placement)),
        el("div", _choice(placement), _speed(placement, axes), class_="columns"),
        # The bars of the host say it already where nothing else runs there.
        None if alone else _memory(placement["memory"], [placement], el("h4", "Memory with this model")),
        _list("Why", placement["reasons"]),
        _list("Pinned in the inventory", [", ".join(placement["pinned"])] if placement["pinned"] else []),
        _list("Would be better", words.refused(placement, better=True)),
        _list(
            "What else would do" if placement["fits"] == "memory" else "What would fit",
            words.alternatives(placement),
            "instead",
        ),
        _list("Not chosen", words.refused(placement, better=False)),
        _options(placement),
        class_="model",
        id=_anchor(placement),
    )


def _choice(placement: Placement) -> Html:
    """What was decided, as far as it is known."""
    if not placement["engine"]:
        return el("dl", el("dt", "Context × slots"), el("dd", words.conversation(placement)), class_="choice")
    numa = placement["numa"].get("policy", "none")
    nodes = ", ".join(str(node) for node in placement["numa"].get("nodes") or [])
    threads = f"{placement['threads']}"
    if placement["threads_batch"] != placement["threads"]:
        threads += f", {placement['threads_batch']} for prompts"
    rows = {
        "Engine": placement["engine"],
        "Files": " ".join(
            part for part in (placement["quantisation"], str(placement["variant"].get("format", ""))) if part
        ),
        "From": placement["source"],
        "On disk": words.gb(placement["disk"]) if placement["disk"] else "",
        "Context × slots": words.conversation(placement),
        "Threads": threads if placement["threads"] else "",
        "NUMA": (f"{numa}, nodes {nodes}" if nodes else numa) if numa != "none" else "",
        "On the GPU": _offload(placement),
        "Port": str(placement["port"]),
    }
    shown = [part for name, text in rows.items() if text for part in (el("dt", name), el("dd", text))]
    return el("dl", *shown, class_="choice")


def _offload(placement: Placement) -> str:
    offload = placement["offload"]
    if not offload["gpu_layers"]:
        return ""
    text = words.counted(offload["gpu_layers"], "layer")
    if sum(offload["split"]) > offload["gpu_layers"]:
        text += f", each across {len(offload['split'])} GPUs"
    elif len(offload["split"]) > 1:
        text += f" ({' + '.join(str(layers) for layers in offload['split'])})"
    if offload["cpu_moe_layers"]:
        text += f", the experts of {offload['cpu_moe_layers']} in RAM"
    return text


class _Axis:
    """Powers of ten that hold all speeds of a plan: only so can 3 and 3000 be compared at a glance."""

    def __init__(self, speeds: Sequence[float]) -> None:
        self.low = math.floor(math.log10(min(speeds)))
        self.high = max(self.low + 1, math.ceil(math.log10(max(speeds))))

    def at(self, speed: float) -> float:
        """Per cent from the left."""
        if speed <= 0:
            return 0.0
        return min(100.0, max(0.0, 100 * (math.log10(speed) - self.low) / (self.high - self.low)))

    def ticks(self) -> list[tuple[float, str]]:
        return [
            (100 * (power - self.low) / (self.high - self.low), _power(power))
            for power in range(self.low, self.high + 1)
        ]


def _power(exponent: int) -> str:
    """As short as the ticks of a phone's screen must be."""
    for symbol, size in (("M", 6), ("k", 3)):
        if exponent >= size:
            return f"{10 ** (exponent - size)}{symbol}"
    return str(10**exponent)


def _axes(placements: Sequence[Placement]) -> dict[str, _Axis]:
    found: dict[str, list[float]] = {"decode": [], "prefill": []}
    for placement in placements:
        predicted: Mapping[str, Any] = placement["predicted"] or {}
        for kind, figures in found.items():
            if kind == "decode" and placement["kind"] == "embedding":
                continue  # it answers nothing
            figures += [predicted[key] for key in (f"{kind}_low", f"{kind}_high") if predicted.get(key)]
    return {kind: _Axis(figures) for kind, figures in found.items() if figures}


def _speed(placement: Placement, axes: Mapping[str, _Axis]) -> Html | None:
    found = placement["predicted"]
    if found is None:
        return None
    writes = placement["kind"] != "embedding"
    total = f"{words.rate(found['total'])} tok/s with {placement['slots']} conversations at once"
    return el(
        "div",
        el("h4", "Predicted speed, tokens per second"),
        _range("answering (decode)", "decode", found, axes) if writes else None,
        _range("reading (prefill)", "prefill", found, axes) if found["prefill"] is not None else None,
        el("p", total, class_="total") if writes and placement["slots"] > 1 else None,
        el("p", found["basis"], class_="basis") if found["basis"] else None,
        class_="speed",
    )


def _range(verb: str, kind: str, found: Speed, axes: Mapping[str, _Axis]) -> Html:
    middle, low, high = (found[key] for key in (kind, f"{kind}_low", f"{kind}_high"))  # type: ignore[literal-required]
    text = words.band(middle, low, high)
    drawn = []
    if low is not None and high is not None and kind in axes:
        axis = axes[kind]
        left, right = axis.at(low), axis.at(high)
        ticks = axis.ticks()
        for at, tick in ticks:
            # The outer figures stay inside the box.
            end = " first" if at == 0 else " last" if at == 100 else ""
            drawn.append(el("span", el("i", tick), class_=f"tick{end}", style=f"left:{at:.2f}%"))
        drawn.append(el("span", class_="band", style=f"left:{left:.2f}%;width:{right - left:.2f}%"))
        drawn.append(el("span", class_="point", style=f"left:{axis.at(middle):.2f}%"))
    spoken = f"{verb} {words.rate(middle)} tokens per second"
    if low is not None and high is not None:
        spoken += f", between {words.rate(low)} and {words.rate(high)}"
    return el(
        "div",
        el("span", verb, class_="label"),
        el("span", text, class_="figures"),
        el("span", *drawn, class_="range", role="img", aria_label=spoken),
        class_="row",
    )


def _list(title: str, lines: Sequence[str], kind: str | None = None) -> Html | None:
    if not lines:
        return None
    return el(
        "div", el("h4", title), el("ul", *(el("li", line) for line in lines)), class_=f"said {kind or ''}".strip()
    )


def _options(placement: Placement) -> Html | None:
    if not placement["flags"] and not placement["environment"]:
        return None
    lines = [f"{name}={shlex.quote(value)}" for name, value in placement["environment"].items()]
    lines += [
        f"--{name}" if value is True else f"--{name} {shlex.quote(str(value))}"
        for name, value in placement["flags"].items()
    ]
    return el("details", el("summary", "Command-line options"), el("pre", el("code", "\n".join(lines))))


def _changes(changes: Sequence[str]) -> Html | None:
    if not changes:
        return None
    return el(
        "section", el("h2", "What changes"), el("ul", *(el("li", change) for change in changes)), class_="changes"
    )
