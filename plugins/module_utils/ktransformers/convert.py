# SPDX-License-Identifier: GPL-3.0-or-later
"""Experts in a format of kt-kernel's own: when files must be converted to it, where the result lies, what it takes.

The tensors are cut for the thread pools, one part for each, so a result fits one number of pools only
(kt-kernel/scripts/convert_cpu_weights.py: `--threadpool-count at conversion must equal the launch's`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, TypedDict

QUANT = {"AMXINT4": "int4", "AMXINT8": "int8"}
"""kt-kernel's method -> --quant-method."""
RESERVE = 10 * 10**9
"""Bytes that stay free on the disk: logs and the next download need some."""


class Conversion(TypedDict):
    model: str
    source: str
    """Folder of the model's safetensors."""
    path: str
    """Folder of the result; its name says for what it is good."""
    method: str
    quant: str
    input: str
    """fp8, fp16 or bf16."""
    pools: int
    threads: int
    bytes: int
    """Of the result, as planned."""


def conversion(placement: Mapping[str, Any], folder: str, identity: str) -> Conversion | None:
    """What must be converted for this placement; None where its files are used as they are.

    ``identity``: what the model's files are (their manifest); the same name with other files is another result.
    ValueError for files that the script does not read.
    """
    if not placement.get("converted"):
        return None
    flags, model = placement["flags"], str(placement["model"])
    method, pools = str(flags["kt-method"]), int(flags["kt-threadpool-count"])
    name = str(placement["variant"].get("quantisation") or "")
    found = re.match(r"FP8|FP16|BF16", name.upper())
    if method not in QUANT or not found:
        raise ValueError(
            f"{model}: {name or 'files of unknown quantisation'} cannot be converted to {method}. The script reads "
            "FP8, FP16 and BF16 and writes AMXINT4 and AMXINT8: pin another `quantisation` or `kt-method`."
        )
    key = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return Conversion(
        model=model,
        source=str(placement["model_path"]).rstrip("/"),
        path=f"{folder}/{model}.{method}-{pools}pools-{key}",
        method=method,
        quant=QUANT[method],
        input=found[0].lower(),
        pools=pools,
        threads=int(flags["kt-cpuinfer"]),
        bytes=int(placement["converted"]),
    )


def arguments(one: Conversion, output: str) -> list[str]:
    """Arguments of the script."""
    return [
        "--input-path", one["source"],
        "--input-type", one["input"],
        "--output", output,
        "--quant-method", one["quant"],
        "--cpuinfer-threads", str(one["threads"]),
        "--threadpool-count", str(one["pools"]),
    ]  # fmt: skip


def shortage(missing: list[Conversion], free: int, folder: str) -> str:
    """Why the disk is too small for what is still to be converted; empty when it is not."""
    needed = sum(one["bytes"] for one in missing)
    if not missing or needed + RESERVE <= free:
        return ""
    what = ", ".join(f"{one['model']} to {one['method']}" for one in missing)
    return (
        f"{folder}: converting {what} takes {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free, of which "
        f"{RESERVE / 1e9:.0f} stay free. Make room, or pin a `quantisation` that needs no conversion."
    )
