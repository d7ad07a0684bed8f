# SPDX-License-Identifier: GPL-3.0-or-later
"""A run of a playbook that can be watched, and killed at a chosen moment; kills counted over several calls."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
BANNER = re.compile(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \*")


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``, also those that have made themselves leaders of a session."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


class Run:
    """Starts at once. ``tasks`` grows while it runs: name of each task, and seconds from the first one."""

    def __init__(self, command: Sequence[str], env: dict[str, str], cwd: Path) -> None:
        self.tasks: list[tuple[str, float]] = []
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            # Every task shows itself when it begins, also one that turns out to be skipped.
            env=env
            | {"PYTHONUNBUFFERED": "1", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true", "ANSIBLE_DISPLAY_OK_HOSTS": "true"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        start = 0.0
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            banner = BANNER.match(line)
            if banner:
                start = start or time.monotonic()
                with self._changed:
                    self.tasks.append((banner[1], time.monotonic() - start))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def reaches(self, condition: Callable[[list[tuple[str, float]]], bool], timeout: float = 1800) -> bool:
        """Wait until the tasks begun so far fulfil the condition; False when the run ended before."""
        with self._changed:
            self._changed.wait_for(lambda: condition(self.tasks) or self._ended, timeout)
            return condition(self.tasks)

    def goes_on(self, seconds: float) -> None:
        """Let it run on for so long, at most until the next task begins."""
        with self._changed:
            count = len(self.tasks)
            self._changed.wait_for(lambda: len(self.tasks) > count or self._ended, seconds)

    def kill(self, everything: bool) -> str:
        """SIGKILL to the run alone, or to all its processes at once. Returns the task it was in."""
        doing = self.tasks[-1][0] if self.tasks else ""
        pids = [self.process.pid, *(descendants(self.process.pid) if everything else [])]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return doing

    def wait(self, timeout: float = 1800) -> int:
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code


def commit() -> str:
    """What is tested; with changes that nobody committed, something that is never continued."""
    git, others = ["git", "-C", str(PROJECT)], ("--", ".", ":!docs/proof.md")
    last = [*git, "log", "-1", "--format=%h", "--abbrev=12", *others]
    head = subprocess.run(last, capture_output=True, text=True, check=True)
    dirty = subprocess.run([*git, "status", "--porcelain", *others], capture_output=True, text=True, check=True).stdout
    return head.stdout.strip() + (f" and changes, {time.strftime('%Y-%m-%d %H:%M:%S')}" if dirty else "")


def load(file: Path) -> dict[str, Any]:
    """What earlier calls for this commit left: seed, kills and rounds. ONPREM_SEED begins anew."""
    now, seed = commit(), os.environ.get("ONPREM_SEED")
    state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if state.get("commit") != now or (seed and int(seed) != state["seed"]):
        fresh = random.SystemRandom().randrange(10**6)
        state = {"commit": now, "seed": int(seed or fresh), "kills": 0, "rounds": []}
    return state


def save(file: Path, state: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".new")
    part.write_text(json.dumps(state, indent=1) + "\n")
    part.replace(file)
