# SPDX-License-Identifier: GPL-3.0-or-later
"""Run llama-bench under limits of CPU and memory, and say how quiet the machine was meanwhile. Needs root.

As a program it prints the host's facts as JSON, for facts_under.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "collections"))

from ansible_collections.onprem.llm.plugins.module_utils.hardware.read import read
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware

CGROUPS = Path("/sys/fs/cgroup")
PERIOD = 100_000
TICK = os.sysconf("SC_CLK_TCK")
#: CPUs that other programs (and a hypervisor's other guests) may use while something is measured.
QUIET = 0.06
TRIES = 3


@dataclass(frozen=True)
class Limit:
    name: str
    cpus: int = 2
    """The first so many."""
    quota: float | None = None
    """CPUs at once."""
    busy: int = 0
    """Loops that keep a CPU busy beside it."""


@dataclass(frozen=True)
class Run:
    tokens: list[float]
    """Tokens per second of each repetition."""
    backend: str
    """As in haswell: the variant of ggml's CPU library that was loaded."""
    others: float
    """CPUs other programs used meanwhile."""


def folders(name: str) -> dict[str, Path]:
    """A control group for each controller: one folder in version 2, one per controller in version 1."""
    version1 = (CGROUPS / "cpu").is_dir()
    return {kind: (CGROUPS / kind / name if version1 else CGROUPS / name) for kind in ("cpu", "memory")}


@contextmanager
def group(limit: Limit, memory: int | None) -> Iterator[list[Path]]:
    """Control groups with the limits; the list is of the files a process id is written to."""
    found = folders(f"bench-{os.getpid()}")
    version1 = found["cpu"] != found["memory"]
    try:
        for folder in set(found.values()):
            folder.mkdir(exist_ok=True)
        if limit.quota:
            if version1:
                (found["cpu"] / "cpu.cfs_period_us").write_text(str(PERIOD))
                (found["cpu"] / "cpu.cfs_quota_us").write_text(str(int(limit.quota * PERIOD)))
            else:
                (found["cpu"] / "cpu.max").write_text(f"{int(limit.quota * PERIOD)} {PERIOD}")
        if memory:
            (found["memory"] / ("memory.limit_in_bytes" if version1 else "memory.max")).write_text(str(memory))
        yield [folder / "cgroup.procs" for folder in set(found.values())]
    finally:
        time.sleep(0.1)
        for folder in set(found.values()):
            folder.rmdir()


def busy_seconds() -> float:
    """CPU seconds of everything on the machine so far; time stolen by a hypervisor counts."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICK


def own_seconds() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in (resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF))
    )


def limited(command: Sequence[str], limit: Limit, memory: int | None = None) -> tuple[str, str, float]:
    """stdout, stderr and the CPUs others used. SystemExit when it fails, as without memory."""
    with group(limit, memory) as groups:

        def enter() -> None:
            os.sched_setaffinity(0, set(range(limit.cpus)))
            for file in groups:
                file.write_text(str(os.getpid()))

        loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(limit.busy)]
        time.sleep(0.2 if loops else 0)
        start, busy, own = time.monotonic(), busy_seconds(), own_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=enter)
        wall = time.monotonic() - start
        others = busy_seconds() - busy - (own_seconds() - own) - (wall * limit.busy if loops else 0)
        for loop in loops:
            loop.kill()
            loop.wait()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} under {limit.name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout, done.stderr, others / wall


def bench(program: Path, model: Path, limit: Limit, arguments: Sequence[str], memory: int | None = None) -> Run:
    """llama-bench on a quiet machine: the quietest of a few tries."""
    best: Run | None = None
    for _ in range(1 if limit.busy else TRIES):
        command = [str(program), "-m", str(model), "-o", "jsonl", *arguments]
        out, err, others = limited(command, limit, memory)
        tokens = [
            value for line in out.splitlines() if line.startswith("{") for value in json.loads(line)["samples_ts"]
        ]
        backend = re.search(r"libggml-cpu-(\w+)\.so", err)
        run = Run(tokens, backend[1] if backend else "", others)
        if best is None or run.others < best.others:
            best = run
        if best.others <= QUIET:
            break
    assert best is not None
    return best


def run_command(command: list[str]) -> tuple[int, str, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 127, "", "not found"
    return done.returncode, done.stdout, done.stderr


def facts(measure: bool) -> Hardware:
    return read("/", "here", str(PROJECT), run_command, measure)


def facts_under(limit: Limit) -> Hardware:
    """As host_hardware would read them on a host that is so limited."""
    found: Hardware = json.loads(limited([sys.executable, __file__], limit)[0])
    return found


if __name__ == "__main__":
    print(json.dumps(facts(False)))
