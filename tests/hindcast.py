# SPDX-License-Identifier: GPL-3.0-or-later
"""Predictions for machines and models whose speed is published: tests/fixtures/published_speeds.json.

The rows are split by their names. Constants of plugins/module_utils/placement/speed.py are fitted on one half
(tests/bench/fit-speed); the other half is only reported.
"""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware import gpus
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Gpu, Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import speed
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Speed
from ansible_collections.onprem.llm.plugins.module_utils.shape import published
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

PROJECT = Path(__file__).resolve().parents[1]
DATA: dict[str, Any] = json.loads((PROJECT / "tests/fixtures/published_speeds.json").read_text())
ROWS: list[dict[str, Any]] = DATA["rows"]
PAGE = PROJECT / "docs/speed.md"
BEGIN, END = "<!-- hindcast: written by tests/bench/fit-speed -->", "<!-- end of hindcast -->"
ISA = {
    "avx2": ["avx", "avx2", "fma", "f16c"],
    "avx512": ["avx2", "avx512f", "avx512bw", "avx512_vnni"],
    "amx": ["avx2", "avx512f", "avx512bw", "avx512_vnni", "amx_tile", "amx_int8", "amx_bf16"],
}


@dataclass(frozen=True)
class Result:
    row: dict[str, Any]
    kind: str
    """decode, total or prefill."""
    published: float
    speed: Speed

    @property
    def predicted(self) -> float:
        return float(self.speed[self.kind])  # type: ignore[literal-required]

    @property
    def ratio(self) -> float:
        return self.predicted / self.published

    @property
    def factor(self) -> float:
        """How far off, whichever way."""
        return max(self.ratio, 1 / self.ratio)

    @property
    def inside(self) -> bool:
        """Whether the published figure lies in the interval."""
        if self.kind == "total":
            scale = self.speed["total"] / self.speed["decode"]
            return self.speed["decode_low"] * scale <= self.published <= self.speed["decode_high"] * scale
        return bool(self.speed[f"{self.kind}_low"] <= self.published <= self.speed[f"{self.kind}_high"])  # type: ignore[literal-required]


def fitted(name: str) -> bool:
    """Whether a row belongs to the half that constants are fitted on."""
    return hashlib.sha256(name.encode()).digest()[-1] % 2 == 0


def gpu(name: str, number: int) -> Gpu:
    known = gpus.card(None, name)
    capability, bandwidth, tflops, generation = (
        (known.compute_capability, known.bandwidth, known.tflops, known.generation) if known else DATA["cards"][name]
    )
    return Gpu(
        index=number,
        name=name,
        memory=None,
        compute_capability=capability,
        bandwidth=bandwidth * 10**9,
        flops=int(tflops * 10**12) if tflops else None,
        pci_address=None,
        pci_device=None,
        numa_node=None,
        link=gpus.LANE[generation] * 16,
        mig=None,
    )


def hardware(row: dict[str, Any]) -> Hardware:
    machine = DATA["machines"][row["machine"]]
    cores, nodes = machine["cores"], machine["nodes"]
    return Hardware(
        id=row["machine"],
        architecture="x86_64",
        cpu={
            "vendor": "",
            "model": row["machine"],
            "sockets": machine["sockets"],
            "cores": cores,
            "threads": cores,
            "threads_per_core": 1,
            "offline": [],
            "usable": float(cores),
            "isa": ISA[machine["isa"]],
        },
        numa=[
            {"id": node, "socket": None, "cpus": [node], "cores": cores // nodes, "memory": 2**40, "available": None}
            for node in range(nodes)
        ],
        memory={
            "total": nodes * 2**40,
            "available": None,
            "limit": None,
            "dimms": None,
            "bandwidth": machine["channels"] * machine["speed"] * 8_000_000,
            "measured": None,
        },
        gpus=[gpu(name, number) for number, name in enumerate(row["gpus"])],
        driver={"state": "ok", "version": None, "cuda": None, "toolkit": None},
        disk=None,
        system={
            "distribution": None,
            "version": None,
            "kernel": None,
            "glibc": None,
            "python": None,
            "virtualisation": None,
            "container": None,
        },
        unknown={},
    )


def shape(row: dict[str, Any]) -> Shape:
    keys = ("format", "quantisation", "size", "legacy")
    return published.shape(DATA["models"][row["model"]], {key: row[key] for key in keys if key in row})


@functools.cache
def known(name: str) -> tuple[Shape, Hardware]:
    row = next(row for row in ROWS if row["name"] == name)
    return shape(row), hardware(row)


def predict(row: dict[str, Any]) -> Speed:
    model, machine = known(row["name"])
    layers = len(model["layers"])
    on_gpus = layers + 1 if row["gpu_layers"] == "all" else row["gpu_layers"]
    count = len(row["gpus"])
    split = [on_gpus // count + (i < on_gpus % count) for i in range(count)] if count else []
    return speed.predict(
        model,
        machine,
        engine=row["engine"],
        offload={"gpu_layers": on_gpus, "cpu_moe_layers": row["cpu_moe_layers"], "split": split},
        threads=row.get("threads", machine["cpu"]["cores"]),
        slots=row["slots"],
        numa={"policy": row["policy"], "nodes": []},
        depth=row["depth"],
    )


def results() -> list[Result]:
    """Every published figure beside its prediction, in the order of the file."""
    return [
        Result(row, kind, float(row[kind]), answer)
        for row, answer in ((row, predict(row)) for row in ROWS)
        for kind in ("decode", "total", "prefill")
        if kind in row
    ]


def summary(found: list[Result]) -> tuple[float, float, float]:
    """Median factor, share within 1.5 times, share inside the interval."""
    return (
        statistics.median(one.factor for one in found),
        sum(one.factor <= 1.5 for one in found) / len(found),
        sum(one.inside for one in found) / len(found),
    )


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def table(found: list[Result]) -> str:
    lines = [
        "| Row | Figure | Published | Predicted (interval) | Predicted / published | Source |",
        "|---|---|---:|---:|---:|---|",
    ]
    for one in found:
        low, high = "", ""
        if one.kind != "total":
            low, high = (number(one.speed[f"{one.kind}_{end}"]) for end in ("low", "high"))  # type: ignore[literal-required]
        interval = f" ({low} - {high})" if low else ""
        miss = "" if one.factor <= 1.5 else " **miss**"
        note = f"; {one.row['note']}" if "note" in one.row else ""
        lines.append(
            f"| {one.row['name']} | {one.kind} | {number(one.published)} | {number(one.predicted)}{interval} "
            f"| {one.ratio:.2f}{miss} | {one.row['source']}, {one.row['date']}{note} |"
        )
    return "\n".join(lines)


def text() -> str:
    """The part of docs/speed.md between its marks."""
    every = results()
    parts = []
    for title, answers in (("Answers", ("decode", "total")), ("Prompts", ("prefill",))):
        for half, wanted in (("held out", False), ("fitted on", True)):
            found = [one for one in every if one.kind in answers and fitted(one.row["name"]) == wanted]
            median, near, inside = summary(found)
            parts.append(
                f"### {title}, {half}\n\n{len(found)} figures: median factor {median:.2f}, {near:.0%} within "
                f"1.5 times, {inside:.0%} inside the interval.\n\n{table(found)}"
            )
    return "\n\n".join(parts)


def page() -> str:
    """docs/speed.md with its table as it should be now."""
    before, rest = PAGE.read_text().split(BEGIN)
    return f"{before}{BEGIN}\n\n{text()}\n\n{END}{rest.split(END)[1]}"
