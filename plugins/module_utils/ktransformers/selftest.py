# SPDX-License-Identifier: GPL-3.0-or-later
"""What a self-test of kt-kernel means: what is refused before it runs, and the cause in one line when it fails.

The test itself is roles/ktransformers/files/selftest.py. Importing kt-kernel proves nothing: a build for a newer
processor imports, and dies at its first product.
"""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.placement.engines import AMX_KERNEL, KT_VARIANTS, version

VARIANT = "KT_KERNEL_CPU_VARIANT"
FLAGS = dict(KT_VARIANTS)
#: Largest relative error per method. The weights are exact in each, so what remains is rounding: of bfloat16 (seen:
#: 0.002 to 0.005), and of inputs where they are turned into 8-bit integers (seen: 0.013 to 0.022).
LIMITS = {
    "FP8": 0.01,
    "FP8_PERCHANNEL": 0.01,
    "BF16": 0.01,
    "MXFP4": 0.01,
    "MXFP8": 0.01,
    "LLAMAFILE": 0.01,
    "RAWINT4": 0.03,
    "GPTQ_INT4": 0.03,
    "AMXINT4": 0.04,
    "AMXINT8": 0.04,
}
SHELL = 128  # a shell reports a signal as this and its number


class Asked(NamedTuple):
    """What a service will compute with."""

    variant: str
    method: str
    threads: int
    nodes: Sequence[int]


class Host(NamedTuple):
    """What the host says of itself."""

    isa: Collection[str]
    """As /proc/cpuinfo spells the flags."""
    kernel: str
    nodes: Collection[int]
    cpus: int
    """That this system may use."""


def lacking(variant: str, isa: Collection[str]) -> list[str]:
    """Flags that this build of kt-kernel needs and the processor does not list."""
    return [flag for flag in FLAGS.get(variant, ()) if flag not in isa]


def best(host: Host, below: str = "") -> str:
    """The best build for this host, empty when there is none; with ``below`` the best of those under that one."""
    names = [name for name, _ in KT_VARIANTS]
    names = names[names.index(below) + 1 :] if below in names else names
    fits = (name for name in names if not lacking(name, host.isa) and not (name == "amx" and _old(host)))
    return next(fits, "")


def _old(host: Host) -> bool:
    kernel = version(host.kernel)
    return kernel is not None and kernel < AMX_KERNEL


def refusal(asked: Asked, host: Host) -> str:
    """Why this is not even tried on this host; empty when it may run.

    kt-kernel itself checks none of it: it ignores a name that it does not know, skips its own check of the processor
    when a build is named, and goes on when a NUMA node is missing.
    """
    variant, method, threads, nodes = asked
    if variant not in FLAGS:
        return (
            f"{VARIANT}={variant} is no build of kt-kernel, which would silently take another one. "
            f"Name one of {', '.join(FLAGS)}."
        )
    if method not in LIMITS:
        return f"kt-method {method} has no self-test. Use one of {', '.join(sorted(LIMITS))}."
    if gone := lacking(variant, host.isa):
        return (
            f"kt-kernel's build {variant} needs {', '.join(gone)}; this CPU does not have it, and the build was not "
            f"started. {_instead(variant, host)}"
        )
    if variant == "amx" and _old(host):
        return (
            f"kt-kernel's build amx needs Linux {AMX_KERNEL[0]}.{AMX_KERNEL[1]}, the first that gives tiles; "
            f"this kernel is {host.kernel}. Install a newer one, or: {_instead(variant, host)}"
        )
    if strange := [str(node) for node in nodes if node not in host.nodes]:
        return (
            f"NUMA node {', '.join(strange)} is asked for (kt-numa-nodes), and this host has "
            f"{', '.join(map(str, sorted(host.nodes)))}. kt-kernel would go on with a wrong memory layout. Plan again."
        )
    if not len(nodes) <= threads <= host.cpus:
        return (
            f"kt-cpuinfer asks for {threads} threads on {len(nodes)} NUMA nodes; this host gives {host.cpus} CPUs. "
            "Use as many as there are physical cores, at least one per node: plan again."
        )
    return ""


