# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory bandwidth as measured by reading.

On each NUMA node one thread per physical core, pinned to it, searches its part of a buffer for a byte that is not there
(memchr of the C library, without the interpreter's lock). Every thread first writes its part, so the pages lie on its
node. The figure is bytes read per second by all threads of a node together, the best of eight passes: what programs
that read weights in order can hope for. It is no write or copy bandwidth and not that of remote nodes; the nodes are
read one after the other, and other programs on the host lower it. In a buffer that is not much larger than the last
level cache, hits of the cache raise it, and the reason says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Sequence

from ansible_collections.onprem.llm.plugins.module_utils.hardware.cpu import CPUS, read_cpu_list
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Node

PASSES = 8
TIMES_CACHE = 4
SHARE_OF_FREE = 20  # at most one twentieth of the free memory is written
SMALLEST = 64 * 2**20  # where the cache is unknown or tiny
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
PRESENT, ABSENT = 1, 2


def last_level_cache(tree: Tree, cpus: Sequence[int]) -> int:
    """Bytes of all last-level caches that the CPUs share among them, 0 when /sys does not tell."""
    caches: dict[str, int] = {}
    for cpu in cpus:
        best = (0, "", 0)
        for index in tree.names(f"{CPUS}/cpu{cpu}/cache") or []:
            folder = f"{CPUS}/cpu{cpu}/cache/{index}"
            size = (tree.text(f"{folder}/size") or "").strip()
            level = tree.number(f"{folder}/level")
            if level and size[:-1].isdigit() and size[-1:] in UNITS:
                shared = (tree.text(f"{folder}/shared_cpu_list") or str(cpu)).strip()
                best = max(best, (level, shared, int(size[:-1]) * UNITS[size[-1]]))
        caches[best[1]] = best[2]
    return sum(caches.values())


def one_per_core(tree: Tree, cpus: Sequence[int]) -> list[int]:
    """The first allowed CPU of each physical core."""
    first: dict[str, int] = {}
    for cpu in cpus:
        siblings = read_cpu_list(tree, f"{CPUS}/cpu{cpu}/topology/thread_siblings_list") or [cpu]
        first.setdefault(str(siblings), cpu)
    return sorted(first.values())


def read_rate(cpus: Sequence[int], size: int) -> int:
    """Bytes per second that threads pinned to these CPUs read from a buffer of ``size`` bytes; OSError when refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.memchr.restype = ctypes.c_void_p
    part = size // len(cpus) // mmap.PAGESIZE * mmap.PAGESIZE
    start = threading.Barrier(len(cpus))
    refused: list[OSError] = []
    # Each thread takes its own times: on a busy machine another one wakes up late, and would find little time gone.
    times: list[list[tuple[float, float]]] = [[] for _ in range(PASSES)]

    def work(cpu: int, address: int) -> None:
        try:
            os.sched_setaffinity(0, {cpu})  # of this thread
        except OSError as error:
            refused.append(error)
        ctypes.memset(address, PRESENT, part)
        with contextlib.suppress(threading.BrokenBarrierError):
            for spans in times:
                start.wait()
                began = time.perf_counter()
                libc.memchr(address, ABSENT, part)
                spans.append((began, time.perf_counter()))

    buffer = ctypes.c_char.from_buffer(mmap.mmap(-1, part * len(cpus)))
    started: list[threading.Thread] = []
    try:
        for number, cpu in enumerate(cpus):
            thread = threading.Thread(target=work, args=(cpu, ctypes.addressof(buffer) + number * part))
            thread.start()
            started.append(thread)
    except BaseException:
        start.abort()  # no thread may stay behind: the buffer goes with this function
        raise
    finally:
        for thread in started:
            thread.join()
    if refused:
        raise refused[0]
    seconds = min(max(end for _, end in spans) - min(began for began, _ in spans) for spans in times)
    return int(part * len(cpus) / seconds)


def measured(
    tree: Tree, nodes: Sequence[Node], allowed: set[int] | None, free: int | None, unknown: dict[str, str]
) -> dict[str, int] | None:
    """Bandwidth by NUMA node with CPUs; None, and the reason, where nothing can be measured."""
    if tree.recorded:
        unknown["memory.measured"] = "a recorded machine cannot be measured; run host_hardware on the machine itself"
        return None
    rates: dict[str, int] = {}
    notes = []
    for node in nodes:
        cpus = one_per_core(tree, [cpu for cpu in node["cpus"] if allowed is None or cpu in allowed])
        if not cpus:
            if node["cpus"]:
                notes.append(f"node {node['id']}: this process may not run on its CPUs")
            continue
        cache = last_level_cache(tree, node["cpus"])
        wanted = max(TIMES_CACHE * cache, SMALLEST)
        most = min(node["available"] or free or 0, free or 0) // SHARE_OF_FREE
        if most < SMALLEST:
            notes.append(f"node {node['id']}: a twentieth of its free memory is less than {SMALLEST >> 20} MiB")
            continue
        if most < wanted:
            notes.append(
                f"node {node['id']}: the buffer of {most >> 20} MiB is less than {TIMES_CACHE} x the last-level cache "
                f"({cache >> 20} MiB), so the figure may be too high"
            )
        try:
            rates[str(node["id"])] = read_rate(cpus, min(wanted, most))
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            notes.append(f"node {node['id']}: not measured ({error})")
    if notes:
        unknown["memory.measured"] = "; ".join(notes) + "; measure on the idle host with more free memory"
    return rates or None