def _instead(variant: str, host: Host) -> str:
    other = best(host, variant)
    return f"Use {VARIANT}={other}." if other else "Use llama.cpp on this host."


def parse(out: str) -> dict[str, Any]:
    """The result among what the engine prints besides; empty when there is none."""
    for line in reversed(out.splitlines()):
        if line.startswith('{"variant"'):
            found: dict[str, Any] = json.loads(line)
            return found
    return {}


def cause(asked: Asked, host: Host, status: int | None, out: str, err: str) -> str:
    """Why the self-test failed, one line; empty when it passed.

    ``status`` is the exit status, negative for a signal, None when the time was over.
    """
    variant, method = asked.variant, asked.method
    what = f"kt-kernel's build {variant}, method {method}"
    if status is None:
        return (
            f"{what}: no result in time with {asked.threads} threads. Something else uses the CPUs (look with top), or "
            "raise ktransformers_selftest_timeout."
        )
    number = -status if status < 0 else status - SHELL
    if number == signal.SIGILL:
        return (
            f"variant {variant} died with SIGILL (illegal instruction) in method {method}: this CPU lacks "
            f"{', '.join(lacking(variant, host.isa)) or _doubt(variant, host)}. {_instead(variant, host)}"
        )
    if number in set(signal.Signals):
        return f"{what}: died with {signal.Signals(number).name}. Run it by hand for its last words: {_last(err)}"
    if status != 0:
        return f"{what}: {_why(variant, method, err)}"
    found = parse(out)
    if not found:
        return f"{what}: it ended well and printed no result: {_last(out)}. The tree is not what was locked."
    return _judged(asked, found)


def _judged(asked: Asked, found: Mapping[str, Any]) -> str:
    """What is wrong with a result; empty when it is right."""
    if found["variant"] != asked.variant:
        return (
            f"kt-kernel was told to load its build {asked.variant} and loaded {found['variant']}: the file of "
            f"{asked.variant} is missing or damaged. Remove the installed version, and run again."
        )
    error = float(found["error"])
    if not error <= LIMITS[asked.method] or math.isnan(error):
        return (
            f"kt-kernel's build {asked.variant}, method {asked.method} ({found['class']}) computes wrongly: relative "
            f"error {error:g}, at most {LIMITS[asked.method]} is right. Use another build or method."
        )
    return ""


def _doubt(variant: str, host: Host) -> str:
    claimed = ", ".join(flag for flag in FLAGS[variant] if flag.startswith("amx")) or FLAGS[variant][-1]
    return f"what /proc/cpuinfo lists ({claimed}), or this process may not use it (hypervisor, sandbox, forged flags)"


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "nothing was printed"


def _why(variant: str, method: str, err: str) -> str:
    """The cause behind a Python traceback."""
    last = _last(err)
    if found := re.search(r"No module named '([^']+)'", err):
        return (
            f"the installed version lacks the Python module {found[1]}. It was changed after it was built, or "
            "ktransformers_lock leaves it out. Remove the version's folder, and run again."
        )
    if found := re.search(r"undefined symbol: (\S+)", err):
        return (
            f"undefined symbol {found[1]}: torch and kt-kernel are not of one build (ABI). Install both from one lock "
            "file; never upgrade one of them."
        )
    if found := re.search(r"version `((?:GLIBC|GLIBCXX|CXXABI)_[0-9.]+)' not found", err):
        return f"a library of this system is too old: {found[1]} is missing. Use a newer release of the system."
    if "backend not available" in err or re.search(r"has no attribute '\w*_MOE'", err):
        others = [name for name, _ in KT_VARIANTS if name != variant]
        return (
            f"this build has no class for {method}: AMXINT4, AMXINT8 and FP8_PERCHANNEL need AVX512 and are in "
            f"{', '.join(name for name in others if name != 'avx2')} only. Plan with another method."
        )
    return f"failed: {last}"
